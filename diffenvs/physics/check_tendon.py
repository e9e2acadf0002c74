"""The part of `check` that concerns tendons."""

from collections.abc import Iterator

import mujoco
import numpy as np

from .model_names import element_name


def check_tendons(mjm: mujoco.MjModel) -> Iterator[str]:
    """What of the model's tendons has no adjoint."""
    for i, problem in _problems(mjm):
        yield f"{element_name(mjm, 'tendon', i)} {problem}"


def _problems(mjm: mujoco.MjModel) -> Iterator[tuple[int, str]]:
    implicitfast = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for i in np.flatnonzero(exerting(mjm)).tolist():
        for problem in _wraps(mjm, i):
            yield i, problem
        spatial = mjm.tendon_type[i] == int(mujoco.mjtTendon.mjTENDON_SPATIAL)
        damping = mjm.tendon_dampingpoly[i].any() or (spatial and mjm.tendon_damping[i])
        if implicitfast and damping and _leaves_pattern(mjm, i):
            yield (
                i,
                "has damping that changes with the state, under implicitfast, and couples joints "
                "that the mass matrix does not: set integrator to Euler, or use a fixed tendon "
                "with a linear damping",
            )
        elif implicitfast and damping and _holds_free_body(mjm, i):
            yield (
                i,
                "has damping, under implicitfast, and holds a free body without joints, whose "
                "velocity mujoco_warp integrates apart: set integrator to Euler",
            )
        if implicitfast and mjm.tendon_armature[i] and _holds_free_body(mjm, i):
            yield (
                i,
                "has armature, under implicitfast, and holds a free body without joints, whose "
                "inertia is then not that of the body alone: set integrator to Euler",
            )
        if spatial and mjm.tendon_armature[i] and _leaves_pattern(mjm, i):
            yield (
                i,
                "(spatial) has armature and couples joints that the mass matrix does not: set "
                "armature to 0",
            )


def _wraps(mjm: mujoco.MjModel, tenid: int) -> Iterator[str]:
    """What has no adjoint of the geoms that a tendon wraps around."""
    geoms = (int(mujoco.mjtWrap.mjWRAP_SPHERE), int(mujoco.mjtWrap.mjWRAP_CYLINDER))
    adr = mjm.tendon_adr[tenid]
    wraps = [i for i in range(adr, adr + mjm.tendon_num[tenid]) if mjm.wrap_type[i] in geoms]
    if wraps and mjm.tendon_armature[tenid]:
        yield "wraps around a geom and has armature: set armature to 0"
    for i in wraps:
        geomid, side = mjm.wrap_objid[i], round(mjm.wrap_prm[i])
        if side < 0:
            continue
        geom = element_name(mjm, "geom", geomid)
        bodies = mjm.body_weldid[[mjm.geom_bodyid[geomid], mjm.site_bodyid[side]]]
        data = mujoco.MjData(mjm)
        mujoco.mj_kinematics(mjm, data)
        distance = np.linalg.norm(data.site_xpos[side] - data.geom_xpos[geomid])
        if bodies[0] != bodies[1] or distance < 1.01 * mjm.geom_size[geomid, 0]:
            yield (
                f"wraps around {geom} with a sidesite inside of it or on another body: move "
                "the sidesite out of the geom, onto its body"
            )


def exerting(mjm: mujoco.MjModel) -> np.ndarray:
    """Which tendons exert a force, (ntendon,)."""
    found = np.zeros(mjm.ntendon, bool)
    for name in "stiffness stiffnesspoly damping dampingpoly frictionloss armature limited".split():
        values = getattr(mjm, f"tendon_{name}")
        found |= values.any(axis=1) if values.ndim == 2 else values.astype(bool)
    driven = mjm.actuator_trntype == int(mujoco.mjtTrn.mjTRN_TENDON)
    found[mjm.actuator_trnid[driven, 0]] = True
    for ids in (mjm.eq_obj1id, mjm.eq_obj2id):
        tied = ids[mjm.eq_type == int(mujoco.mjtEq.mjEQ_TENDON)]
        found[tied[tied >= 0]] = True
    return found


def _dofs(mjm: mujoco.MjModel, tenid: int) -> np.ndarray:
    adr = mjm.ten_J_rowadr[tenid]
    return mjm.ten_J_colind[adr : adr + mjm.ten_J_rownnz[tenid]]


def _holds_free_body(mjm: mujoco.MjModel, tenid: int) -> bool:
    """Whether a tendon acts on a tree that is a single free body."""
    dofs = _dofs(mjm, tenid)
    free = mjm.jnt_type[mjm.dof_jntid[dofs]] == int(mujoco.mjtJoint.mjJNT_FREE)
    return bool(np.any(free & (mjm.tree_dofnum[mjm.dof_treeid[dofs]] == 6)))


def _leaves_pattern(mjm: mujoco.MjModel, tenid: int) -> bool:
    adr = mjm.ten_J_rowadr[tenid]
    return leaves_pattern(mjm, mjm.ten_J_colind[adr : adr + mjm.ten_J_rownnz[tenid]])


def leaves_pattern(mjm: mujoco.MjModel, dofs: np.ndarray) -> bool:
    """Whether the mass matrix has no entry for some pair of dofs."""
    for dof in dofs:
        start = mjm.M_rowadr[dof]
        held = mjm.M_colind[start : start + mjm.M_rownnz[dof]]
        if np.setdiff1d(dofs[dofs < dof], held).size:
            return True
    return False
