"""Adjoint of the Runge-Kutta integrator of order four.

Forward, with the stages `i = 1..4`, `c = (0, 1/2, 1/2, 1)` and weights `b = (1, 2, 2, 1)/6`:

    qpos_i = qpos (+) h c_i rate_(i-1);   qvel_i = qvel + h c_i qacc_(i-1);   qacc_i from forward
    act_i = act + h c_i act_dot_(i-1);    act_next as in `activation_vjp`, from sum b_i act_dot_i
    qpos_next = qpos (+) h sum b_i rate_i;   qvel_next = qvel + h sum b_i qacc_i

A rate is the stage's velocity, but for the rotations of ball and free joints: there it is the rate
of the rotation vector `r = h c_i rate_(i-1)` (Runge-Kutta-Munthe-Kaas),

    rate_i = w + r x w / 2 + c(r^2) r x (r x w),   c(x^2) = (1 - (x/2) cot(x/2)) / x^2

In:  the cotangents of the state after, the recorded stages.
Out: the cotangents of the state before and of the control, accumulated stage by stage, from the
     last to the first; the adjoint of each stage's forward dynamics is `vjp.forward_vjp`.

Derivation: `DERIVATION.md`, section 6.
"""

from collections.abc import Callable

import mujoco
import mujoco_warp as mjw
import warp as wp

from .activation_vjp import next_activation_vjp, weighted_activation_vjp
from .forces_vjp import ForceCotangent
from .record import RK4_NODES, RK4_WEIGHTS, Substep
from .spatial import bortz, inverse_right_jacobian, right_jacobian_transposed, rotate_by
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.kernel
def _displaced_position_vjp(
    # Model:
    opt_timestep: wp.array[float],
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    # Record:
    rate_in: wp.array2d[float],
    # In:
    scale: float,
    adj_displaced_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_rate_io: wp.array2d[float],
):
    """displaced = qpos (+) h scale rate, one joint per thread."""
    worldid, jntid = wp.tid()
    h = scale * opt_timestep[worldid % opt_timestep.shape[0]]
    adr = jnt_dofadr[jntid]
    jnttype = jnt_type[jntid]
    if jnttype == _FREE:
        for i in range(adr, adr + 3):
            adj_qpos_io[worldid, i] += adj_displaced_in[worldid, i]
            adj_rate_io[worldid, i] += h * adj_displaced_in[worldid, i]
        adr += 3
    if jnttype == _FREE or jnttype == _BALL:
        l = wp.vec3(
            adj_displaced_in[worldid, adr],
            adj_displaced_in[worldid, adr + 1],
            adj_displaced_in[worldid, adr + 2],
        )
        r = h * wp.vec3(rate_in[worldid, adr], rate_in[worldid, adr + 1], rate_in[worldid, adr + 2])
        adj_q = rotate_by(r, l)
        adj_r = right_jacobian_transposed(r, l)
        for k in range(3):
            adj_qpos_io[worldid, adr + k] += adj_q[k]
            adj_rate_io[worldid, adr + k] += h * adj_r[k]
    else:
        adj_qpos_io[worldid, adr] += adj_displaced_in[worldid, adr]
        adj_rate_io[worldid, adr] += h * adj_displaced_in[worldid, adr]


@wp.kernel
def _weighted_stages_vjp(
    # Model:
    opt_timestep: wp.array[float],
    # In:
    weight: float,
    adj_qvel_next_in: wp.array2d[float],
    adj_rate_mean_in: wp.array2d[float],
    # Out:
    adj_qacc_out: wp.array2d[float],
    adj_rate_out: wp.array2d[float],
):
    """What the final step leaves on the acceleration and the rate of one stage."""
    worldid, dofid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    adj_qacc_out[worldid, dofid] = weight * h * adj_qvel_next_in[worldid, dofid]
    adj_rate_out[worldid, dofid] = weight * adj_rate_mean_in[worldid, dofid]


@wp.func
def _bortz_derivative(x2: float) -> float:
    """Of `bortz` by x^2."""
    if x2 <= 0.3:  # the closed form cancels in single precision
        return 1.0 / 720.0 + x2 * (1.0 / 15120.0 + x2 / 403200.0)
    x = wp.sqrt(x2)
    half = wp.sin(0.5 * x)
    dc_dx = (0.25 * x / (half * half) - 0.5 / wp.tan(0.5 * x)) / x2 - 2.0 * bortz(x2) / x
    return dc_dx / (2.0 * x)


@wp.kernel
def _rate_vjp(
    # Model:
    opt_timestep: wp.array[float],
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    # Record:
    qvel_in: wp.array2d[float],
    rate_prev_in: wp.array2d[float],
    # In:
    scale: float,
    adj_rate_in: wp.array2d[float],
    # Out:
    adj_qvel_io: wp.array2d[float],
    adj_rate_prev_io: wp.array2d[float],
):
    """rate of this stage from its velocity and the rate of the stage before, per joint."""
    worldid, jntid = wp.tid()
    adr = jnt_dofadr[jntid]
    jnttype = jnt_type[jntid]
    if jnttype == _FREE:
        for i in range(adr, adr + 3):
            adj_qvel_io[worldid, i] += adj_rate_in[worldid, i]
        adr += 3
    if jnttype == _FREE or jnttype == _BALL:
        h = scale * opt_timestep[worldid % opt_timestep.shape[0]]
        l = wp.vec3(
            adj_rate_in[worldid, adr], adj_rate_in[worldid, adr + 1], adj_rate_in[worldid, adr + 2]
        )
        w = wp.vec3(qvel_in[worldid, adr], qvel_in[worldid, adr + 1], qvel_in[worldid, adr + 2])
        r = h * wp.vec3(
            rate_prev_in[worldid, adr],
            rate_prev_in[worldid, adr + 1],
            rate_prev_in[worldid, adr + 2],
        )
        r2 = wp.dot(r, r)
        rl = wp.cross(r, l)
        rw = wp.cross(r, w)
        adj_w = inverse_right_jacobian(-r, l)
        adj_r = 0.5 * wp.cross(w, l) + bortz(r2) * (wp.cross(rw, l) - wp.cross(w, rl))
        adj_r += r * (2.0 * _bortz_derivative(r2) * wp.dot(l, wp.cross(r, rw)))
        for k in range(3):
            adj_qvel_io[worldid, adr + k] += adj_w[k]
            adj_rate_prev_io[worldid, adr + k] += h * adj_r[k]
    else:
        adj_qvel_io[worldid, adr] += adj_rate_in[worldid, adr]


@wp.kernel
def _displaced_vjp(
    # Model:
    opt_timestep: wp.array[float],
    # In:
    scale: float,
    adj_displaced_in: wp.array2d[float],
    # Out:
    adj_x_io: wp.array2d[float],
    adj_rate_io: wp.array2d[float],
):
    """displaced = x + h scale rate: velocities and activations."""
    worldid, i = wp.tid()
    h = scale * opt_timestep[worldid % opt_timestep.shape[0]]
    adj = adj_displaced_in[worldid, i]
    adj_x_io[worldid, i] += adj
    adj_rate_io[worldid, i] += h * adj


def rungekutta4_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    adj_next: Cotangent,
    adj: Cotangent,
    forward_vjp: Callable,
    forces: ForceCotangent | None,
) -> None:
    """Cotangents of the state before a step; `forward_vjp` is that of `vjp`.

    Forces are those of the last stage.
    """
    d, rk, work = s.d, s.rungekutta4, ws.rungekutta4
    assert rk is not None and work is not None
    joints = [m.opt.timestep, m.jnt_type, m.jnt_dofadr]
    per_joint, per_dof = (d.nworld, m.njnt), (d.nworld, m.nv)
    stages = [s, *rk.stages]
    adj_stage = adj.with_state(work.adj)
    adj.zero_state()
    work.adj_rate_mean.zero_()
    wp.launch(
        _displaced_position_vjp,
        dim=per_joint,
        inputs=[*joints, rk.rate_mean, 1.0, adj_next.qpos],
        outputs=[adj.qpos, work.adj_rate_mean],
    )
    wp.copy(adj.qvel, adj_next.qvel)
    if flags.activation:
        next_activation_vjp(m, s, rk.act_dot_mean, adj_next, adj, ws.adj_act_dot)
        weighted_activation_vjp(ws.adj_act_dot, work.adj_act_dot)
    for i, weight in enumerate(RK4_WEIGHTS):
        wp.launch(
            _weighted_stages_vjp,
            dim=per_dof,
            inputs=[m.opt.timestep, weight, adj_next.qvel, work.adj_rate_mean],
            outputs=[work.adj_qacc[i], work.adj_rate[i]],
        )
    for i in (3, 2, 1):
        stage, rate_prev, scale = stages[i], rk.rates[i - 1], RK4_NODES[i - 1]
        adj_stage.zero_state()
        wp.launch(
            _rate_vjp,
            dim=per_joint,
            inputs=[*joints, stage.d.qvel, rate_prev, scale, work.adj_rate[i]],
            outputs=[adj_stage.qvel, work.adj_rate[i - 1]],
        )
        of_stage = forces if i == 3 else None
        forward_vjp(m, flags, stage, ws, work.adj_qacc[i], work.adj_act_dot[i], adj_stage, of_stage)
        wp.launch(
            _displaced_position_vjp,
            dim=per_joint,
            inputs=[*joints, rate_prev, scale, adj_stage.qpos],
            outputs=[adj.qpos, work.adj_rate[i - 1]],
        )
        wp.launch(
            _displaced_vjp,
            dim=per_dof,
            inputs=[m.opt.timestep, scale, adj_stage.qvel],
            outputs=[adj.qvel, work.adj_qacc[i - 1]],
        )
        if flags.activation:
            wp.launch(
                _displaced_vjp,
                dim=(d.nworld, m.na),
                inputs=[m.opt.timestep, scale, adj_stage.act],
                outputs=[adj.act, work.adj_act_dot[i - 1]],
            )
    forward_vjp(m, flags, s, ws, work.adj_qacc[0], work.adj_act_dot[0], adj)
    wp.launch(
        _displaced_vjp,
        dim=per_dof,
        inputs=[m.opt.timestep, 0.0, work.adj_rate[0]],
        outputs=[adj.qvel, work.adj_qacc[0]],
    )
