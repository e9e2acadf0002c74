"""Adjoint of the ratio of metrics that the integrator `discrete` divides D by.

Forward, for the rows of one friction loss, limit or contact, with `J` the first of them and `qH` a
matrix with the diagonal of `M + h B + h^2 K` (`discrete_vjp`):

    D /= scale,   scale = num / den,   num = sum_c J_c^2 / qH_cc,   den = sum_c J_c^2 / M_cc

In:  `mu`, its field of the bodies, the record's rows, contacts, `M`, `qH` and `crb`.
Out: `adj_qpos` accumulated; `adj_qH` and `adj_M`, the cotangents of the two diagonals.

With `s = sum of y f` over the rows, less `adhesion g / D`, `J` has the cotangent

    gamma_c = 2 s J_c (1 / (qH_cc num) - 1 / (M_cc den)),

one more joint vector, whose field the first row multiplies. It differs from contact to contact, so
it is carried along the two chains of joints at once; what it does to the contact's point
(`contact_point`), its frame (`contact_rotation`) and the bodies (`y`) is left for `contact_vjp` and
`tree_vjp`. The diagonals change with the composite inertia `I_j` behind a dof `j`:

    d M_cc / d qpos_j = -2 S_j . (S_c x* I_j S_c)     for c before the joint of j, else 0

Derivation: `DERIVATION.md`, section 6. Ratios of joint equalities are in
`equality_vjp`. Not covered: other equalities, rows of tendons.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .constraint_vjp import ball_limit_axis_vjp
from .record import Substep
from .spatial import ang, force_cross, inertia_mul, vec5, vec10, velocity_at, wrench
from .tree_vjp import last_dof
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_LIMIT_JOINT = wp.constant(int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT))
_FRICTION_DOF = wp.constant(int(mujoco.mjtConstraint.mjCNSTR_FRICTION_DOF))
_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.struct
class _Metric:
    """What the ratio of one limit or contact takes, and `s`."""

    num: float
    den: float
    s: float


@wp.func
def _gamma(r: _Metric, J: float, M: float, qH: float) -> float:
    """Cotangent of one entry of the first row."""
    return 2.0 * r.s * J * (1.0 / (qH * r.num) - 1.0 / (M * r.den))


@wp.func
def _adj_qH(r: _Metric, J: float, qH: float) -> float:
    """Cotangent of a diagonal entry of qH; that of M has the opposite sign."""
    return -r.s * J * J / (qH * qH * r.num)


@wp.kernel
def _joint_ratio_vjp(
    # Model:
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    jnt_range: wp.array2d[wp.vec2],
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    dof_frictionloss: wp.array2d[float],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    qpos_in: wp.array2d[float],
    qH_in: wp.array2d[float],
    M_in: wp.array2d[float],
    efc_type_in: wp.array2d[int],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    Jaref_in: wp.array2d[float],
    # In:
    mu_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_M_io: wp.array2d[float],
    adj_qH_io: wp.array2d[float],
):
    """Ratios of friction losses and limits of joints, one world per thread."""
    worldid = wp.tid()
    first = ne_in[worldid]
    for efcid in range(first, wp.min(first + nf_in[worldid], Jaref_in.shape[1])):
        if efc_type_in[worldid, efcid] != _FRICTION_DOF:
            continue
        dofid = efc_id_in[worldid, efcid]
        loss = dof_frictionloss[worldid % dof_frictionloss.shape[0], dofid]
        if efc_D_in[worldid, efcid] * wp.abs(Jaref_in[worldid, efcid]) < loss:
            last = M_rowadr[dofid] + M_rownnz[dofid] - 1
            yf = mu_in[worldid, dofid] * efc_force_in[worldid, efcid]
            adj_qH_io[worldid, dofid] -= yf / qH_in[worldid, last]
            adj_M_io[worldid, dofid] += yf / M_in[worldid, last]
    first += nf_in[worldid]
    for efcid in range(first, wp.min(first + nl_in[worldid], Jaref_in.shape[1])):
        if efc_type_in[worldid, efcid] != _LIMIT_JOINT or Jaref_in[worldid, efcid] >= 0.0:
            continue
        jntid = efc_id_in[worldid, efcid]
        adr = jnt_dofadr[jntid]
        qadr = jnt_qposadr[jntid]
        ndof = int(1)
        axis = wp.vec3(0.0)  # minus the row
        angle = float(0.0)
        if jnt_type[jntid] == _BALL:
            ndof = 3
            imag = wp.vec3(
                qpos_in[worldid, qadr + 1], qpos_in[worldid, qadr + 2], qpos_in[worldid, qadr + 3]
            )
            axis = wp.normalize(imag) * wp.where(qpos_in[worldid, qadr] < 0.0, -1.0, 1.0)
            angle = 2.0 * wp.atan2(wp.length(imag), wp.abs(qpos_in[worldid, qadr]))
        else:
            jntrange = jnt_range[worldid % jnt_range.shape[0], jntid]
            q = qpos_in[worldid, qadr]
            axis[0] = wp.where(q - jntrange[0] < jntrange[1] - q, -1.0, 1.0)

        r = _Metric()
        y = float(0.0)
        for i in range(ndof):
            last = M_rowadr[adr + i] + M_rownnz[adr + i] - 1
            r.num += axis[i] * axis[i] / qH_in[worldid, last]
            r.den += axis[i] * axis[i] / M_in[worldid, last]
            y -= axis[i] * mu_in[worldid, adr + i]
        r.s = y * efc_force_in[worldid, efcid]
        gamma = wp.vec3()
        for i in range(ndof):
            last = M_rowadr[adr + i] + M_rownnz[adr + i] - 1
            M = M_in[worldid, last]
            qH = qH_in[worldid, last]
            gamma[i] = _gamma(r, axis[i], M, qH)  # of the axis, not of the row: two signs cancel
            adj_qH_io[worldid, adr + i] += _adj_qH(r, axis[i], qH)
            adj_M_io[worldid, adr + i] += r.s * axis[i] * axis[i] / (M * M * r.den)
        if ndof == 3:
            dq = ball_limit_axis_vjp(axis, angle, gamma)
            for i in range(3):
                adj_qpos_io[worldid, adr + i] -= dq[i]


@wp.func
def _row_entry(
    cdof: wp.array[wp.spatial_vector],
    x1: wp.spatial_vector,
    x2: wp.spatial_vector,
    side: int,
    i: int,
) -> float:
    """Entry of a contact's first row, a force on body 2 and its opposite on body 1."""
    if side == 2:
        return wp.dot(cdof[i], x2)
    return -wp.dot(cdof[i], x1)


@wp.func
def _cone_normal(
    dim: int,
    friction: vec5,
    mu: float,
    first: int,
    Jaref: wp.array[float],
    f0: float,
    y0: float,
    yf: float,
) -> float:
    """The normal part of `Hc y` of an elliptic cone, divided by the normal row's D.

    Where the contact slides the force is along the gradient of the distance to the cone, so that
    the product with `y` is known.
    """
    if f0 <= 0.0:
        return 0.0
    tangent2 = float(0.0)
    for k in range(1, dim):
        u = Jaref[first + k] * friction[k - 1]
        tangent2 += u * u
    if mu * mu * Jaref[first] + wp.sqrt(tangent2) <= 0.0:
        return y0
    return yf / (f0 * (1.0 + mu * mu))


@wp.kernel
def _contact_ratio_vjp(
    # Model:
    opt_impratio_invsqrt: wp.array[float],
    body_rootid: wp.array[int],
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    dof_jntid: wp.array[int],
    dof_parentid: wp.array[int],
    geom_bodyid: wp.array[int],
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    nefc_in: wp.array[int],
    subtree_com_in: wp.array2d[wp.vec3],
    cdof_in: wp.array2d[wp.spatial_vector],
    qH_in: wp.array2d[float],
    M_in: wp.array2d[float],
    contact_pos_in: wp.array[wp.vec3],
    contact_frame_in: wp.array[wp.mat33],
    contact_friction_in: wp.array[vec5],
    contact_dim_in: wp.array[int],
    contact_adhesion_in: wp.array[float],
    contact_geom_in: wp.array[wp.vec2i],
    efc_id_in: wp.array2d[int],
    efc_force_in: wp.array2d[float],
    Jaref_in: wp.array2d[float],
    # In:
    elliptic: bool,
    mu_body_in: wp.array2d[wp.spatial_vector],
    # Out:
    y_io: wp.array2d[wp.spatial_vector],
    adj_qpos_io: wp.array2d[float],
    adj_M_io: wp.array2d[float],
    adj_qH_io: wp.array2d[float],
    point_out: wp.array[wp.vec3],
    rotation_out: wp.array[wp.vec3],
):
    """Ratios of the contacts, in the order of their rows, one world per thread."""
    worldid = wp.tid()
    nefc = wp.min(nefc_in[worldid], efc_force_in.shape[1])
    efcid = ne_in[worldid] + nf_in[worldid] + nl_in[worldid]
    while efcid < nefc:
        conid = efc_id_in[worldid, efcid]
        dim = contact_dim_in[conid]
        first = efcid
        nrow = wp.where(elliptic, dim, wp.max(1, 2 * (dim - 1)))
        efcid += nrow
        if efcid > nefc:
            continue

        geom = contact_geom_in[conid]
        body1 = geom_bodyid[geom[0]]
        body2 = geom_bodyid[geom[1]]
        frame = contact_frame_in[conid]
        pos = contact_pos_in[conid]
        p1 = pos - subtree_com_in[worldid, body_rootid[body1]]
        p2 = pos - subtree_com_in[worldid, body_rootid[body2]]

        # s = y f: power of the contact's force and torque at the relative velocity of mu; less what
        # adhesion has of the force of active rows, since it enters aref divided by D
        force = wp.vec3(0.0)
        torque = wp.vec3(0.0)
        friction = contact_friction_in[conid]
        adhesion = contact_adhesion_in[conid]
        cone = elliptic and dim > 1
        n = wp.vec3(frame[0, 0], frame[0, 1], frame[0, 2])
        row0 = n
        for i in range(nrow):
            f = efc_force_in[worldid, first + i]
            if not cone and Jaref_in[worldid, first + i] < 0.0:
                f -= adhesion / float(nrow)
            k = i
            if not elliptic:
                force += f * n
                k = i // 2 + 1
                f *= wp.where(dim > 1, friction[k - 1] * (1.0 - 2.0 * float(i & 1)), 0.0)
            if k < 3:
                force += f * wp.vec3(frame[k, 0], frame[k, 1], frame[k, 2])
            else:
                torque += f * wp.vec3(frame[k - 3, 0], frame[k - 3, 1], frame[k - 3, 2])
        if not elliptic and dim > 1:
            row0 += friction[0] * wp.vec3(frame[1, 0], frame[1, 1], frame[1, 2])
        mu1 = mu_body_in[worldid, body1]
        mu2 = mu_body_in[worldid, body2]
        r = _Metric()
        d_mu = velocity_at(mu2, p2) - velocity_at(mu1, p1)
        r.s = wp.dot(force, d_mu) + wp.dot(torque, ang(mu2) - ang(mu1))
        if cone and adhesion > 0.0:
            mu = friction[0] * opt_impratio_invsqrt[worldid % opt_impratio_invsqrt.shape[0]]
            f0 = efc_force_in[worldid, first]
            y0 = wp.dot(n, d_mu)
            r.s -= adhesion * _cone_normal(dim, friction, mu, first, Jaref_in[worldid], f0, y0, r.s)
        point_out[conid] = wp.vec3(0.0)
        rotation_out[conid] = wp.vec3(0.0)
        if r.s == 0.0:
            continue

        # dofs of the two chains, from the leaves up to where they meet
        x1 = wrench(p1, row0, wp.vec3(0.0))
        x2 = wrench(p2, row0, wp.vec3(0.0))
        leaf1 = last_dof(body_weldid, body_dofadr, body_dofnum, body1)
        leaf2 = last_dof(body_weldid, body_dofadr, body_dofnum, body2)
        dof1 = leaf1
        dof2 = leaf2
        while dof1 != dof2:
            side = wp.where(dof1 > dof2, 1, 2)
            i = wp.max(dof1, dof2)
            last = M_rowadr[i] + M_rownnz[i] - 1
            J = _row_entry(cdof_in[worldid], x1, x2, side, i)
            r.num += J * J / qH_in[worldid, last]
            r.den += J * J / M_in[worldid, last]
            if side == 1:
                dof1 = dof_parentid[i]
            else:
                dof2 = dof_parentid[i]
        meet = dof1
        if r.den == 0.0:
            continue

        gamma1 = wp.spatial_vector()
        gamma2 = wp.spatial_vector()
        dof1 = leaf1
        dof2 = leaf2
        while dof1 != dof2:
            side = wp.where(dof1 > dof2, 1, 2)
            i = wp.max(dof1, dof2)
            last = M_rowadr[i] + M_rownnz[i] - 1
            M = M_in[worldid, last]
            qH = qH_in[worldid, last]
            J = _row_entry(cdof_in[worldid], x1, x2, side, i)
            adj_qH_io[worldid, i] += _adj_qH(r, J, qH)
            adj_M_io[worldid, i] += r.s * J * J / (M * M * r.den)
            field = cdof_in[worldid, i] * _gamma(r, J, M, qH)
            if side == 1:
                gamma1 += field
                dof1 = dof_parentid[i]
            else:
                gamma2 += field
                dof2 = dof_parentid[i]

        point_out[conid] = wp.cross(row0, ang(gamma2) - ang(gamma1))
        rotation_out[conid] = wp.cross(row0, velocity_at(gamma2, p2) - velocity_at(gamma1, p1))
        y_io[worldid, body1] -= force_cross(gamma1, x1)
        y_io[worldid, body2] += force_cross(gamma2, x2)
        for side in range(1, 3):
            incoming = wp.where(side == 1, gamma1, gamma2)
            i = wp.where(side == 1, leaf1, leaf2)
            while i != meet:
                # a rotation of three dofs is one block, all of which sees the field before it
                jntid = dof_jntid[i]
                ndof = int(1)
                if jnt_type[jntid] == _BALL or (
                    jnt_type[jntid] == _FREE and i >= jnt_dofadr[jntid] + 3
                ):
                    ndof = 3
                for j in range(i - ndof + 1, i + 1):
                    last = M_rowadr[j] + M_rownnz[j] - 1
                    J = _row_entry(cdof_in[worldid], x1, x2, side, j)
                    g = _gamma(r, J, M_in[worldid, last], qH_in[worldid, last])
                    incoming -= g * cdof_in[worldid, j]
                for j in range(i - ndof + 1, i + 1):
                    moved = wp.where(
                        side == 1, -force_cross(incoming, x1), force_cross(incoming, x2)
                    )
                    adj_qpos_io[worldid, j] += wp.dot(cdof_in[worldid, j], moved)
                i = dof_parentid[i - ndof + 1]


@wp.kernel
def _diagonal_vjp(
    # Model:
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    dof_bodyid: wp.array[int],
    dof_jntid: wp.array[int],
    dof_parentid: wp.array[int],
    # Record:
    cdof_in: wp.array2d[wp.spatial_vector],
    crb_in: wp.array2d[vec10],
    # In:
    adj_M_in: wp.array2d[float],
    adj_qH_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
):
    """What the diagonals of M and qH leave on qpos, one dof per thread."""
    worldid, dofid = wp.tid()
    jntid = dof_jntid[dofid]
    block = dofid
    if jnt_type[jntid] == _BALL:
        block = jnt_dofadr[jntid]
    elif jnt_type[jntid] == _FREE:
        block = wp.min(dofid, jnt_dofadr[jntid] + 3)
    inertia = crb_in[worldid, dof_bodyid[dofid]]
    x = wp.spatial_vector()
    c = dof_parentid[block]
    while c >= 0:
        s = cdof_in[worldid, c]
        coefficient = adj_M_in[worldid, c] + adj_qH_in[worldid, c]
        x += coefficient * force_cross(s, inertia_mul(inertia, s))
        c = dof_parentid[c]
    adj_qpos_io[worldid, dofid] += 2.0 * wp.dot(cdof_in[worldid, dofid], x)


def metric_ratio_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the ratios of all limits and contacts."""
    d = s.d
    wp.launch(
        _joint_ratio_vjp,
        dim=d.nworld,
        inputs=[
            m.jnt_type,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.jnt_range,
            m.M_rownnz,
            m.M_rowadr,
            m.dof_frictionloss,
            d.ne,
            d.nf,
            d.nl,
            d.qpos,
            d.qH,
            d.M,
            d.efc.type,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            s.solver_Jaref,
            ws.joint_mu,
        ],
        outputs=[adj.qpos, ws.adj_M, ws.adj_qH],
    )
    wp.launch(
        _contact_ratio_vjp,
        dim=d.nworld,
        inputs=[
            m.opt.impratio_invsqrt,
            m.body_rootid,
            m.body_weldid,
            m.body_dofadr,
            m.body_dofnum,
            m.jnt_type,
            m.jnt_dofadr,
            m.dof_jntid,
            m.dof_parentid,
            m.geom_bodyid,
            m.M_rownnz,
            m.M_rowadr,
            d.ne,
            d.nf,
            d.nl,
            d.nefc,
            d.subtree_com,
            d.cdof,
            d.qH,
            d.M,
            d.contact.pos,
            d.contact.frame,
            d.contact.friction,
            d.contact.dim,
            d.contact.adhesion,
            d.contact.geom,
            d.efc.id,
            d.efc.force,
            s.solver_Jaref,
            flags.elliptic,
            ws.mu,
        ],
        outputs=[ws.y, adj.qpos, ws.adj_M, ws.adj_qH, ws.contact_point, ws.contact_rotation],
    )
    wp.launch(
        _diagonal_vjp,
        dim=(d.nworld, m.nv),
        inputs=[
            m.jnt_type,
            m.jnt_dofadr,
            m.dof_bodyid,
            m.dof_jntid,
            m.dof_parentid,
            d.cdof,
            d.crb,
            ws.adj_M,
            ws.adj_qH,
        ],
        outputs=[adj.qpos],
    )
