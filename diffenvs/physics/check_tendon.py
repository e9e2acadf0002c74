"""Refuses, for `check`, what of tendons has no adjoint."""

from collections.abc import Iterator

import mujoco
import numpy as np


def tendon_problems(mjm: mujoco.MjModel) -> Iterator[tuple[int, str]]:
    """Tendons and what of each has no adjoint."""
    implicitfast = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    wraps = np.isin(
        mjm.wrap_type, (int(mujoco.mjtWrap.mjWRAP_SPHERE), int(mujoco.mjtWrap.mjWRAP_CYLINDER))
    )
    for i in np.flatnonzero(_exerting(mjm)).tolist():
        adr = mjm.tendon_adr[i]
        if wraps[adr : adr + mjm.tendon_num[i]].any():
            yield i, "wraps around a geom: lead it through sites"
        if not _leaves_pattern(mjm, i):
            continue
        spatial = mjm.tendon_type[i] == int(mujoco.mjtTendon.mjTENDON_SPATIAL)
        damping = spatial and mjm.tendon_damping[i]
        if implicitfast and (damping or mjm.tendon_dampingpoly[i].any()):
            yield (
                i,
                "has damping that changes with the state, under implicitfast, and couples joints "
                "that the mass matrix does not: set integrator to Euler, or use a fixed tendon "
                "with a linear damping",
            )
        if spatial and mjm.tendon_armature[i]:
            yield (
                i,
                "(spatial) has armature and couples joints that the mass matrix does not: set "
                "armature to 0",
            )


def _exerting(mjm: mujoco.MjModel) -> np.ndarray:
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


def _leaves_pattern(mjm: mujoco.MjModel, tenid: int) -> bool:
    """Whether the mass matrix has no entry for some pair of dofs of a tendon."""
    adr = mjm.ten_J_rowadr[tenid]
    dofs = mjm.ten_J_colind[adr : adr + mjm.ten_J_rownnz[tenid]]
    for dof in dofs:
        start = mjm.M_rowadr[dof]
        held = mjm.M_colind[start : start + mjm.M_rownnz[dof]]
        if np.setdiff1d(dofs[dofs < dof], held).size:
            return True
    return False
