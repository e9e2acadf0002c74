"""Adjoint of the kinematic tree: inertial forces on bodies, and sums over subtrees to the joints.

For every body, four twist fields are read off the joint vectors by summing along the path to the
root: `mu_` of mu, `a_` of qacc, `v_` of qvel (MuJoCo's `cvel`) and the bias field `b_` with
`b_ = [0; -gravity] + sum(cdof_dot qvel)`. Each force term `phi` of the body leaves

- `x_mu, x_a, x_b, x_v`: cotangents of the fields (wrenches);
- `y`: cotangent of a rigid displacement of the body with all its own fields moving along.

The inertia `I` of a body leaves, with `h = I v_`:

    x_mu = I (a_ + b_) + v_ x* h;   x_a = x_b = I mu_;   x_v = I (mu_ x v_) - mu_ x* h

The pair `(w, z)` of an implicit integrator (`integrator_vjp`) leaves `x_w = -I z_`, `x_z = -I w_`.
`contact_vjp` adds its part. A joint moves the subtree behind it: with `X` the sums of `x` and `y`
over the bodies there, and `X_v` that of `x_v + v_ x* x_b`, each joint block (one dof, or the three
rotations of a ball) projects on its motion axes `S = cdof`

    adj_qpos = -S . [Y - sum_{f in mu,a,b,w,z} f_in x* X_f - v_in x* (X_v - v_in x* X_b)]
    adj_qvel = -S . [X_v - (v_in + v_out) x* X_b]

where `f_in` and `f_out` are the field before and after the block. Bodies are numbered depth first,
so a subtree is a range of them. Derivation: `DERIVATION.md`, sections 2, 3 and 5.
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
def _subtree_vjp(
    # Model:
    body_jntadr: wp.array[int],
    body_jntnum: wp.array[int],
    body_end: wp.array[int],
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
    x_mu_in: wp.array2d[wp.spatial_vector],
    x_a_in: wp.array2d[wp.spatial_vector],
    x_b_in: wp.array2d[wp.spatial_vector],
    x_v_in: wp.array2d[wp.spatial_vector],
    x_w_in: wp.array2d[wp.spatial_vector],
    x_z_in: wp.array2d[wp.spatial_vector],
    y_in: wp.array2d[wp.spatial_vector],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """The joints of one body."""
    worldid, bodyid = wp.tid()
    njnt = body_jntnum[bodyid]
    if njnt == 0:
        return
    x_mu = wp.spatial_vector()
    x_a = wp.spatial_vector()
    x_b = wp.spatial_vector()
    x_v = wp.spatial_vector()
    x_w = wp.spatial_vector()
    x_z = wp.spatial_vector()
    y = wp.spatial_vector()
    # the last body first, as leaves come before their parents where sums are carried to the root
    for k in range(body_end[bodyid] - bodyid):
        i = body_end[bodyid] - 1 - k
        x_b_i = x_b_in[worldid, i]
        x_mu += x_mu_in[worldid, i]
        x_a += x_a_in[worldid, i]
        x_b += x_b_i
        x_v += x_v_in[worldid, i] + force_cross(cvel_in[worldid, i], x_b_i)
        y += y_in[worldid, i]
        if with_pair:
            x_w += x_w_in[worldid, i]
            x_z += x_z_in[worldid, i]

    mu = mu_body_in[worldid, bodyid]
    a = a_body_in[worldid, bodyid]
    b = b_body_in[worldid, bodyid]
    v = cvel_in[worldid, bodyid]
    w = wp.spatial_vector()
    z = wp.spatial_vector()
    if with_pair:
        w = w_body_in[worldid, bodyid]
        z = z_body_in[worldid, bodyid]

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
            v_out = v
            for i in range(first, first + ndof):
                s = cdof_in[worldid, i]
                v -= s * qvel_in[worldid, i]
                mu -= s * mu_in[worldid, i]
                a -= s * qacc_in[worldid, i]
                b -= cdof_dot_in[worldid, i] * qvel_in[worldid, i]
                if with_pair:
                    w -= s * w_in[worldid, i]
                    z -= s * z_in[worldid, i]
            dq = y - force_cross(mu, x_mu) - force_cross(a, x_a) - force_cross(b, x_b)
            dq -= force_cross(v, x_v - force_cross(v, x_b))
            if with_pair:
                dq -= force_cross(w, x_w) + force_cross(z, x_z)
            dv = x_v - force_cross(v + v_out, x_b)
            for i in range(first, first + ndof):
                s = cdof_in[worldid, i]
                adj_qpos_io[worldid, i] -= wp.dot(s, dq)
                adj_qvel_io[worldid, i] -= wp.dot(s, dv)


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


def subtree_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Carries all that lies on the bodies' fields to the joints."""
    d = s.d
    wp.launch(
        _subtree_vjp,
        dim=(d.nworld, m.nbody),
        inputs=[
            m.body_jntadr,
            m.body_jntnum,
            ws.body_end,
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
            *(getattr(ws, name) for name in FIELDS),
        ],
        outputs=[adj.qpos, adj.qvel],
    )
