"""Adjoint of the kinematic tree: inertial forces on bodies, and the sweep from leaves to root.

For every body, four twist fields are read off the joint vectors by summing along the path to the
root: `mu_` of mu, `a_` of qacc, `v_` of qvel (MuJoCo's `cvel`) and the bias field `b_` with
`b_ = [0; -gravity] + sum(cdof_dot qvel)`. Each force term `phi` of the body leaves

- `x_mu, x_a, x_b, x_v`: cotangents of the fields (wrenches);
- `y`: cotangent of a rigid displacement of the body with all its own fields moving along.

The inertia `I` of a body leaves, with `h = I v_`:

    x_mu = I (a_ + b_) + v_ x* h;   x_a = x_b = I mu_;   x_v = I (mu_ x v_) - mu_ x* h

The pair `(w, z)` of an implicit integrator (`integrator_vjp`) leaves `x_w = -I z_`, `x_z = -I w_`.
`contact_vjp` adds its part. The sweep then carries all sums towards the root and projects them on
the motion axes `S = cdof` of each joint block (one dof, or the three rotations of a ball):

    x_v'     = x_v + (S qvel) x* x_b
    adj_qpos = -S . [y - sum_{f in mu,a,b,w,z} f_in x* x_f - v_in x* x_v']
    adj_qvel = -S . [x_v - v_in x* x_b]

where `f_in` is the field before the block. Derivation: `DERIVATION.md`, sections 2, 3 and 5.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import force_cross, inertia_mul, motion_cross, vec10
from .workspace import FIELDS, Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.func
def last_dof(
    # Model:
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    # In:
    bodyid: int,
) -> int:
    """The last dof that moves a body, -1 for one that never moves (the world, a mocap body)."""
    weldid = body_weldid[bodyid]
    return wp.max(body_dofadr[weldid] + body_dofnum[weldid] - 1, -1)


@wp.kernel
def _body_vjp(
    # Model:
    opt_gravity: wp.array[wp.vec3],
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    dof_parentid: wp.array[int],
    # Record:
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    cdof_in: wp.array2d[wp.spatial_vector],
    cdof_dot_in: wp.array2d[wp.spatial_vector],
    cinert_in: wp.array2d[vec10],
    cvel_in: wp.array2d[wp.spatial_vector],
    # In:
    with_gravity: bool,
    with_pair: bool,
    mu_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    # Out:
    mu_out: wp.array2d[wp.spatial_vector],
    a_out: wp.array2d[wp.spatial_vector],
    b_out: wp.array2d[wp.spatial_vector],
    w_out: wp.array2d[wp.spatial_vector],
    z_out: wp.array2d[wp.spatial_vector],
    x_mu_out: wp.array2d[wp.spatial_vector],
    x_a_out: wp.array2d[wp.spatial_vector],
    x_b_out: wp.array2d[wp.spatial_vector],
    x_v_out: wp.array2d[wp.spatial_vector],
    x_w_out: wp.array2d[wp.spatial_vector],
    x_z_out: wp.array2d[wp.spatial_vector],
    y_out: wp.array2d[wp.spatial_vector],
):
    """Fields of one body and the cotangents that its inertia leaves on them."""
    worldid, bodyid = wp.tid()
    mu = wp.spatial_vector()
    a = wp.spatial_vector()
    b = wp.spatial_vector()
    w = wp.spatial_vector()
    z = wp.spatial_vector()
    if with_gravity:
        g = opt_gravity[worldid % opt_gravity.shape[0]]
        b = wp.spatial_vector(wp.vec3(0.0), -g)

    dofid = last_dof(body_weldid, body_dofadr, body_dofnum, bodyid)
    while dofid >= 0:
        s = cdof_in[worldid, dofid]
        mu += s * mu_in[worldid, dofid]
        a += s * qacc_in[worldid, dofid]
        b += cdof_dot_in[worldid, dofid] * qvel_in[worldid, dofid]
        if with_pair:
            w += s * w_in[worldid, dofid]
            z += s * z_in[worldid, dofid]
        dofid = dof_parentid[dofid]

    v = cvel_in[worldid, bodyid]
    inertia = cinert_in[worldid, bodyid]
    h = inertia_mul(inertia, v)
    i_mu = inertia_mul(inertia, mu)

    mu_out[worldid, bodyid] = mu
    a_out[worldid, bodyid] = a
    b_out[worldid, bodyid] = b
    x_mu_out[worldid, bodyid] = inertia_mul(inertia, a + b) + force_cross(v, h)
    x_a_out[worldid, bodyid] = i_mu
    x_b_out[worldid, bodyid] = i_mu
    x_v_out[worldid, bodyid] = inertia_mul(inertia, motion_cross(mu, v)) - force_cross(mu, h)
    y_out[worldid, bodyid] = wp.spatial_vector()
    if with_pair:
        w_out[worldid, bodyid] = w
        z_out[worldid, bodyid] = z
        x_w_out[worldid, bodyid] = -inertia_mul(inertia, z)
        x_z_out[worldid, bodyid] = -inertia_mul(inertia, w)


@wp.kernel
def _sweep_vjp(
    # Model:
    nbody: int,
    body_parentid: wp.array[int],
    body_weldid: wp.array[int],
    body_jntadr: wp.array[int],
    body_jntnum: wp.array[int],
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    # Record:
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    cdof_in: wp.array2d[wp.spatial_vector],
    cdof_dot_in: wp.array2d[wp.spatial_vector],
    cvel_in: wp.array2d[wp.spatial_vector],
    # In:
    with_pair: bool,
    mu_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    mu_body_in: wp.array2d[wp.spatial_vector],
    a_body_in: wp.array2d[wp.spatial_vector],
    b_body_in: wp.array2d[wp.spatial_vector],
    w_body_in: wp.array2d[wp.spatial_vector],
    z_body_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    x_a_io: wp.array2d[wp.spatial_vector],
    x_b_io: wp.array2d[wp.spatial_vector],
    x_v_io: wp.array2d[wp.spatial_vector],
    x_w_io: wp.array2d[wp.spatial_vector],
    x_z_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """From the leaves to the root, one world per thread: a fixed order, hence repeatable sums."""
    worldid = wp.tid()
    for k in range(nbody - 1):
        bodyid = nbody - 1 - k
        if body_weldid[bodyid] == 0:
            continue
        x_mu = x_mu_io[worldid, bodyid]
        x_a = x_a_io[worldid, bodyid]
        x_b = x_b_io[worldid, bodyid]
        x_v = x_v_io[worldid, bodyid]
        y = y_io[worldid, bodyid]
        mu = mu_body_in[worldid, bodyid]
        a = a_body_in[worldid, bodyid]
        b = b_body_in[worldid, bodyid]
        v = cvel_in[worldid, bodyid]
        x_w = wp.spatial_vector()
        x_z = wp.spatial_vector()
        w = wp.spatial_vector()
        z = wp.spatial_vector()
        if with_pair:
            x_w = x_w_io[worldid, bodyid]
            x_z = x_z_io[worldid, bodyid]
            w = w_body_in[worldid, bodyid]
            z = z_body_in[worldid, bodyid]

        njnt = body_jntnum[bodyid]
        for j in range(njnt):
            jntid = body_jntadr[bodyid] + njnt - 1 - j
            jnttype = jnt_type[jntid]
            adr = jnt_dofadr[jntid]
            # blocks from the last to the first: a rotation of three dofs, then single dofs
            nblock = int(1)
            if jnttype == _FREE:
                nblock = 4
            for block in range(nblock):
                first = adr
                ndof = int(1)
                if jnttype == _BALL:
                    ndof = 3
                elif jnttype == _FREE:
                    first = adr + 3 - block
                    if block == 0:
                        ndof = 3
                sv = wp.spatial_vector()
                for i in range(first, first + ndof):
                    s = cdof_in[worldid, i]
                    sv += s * qvel_in[worldid, i]
                    mu -= s * mu_in[worldid, i]
                    a -= s * qacc_in[worldid, i]
                    b -= cdof_dot_in[worldid, i] * qvel_in[worldid, i]
                    if with_pair:
                        w -= s * w_in[worldid, i]
                        z -= s * z_in[worldid, i]
                v -= sv
                x_v_in = x_v + force_cross(sv, x_b)
                dq = y - force_cross(mu, x_mu) - force_cross(a, x_a) - force_cross(b, x_b)
                dq -= force_cross(v, x_v_in)
                if with_pair:
                    dq -= force_cross(w, x_w) + force_cross(z, x_z)
                dv = x_v - force_cross(v, x_b)
                for i in range(first, first + ndof):
                    s = cdof_in[worldid, i]
                    adj_qpos_io[worldid, i] -= wp.dot(s, dq)
                    adj_qvel_io[worldid, i] -= wp.dot(s, dv)
                x_v = x_v_in

        parentid = body_parentid[bodyid]
        x_mu_io[worldid, parentid] += x_mu
        x_a_io[worldid, parentid] += x_a
        x_b_io[worldid, parentid] += x_b
        x_v_io[worldid, parentid] += x_v
        y_io[worldid, parentid] += y
        if with_pair:
            x_w_io[worldid, parentid] += x_w
            x_z_io[worldid, parentid] += x_z


def body_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Fills the bodies' fields and what inertia leaves on them."""
    d = s.d
    wp.launch(
        _body_vjp,
        dim=(d.nworld, m.nbody),
        inputs=[
            m.opt.gravity,
            m.body_weldid,
            m.body_dofadr,
            m.body_dofnum,
            m.dof_parentid,
            d.qvel,
            d.qacc,
            d.cdof,
            d.cdof_dot,
            d.cinert,
            d.cvel,
            flags.gravity,
            flags.pair,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[getattr(ws, name) for name in FIELDS],
    )


def sweep_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Carries all that lies on the bodies' fields to the joints."""
    d = s.d
    wp.launch(
        _sweep_vjp,
        dim=d.nworld,
        inputs=[
            m.nbody,
            m.body_parentid,
            m.body_weldid,
            m.body_jntadr,
            m.body_jntnum,
            m.jnt_type,
            m.jnt_dofadr,
            d.qvel,
            d.qacc,
            d.cdof,
            d.cdof_dot,
            d.cvel,
            flags.pair,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
            ws.mu,
            ws.a,
            ws.b,
            ws.w,
            ws.z,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_b, ws.x_v, ws.x_w, ws.x_z, ws.y, adj.qpos, adj.qvel],
    )
