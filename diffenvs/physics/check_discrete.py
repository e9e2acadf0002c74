"""The part of `check` that concerns the integrator discrete: what its metric may not hold.

Springs and dampers enter the system that this integrator solves, and its constraint rows have
coefficients of their own; both are derived for linear springs and dampers of joints, affine
actuators at hinges and slides, limits of joints, and contacts.
"""

from collections.abc import Callable, Iterator

import mujoco
import numpy as np

from .check_actuator import is_plain

_ADVICE = "under discrete: set integrator to implicitfast, or to Euler"
# field: (element, what it is)
_ABSENT = {
    "jnt_stiffnesspoly": ("joint", "polynomial stiffness"),
    "dof_dampingpoly": ("dof", "polynomial damping"),
    "dof_frictionloss": ("dof", "frictionloss"),
}


def check_discrete(
    mjm: mujoco.MjModel, name_of: Callable, exerting_tendons: np.ndarray
) -> Iterator[str]:
    """Problems under the integrator discrete; `name_of` is `_name` of `check`."""
    if mjm.opt.integrator != mujoco.mjtIntegrator.mjINT_DISCRETE:
        return
    for field, (element, what) in _ABSENT.items():
        values = np.asarray(getattr(mjm, field))
        for i in np.flatnonzero(values.reshape(len(values), -1).any(axis=1)).tolist():
            yield f"{name_of(mjm, element, i)} has {what} {_ADVICE}"
    rotations = (int(mujoco.mjtJoint.mjJNT_BALL), int(mujoco.mjtJoint.mjJNT_FREE))
    for i in np.flatnonzero(np.isin(mjm.jnt_type, rotations) & (mjm.jnt_stiffness != 0)).tolist():
        yield f"{name_of(mjm, 'joint', i)} (ball or free) has a spring {_ADVICE}"
    for i in np.flatnonzero(~is_plain(mjm)).tolist():
        yield (
            f"{name_of(mjm, 'actuator', i)} is more than an affine force at a hinge or slide "
            f"without actuatorfrcrange, {_ADVICE}"
        )
    for i in np.flatnonzero(exerting_tendons).tolist():
        yield f"{name_of(mjm, 'tendon', i)} exerts a force {_ADVICE}"
    for i in range(mjm.neq):
        yield f"{name_of(mjm, 'equality', i)} is a constraint {_ADVICE}"
    for field in ("density", "viscosity"):
        if getattr(mjm.opt, field):
            yield f"option {field} = {getattr(mjm.opt, field):g} {_ADVICE}"
