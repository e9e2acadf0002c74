"""Adjoint of what the integrator `discrete` adds to the forward dynamics.

Forward: `qvel+ = qvel + h qacc` with springs and dampers taken at the end of the step,

    (M + h B + h^2 K) qacc = tau - c - h K qvel + J^T f,

where `B`, `K` are the damping and stiffness of joints and of actuators on joints (those that are
positive). The coefficients of constraint rows differ as well (`constraint_vjp.row_coefficients`,
`metric_ratio_vjp`).

In:  `mu`, the solution of `H mu = adj_qacc`; `adj_qH`, the cotangent of the diagonal of the matrix.
Out: `adj_qpos`, `adj_qvel`, `adj_ctrl`, accumulated:

    adj_qvel -= h K mu
    adj_x -= dK/dx (mu (h^2 qacc + h qvel) + h^2 adj_qH) + dB/dx h (mu qacc + adj_qH)

for `x` the position and velocity of a joint with polynomial stiffness and damping, and the control
of an actuator with an affine gain.

The matrix of a tree that is a single free body on which no row acts also holds h times the velocity
derivative of its gyroscopic force (`free_body`): `mu` is solved for anew there.

Derivation: `DERIVATION.md`, section 6. Not covered: equalities of bodies, tendons,
activations under an affine gain, other transmissions than hinges and slides (`check.py` refuses
them).
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .free_body import (
    free_body,
    gyroscopic_derivative,
    gyroscopic_derivative_vjp,
    inertia_block,
    solve6,
)
from .passive_vjp import (
    damping_curvature,
    damping_derivative,
    rotation_between,
    spring_curvature,
    spring_derivative,
)
from .record import Substep
from .spatial import vec3_at, vec4_at, vec6, vec10
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_GAIN_AFFINE = wp.constant(int(mujoco.mjtGain.mjGAIN_AFFINE))
_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))
_FRICTION_DOF = wp.constant(int(mujoco.mjtConstraint.mjCNSTR_FRICTION_DOF))
_BIAS_AFFINE = wp.constant(int(mujoco.mjtBias.mjBIAS_AFFINE))


@wp.kernel
def _free_body_vjp(
    # Model:
    opt_timestep: wp.array[float],
    body_rootid: wp.array[int],
    body_dofadr: wp.array[int],
    geom_bodyid: wp.array[int],
    dof_armature: wp.array2d[float],
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    M_colind: wp.array[int],
    body_freeadr: wp.array[int],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    nefc_in: wp.array[int],
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    xmat_in: wp.array2d[wp.mat33],
    qH_in: wp.array2d[float],
    M_in: wp.array2d[float],
    contact_geom_in: wp.array[wp.vec2i],
    efc_type_in: wp.array2d[int],
    efc_id_in: wp.array2d[int],
    # In:
    adj_qacc_in: wp.array2d[float],
    # Out:
    mu_io: wp.array2d[float],
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """Solves A^T mu = adj_qacc, A = M + h B + h dc/dv, where no row acts on the body."""
    worldid, freeid = wp.tid()
    bodyid = body_freeadr[freeid]
    adr = body_dofadr[bodyid]
    nrow = wp.min(nefc_in[worldid], efc_id_in.shape[1])
    first = ne_in[worldid]
    for efcid in range(first, wp.min(first + nf_in[worldid], nrow)):
        dofid = efc_id_in[worldid, efcid]
        if efc_type_in[worldid, efcid] == _FRICTION_DOF and dofid >= adr and dofid < adr + 6:
            return
    first += nf_in[worldid] + nl_in[worldid]
    for efcid in range(first, nrow):
        geom = contact_geom_in[efc_id_in[worldid, efcid]]
        for side in range(2):
            if body_rootid[geom_bodyid[geom[side]]] == bodyid:
                return
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    armature = wp.vec3()
    omega = wp.vec3()
    for k in range(3):
        armature[k] = dof_armature[worldid % dof_armature.shape[0], adr + 3 + k]
        omega[k] = qvel_in[worldid, adr + 3 + k]
    m = inertia_block(M_rownnz, M_rowadr, M_colind, M_in[worldid], adr)
    body = free_body(m, xmat_in[worldid, bodyid], armature, omega)
    A = inertia_block(M_rownnz, M_rowadr, M_colind, qH_in[worldid], adr)
    A += h * gyroscopic_derivative(body)
    rhs = vec6(0.0)
    a = vec6(0.0)
    for r in range(6):
        rhs[r] = adj_qacc_in[worldid, adr + r]
        a[r] = qacc_in[worldid, adr + r]
    mu = solve6(wp.transpose(A), rhs)
    for r in range(6):
        mu_io[worldid, adr + r] = mu[r]
    # - h mu^T d(dc/dv) qacc
    change = gyroscopic_derivative_vjp(body, mu, a)
    for k in range(3):
        adj_qpos_io[worldid, adr + 3 + k] -= h * change[k]
        adj_qvel_io[worldid, adr + 3 + k] -= h * change[3 + k]


@wp.func
def _change(mu: wp.vec3, a: wp.vec3, v: wp.vec3, metric: wp.vec3, h: float) -> float:
    """Derivative of phi by a stiffness that some dofs share."""
    return h * wp.dot(mu, h * a + v) + h * h * (metric[0] + metric[1] + metric[2])


@wp.kernel
def _joint_metric_vjp(
    # Model:
    opt_timestep: wp.array[float],
    qpos_spring: wp.array2d[float],
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    jnt_stiffness: wp.array2d[float],
    jnt_stiffnesspoly: wp.array2d[wp.vec2],
    dof_damping: wp.array2d[float],
    dof_dampingpoly: wp.array2d[wp.vec2],
    # Record:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    # In:
    with_spring: bool,
    with_damper: bool,
    mu_in: wp.array2d[float],
    adj_qH_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """Stiffness and damping of one joint, where they resist."""
    worldid, jntid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    adr = jnt_dofadr[jntid]
    qadr = jnt_qposadr[jntid]
    jnttype = jnt_type[jntid]
    ndof = int(1)
    if jnttype == _FREE:
        ndof = 6
    elif jnttype == _BALL:
        ndof = 3

    if with_damper:
        for i in range(adr, adr + ndof):
            v = qvel_in[worldid, i]
            poly = dof_dampingpoly[worldid % dof_dampingpoly.shape[0], i]
            damping = dof_damping[worldid % dof_damping.shape[0], i]
            if damping_derivative(damping, poly, v) > 0.0:
                dB = damping_curvature(poly, v)
                change = mu_in[worldid, i] * qacc_in[worldid, i] + adj_qH_in[worldid, i]
                adj_qvel_io[worldid, i] -= h * dB * change

    if not with_spring:
        return
    stiffness = jnt_stiffness[worldid % jnt_stiffness.shape[0], jntid]
    poly = jnt_stiffnesspoly[worldid % jnt_stiffnesspoly.shape[0], jntid]
    ref = worldid % qpos_spring.shape[0]
    if ndof == 1:
        x = qpos_in[worldid, qadr] - qpos_spring[ref, qadr]
        K = spring_derivative(stiffness, poly, x)
        if K > 0.0:
            mu = mu_in[worldid, adr]
            change = h * mu * (h * qacc_in[worldid, adr] + qvel_in[worldid, adr])
            change += h * h * adj_qH_in[worldid, adr]
            adj_qvel_io[worldid, adr] -= h * K * mu
            adj_qpos_io[worldid, adr] -= spring_curvature(poly, x) * change
        return
    for part in range(ndof // 3):
        x3 = vec3_at(qpos_in, worldid, qadr) - vec3_at(qpos_spring, ref, qadr)
        if jnttype == _BALL or part == 1:
            turned = vec4_at(qpos_in, worldid, qadr)
            x3 = rotation_between(vec4_at(qpos_spring, ref, qadr), turned)
        r = wp.length(x3)
        K = spring_derivative(stiffness, poly, r)
        if K > 0.0:
            mu3 = vec3_at(mu_in, worldid, adr)
            v3 = vec3_at(qvel_in, worldid, adr)
            a3 = vec3_at(qacc_in, worldid, adr)
            change = _change(mu3, a3, v3, vec3_at(adj_qH_in, worldid, adr), h)
            # a rotation about the axis of the rotation vector changes its length alone
            dq = spring_curvature(poly, r) * change * wp.normalize(x3)
            for k in range(3):
                adj_qvel_io[worldid, adr + k] -= h * K * mu3[k]
                adj_qpos_io[worldid, adr + k] -= dq[k]
        adr += 3
        qadr += 3


@wp.kernel
def _actuator_metric_vjp(
    # Model:
    nactuator: int,
    opt_timestep: wp.array[float],
    jnt_dofadr: wp.array[int],
    actuator_trnid: wp.array[wp.vec2i],
    actuator_gaintype: wp.array[int],
    actuator_biastype: wp.array[int],
    actuator_gainprm: wp.array2d[vec10],
    actuator_biasprm: wp.array2d[vec10],
    actuator_ctrllimited: wp.array[bool],
    actuator_ctrlrange: wp.array2d[wp.vec2],
    actuator_forcelimited: wp.array[bool],
    actuator_forcerange: wp.array2d[wp.vec2],
    actuator_gear: wp.array2d[wp.spatial_vector],
    # Record:
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    ctrl_in: wp.array2d[float],
    actuator_force_in: wp.array2d[float],
    # In:
    clamp_ctrl: bool,
    mu_in: wp.array2d[float],
    adj_qH_in: wp.array2d[float],
    # Out:
    adj_qvel_io: wp.array2d[float],
    adj_ctrl_io: wp.array2d[float],
):
    """Stiffness and damping of actuators that resist, one world per thread."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    for k in range(nactuator):
        forcerange = actuator_forcerange[worldid % actuator_forcerange.shape[0], k]
        force = actuator_force_in[worldid, k]
        if actuator_forcelimited[k] and (force <= forcerange[0] or force >= forcerange[1]):
            continue
        u = ctrl_in[worldid, k]
        du = float(1.0)
        if clamp_ctrl and actuator_ctrllimited[k]:
            ctrlrange = actuator_ctrlrange[worldid % actuator_ctrlrange.shape[0], k]
            du = wp.where(u < ctrlrange[0] or u > ctrlrange[1], 0.0, 1.0)
            u = wp.clamp(u, ctrlrange[0], ctrlrange[1])
        gain_length = float(0.0)
        gain_velocity = float(0.0)
        if actuator_gaintype[k] == _GAIN_AFFINE:
            gainprm = actuator_gainprm[worldid % actuator_gainprm.shape[0], k]
            gain_length = gainprm[1]
            gain_velocity = gainprm[2]
        stiffness = -gain_length * u
        damping = -gain_velocity * u
        if actuator_biastype[k] == _BIAS_AFFINE:
            biasprm = actuator_biasprm[worldid % actuator_biasprm.shape[0], k]
            stiffness -= biasprm[1]
            damping -= biasprm[2]

        dofid = jnt_dofadr[actuator_trnid[k][0]]
        gear = actuator_gear[worldid % actuator_gear.shape[0], k][0]
        mu = gear * gear * mu_in[worldid, dofid]
        a = qacc_in[worldid, dofid]
        metric = gear * gear * adj_qH_in[worldid, dofid]
        if stiffness > 0.0:
            adj_qvel_io[worldid, dofid] -= h * stiffness * mu
            adj_k = mu * (h * h * a + h * qvel_in[worldid, dofid]) + h * h * metric
            adj_ctrl_io[worldid, k] += adj_k * gain_length * du
        if damping > 0.0:
            adj_ctrl_io[worldid, k] += h * (mu * a + metric) * gain_velocity * du


def free_body_vjp(
    m: mjw.Model, s: Substep, ws: Workspace, adj_qacc: wp.array, adj: Cotangent
) -> None:
    """Corrects `ws.joint_mu` for single free bodies on which no row acts."""
    d = s.d
    wp.launch(
        _free_body_vjp,
        dim=(d.nworld, m.body_freeadr.size),
        inputs=[
            m.opt.timestep,
            m.body_rootid,
            m.body_dofadr,
            m.geom_bodyid,
            m.dof_armature,
            m.M_rownnz,
            m.M_rowadr,
            m.M_colind,
            m.body_freeadr,
            d.ne,
            d.nf,
            d.nl,
            d.nefc,
            d.qvel,
            d.qacc,
            d.xmat,
            d.qH,
            d.M,
            d.contact.geom,
            d.efc.type,
            d.efc.id,
            adj_qacc,
        ],
        outputs=[ws.joint_mu, adj.qpos, adj.qvel],
    )


def discrete_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the forces that the metric adds; `ws.adj_qH` is that of `metric_ratio_vjp`."""
    d = s.d
    wp.launch(
        _joint_metric_vjp,
        dim=(d.nworld, m.njnt),
        inputs=[
            m.opt.timestep,
            m.qpos_spring,
            m.jnt_type,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.jnt_stiffness,
            m.jnt_stiffnesspoly,
            m.dof_damping,
            m.dof_dampingpoly,
            d.qpos,
            d.qvel,
            d.qacc,
            flags.spring,
            flags.damper,
            ws.joint_mu,
            ws.adj_qH,
        ],
        outputs=[adj.qpos, adj.qvel],
    )
    if flags.actuation:
        wp.launch(
            _actuator_metric_vjp,
            dim=d.nworld,
            inputs=[
                m.nactuator,
                m.opt.timestep,
                m.jnt_dofadr,
                m.actuator_trnid,
                m.actuator_gaintype,
                m.actuator_biastype,
                m.actuator_gainprm,
                m.actuator_biasprm,
                m.actuator_ctrllimited,
                m.actuator_ctrlrange,
                m.actuator_forcelimited,
                m.actuator_forcerange,
                m.actuator_gear,
                d.qvel,
                d.qacc,
                d.ctrl,
                d.actuator_force,
                flags.clamp_ctrl,
                ws.joint_mu,
                ws.adj_qH,
            ],
            outputs=[adj.qvel, adj.ctrl],
        )
