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
from .constraint_vjp import position_cotangent, row_coefficients
from .record import Substep
from .spatial import vec5, vec12
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_DSBL_REFSAFE = wp.constant(int(mujoco.mjtDisableBit.mjDSBL_REFSAFE))
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
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    # Record:
    ne_in: wp.array[int],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    qH_in: wp.array2d[float],
    M_in: wp.array2d[float],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    # In:
    discrete: bool,
    mu_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
    adj_M_io: wp.array2d[float],
    adj_qH_io: wp.array2d[float],
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

        # stiff equalities are not made safe under discrete
        c = row_coefficients(
            discrete,
            wp.where(discrete, opt_disableflags | _DSBL_REFSAFE, opt_disableflags),
            h,
            eq_solref[worldid % eq_solref.shape[0], eqid],
            eq_solimp[worldid % eq_solimp.shape[0], eqid],
            pos,
        )
        f = efc_force_in[worldid, efcid]
        g = efc_D_in[worldid, efcid] * y
        vel = qvel_in[worldid, dof1]
        if dof2 >= 0:
            vel -= slope * qvel_in[worldid, dof2]
        l = position_cotangent(c, vel, g, y * f)
        adj_qpos_io[worldid, dof1] -= l
        adj_qvel_io[worldid, dof1] -= c.vel * g
        if dof2 >= 0:
            second = g * (qacc_in[worldid, dof2] + c.vel * qvel_in[worldid, dof2])
            second -= f * mu_in[worldid, dof2]
            adj_qpos_io[worldid, dof2] += slope * l + curvature * second
            adj_qvel_io[worldid, dof2] += slope * c.vel * g
        if discrete:
            # the ratio of metrics in D, see metric_ratio_vjp
            last1 = M_rowadr[dof1] + M_rownnz[dof1] - 1
            M1 = M_in[worldid, last1]
            qH1 = qH_in[worldid, last1]
            num = 1.0 / qH1
            den = 1.0 / M1
            if dof2 >= 0:
                last2 = M_rowadr[dof2] + M_rownnz[dof2] - 1
                M2 = M_in[worldid, last2]
                qH2 = qH_in[worldid, last2]
                num += slope * slope / qH2
                den += slope * slope / M2
                turn = 2.0 * y * f * slope * (1.0 / (qH2 * num) - 1.0 / (M2 * den))
                adj_qpos_io[worldid, dof2] -= curvature * turn
                adj_qH_io[worldid, dof2] -= y * f * slope * slope / (qH2 * qH2 * num)
                adj_M_io[worldid, dof2] += y * f * slope * slope / (M2 * M2 * den)
            adj_qH_io[worldid, dof1] -= y * f / (qH1 * qH1 * num)
            adj_M_io[worldid, dof1] += y * f / (M1 * M1 * den)


def _launch_joint(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
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
            m.M_rownnz,
            m.M_rowadr,
            d.ne,
            d.qpos,
            d.qvel,
            d.qacc,
            d.qH,
            d.M,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            flags.discrete,
            ws.joint_mu,
        ],
        outputs=[adj.qpos, adj.qvel, ws.adj_M, ws.adj_qH],
    )


def equality_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the equality constraints that the model has."""
    if flags.body_equality:
        body_equality_vjp(m, s, ws)
    if flags.joint_equality:
        _launch_joint(m, flags, s, ws, adj)
