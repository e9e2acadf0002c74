"""Adjoint of the actuators' activations: their dynamics and their integration.

Forward, for the activation `act` of an actuator with the clamped control `u`:

    integrator            act_dot = u
    filter, filterexact   act_dot = (u - act) / tau
    muscle                act_dot = (u - act) / tau(u - act, act), two time constants
    act_next = act + c act_dot,   clamped to `actrange`;   c = h, filterexact: tau (1 - exp(-h/tau))

The gain multiplies `act`, or with `actearly` already `act_next`. A servo that follows an angle
moves its activation by whole turns, which changes no derivative.

In:  `adj_next.act`; then `adj_act_dot` and `adj_input`, the cotangent of what the gain multiplies.
Out: `adj_act`, `adj_act_dot` of the integration; `adj_act`, `adj_ctrl` of the dynamics. All are
     zero where a clamp holds.

Derivation: `DERIVATION.md`, section 11. Not covered: activations of plugins, callbacks, DC motors.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import RK4_WEIGHTS, Substep
from .spatial import vec10
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_INTEGRATOR = wp.constant(int(mujoco.mjtDyn.mjDYN_INTEGRATOR))
_FILTEREXACT = wp.constant(int(mujoco.mjtDyn.mjDYN_FILTEREXACT))
_MUSCLE = wp.constant(int(mujoco.mjtDyn.mjDYN_MUSCLE))
_MINVAL = wp.constant(float(mujoco.mjMINVAL))


@wp.func
def activation_step(dyntype: int, dynprm: vec10, timestep: float) -> float:
    """`c`, by which the rate of an activation is multiplied in one time step."""
    if dyntype == _FILTEREXACT:
        tau = wp.max(dynprm[0], _MINVAL)
        x = timestep / tau
        if x < 0.05:  # the closed form cancels in single precision
            return timestep * (1.0 - 0.5 * x * (1.0 - x / 3.0 * (1.0 - 0.25 * x)))
        return tau * (1.0 - wp.exp(-x))
    return timestep


@wp.func
def clamped(limited: bool, x: float, limits: wp.vec2) -> wp.vec2:
    """The clamped `x`, and its derivative by `x`."""
    if limited and (x < limits[0] or x > limits[1]):
        return wp.vec2(wp.clamp(x, limits[0], limits[1]), 0.0)
    return wp.vec2(x, 1.0)


@wp.func
def _muscle_dynamics_vjp(ctrl: float, act: float, prm: vec10, adj: float) -> wp.vec2:
    """Cotangents of (act, ctrl) from that of act_dot; prm = (tau_act, tau_deact, width)."""
    u = clamped(True, ctrl, wp.vec2(0.0, 1.0))
    a = clamped(True, act, wp.vec2(0.0, 1.0))
    stretch = 0.5 + 1.5 * a[0]
    dstretch = 1.5 * a[1]
    slow = prm[1] / stretch
    fast = prm[0] * stretch
    rise = u[0] - act  # excitation in excess of the activation
    share = wp.where(rise > 0.0, 1.0, 0.0)  # of the time constant `fast`
    dshare = float(0.0)
    if prm[2] >= _MINVAL:
        x = wp.clamp(rise / prm[2] + 0.5, 0.0, 1.0)
        share = x * x * x * (x * (6.0 * x - 15.0) + 10.0)
        dshare = 30.0 * x * x * (1.0 - x) * (1.0 - x) / prm[2]
    tau = slow + (fast - slow) * share
    dtau_rise = (fast - slow) * dshare
    dtau_act = share * prm[0] * dstretch - (1.0 - share) * slow / stretch * dstretch
    by_rise = (1.0 - rise * dtau_rise / tau) / tau
    return adj * wp.vec2(-by_rise - rise * dtau_act / (tau * tau), by_rise * u[1])


@wp.kernel
def _next_activation_vjp(
    # Model:
    opt_timestep: wp.array[float],
    actuator_dyntype: wp.array[int],
    actuator_actadr: wp.array[int],
    actuator_dynprm: wp.array2d[vec10],
    actuator_actlimited: wp.array[bool],
    actuator_actrange: wp.array2d[wp.vec2],
    # Record:
    act_in: wp.array2d[float],
    act_dot_in: wp.array2d[float],
    # In:
    adj_act_next_in: wp.array2d[float],
    # Out:
    adj_act_out: wp.array2d[float],
    adj_act_dot_out: wp.array2d[float],
):
    worldid, k = wp.tid()
    adr = actuator_actadr[k]
    if adr < 0:
        return
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    dynprm = actuator_dynprm[worldid % actuator_dynprm.shape[0], k]
    actrange = actuator_actrange[worldid % actuator_actrange.shape[0], k]
    c = activation_step(actuator_dyntype[k], dynprm, h)
    act_next = act_in[worldid, adr] + c * act_dot_in[worldid, adr]
    adj = adj_act_next_in[worldid, adr] * clamped(actuator_actlimited[k], act_next, actrange)[1]
    adj_act_out[worldid, adr] = adj
    adj_act_dot_out[worldid, adr] = c * adj


@wp.kernel
def _scaled(
    # In:
    scale: float,
    x_in: wp.array2d[float],
    # Out:
    y_out: wp.array2d[float],
):
    worldid, i = wp.tid()
    y_out[worldid, i] = scale * x_in[worldid, i]


@wp.kernel
def _activation_vjp(
    # Model:
    opt_timestep: wp.array[float],
    actuator_dyntype: wp.array[int],
    actuator_actadr: wp.array[int],
    actuator_dynprm: wp.array2d[vec10],
    actuator_actlimited: wp.array[bool],
    actuator_actrange: wp.array2d[wp.vec2],
    actuator_actearly: wp.array[bool],
    actuator_ctrllimited: wp.array[bool],
    actuator_ctrlrange: wp.array2d[wp.vec2],
    # Record:
    act_in: wp.array2d[float],
    act_dot_in: wp.array2d[float],
    ctrl_in: wp.array2d[float],
    # In:
    clamp_ctrl: bool,
    adj_act_dot_in: wp.array2d[float],
    adj_input_in: wp.array2d[float],
    # Out:
    adj_act_io: wp.array2d[float],
    adj_ctrl_io: wp.array2d[float],
):
    """The input of the gain, then the dynamics."""
    worldid, k = wp.tid()
    adr = actuator_actadr[k]
    if adr < 0:
        return
    dyntype = actuator_dyntype[k]
    dynprm = actuator_dynprm[worldid % actuator_dynprm.shape[0], k]
    act = act_in[worldid, adr]
    adj_act = adj_input_in[worldid, k]
    adj_act_dot = adj_act_dot_in[worldid, adr]
    if actuator_actearly[k]:
        h = opt_timestep[worldid % opt_timestep.shape[0]]
        actrange = actuator_actrange[worldid % actuator_actrange.shape[0], k]
        c = activation_step(dyntype, dynprm, h)
        act_next = act + c * act_dot_in[worldid, adr]
        adj_act *= clamped(actuator_actlimited[k], act_next, actrange)[1]
        adj_act_dot += c * adj_act

    u = clamped(
        clamp_ctrl and actuator_ctrllimited[k],
        ctrl_in[worldid, k],
        actuator_ctrlrange[worldid % actuator_ctrlrange.shape[0], k],
    )
    adj_u = adj_act_dot
    if dyntype == _MUSCLE:
        adj = _muscle_dynamics_vjp(u[0], act, dynprm, adj_act_dot)
        adj_act += adj[0]
        adj_u = adj[1]
    elif dyntype != _INTEGRATOR:
        adj_u = adj_act_dot / wp.max(dynprm[0], _MINVAL)
        adj_act -= adj_u
    adj_act_io[worldid, adr] += adj_act
    adj_ctrl_io[worldid, k] += adj_u * u[1]


def next_activation_vjp(
    m: mjw.Model,
    s: Substep,
    act_dot: wp.array,
    adj_next: Cotangent,
    adj: Cotangent,
    adj_act_dot: wp.array,
) -> None:
    """Adjoint of `act_next = act + c act_dot`; fills `adj.act` and `adj_act_dot`."""
    wp.launch(
        _next_activation_vjp,
        dim=(s.d.nworld, m.nactuator),
        inputs=[
            m.opt.timestep,
            m.actuator_dyntype,
            m.actuator_actadr,
            m.actuator_dynprm,
            m.actuator_actlimited,
            m.actuator_actrange,
            s.d.act,
            act_dot,
            adj_next.act,
        ],
        outputs=[adj.act, adj_act_dot],
    )


def weighted_activation_vjp(adj_act_dot_mean: wp.array, adj_act_dot: list[wp.array]) -> None:
    """What the final step of RK4 leaves on the rate of every stage."""
    for weight, adj in zip(RK4_WEIGHTS, adj_act_dot, strict=True):
        wp.launch(_scaled, dim=adj.shape, inputs=[weight, adj_act_dot_mean], outputs=[adj])


def activation_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    adj_act_dot: wp.array,
    adj: Cotangent,
) -> None:
    """Adjoint of the activations' dynamics, of all actuators that have one."""
    d = s.d
    wp.launch(
        _activation_vjp,
        dim=(d.nworld, m.nactuator),
        inputs=[
            m.opt.timestep,
            m.actuator_dyntype,
            m.actuator_actadr,
            m.actuator_dynprm,
            m.actuator_actlimited,
            m.actuator_actrange,
            m.actuator_actearly,
            m.actuator_ctrllimited,
            m.actuator_ctrlrange,
            d.act,
            d.act_dot,
            d.ctrl,
            flags.clamp_ctrl,
            adj_act_dot,
            ws.adj_input,
        ],
        outputs=[adj.act, adj.ctrl],
    )
