"""The part of `check` that concerns actuators: combinations whose derivative is not computed."""

from collections.abc import Iterator

import mujoco
import numpy as np

from .check_tendon import leaves_pattern
from .model_names import element_name

_TRN, _DYN, _JOINT = mujoco.mjtTrn, mujoco.mjtDyn, mujoco.mjtJoint
_GAIN, _BIAS, _DISABLE = mujoco.mjtGain, mujoco.mjtBias, mujoco.mjtDisableBit
_JOINTS = (int(_TRN.mjTRN_JOINT), int(_TRN.mjTRN_JOINTINPARENT))


def depends_on_velocity(mjm: mujoco.MjModel) -> np.ndarray:
    """Which actuators exert a force that depends on their velocity, (nactuator,)."""
    gain, bias = mjm.actuator_gaintype, mjm.actuator_biastype
    affine = (gain == int(_GAIN.mjGAIN_AFFINE)) & (mjm.actuator_gainprm[:, 2] != 0)
    affine |= (bias == int(_BIAS.mjBIAS_AFFINE)) & (mjm.actuator_biasprm[:, 2] != 0)
    return affine | (gain == int(_GAIN.mjGAIN_MUSCLE))


def is_plain(mjm: mujoco.MjModel) -> np.ndarray:
    """Which actuators are an affine force at a hinge or slide without a limit, (nactuator,)."""
    joint = np.isin(mjm.actuator_trntype, (int(_TRN.mjTRN_JOINT), int(_TRN.mjTRN_JOINTINPARENT)))
    plain = joint & (mjm.actuator_dyntype == int(_DYN.mjDYN_NONE))
    plain &= np.isin(mjm.actuator_gaintype, (int(_GAIN.mjGAIN_FIXED), int(_GAIN.mjGAIN_AFFINE)))
    plain &= np.isin(mjm.actuator_biastype, (int(_BIAS.mjBIAS_NONE), int(_BIAS.mjBIAS_AFFINE)))
    target = mjm.actuator_trnid[joint, 0]
    plain[joint] &= np.isin(
        mjm.jnt_type[target], (int(_JOINT.mjJNT_HINGE), int(_JOINT.mjJNT_SLIDE))
    )
    plain[joint] &= mjm.jnt_actfrclimited[target] == 0
    return plain


def check_actuators(mjm: mujoco.MjModel) -> Iterator[str]:
    """Problems of actuators beyond the kinds that `check` accepts."""
    disabled = int(mjm.opt.disableactuator)
    integrator = mjm.opt.integrator
    implicitfast = integrator == int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
    by_velocity = depends_on_velocity(mjm)
    for i in range(mjm.nactuator):
        name = element_name(mjm, "actuator", i)
        if mjm.actuator_group[i] in range(31) and disabled >> int(mjm.actuator_group[i]) & 1:
            yield (
                f"{name} is disabled by option actuatorgroupdisable, which "
                "mujoco_warp ignores: remove the actuator"
            )
        if (
            mjm.actuator_dyntype[i] == int(_DYN.mjDYN_FILTEREXACT)
            and integrator == mujoco.mjtIntegrator.mjINT_RK4
        ):
            yield (
                f"{name} has dyntype filterexact under RK4, whose stages mujoco_warp integrates "
                "unlike MuJoCo: set dyntype to filter"
            )
        if implicitfast and by_velocity[i]:
            yield from _implicit_actuator(mjm, i)
        if mjm.opt.disableflags & int(_DISABLE.mjDSBL_ACTUATION) and mjm.actuator_actlimited[i]:
            yield (
                f"{name} has an actrange and option disableflags has mjDSBL_ACTUATION, under which "
                "mujoco_warp clamps activations and MuJoCo does not: set actlimited to false"
            )
    yield from _limited_joints(mjm)
    yield from _limited_tendons(mjm)


def _limited_joints(mjm: mujoco.MjModel) -> Iterator[str]:
    elsewhere = np.flatnonzero(~np.isin(mjm.actuator_trntype, _JOINTS)).tolist()
    driven = set().union(*(_driven(mjm, i) for i in elsewhere))
    for i in np.flatnonzero(mjm.jnt_actfrclimited).tolist():
        name = f"{element_name(mjm, 'joint', i)} has actuatorfrcrange"
        if mjm.jnt_type[i] in (int(_JOINT.mjJNT_FREE), int(_JOINT.mjJNT_BALL)):
            yield f"{name} and is free or ball: set actuatorfrclimited to false"
        if mjm.jnt_actgravcomp[i]:
            yield f"{name} and actuatorgravcomp: remove one of them"
        if mjm.jnt_dofadr[i] in driven:
            yield (
                f"{name} and is driven through a site or tendon: set actuatorfrclimited to false "
                "and limit the actuators by forcerange"
            )


def _limited_tendons(mjm: mujoco.MjModel) -> Iterator[str]:
    """The limit scales all forces on a tendon; only their sum is then known to be constant."""
    for i in np.flatnonzero(mjm.tendon_actfrclimited).tolist():
        on = (mjm.actuator_trntype == int(_TRN.mjTRN_TENDON)) & (mjm.actuator_trnid[:, 0] == i)
        gears = np.unique(mjm.actuator_gear[on, 0])
        if on.sum() > 1 and (gears.size > 1 or mjm.actuator_forcelimited[on].any()):
            yield (
                f"{element_name(mjm, 'tendon', i)} has actuatorfrcrange and several actuators of "
                "which one has a forcerange or another gear: remove the forcerange and use one gear"
            )


def _implicit_actuator(mjm: mujoco.MjModel, i: int) -> Iterator[str]:
    """What an actuator whose force depends on velocity may not be under implicitfast."""
    advice = "set integrator to Euler, or its velocity gain and bias to 0"
    name = element_name(mjm, "actuator", i)
    gain = mjm.actuator_gaintype[i]
    by_gain = gain == int(_GAIN.mjGAIN_MUSCLE) or (
        gain == int(_GAIN.mjGAIN_AFFINE) and mjm.actuator_gainprm[i, 2]
    )
    if by_gain and mjm.actuator_dyntype[i] == int(_DYN.mjDYN_NONE):
        clamped = not mjm.opt.disableflags & int(_DISABLE.mjDSBL_CLAMPCTRL)
        if clamped and mjm.actuator_ctrllimited[mjm.actuator_ctrladr[i]]:
            yield (
                f"{name} has a velocity gain and a ctrlrange under implicitfast, where mujoco_warp "
                "takes the gain at the unclamped control: set integrator to Euler, gainprm[2] to 0 "
                "or ctrllimited to false"
            )
    dofs = _driven(mjm, i)
    if (by_gain or _moment_changes(mjm, i)) and leaves_pattern(mjm, np.sort(dofs)):
        yield (
            f"{name} couples joints that the mass matrix does not, by a force that depends on "
            f"velocity, under implicitfast: {advice}"
        )
    for dof in dofs:
        lone = mjm.tree_dofnum[mjm.dof_treeid[dof]] == 6
        if lone and mjm.jnt_type[mjm.dof_jntid[dof]] == int(_JOINT.mjJNT_FREE):
            body = element_name(mjm, "body", mjm.dof_bodyid[dof])
            yield (
                f"{name} acts on the free {body} by a force that depends on velocity, under "
                f"implicitfast: {advice}"
            )
            return


def _moment_changes(mjm: mujoco.MjModel, i: int) -> bool:
    """Whether the moment of an actuator depends on the configuration."""
    target, trntype = mjm.actuator_trnid[i, 0], mjm.actuator_trntype[i]
    if trntype == int(_TRN.mjTRN_TENDON):
        return bool(mjm.tendon_type[target] != int(mujoco.mjtTendon.mjTENDON_FIXED))
    return bool(trntype != int(_TRN.mjTRN_JOINT))


def _driven(mjm: mujoco.MjModel, i: int) -> list[int]:
    """The dofs that an actuator can drive."""
    target, reference = mjm.actuator_trnid[i]
    trntype = mjm.actuator_trntype[i]
    if trntype in _JOINTS:
        return np.flatnonzero(mjm.dof_jntid == target).tolist()
    if trntype == int(_TRN.mjTRN_TENDON):
        adr = mjm.ten_J_rowadr[target]
        return mjm.ten_J_colind[adr : adr + mjm.ten_J_rownnz[target]].tolist()
    if trntype == int(_TRN.mjTRN_SITE):
        dofs = path_dofs(mjm, mjm.site_bodyid[target])
        return list(dofs ^ path_dofs(mjm, mjm.site_bodyid[reference]) if reference >= 0 else dofs)
    return []


def path_dofs(mjm: mujoco.MjModel, body: int) -> set[int]:
    """The dofs that move a body."""
    weld = mjm.body_weldid[body]
    dof = mjm.body_dofadr[weld] + mjm.body_dofnum[weld] - 1 if weld > 0 else -1
    path = set()
    while dof >= 0:
        path.add(int(dof))
        dof = mjm.dof_parentid[dof]
    return path
