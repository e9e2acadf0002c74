"""Adjoint of plain actuators, and the diagonal of the implicit terms.

Forward, for actuator `k` on a hinge or slide joint with `gear` (its moment, so length `L = gear
qpos`, velocity `V = gear qvel`) and the clamped control `u`:

    force = (g0 + g1 L + g2 V) u + b0 + b1 L + b2 V,   clamped to `forcerange`
    qfrc[dof] += gear * force

In:  `mu` (nv), the solution of `H mu = adj_qacc`; with an implicit integrator also the pair `w`,
     `z`.
Out: `adj_qpos`, `adj_qvel`, `adj_ctrl`, accumulated:

    adj_qpos += F_L (gear mu) gear;   adj_qvel += F_V (gear mu) gear
    adj_ctrl += F_u (gear mu)  [+ h (gear w)(gear qacc_eff) g2 under implicitfast]

A derivative with respect to a clamped quantity is zero. `implicit_damping` is the diagonal `E` of
`integrator_vjp`, built from the same derivatives. Derivation: `DERIVATION.md`, section 7.
Models with any other kind of actuator (`Flags.general_actuation`) go through `actuator_force_vjp`.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .activation_vjp import clamped
from .passive_vjp import damping_derivative
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
def _implicit_damping(
    # Model:
    nactuator: int,
    jnt_dofadr: wp.array[int],
    dof_damping: wp.array2d[float],
    dof_dampingpoly: wp.array2d[wp.vec2],
    actuator_trnid: wp.array[wp.vec2i],
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
    """E = damping (- F_V gear^2 of the actuators), one world per thread."""
    worldid = wp.tid()
    for dofid in range(implicit_out.shape[1]):
        damping = float(0.0)
        if with_damping:
            damping = damping_derivative(
                dof_damping[worldid % dof_damping.shape[0], dofid],
                dof_dampingpoly[worldid % dof_dampingpoly.shape[0], dofid],
                qvel_in[worldid, dofid],
            )
        implicit_out[worldid, dofid] = damping
    if not with_actuators:
        return
    for k in range(nactuator):
        # the simulator's own velocity derivative reads the control before its clamp
        vel = float(0.0)
        if actuator_biastype[k] == _BIAS_AFFINE:
            vel = actuator_biasprm[worldid % actuator_biasprm.shape[0], k][2]
        if actuator_gaintype[k] == _GAIN_AFFINE:
            gain_v = actuator_gainprm[worldid % actuator_gainprm.shape[0], k][2]
            vel += gain_v * ctrl_in[worldid, k]
        if is_clamped(
            actuator_forcelimited[k],
            actuator_force_in[worldid, k],
            actuator_forcerange[worldid % actuator_forcerange.shape[0], k],
        ):
            vel = 0.0
        gear = actuator_gear[worldid % actuator_gear.shape[0], k][0]
        implicit_out[worldid, jnt_dofadr[actuator_trnid[k][0]]] -= gear * gear * vel


@wp.kernel
def _actuator_vjp(
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
    ctrl_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    actuator_length_in: wp.array2d[float],
    actuator_velocity_in: wp.array2d[float],
    actuator_force_in: wp.array2d[float],
    # In:
    clamp_ctrl: bool,
    implicit_gain: bool,
    mu_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
    adj_ctrl_io: wp.array2d[float],
):
    """One world per thread: several actuators may share a joint, and the order stays fixed."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    for k in range(nactuator):
        if is_clamped(
            actuator_forcelimited[k],
            actuator_force_in[worldid, k],
            actuator_forcerange[worldid % actuator_forcerange.shape[0], k],
        ):
            continue

        ctrlrange = actuator_ctrlrange[worldid % actuator_ctrlrange.shape[0], k]
        u = clamped(clamp_ctrl and actuator_ctrllimited[k], ctrl_in[worldid, k], ctrlrange)

        gainprm = actuator_gainprm[worldid % actuator_gainprm.shape[0], k]
        gain = gainprm[0]
        force_length = float(0.0)
        force_velocity = float(0.0)
        if actuator_gaintype[k] == _GAIN_AFFINE:
            gain += gainprm[1] * actuator_length_in[worldid, k]
            gain += gainprm[2] * actuator_velocity_in[worldid, k]
            force_length = gainprm[1] * u[0]
            force_velocity = gainprm[2] * u[0]
        if actuator_biastype[k] == _BIAS_AFFINE:
            biasprm = actuator_biasprm[worldid % actuator_biasprm.shape[0], k]
            force_length += biasprm[1]
            force_velocity += biasprm[2]

        gear = actuator_gear[worldid % actuator_gear.shape[0], k][0]
        dofid = jnt_dofadr[actuator_trnid[k][0]]
        gear_mu = gear * mu_in[worldid, dofid]
        adj_qpos_io[worldid, dofid] += force_length * gear_mu * gear
        adj_qvel_io[worldid, dofid] += force_velocity * gear_mu * gear
        adj_ctrl = gain * gear_mu * u[1]
        if implicit_gain and actuator_gaintype[k] == _GAIN_AFFINE:
            qacc_eff = qacc_in[worldid, dofid] - z_in[worldid, dofid]
            adj_ctrl += h * gear * gear * w_in[worldid, dofid] * qacc_eff * gainprm[2]
        adj_ctrl_io[worldid, k] += adj_ctrl


def implicit_damping(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Fills `ws.implicit`, the diagonal `E` of the integrator's system."""
    d = s.d
    wp.launch(
        _implicit_damping,
        dim=d.nworld,
        inputs=[
            m.nactuator,
            m.jnt_dofadr,
            m.dof_damping,
            m.dof_dampingpoly,
            m.actuator_trnid,
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


def actuator_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the forces of plain actuators."""
    d = s.d
    wp.launch(
        _actuator_vjp,
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
            d.ctrl,
            d.qacc,
            d.actuator_length,
            d.actuator_velocity,
            d.actuator_force,
            flags.clamp_ctrl,
            flags.implicit_actuation,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[adj.qpos, adj.qvel, adj.ctrl],
    )
