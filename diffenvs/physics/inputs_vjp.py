"""Adjoint of the inputs: applied forces, poses of mocap bodies.

Forward, per joint and per body (a force `F` and a torque `T`, fixed in the world, at the com):

    tau += qfrc_applied + sum over bodies J^T [T; F]

In:  `mu`, its field `mu_`; for mocap bodies, whose pose moves what hangs on them and where they
     touch, the sums `y`, `x_b` over their subtrees.
Out: `adj.qfrc_applied += mu`, `adj.xfrc_applied += [mu_(com); angular mu_]`, and

    x_mu -= wrench of (F, T);   y -= [mu_(com) x F + angular mu_ x T; 0]

     With `o` the point about which the wrench `Y = y - [0; -gravity] x* x_b` is taken:

    adj.mocap_pos -= force of Y;   world rotation = -(torque of Y - (mocap_pos - o) x force of Y)

     and `adj.mocap_quat` is the gradient that belongs to that rotation, see `tangent`.

Derivation: `DERIVATION.md`, section 12. Not covered: planes on mocap bodies (`inputs.py`).
"""

import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import ang, force_cross, lin, velocity_at, wrench
from .tape import accumulate
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})


@wp.kernel
def _xfrc_applied_vjp(
    # Model:
    body_rootid: wp.array[int],
    # Record:
    xfrc_applied_in: wp.array2d[wp.spatial_vector],
    xipos_in: wp.array2d[wp.vec3],
    subtree_com_in: wp.array2d[wp.vec3],
    # In:
    mu_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
    adj_xfrc_applied_io: wp.array2d[wp.spatial_vector],
):
    """The force on one body; MuJoCo puts the force before the torque."""
    worldid, bodyid = wp.tid()
    xfrc = xfrc_applied_in[worldid, bodyid]
    force = wp.vec3(xfrc[0], xfrc[1], xfrc[2])
    torque = wp.vec3(xfrc[3], xfrc[4], xfrc[5])
    com = xipos_in[worldid, bodyid] - subtree_com_in[worldid, body_rootid[bodyid]]
    mu = mu_in[worldid, bodyid]
    u = velocity_at(mu, com)
    adj_xfrc_applied_io[worldid, bodyid] += wp.spatial_vector(u, ang(mu))
    x_mu_io[worldid, bodyid] -= wrench(com, force, torque)
    turn = wp.cross(u, force) + wp.cross(ang(mu), torque)
    y_io[worldid, bodyid] -= wp.spatial_vector(turn, wp.vec3(0.0))


@wp.kernel
def _mocap_vjp(
    # Model:
    opt_gravity: wp.array[wp.vec3],
    mocap_bodyid: wp.array[int],
    body_end: wp.array[int],
    # Record:
    mocap_pos_in: wp.array2d[wp.vec3],
    mocap_quat_in: wp.array2d[wp.quat],
    xmat_in: wp.array2d[wp.mat33],
    subtree_com_in: wp.array2d[wp.vec3],
    # In:
    with_gravity: bool,
    x_b_in: wp.array2d[wp.spatial_vector],
    y_in: wp.array2d[wp.spatial_vector],
    # Out:
    adj_mocap_pos_io: wp.array2d[wp.vec3],
    adj_mocap_quat_io: wp.array2d[wp.quat],
):
    """The rigid displacement of one mocap body, with all that hangs on it."""
    worldid, mocapid = wp.tid()
    bodyid = mocap_bodyid[mocapid]
    y = wp.spatial_vector()
    b = wp.spatial_vector()
    if with_gravity:
        b = wp.spatial_vector(wp.vec3(0.0), -opt_gravity[worldid % opt_gravity.shape[0]])
    for i in range(bodyid, body_end[bodyid]):
        y += y_in[worldid, i] - force_cross(b, x_b_in[worldid, i])
    adj_mocap_pos_io[worldid, mocapid] -= lin(y)

    p = mocap_pos_in[worldid, mocapid] - subtree_com_in[worldid, bodyid]
    rotation = wp.cross(p, lin(y)) - ang(y)
    q = mocap_quat_in[worldid, mocapid]
    r = wp.vec3(q[1], q[2], q[3])
    l = wp.transpose(xmat_in[worldid, bodyid]) @ rotation
    l *= 2.0 / (q[0] * q[0] + wp.dot(r, r))
    g = q[0] * l + wp.cross(r, l)
    adj_mocap_quat_io[worldid, mocapid] += wp.quat(-wp.dot(r, l), g[0], g[1], g[2])


def applied_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the applied forces."""
    d = s.d
    if "qfrc_applied" in s.inputs:
        wp.launch(
            accumulate, dim=(d.nworld, m.nv), inputs=[ws.joint_mu], outputs=[adj.qfrc_applied]
        )
    if "xfrc_applied" in s.inputs:
        wp.launch(
            _xfrc_applied_vjp,
            dim=(d.nworld, m.nbody),
            inputs=[m.body_rootid, d.xfrc_applied, d.xipos, d.subtree_com, ws.mu],
            outputs=[ws.x_mu, ws.y, adj.xfrc_applied],
        )


def mocap_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the poses of mocap bodies, from what lies on their subtrees."""
    d = s.d
    if "mocap_pos" in s.inputs or "mocap_quat" in s.inputs:
        wp.launch(
            _mocap_vjp,
            dim=(d.nworld, m.mocap_bodyid.size),
            inputs=[
                m.opt.gravity,
                m.mocap_bodyid,
                ws.body_end,
                d.mocap_pos,
                d.mocap_quat,
                d.xmat,
                d.subtree_com,
                flags.gravity,
                ws.x_b,
                ws.y,
            ],
            outputs=[adj.mocap_pos, adj.mocap_quat],
        )
