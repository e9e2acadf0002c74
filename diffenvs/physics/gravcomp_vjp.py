"""Adjoint of gravity compensation.

Forward, a force at the body's centre of mass, fixed in the world:

    F = -gravcomp mass gravity

In:  `mu_`, the field of mu on the bodies.
Out: `x_mu -= wrench of F`; `y -= [mu_(com) x F; 0]`, because the force does not turn with the body.

It acts the same whether a joint counts it as passive or as actuation (`jnt_actgravcomp`).
Derivation: `DERIVATION.md`, section 8. Not covered: a clamp of the joint's total actuation.
"""

import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import vec10, velocity_at, wrench
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})


@wp.kernel
def _gravcomp_vjp(
    # Model:
    opt_gravity: wp.array[wp.vec3],
    body_gravcomp: wp.array2d[float],
    # Record:
    cinert_in: wp.array2d[vec10],
    # In:
    mu_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
):
    """One body per thread; `cinert` ends with (mass * offset of the com, mass)."""
    worldid, bodyid = wp.tid()
    gravcomp = body_gravcomp[worldid % body_gravcomp.shape[0], bodyid]
    inertia = cinert_in[worldid, bodyid]
    mass = inertia[9]
    if gravcomp == 0.0 or mass == 0.0:
        return
    com = wp.vec3(inertia[6], inertia[7], inertia[8]) / mass
    force = -gravcomp * mass * opt_gravity[worldid % opt_gravity.shape[0]]
    mu = mu_in[worldid, bodyid]
    x_mu_io[worldid, bodyid] -= wrench(com, force, wp.vec3(0.0))
    torque = wp.cross(velocity_at(mu, com), force)
    y_io[worldid, bodyid] -= wp.spatial_vector(torque, wp.vec3(0.0))


def gravcomp_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Adjoint of gravity compensation."""
    d = s.d
    wp.launch(
        _gravcomp_vjp,
        dim=(d.nworld, m.nbody),
        inputs=[m.opt.gravity, m.body_gravcomp, d.cinert, ws.mu],
        outputs=[ws.x_mu, ws.y],
    )
