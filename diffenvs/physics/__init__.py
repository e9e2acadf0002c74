"""Differentiable MuJoCo physics on stock mujoco_warp.

`Physics` steps many worlds of any model that `check_model` accepts, and differentiates the step in
closed form by the state and all `Inputs`; `linearize` gives the matrices of the discrete dynamics.
The mathematics is in `DERIVATION.md`.
"""

from .load import paused_collector

with paused_collector():
    from .check import UnsupportedFeature, check_model
    from .forces import FORCES, Forces
    from .inputs import Inputs
    from .kinematics import Kinematics
    from .linearize import linearize
    from .spatial import vec10
    from .step import Physics, State

__all__ = [
    "FORCES",
    "Forces",
    "Inputs",
    "Kinematics",
    "Physics",
    "State",
    "UnsupportedFeature",
    "check_model",
    "linearize",
    "vec10",
]
