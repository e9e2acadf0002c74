"""Adjoint of the semi-implicit integrators, Euler with joint damping and implicitfast.

Forward, with the constrained acceleration `qacc`, inertia `M` and time step `h`:

    (M + h E) qacc_eff = M qacc;   qvel_next = qvel + h qacc_eff;   qpos_next = qpos (+) h qvel_next

`E` is minus the velocity derivative of the joint-space forces that the integrator treats
implicitly: joint damping for Euler; damping and the actuators' velocity terms for implicitfast.
Where every actuator acts on one hinge or slide, and no tendon or fluid damps, `E` is diagonal;
else the record holds `M + h E` as the simulator assembled it. A tree that is a single free body is
an exception under implicitfast: the velocity derivative of the gyroscopic force joins its 6 x 6
block, which is then not symmetric and may couple what `M` does not.

In:  `adj_qpos_next` (tangent, nv), `adj_qvel_next`.
Out: `adj_qpos`, `adj_qvel` (direct parts), `w` with `(M + h E)^T w = h adj_qvel_next'`, the
     cotangent `adj_qacc = M w = h adj_qvel_next' - h E^T w`, and `z = qacc - qacc_eff` from `(M +
     h E) z = h E qacc`.

The pair `(w, z)` carries the derivative of `M` in the linear system, `+ w^T dM z`; it is added to
the sums of `tree_vjp`. Derivation: `DERIVATION.md`, section 6. Not covered: implicit.
"""

import functools

import mujoco
import mujoco_warp as mjw
import warp as wp

from .actuator_vjp import implicit_diagonal
from .cholesky import BLOCK_DIM, LARGEST, MODULE_OPTIONS, cholesky
from .fluid_vjp import free_body_fluid
from .free_body import (
    free_body,
    gyroscopic_derivative,
    gyroscopic_derivative_vjp,
    inertia_block,
    solve6,
)
from .record import Substep
from .spatial import mat66, right_jacobian_transposed, rotate_by, vec6
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.kernel
def _next_position_vjp(
    # Model:
    opt_timestep: wp.array[float],
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    # Record:
    qvel_next_in: wp.array2d[float],
    # In:
    adj_qpos_next_in: wp.array2d[float],
    adj_qvel_next_in: wp.array2d[float],
    # Out:
    adj_qpos_out: wp.array2d[float],
    adj_qvel_out: wp.array2d[float],
    rhs_out: wp.array2d[float],
):
    """qpos_next = qpos (+) h qvel_next, per joint; rhs = h * the whole cotangent of qvel_next."""
    worldid, jntid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    adr = jnt_dofadr[jntid]
    jnttype = jnt_type[jntid]

    rot = int(-1)
    ndof = int(1)
    if jnttype == _FREE:
        rot = adr + 3
        ndof = 6
    elif jnttype == _BALL:
        rot = adr
        ndof = 3

    for i in range(adr, adr + ndof):
        adj = adj_qpos_next_in[worldid, i]
        adj_qpos_out[worldid, i] = adj
        adj_qvel_out[worldid, i] = adj_qvel_next_in[worldid, i] + h * adj
    if rot >= 0:
        l = wp.vec3(
            adj_qpos_next_in[worldid, rot],
            adj_qpos_next_in[worldid, rot + 1],
            adj_qpos_next_in[worldid, rot + 2],
        )
        r = h * wp.vec3(
            qvel_next_in[worldid, rot],
            qvel_next_in[worldid, rot + 1],
            qvel_next_in[worldid, rot + 2],
        )
        adj_q = rotate_by(r, l)
        adj_v = right_jacobian_transposed(r, l)
        for k in range(3):
            adj_qpos_out[worldid, rot + k] = adj_q[k]
            adj_qvel_out[worldid, rot + k] = adj_qvel_next_in[worldid, rot + k] + h * adj_v[k]
    for i in range(adr, adr + ndof):
        rhs_out[worldid, i] = h * adj_qvel_out[worldid, i]


@functools.cache
def _velocity_solve_vjp(nv: int) -> wp.Kernel:
    """Kernel for one size, of which its types are: both solves, for a diagonal E."""
    c = cholesky(nv, 2)
    sides, gathered, factor, solve = c.sides, c.gathered, c.factor, c.solve

    @wp.kernel(module="unique", enable_backward=False, module_options=MODULE_OPTIONS)
    def kernel(
        # Model:
        opt_timestep: wp.array[float],
        M_elemid: wp.array2d[int],
        # Record:
        M_in: wp.array2d[float],
        qacc_in: wp.array2d[float],
        # In:
        implicit_in: wp.array2d[float],
        rhs_in: wp.array2d[float],
        # Out:
        w_out: wp.array2d[float],
        z_out: wp.array2d[float],
        adj_qacc_out: wp.array2d[float],
    ):
        """One world per thread; adj_qacc = M w, written without M."""
        worldid = wp.tid()
        h = opt_timestep[worldid % opt_timestep.shape[0]]
        system = gathered(M_in[worldid], M_elemid)
        rhs = sides()
        for i in range(nv):
            he = h * implicit_in[worldid, i]
            system[i, i] += he
            rhs[i, 0] = rhs_in[worldid, i]
            rhs[i, 1] = he * qacc_in[worldid, i]
        x = solve(factor(system), rhs)
        for i in range(nv):
            w_out[worldid, i] = x[i, 0]
            z_out[worldid, i] = x[i, 1]
            adj_qacc_out[worldid, i] = rhs[i, 0] - h * implicit_in[worldid, i] * x[i, 0]

    return kernel


@wp.kernel
def _add_implicit(
    # Model:
    opt_timestep: wp.array[float],
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    # Record:
    qacc_in: wp.array2d[float],
    # In:
    implicit_in: wp.array2d[float],
    # Out:
    A_io: wp.array2d[float],
    rhs_out: wp.array2d[float],
):
    """A = M + h E, from M; rhs = h E qacc."""
    worldid, dofid = wp.tid()
    e = opt_timestep[worldid % opt_timestep.shape[0]] * implicit_in[worldid, dofid]
    A_io[worldid, M_rowadr[dofid] + M_rownnz[dofid] - 1] += e
    rhs_out[worldid, dofid] = e * qacc_in[worldid, dofid]


@wp.kernel
def _implicit_qacc_vjp(
    # Model:
    opt_timestep: wp.array[float],
    # In:
    implicit_in: wp.array2d[float],
    rhs_in: wp.array2d[float],
    w_in: wp.array2d[float],
    # Out:
    adj_qacc_out: wp.array2d[float],
):
    """adj_qacc = M w, written without M."""
    worldid, dofid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    adj_qacc_out[worldid, dofid] = (
        rhs_in[worldid, dofid] - h * implicit_in[worldid, dofid] * w_in[worldid, dofid]
    )


@wp.kernel
def _implicit_matrix(
    # Record:
    M_in: wp.array2d[float],
    system_M_in: wp.array2d[float],
    # Out:
    implicit_M_out: wp.array2d[float],
):
    """h E = (M + h E) - M, in the sparsity pattern of M."""
    worldid, k = wp.tid()
    implicit_M_out[worldid, k] = system_M_in[worldid, k] - M_in[worldid, k]


@wp.kernel
def _subtracted(
    # In:
    rhs_in: wp.array2d[float],
    # Out:
    product_io: wp.array2d[float],
):
    """adj_qacc = M w = rhs - h E w."""
    worldid, dofid = wp.tid()
    product_io[worldid, dofid] = rhs_in[worldid, dofid] - product_io[worldid, dofid]


@wp.kernel
def _free_body_vjp(
    # Model:
    opt_timestep: wp.array[float],
    body_dofadr: wp.array[int],
    dof_armature: wp.array2d[float],
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    M_colind: wp.array[int],
    body_freeadr: wp.array[int],
    # Record:
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    xmat_in: wp.array2d[wp.mat33],
    M_in: wp.array2d[float],
    # In:
    with_fluid: bool,
    implicit_in: wp.array2d[float],
    fluid_in: wp.array2d[mat66],
    rhs_in: wp.array2d[float],
    # Out:
    w_out: wp.array2d[float],
    z_out: wp.array2d[float],
    adj_qacc_out: wp.array2d[float],
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """A tree that is one free body, implicitfast: E = diag(implicit) + d(gyroscopic force)/dv."""
    worldid, freeid = wp.tid()
    bodyid = body_freeadr[freeid]
    adr = body_dofadr[bodyid]
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    m = inertia_block(M_rownnz, M_rowadr, M_colind, M_in[worldid], adr)
    armature = wp.vec3()
    omega = wp.vec3()
    for k in range(3):
        armature[k] = dof_armature[worldid % dof_armature.shape[0], adr + 3 + k]
        omega[k] = qvel_in[worldid, adr + 3 + k]
    body = free_body(m, xmat_in[worldid, bodyid], armature, omega)
    he = h * gyroscopic_derivative(body)
    if with_fluid:
        he += fluid_in[worldid, freeid]
    for r in range(6):
        he[r, r] += h * implicit_in[worldid, adr + r]

    rhs = vec6(0.0)
    a = vec6(0.0)
    for r in range(6):
        rhs[r] = rhs_in[worldid, adr + r]
        a[r] = qacc_in[worldid, adr + r]
    w = solve6(wp.transpose(m + he), rhs)
    z = solve6(m + he, he @ a)
    adj = rhs - wp.transpose(he) @ w
    for r in range(6):
        w_out[worldid, adr + r] = w[r]
        z_out[worldid, adr + r] = z[r]
        adj_qacc_out[worldid, adr + r] = adj[r]

    # - h w^T d(dc/dv) qacc_eff
    change = gyroscopic_derivative_vjp(body, w, a - z)
    for k in range(3):
        adj_qpos_io[worldid, adr + 3 + k] -= h * change[k]
        adj_qvel_io[worldid, adr + 3 + k] -= h * change[3 + k]


def next_position_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    qvel_next: wp.array,
    adj_next: Cotangent,
    adj: Cotangent,
) -> None:
    """Adjoint of `qpos_next = qpos (+) h qvel_next`; fills `adj` and `ws.rhs`."""
    d = s.d
    wp.launch(
        _next_position_vjp,
        dim=(d.nworld, m.njnt),
        inputs=[
            m.opt.timestep,
            m.jnt_type,
            m.jnt_dofadr,
            qvel_next,
            adj_next.qpos,
            adj_next.qvel,
        ],
        outputs=[adj.qpos, adj.qvel, ws.rhs],
    )


def velocity_solve_vjp(
    m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent
) -> None:
    """Adjoint of `(M + h E) qacc_eff = M qacc`: fills `ws.joint_w`, `joint_z` and `adj_qacc`."""
    d = s.d
    implicit_diagonal(m, flags, s, ws)
    if s.system_M is None and m.nv <= LARGEST:
        wp.launch(
            _velocity_solve_vjp(m.nv),
            dim=d.nworld,
            inputs=[m.opt.timestep, m.M_elemid, d.M, d.qacc, ws.implicit, ws.rhs],
            outputs=[ws.joint_w, ws.joint_z, ws.adj_qacc],
            block_dim=BLOCK_DIM,
        )
    else:
        _sparse_solve_vjp(m, s, ws)
    if flags.free_bodies:
        if flags.implicit_fluid:
            free_body_fluid(m, s, ws)
        wp.launch(
            _free_body_vjp,
            dim=(d.nworld, m.body_freeadr.size),
            inputs=[
                m.opt.timestep,
                m.body_dofadr,
                m.dof_armature,
                m.M_rownnz,
                m.M_rowadr,
                m.M_colind,
                m.body_freeadr,
                d.qvel,
                d.qacc,
                d.xmat,
                d.M,
                flags.implicit_fluid,
                ws.implicit,
                ws.free_body_fluid,
                ws.rhs,
            ],
            outputs=[ws.joint_w, ws.joint_z, ws.adj_qacc, adj.qpos, adj.qvel],
        )


def _sparse_solve_vjp(m: mjw.Model, s: Substep, ws: Workspace) -> None:
    """The same with the simulator's own solver, which knows the trees: many dofs, or any E."""
    d = s.d
    if s.system_M is None:
        wp.copy(ws.system.M, d.M)
        wp.launch(
            _add_implicit,
            dim=(d.nworld, m.nv),
            inputs=[m.opt.timestep, m.M_rownnz, m.M_rowadr, d.qacc, ws.implicit],
            outputs=[ws.system.M, ws.rhs_z],
        )
    else:
        wp.copy(ws.system.M, s.system_M)
        wp.launch(
            _implicit_matrix,
            dim=d.M.shape,
            inputs=[d.M, s.system_M],
            outputs=[ws.implicit_M],
        )
        mjw.mul_m(m, d, ws.rhs_z, d.qacc, M=ws.implicit_M)
    mjw.factor_m(m, ws.system)
    mjw.solve_m(m, ws.system, ws.joint_w, ws.rhs)
    mjw.solve_m(m, ws.system, ws.joint_z, ws.rhs_z)
    if s.system_M is None:
        wp.launch(
            _implicit_qacc_vjp,
            dim=(d.nworld, m.nv),
            inputs=[m.opt.timestep, ws.implicit, ws.rhs, ws.joint_w],
            outputs=[ws.adj_qacc],
        )
    else:
        mjw.mul_m(m, d, ws.adj_qacc, ws.joint_w, M=ws.implicit_M)
        wp.launch(_subtracted, dim=(d.nworld, m.nv), inputs=[ws.rhs], outputs=[ws.adj_qacc])
