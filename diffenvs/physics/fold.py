"""A model without damping and armature of actuators, that moves as the given one does.

MuJoCo adds both, times the square of `gear[0]`, to the joint (all of its dofs) or tendon that the
actuator drives. So the adjoint needs to know only those of joints and tendons.
"""

import copy

import mujoco
import numpy as np

_JOINTS = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
_TENDON = int(mujoco.mjtTrn.mjTRN_TENDON)
_FIELDS = ("damping", "dampingpoly", "armature")


def folded(mjm: mujoco.MjModel) -> mujoco.MjModel:
    """`mjm` itself if no actuator at a joint or tendon has damping or armature, else a copy."""
    here = np.isin(mjm.actuator_trntype, (*_JOINTS, _TENDON))
    given = [getattr(mjm, f"actuator_{name}") for name in _FIELDS]
    if not any(values[here].any() for values in given):
        return mjm
    mjm = copy.copy(mjm)
    for i in np.flatnonzero(here):
        target, gear = mjm.actuator_trnid[i, 0], mjm.actuator_gear[i, 0]
        tendon = mjm.actuator_trntype[i] == _TENDON
        element = "tendon" if tendon else "dof"
        reached = target if tendon else np.flatnonzero(mjm.dof_jntid == target)
        for name in _FIELDS:
            values = getattr(mjm, f"actuator_{name}")
            getattr(mjm, f"{element}_{name}")[reached] += values[i] * gear**2
            values[i] = 0
    return mjm
