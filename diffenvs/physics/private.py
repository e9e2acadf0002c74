"""Every private name of mujoco_warp that this package uses; no other file imports one.

A release of mujoco_warp that moves a name is reported here, on import, and by a test.
"""

import importlib.metadata

import mujoco_warp as mjw
import warp as wp

try:
    from mujoco_warp._src.forward import _advance as advance
    from mujoco_warp._src.forward import _next_time_builder as next_time_builder
    from mujoco_warp._src.forward import _rk_accumulate as rk_accumulate
    from mujoco_warp._src.forward import _rk_correct_velocity as rk_correct_velocity
    from mujoco_warp._src.forward import _rk_perturb_state as rk_perturb_state
    from mujoco_warp._src.solver import _create_solver_context as create_solver_context
    from mujoco_warp._src.solver import _solve as solve
    from mujoco_warp._src.solver import _update_gradient as update_gradient
    from mujoco_warp._src.solver import _use_incremental as use_incremental
except ImportError as error:
    raise ImportError(
        f"diffenvs needs mujoco_warp 4.0, found {importlib.metadata.version('mujoco_warp')}, which"
        f" has moved an internal name: {error}; install mujoco-warp==4.0.0"
    ) from error

__all__ = [
    "advance",
    "create_solver_context",
    "next_time_builder",
    "rk_accumulate",
    "rk_correct_velocity",
    "rk_perturb_state",
    "solve",
    "update_gradient",
    "use_incremental",
    "watch_overflow",
]


def watch_overflow(m: mjw.Model, d: mjw.Data) -> None:
    """Marks the worlds of `d` whose contacts or rows did not fit, as a step does at its end."""
    time = wp.empty_like(d.time)
    wp.launch(
        next_time_builder(0),
        dim=d.nworld,
        inputs=[
            m.opt.timestep,
            d.nefc,
            d.time,
            d.nworld,
            d.naconmax,
            d.njmax,
            d.nacon,
            d.ncollision,
        ],
        outputs=[time, d.overflow],
    )
