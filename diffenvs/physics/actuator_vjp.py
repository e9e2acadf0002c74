"""Adjoint of forces of single dofs, plain actuators and damping; diagonal of the implicit terms.

Forward, for actuator `k` on a hinge or slide joint with `gear` (its moment, so length `L = gear
qpos`, velocity `V = gear qvel`) and the clamped control `u`; and for the damping of the dof:

    force = (g0 + g1 L + g2 V) u + b0 + b1 L + b2 V,   clamped to `forcerange`
    qfrc[dof] += gear * force;   qfrc[dof] -= b(qvel) qvel

In:  `mu` (nv), the solution of `H mu = adj_qacc`; with an implicit integrator also the pair `w`,
     `z`, and `qacc_eff = qacc - z`.
Out: `adj_qpos`, `adj_qvel`, `adj_ctrl`, accumulated:

    adj_qpos += F_L (gear mu) gear;   adj_qvel += F_V (gear mu) gear
    adj_ctrl += F_u (gear mu)  [+ h (gear w)(gear qacc_eff) g2 under implicitfast]
    adj_qvel -= B mu  [+ h w dB/dv qacc_eff where damping is implicit]

A derivative with respect to a clamped quantity is zero. `B = d(b v)/dv` is that of `passive_vjp`.
`implicit_diagonal` is the diagonal `E` of `integrator_vjp`, built from the same derivatives.
Derivation: `DERIVATION.md`, sections 7 and 8. Models with any other kind of actuator
(`Flags.general_actuation`) go through `actuator_force_vjp`, but for the damping.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .activation_vjp import clamped
from .passive_vjp import damping_curvature, damping_derivative
from .record import Substep
from .spatial import vec10
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_GAIN_AFFINE = wp.constant(int(mujoco.mjtGain.mjGAIN_AFFINE))
_BIAS_AFFINE = wp.constant(int(mujoco.mjtBias.mjBIAS_AFFINE))


@wp.func
def is_clamped(limited: bool, force: float, forcerange: wp.vec2) -> bool:
    """Whether the actuator force sits on its limit, where all its derivatives are zero."""
    return limited and (force <= forcerange[0] or force >= forcerange[1])


@wp.kernel
def _implicit_diagonal(
    # Model:
    dof_damping: wp.array2d[float],
    dof_dampingpoly: wp.array2d[wp.vec2],
    dof_actuatoradr: wp.array[int],
    dof_actuator: wp.array[int],
    actuator_gaintype: wp.array[int],
    actuator_biastype: wp.array[int],
    actuator_gainprm: wp.array2d[vec10],
    actuator_biasprm: wp.array2d[vec10],
    actuator_forcelimited: wp.array[bool],
    actuator_forcerange: wp.array2d[wp.vec2],
    actuator_gear: wp.array2d[wp.spatial_vector],
    # Record:
    qvel_in: wp.array2d[float],
    ctrl_in: wp.array2d[float],
    actuator_force_in: wp.array2d[float],
    # In:
    with_damping: bool,
    with_actuators: bool,
    # Out:
    implicit_out: wp.array2d[float],
):
    """E = damping (- F_V gear^2 of the actuators), one dof per thread."""
    worldid, dofid = wp.tid()
    e = float(0.0)
    if with_damping:
        e = damping_derivative(
            dof_damping[worldid % dof_damping.shape[0], dofid],
            dof_dampingpoly[worldid % dof_dampingpoly.shape[0], dofid],
            qvel_in[worldid, dofid],
        )
    if with_actuators:
        for i in range(dof_actuatoradr[dofid], dof_actuatoradr[dofid + 1]):
            k = dof_actuator[i]
            if is_clamped(
                actuator_forcelimited[k],
                actuator_force_in[worldid, k],
                actuator_forcerange[worldid % actuator_forcerange.shape[0], k],
            ):
                continue
            # the simulator's own velocity derivative reads the control before its clamp
            force_velocity = float(0.0)
            if actuator_biastype[k] == _BIAS_AFFINE:
                force_velocity = actuator_biasprm[worldid % actuator_biasprm.shape[0], k][2]
            if actuator_gaintype[k] == _GAIN_AFFINE:
                gain_v = actuator_gainprm[worldid % actuator_gainprm.shape[0], k][2]
                force_velocity += gain_v * ctrl_in[worldid, k]
            gear = actuator_gear[worldid % actuator_gear.shape[0], k][0]
            e -= gear * gear * force_velocity
    implicit_out[worldid, dofid] = e


@wp.kernel
def _dof_force_vjp(
    # Model:
    opt_timestep: wp.array[float],
    dof_damping: wp.array2d[float],
    dof_dampingpoly: wp.array2d[wp.vec2],
    dof_actuatoradr: wp.array[int],
    dof_actuator: wp.array[int],
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
    ctrl_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    actuator_length_in: wp.array2d[float],
    actuator_velocity_in: wp.array2d[float],
    actuator_force_in: wp.array2d[float],
    # In:
    with_damping: bool,
    implicit_damping: bool,
    with_actuators: bool,
    implicit_gain: bool,
    clamp_ctrl: bool,
    mu_in: wp.array2d[float],
    drive_mu_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
    adj_ctrl_io: wp.array2d[float],
):
    """One dof per thread: several actuators may share it, and their order stays fixed."""
    worldid, dofid = wp.tid()
    h_w = float(0.0)
    qacc_eff = float(0.0)
    if implicit_damping or implicit_gain:
        h_w = opt_timestep[worldid % opt_timestep.shape[0]] * w_in[worldid, dofid]
        qacc_eff = qacc_in[worldid, dofid] - z_in[worldid, dofid]
    adj_qpos = float(0.0)
    adj_qvel = float(0.0)
    if with_damping:
        v = qvel_in[worldid, dofid]
        poly = dof_dampingpoly[worldid % dof_dampingpoly.shape[0], dofid]
        damping = dof_damping[worldid % dof_damping.shape[0], dofid]
        adj_qvel -= damping_derivative(damping, poly, v) * mu_in[worldid, dofid]
        if implicit_damping:
            adj_qvel -= h_w * damping_curvature(poly, v) * qacc_eff
    if with_actuators:
        mu = drive_mu_in[worldid, dofid]
        for i in range(dof_actuatoradr[dofid], dof_actuatoradr[dofid + 1]):
            k = dof_actuator[i]
            if is_clamped(
                actuator_forcelimited[k],
                actuator_force_in[worldid, k],
                actuator_forcerange[worldid % actuator_forcerange.shape[0], k],
            ):
                continue

            ctrlrange = actuator_ctrlrange[worldid % actuator_ctrlrange.shape[0], k]
            u = clamped(clamp_ctrl and actuator_ctrllimited[k], ctrl_in[worldid, k], ctrlrange)

            gainprm = actuator_gainprm[worldid % actuator_gainprm.shape[0], k]
            gear = actuator_gear[worldid % actuator_gear.shape[0], k][0]
            gain = gainprm[0]
            force_length = float(0.0)
            force_velocity = float(0.0)
            implicit = float(0.0)
            if actuator_gaintype[k] == _GAIN_AFFINE:
                gain += gainprm[1] * actuator_length_in[worldid, k]
                gain += gainprm[2] * actuator_velocity_in[worldid, k]
                force_length = gainprm[1] * u[0]
                force_velocity = gainprm[2] * u[0]
                if implicit_gain:
                    implicit = gear * gear * h_w * qacc_eff * gainprm[2]
            if actuator_biastype[k] == _BIAS_AFFINE:
                biasprm = actuator_biasprm[worldid % actuator_biasprm.shape[0], k]
                force_length += biasprm[1]
                force_velocity += biasprm[2]

            adj_qpos += force_length * gear * gear * mu
            adj_qvel += force_velocity * gear * gear * mu
            adj_ctrl_io[worldid, k] += gain * gear * mu * u[1] + implicit
        adj_qpos_io[worldid, dofid] += adj_qpos
    adj_qvel_io[worldid, dofid] += adj_qvel


def implicit_diagonal(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Fills `ws.implicit`, the diagonal `E` of the integrator's system."""
    d = s.d
    wp.launch(
        _implicit_diagonal,
        dim=(d.nworld, m.nv),
        inputs=[
            m.dof_damping,
            m.dof_dampingpoly,
            ws.dof_actuatoradr,
            ws.dof_actuator,
            m.actuator_gaintype,
            m.actuator_biastype,
            m.actuator_gainprm,
            m.actuator_biasprm,
            m.actuator_forcelimited,
            m.actuator_forcerange,
            m.actuator_gear,
            d.qvel,
            d.ctrl,
            d.actuator_force,
            flags.implicit_damping,
            flags.implicit_actuation and not flags.general_actuation,
        ],
        outputs=[ws.implicit],
    )


def dof_force_vjp(
    m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, drive: Workspace, adj: Cotangent
) -> None:
    """Adjoint of plain actuators, which see the joint vector of `drive`, and of damping."""
    d = s.d
    wp.launch(
        _dof_force_vjp,
        dim=(d.nworld, m.nv),
        inputs=[
            m.opt.timestep,
            m.dof_damping,
            m.dof_dampingpoly,
            ws.dof_actuatoradr,
            ws.dof_actuator,
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
            d.ctrl,
            d.qacc,
            d.actuator_length,
            d.actuator_velocity,
            d.actuator_force,
            flags.damper,
            flags.implicit_damping,
            flags.actuation and not flags.general_actuation,
            flags.implicit_actuation,
            flags.clamp_ctrl,
            ws.joint_mu,
            drive.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[adj.qpos, adj.qvel, adj.ctrl],
    )
