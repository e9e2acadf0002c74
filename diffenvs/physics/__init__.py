"""Differentiable MuJoCo physics on stock mujoco_warp.

`Physics` steps many worlds of any model that `check_model` accepts, and differentiates the step in
closed form by the state and all `Inputs`; `linearize` gives the matrices of the discrete dynamics.
The mathematics is in `DERIVATION.md`.
"""

from .check import UnsupportedFeature, check_model
from .forces import Forces
from .inputs import Inputs
from .linearize import linearize
from .step import Physics, State

__all__ = [
    "Forces",
    "Inputs",
    "Physics",
    "State",
    "UnsupportedFeature",
    "check_model",
    "linearize",
]
