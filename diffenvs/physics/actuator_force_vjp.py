"""Derivatives of the actuators' forces, for every gain, bias and activation.

Forward, for an actuator of length `L`, velocity `V` and input `u` (the clamped control, or the
activation):

    F(L, V, u) = gain(L, V) u + bias(L, V),   clamped to `forcerange`
    fixed, affine   gain = g0 + g1 L + g2 V;   bias = b0 + b1 L + b2 V
    muscle          gain = -f FL(l) FV(v),   bias = -f FP(l),   l = r0 + (L - L_min) / L0,
                    v = V / (L0 vmax)   with MuJoCo's piecewise quadratic curves FL, FV, FP

In:  the record's `ctrl`, `act`, `actuator_length`, `actuator_velocity`, `actuator_force`.
Out: `force_derivatives`, (F, F_L, F_V, F_u, F_VL, F_VV, F_Vu) of every actuator; all but F vanish
     where `forcerange` clamps, those by `u` where a control is clamped.

The transmissions (`transmission_vjp`, `site_vjp`) turn them into cotangents: with the moment `m`
(V = m qvel) they take the coefficients of

    phi = -F (m mu) - h F_V (m w)(m qacc_eff)          (the second term under implicitfast only)

on `m mu`, `m w`, `m qacc_eff`, `V`, `L` and `u`, see `phi_coefficients`. A servo that follows an
angle (on a ball joint, or of a site against another) takes the nearest of all turns of `u`, which
changes no derivative. Derivation: `DERIVATION.md`, section 11.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .activation_vjp import activation_step, activation_vjp, clamped
from .actuator_vjp import is_clamped
from .record import Substep
from .site_vjp import site_actuator_vjp
from .spatial import vec7, vec10
from .transmission_vjp import joint_actuator_vjp, tendon_actuator_vjp
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_GAIN_AFFINE = wp.constant(int(mujoco.mjtGain.mjGAIN_AFFINE))
_GAIN_MUSCLE = wp.constant(int(mujoco.mjtGain.mjGAIN_MUSCLE))
_BIAS_AFFINE = wp.constant(int(mujoco.mjtBias.mjBIAS_AFFINE))
_BIAS_MUSCLE = wp.constant(int(mujoco.mjtBias.mjBIAS_MUSCLE))
_MINVAL = wp.constant(float(mujoco.mjMINVAL))


@wp.func
def _active_length_curve(l: float, lmin: float, lmax: float) -> wp.vec2:
    """FL and its derivative: a bell of four parabolas on [lmin, lmax], 1 at l = 1."""
    if l < lmin or l > lmax:
        return wp.vec2(0.0, 0.0)
    end = wp.where(l <= 1.0, lmin, lmax)
    half = 0.5 * (1.0 - end)  # from the middle of this side to either of its ends
    if wp.abs(half) < _MINVAL:
        half = _MINVAL
    if wp.abs(l - end) <= wp.abs(half):
        x = (l - end) / half
        return wp.vec2(0.5 * x * x, x / half)
    x = (1.0 - l) / half
    return wp.vec2(1.0 - 0.5 * x * x, x / half)


@wp.func
def _velocity_curve(v: float, fvmax: float) -> wp.vec3:
    """FV and its two derivatives: from 0 at v = -1 through 1 at rest to fvmax."""
    y = fvmax - 1.0
    if v <= -1.0:
        return wp.vec3(0.0, 0.0, 0.0)
    if v <= 0.0:
        return wp.vec3((v + 1.0) * (v + 1.0), 2.0 * (v + 1.0), 2.0)
    if v <= y:
        x = y - v
        return wp.vec3(fvmax - x * x / y, 2.0 * x / y, -2.0 / y)
    return wp.vec3(fvmax, 0.0, 0.0)


@wp.func
def _passive_length_slope(l: float, lmax: float, fpmax: float) -> float:
    """Derivative of FP: 0 below l = 1, then a parabola, then a line."""
    b = wp.max(0.5 * (1.0 + lmax) - 1.0, _MINVAL)
    return fpmax * wp.clamp((l - 1.0) / b, 0.0, 1.0) / b


@wp.func
def _muscle_scale(lengthrange: wp.vec2, acc0: float, prm: vec10) -> wp.vec2:
    """Peak force f and optimal length L0; prm = (range, force, scale, lmin, lmax, vmax, ..)."""
    force = prm[2]
    if force < 0.0:
        force = prm[3] / wp.max(acc0, _MINVAL)
    optimum = (lengthrange[1] - lengthrange[0]) / wp.max(prm[1] - prm[0], _MINVAL)
    return wp.vec2(force, wp.max(optimum, _MINVAL))


@wp.kernel
def _force_derivatives(
    # Model:
    opt_timestep: wp.array[float],
    actuator_dyntype: wp.array[int],
    actuator_gaintype: wp.array[int],
    actuator_biastype: wp.array[int],
    actuator_actadr: wp.array[int],
    actuator_dynprm: wp.array2d[vec10],
    actuator_gainprm: wp.array2d[vec10],
    actuator_biasprm: wp.array2d[vec10],
    actuator_actlimited: wp.array[bool],
    actuator_actrange: wp.array2d[wp.vec2],
    actuator_actearly: wp.array[bool],
    actuator_ctrllimited: wp.array[bool],
    actuator_ctrlrange: wp.array2d[wp.vec2],
    actuator_forcelimited: wp.array[bool],
    actuator_forcerange: wp.array2d[wp.vec2],
    actuator_acc0: wp.array2d[float],
    actuator_lengthrange: wp.array2d[wp.vec2],
    # Record:
    act_in: wp.array2d[float],
    act_dot_in: wp.array2d[float],
    ctrl_in: wp.array2d[float],
    actuator_length_in: wp.array2d[float],
    actuator_velocity_in: wp.array2d[float],
    actuator_force_in: wp.array2d[float],
    # In:
    clamp_ctrl: bool,
    # Out:
    derivatives_out: wp.array2d[vec7],
):
    worldid, k = wp.tid()
    force = actuator_force_in[worldid, k]
    derivatives = vec7(0.0)
    derivatives[0] = force
    forcerange = actuator_forcerange[worldid % actuator_forcerange.shape[0], k]
    if is_clamped(actuator_forcelimited[k], force, forcerange):
        derivatives_out[worldid, k] = derivatives
        return

    u = wp.vec2(0.0, 1.0)  # with its derivative by what `adj_input` belongs to
    adr = actuator_actadr[k]
    if adr < 0:
        ctrlrange = actuator_ctrlrange[worldid % actuator_ctrlrange.shape[0], k]
        u = clamped(clamp_ctrl and actuator_ctrllimited[k], ctrl_in[worldid, k], ctrlrange)
    else:
        u[0] = act_in[worldid, adr]
        if actuator_actearly[k]:
            h = opt_timestep[worldid % opt_timestep.shape[0]]
            dynprm = actuator_dynprm[worldid % actuator_dynprm.shape[0], k]
            actrange = actuator_actrange[worldid % actuator_actrange.shape[0], k]
            u[0] += activation_step(actuator_dyntype[k], dynprm, h) * act_dot_in[worldid, adr]
            u[0] = clamped(actuator_actlimited[k], u[0], actrange)[0]

    length = actuator_length_in[worldid, k]
    velocity = actuator_velocity_in[worldid, k]
    lengthrange = actuator_lengthrange[worldid % actuator_lengthrange.shape[0], k]
    acc0 = actuator_acc0[worldid % actuator_acc0.shape[0], k]
    prm = actuator_gainprm[worldid % actuator_gainprm.shape[0], k]
    if actuator_gaintype[k] == _GAIN_MUSCLE:
        scale = _muscle_scale(lengthrange, acc0, prm)
        to_l = 1.0 / scale[1]
        to_v = 1.0 / wp.max(scale[1] * prm[6], _MINVAL)
        fl = -scale[0] * _active_length_curve(
            prm[0] + (length - lengthrange[0]) * to_l, prm[4], prm[5]
        )
        fv = _velocity_curve(velocity * to_v, prm[8])
        derivatives[1] = fl[1] * fv[0] * to_l * u[0]
        derivatives[2] = fl[0] * fv[1] * to_v * u[0]
        derivatives[3] = fl[0] * fv[0] * u[1]
        derivatives[4] = fl[1] * fv[1] * to_l * to_v * u[0]
        derivatives[5] = fl[0] * fv[2] * to_v * to_v * u[0]
        derivatives[6] = fl[0] * fv[1] * to_v * u[1]
    else:
        derivatives[3] = prm[0] * u[1]
        if actuator_gaintype[k] == _GAIN_AFFINE:
            derivatives[1] = prm[1] * u[0]
            derivatives[2] = prm[2] * u[0]
            derivatives[3] += (prm[1] * length + prm[2] * velocity) * u[1]
            derivatives[6] = prm[2] * u[1]
    prm = actuator_biasprm[worldid % actuator_biasprm.shape[0], k]
    if actuator_biastype[k] == _BIAS_MUSCLE:
        scale = _muscle_scale(lengthrange, acc0, prm)
        l = prm[0] + (length - lengthrange[0]) / scale[1]
        derivatives[1] -= scale[0] * _passive_length_slope(l, prm[5], prm[7]) / scale[1]
    elif actuator_biastype[k] == _BIAS_AFFINE:
        derivatives[1] += prm[1]
        derivatives[2] += prm[2]
    derivatives_out[worldid, k] = derivatives


def general_actuator_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    adj_act_dot: wp.array,
    adj: Cotangent,
) -> None:
    """Adjoint of actuators of every kind, and of their activations' dynamics."""
    d = s.d
    wp.launch(
        _force_derivatives,
        dim=(d.nworld, m.nactuator),
        inputs=[
            m.opt.timestep,
            m.actuator_dyntype,
            m.actuator_gaintype,
            m.actuator_biastype,
            m.actuator_actadr,
            m.actuator_dynprm,
            m.actuator_gainprm,
            m.actuator_biasprm,
            m.actuator_actlimited,
            m.actuator_actrange,
            m.actuator_actearly,
            m.actuator_ctrllimited,
            m.actuator_ctrlrange,
            m.actuator_forcelimited,
            m.actuator_forcerange,
            m.actuator_acc0,
            m.actuator_lengthrange,
            d.act,
            d.act_dot,
            d.ctrl,
            d.actuator_length,
            d.actuator_velocity,
            d.actuator_force,
            flags.clamp_ctrl,
        ],
        outputs=[ws.force_derivatives],
    )
    joint_actuator_vjp(m, flags, s, ws, adj)
    if flags.site_actuation:
        site_actuator_vjp(m, flags, s, ws, adj)
    if flags.tendon_actuation:
        tendon_actuator_vjp(m, flags, s, ws, adj)
    if flags.activation:
        activation_vjp(m, flags, s, ws, adj_act_dot, adj)
