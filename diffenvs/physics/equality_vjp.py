"""Adjoint of equality constraints; here those of joints, in `body_equality_vjp` those of bodies.

Forward: one row per equality, which always pushes, with `q` measured from `qpos0`:

    pos = q1 - P(q2),   J = (1, -P'(q2))

for a polynomial `P` of the second joint (if there is none, a constant). Its coefficients are those
of `constraint_vjp`; in addition `J` changes with `q2`.

In:  the record's `D` and `force`, and `mu`.
Out: `adj_qpos`, `adj_qvel`, accumulated, rows in order.

Derivation: `DERIVATION.md`, section 10. Not covered: equalities of flexes.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .body_equality_vjp import body_equality_vjp
from .constraint_vjp import kappa, kbip
from .record import Substep
from .spatial import vec5, vec12
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_JOINT = wp.constant(int(mujoco.mjtEq.mjEQ_JOINT))


@wp.kernel
def _joint_equality_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_disableflags: int,
    qpos0: wp.array2d[float],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    eq_type: wp.array[int],
    eq_obj1id: wp.array[int],
    eq_obj2id: wp.array[int],
    eq_solref: wp.array2d[wp.vec2],
    eq_solimp: wp.array2d[vec5],
    eq_data: wp.array2d[vec12],
    # Record:
    ne_in: wp.array[int],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    # In:
    mu_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """One scalar joint that follows a polynomial of another one, or a constant."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    for efcid in range(wp.min(ne_in[worldid], efc_D_in.shape[1])):
        eqid = efc_id_in[worldid, efcid]
        if eq_type[eqid] != _JOINT:
            continue
        data = eq_data[worldid % eq_data.shape[0], eqid]
        dof1 = jnt_dofadr[eq_obj1id[eqid]]
        adr1 = jnt_qposadr[eq_obj1id[eqid]]
        pos = qpos_in[worldid, adr1] - qpos0[worldid % qpos0.shape[0], adr1] - data[0]
        y = mu_in[worldid, dof1]

        dof2 = int(-1)
        slope = float(0.0)
        curvature = float(0.0)
        if eq_obj2id[eqid] >= 0:
            dof2 = jnt_dofadr[eq_obj2id[eqid]]
            adr2 = jnt_qposadr[eq_obj2id[eqid]]
            x = qpos_in[worldid, adr2] - qpos0[worldid % qpos0.shape[0], adr2]
            pos -= x * (data[1] + x * (data[2] + x * (data[3] + x * data[4])))
            slope = data[1] + x * (2.0 * data[2] + x * (3.0 * data[3] + x * 4.0 * data[4]))
            curvature = 2.0 * data[2] + x * (6.0 * data[3] + x * 12.0 * data[4])
            y -= slope * mu_in[worldid, dof2]

        p = kbip(
            opt_disableflags,
            h,
            eq_solref[worldid % eq_solref.shape[0], eqid],
            eq_solimp[worldid % eq_solimp.shape[0], eqid],
            pos,
        )
        f = efc_force_in[worldid, efcid]
        g = efc_D_in[worldid, efcid] * y
        l = kappa(p, pos, g, y * f)
        adj_qpos_io[worldid, dof1] -= l
        adj_qvel_io[worldid, dof1] -= p[1] * g
        if dof2 >= 0:
            second = g * (qacc_in[worldid, dof2] + p[1] * qvel_in[worldid, dof2])
            second -= f * mu_in[worldid, dof2]
            adj_qpos_io[worldid, dof2] += slope * l + curvature * second
            adj_qvel_io[worldid, dof2] += slope * p[1] * g


def _launch_joint(m: mjw.Model, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of joint equalities."""
    d = s.d
    wp.launch(
        _joint_equality_vjp,
        dim=d.nworld,
        inputs=[
            m.opt.timestep,
            m.opt.disableflags,
            m.qpos0,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.eq_type,
            m.eq_obj1id,
            m.eq_obj2id,
            m.eq_solref,
            m.eq_solimp,
            m.eq_data,
            d.ne,
            d.qpos,
            d.qvel,
            d.qacc,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            ws.joint_mu,
        ],
        outputs=[adj.qpos, adj.qvel],
    )


def equality_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the equality constraints that the model has."""
    if flags.body_equality:
        body_equality_vjp(m, s, ws)
    if flags.joint_equality:
        _launch_joint(m, s, ws, adj)
