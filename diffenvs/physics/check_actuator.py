"""The part of `check` that concerns actuators: combinations whose derivative is not computed."""

from collections.abc import Callable, Iterator

import mujoco
import numpy as np

_TRN, _DYN, _JNT = mujoco.mjtTrn, mujoco.mjtDyn, mujoco.mjtJoint
_GAIN, _BIAS = mujoco.mjtGain, mujoco.mjtBias
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
    plain[joint] &= np.isin(mjm.jnt_type[target], (int(_JNT.mjJNT_HINGE), int(_JNT.mjJNT_SLIDE)))
    plain[joint] &= mjm.jnt_actfrclimited[target] == 0
    return plain


def check_actuators(mjm: mujoco.MjModel, name_of: Callable) -> Iterator[str]:
    """Problems of actuators beyond the kinds that `check` accepts; `name_of` is its `_name`."""
    disabled = int(mjm.opt.disableactuator)
    integrator = mjm.opt.integrator
    implicitfast = integrator == int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
    by_velocity = depends_on_velocity(mjm)
    for i in range(mjm.nactuator):
        name = name_of(mjm, "actuator", i)
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
            yield from _implicit_actuator(mjm, i, name_of)
    for i in np.flatnonzero(mjm.jnt_actfrclimited).tolist():
        name = f"{name_of(mjm, 'joint', i)} has actuatorfrcrange"
        if mjm.jnt_actgravcomp[i]:
            yield f"{name} and actuatorgravcomp: remove one of them"
        if not np.isin(mjm.actuator_trntype, _JOINTS).all():
            yield (
                f"{name} in a model with actuators at sites or tendons: set actuatorfrclimited to "
                "false and limit the actuators by forcerange"
            )


def _implicit_actuator(mjm: mujoco.MjModel, i: int, name_of: Callable) -> Iterator[str]:
    """What an actuator whose force depends on velocity may not be under implicitfast."""
    advice = "set integrator to Euler, or its velocity gain and bias to 0"
    name = name_of(mjm, "actuator", i)
    gain = mjm.actuator_gaintype[i]
    if (
        (gain == int(_GAIN.mjGAIN_AFFINE) and mjm.actuator_gainprm[i, 2])
        or gain == int(_GAIN.mjGAIN_MUSCLE)
    ) and mjm.actuator_dyntype[i] == int(_DYN.mjDYN_NONE):
        clamped = not mjm.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_CLAMPCTRL)
        if clamped and mjm.actuator_ctrllimited[mjm.actuator_ctrladr[i]]:
            yield (
                f"{name} has a velocity gain and a ctrlrange under implicitfast, where mujoco_warp "
                "takes the gain at the unclamped control: set integrator to Euler, gainprm[2] to 0 "
                "or ctrllimited to false"
            )
    target, reference = mjm.actuator_trnid[i]
    trntype = mjm.actuator_trntype[i]
    if trntype == int(_TRN.mjTRN_SITE):
        bodies = [mjm.site_bodyid[site] for site in (target, reference) if site >= 0]
        chains = [_dof_chain(mjm, body) for body in bodies]
        shared = set.intersection(*chains) if len(chains) > 1 else set()
        moving = [chain - shared for chain in chains]
        if all(moving) and len(moving) > 1:
            yield (
                f"{name} couples joints of two branches by a force that depends on velocity, under "
                f"implicitfast: {advice}"
            )
        dofs = set().union(*moving)
    elif trntype in _JOINTS:
        dofs = {int(mjm.jnt_dofadr[target])}
    else:
        return
    for dof in dofs:
        joint = mjm.dof_jntid[dof]
        body = mjm.body_rootid[mjm.dof_bodyid[dof]]
        tree = mjm.dof_treeid[dof]
        if mjm.jnt_type[joint] == int(mujoco.mjtJoint.mjJNT_FREE) and mjm.tree_dofnum[tree] == 6:
            yield (
                f"{name} acts on the free {name_of(mjm, 'body', body)} by a force that depends on "
                f"velocity, under implicitfast: {advice}"
            )
            return


def _dof_chain(mjm: mujoco.MjModel, body: int) -> set[int]:
    """The dofs that move a body."""
    weld = mjm.body_weldid[body]
    dof = mjm.body_dofadr[weld] + mjm.body_dofnum[weld] - 1 if weld > 0 else -1
    chain = set()
    while dof >= 0:
        chain.add(int(dof))
        dof = mjm.dof_parentid[dof]
    return chain
