"""The part of `check` that concerns the integrator discrete: what its metric may not hold.

Springs and dampers enter the system that this integrator solves, and its constraint rows have
coefficients of their own; both are derived for springs and dampers of joints, affine actuators at
hinges and slides, friction loss, limits and equalities of joints, and contacts.
"""

import copy
from collections.abc import Iterator

import mujoco
import numpy as np

from .check_actuator import is_plain
from .check_tendon import exerting
from .model_names import element_name

_ADVICE = "under discrete: set integrator to implicitfast, or to Euler"


def check_discrete(mjm: mujoco.MjModel) -> Iterator[str]:
    """Problems under the integrator discrete."""
    if mjm.opt.integrator != mujoco.mjtIntegrator.mjINT_DISCRETE:
        return
    for i in np.flatnonzero(~_is_affine(mjm)).tolist():
        yield (
            f"{element_name(mjm, 'actuator', i)} is more than an affine force at a hinge or slide "
            f"without actuatorfrcrange, {_ADVICE}"
        )
    for i in np.flatnonzero(exerting(mjm)).tolist():
        yield f"{element_name(mjm, 'tendon', i)} exerts a force {_ADVICE}"
    for i in np.flatnonzero(mjm.eq_type != int(mujoco.mjtEq.mjEQ_JOINT)).tolist():
        yield f"{element_name(mjm, 'equality', i)} is a constraint {_ADVICE}"


def _is_affine(mjm: mujoco.MjModel) -> np.ndarray:
    """Which actuators have a stiffness and damping that depend on no activation, (nactuator,)."""
    plain = copy.copy(mjm)
    constant = ~plain.actuator_gainprm[:, 1:3].any(axis=1)
    plain.actuator_dyntype[constant] = int(mujoco.mjtDyn.mjDYN_NONE)
    return is_plain(plain)
