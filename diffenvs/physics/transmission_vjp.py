"""Adjoint of actuators at joints and tendons.

The moment `m` of an actuator, its length `L` and velocity `V = m qvel`:

    hinge, slide     m = gear[0],   L = gear[0] qpos
    ball             m = g, on the three rotations;   L = g . r, r the rotation vector of qpos
    free             m = gear, g its rotational part, on all six;   L = 0
    tendon           m = gear[0] J,   L = gear[0] ten_length

where `g` is the gear, or with `jointinparent` the gear turned into the body's frame, `R' gear`.

In:  `force_derivatives`, the joint vectors `mu`, `w`, `z` and their products with tendons.
Out: `adj_qpos`, `adj_qvel`, `adj_ctrl` accumulated; `x_ten_*` accumulated; `adj_input`, the
     cotangent of the input of an actuator that has an activation.

An `actuatorfrcrange` clamps the sum of the actuators of a joint or tendon, which then have no
derivative there. Derivation: `DERIVATION.md`, section 11.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import inverse_right_jacobian, vec3_at, vec6, vec7
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))
_JOINT = wp.constant(int(mujoco.mjtTrn.mjTRN_JOINT))
_JOINTINPARENT = wp.constant(int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
_TENDON = wp.constant(int(mujoco.mjtTrn.mjTRN_TENDON))
_ROUNDING = wp.constant(1.0e-5)  # relative, of a force that was scaled to its limit


@wp.func
def phi_coefficients(f: vec7, h: float, mu: float, w: float, e: float) -> vec6:
    """Of `phi = -F mu - h F_V w e` on (mu, w, e, V, L, u); these three are moments times vectors.

    `h` is 0 where the integrator takes no actuators implicitly.
    """
    he = h * e
    hwe = he * w
    return vec6(
        -f[0],
        -f[2] * he,
        -f[2] * h * w,
        -f[2] * mu - f[5] * hwe,
        -f[1] * mu - f[4] * hwe,
        -f[3] * mu - f[6] * hwe,
    )


@wp.func
def rotation_vector(q: wp.quat) -> wp.vec3:
    """Of a quaternion in Warp's order (x, y, z, w), at most half a turn."""
    axis = wp.vec3(q[0], q[1], q[2])
    sine = wp.length(axis)
    if sine == 0.0:
        return wp.vec3(0.0)
    angle = 2.0 * wp.atan2(sine, q[3])
    if angle > wp.pi:
        angle -= 2.0 * wp.pi
    return axis * (angle / sine)


@wp.kernel
def _joint_actuator_vjp(
    # Model:
    nactuator: int,
    opt_timestep: wp.array[float],
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    jnt_actfrclimited: wp.array[bool],
    jnt_actfrcrange: wp.array2d[wp.vec2],
    actuator_trntype: wp.array[int],
    actuator_trnid: wp.array[wp.vec2i],
    actuator_actadr: wp.array[int],
    actuator_gear: wp.array2d[wp.spatial_vector],
    # Record:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    qfrc_actuator_in: wp.array2d[float],
    # In:
    implicit: bool,
    derivatives_in: wp.array2d[vec7],
    mu_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
    adj_ctrl_io: wp.array2d[float],
    adj_input_out: wp.array2d[float],
):
    """One world per thread: several actuators may share a joint, and the order stays fixed."""
    worldid = wp.tid()
    h = float(0.0)
    if implicit:
        h = opt_timestep[worldid % opt_timestep.shape[0]]
    for k in range(nactuator):
        if actuator_trntype[k] != _JOINT and actuator_trntype[k] != _JOINTINPARENT:
            continue
        jntid = actuator_trnid[k][0]
        jnttype = jnt_type[jntid]
        adr = jnt_dofadr[jntid]
        gear = actuator_gear[worldid % actuator_gear.shape[0], k]
        f = derivatives_in[worldid, k]
        adj_input = float(0.0)
        if jnttype == _FREE or jnttype == _BALL:
            linear = wp.vec3(0.0)
            rot = adr
            qadr = jnt_qposadr[jntid]
            g = wp.vec3(gear[0], gear[1], gear[2])
            if jnttype == _FREE:
                linear = g
                g = wp.vec3(gear[3], gear[4], gear[5])
                rot += 3
                qadr += 3
            quat = wp.normalize(
                wp.quat(
                    qpos_in[worldid, qadr + 1],
                    qpos_in[worldid, qadr + 2],
                    qpos_in[worldid, qadr + 3],
                    qpos_in[worldid, qadr],
                )
            )
            r = rotation_vector(quat)
            along = inverse_right_jacobian(-r, g)  # dL/dqpos, of either frame
            if actuator_trntype[k] == _JOINTINPARENT:
                g = wp.quat_rotate_inv(quat, g)
            mu = vec3_at(mu_in, worldid, rot)
            w = wp.vec3(0.0)
            e = wp.vec3(0.0)
            if implicit:
                w = vec3_at(w_in, worldid, rot)
                e = vec3_at(qacc_in, worldid, rot) - vec3_at(z_in, worldid, rot)
            m_mu = wp.dot(g, mu)
            m_w = wp.dot(g, w)
            m_e = wp.dot(g, e)
            if jnttype == _FREE:
                m_mu += wp.dot(linear, vec3_at(mu_in, worldid, adr))
                if implicit:
                    lin_e = vec3_at(qacc_in, worldid, adr) - vec3_at(z_in, worldid, adr)
                    m_w += wp.dot(linear, vec3_at(w_in, worldid, adr))
                    m_e += wp.dot(linear, lin_e)
            x = phi_coefficients(f, h, m_mu, m_w, m_e)
            dq = wp.vec3(0.0)
            if jnttype == _BALL:
                dq = x[4] * along
            if actuator_trntype[k] == _JOINTINPARENT:
                turned = x[0] * mu + x[1] * w + x[2] * e + x[3] * vec3_at(qvel_in, worldid, rot)
                dq += wp.cross(turned, g)
            for i in range(3):
                adj_qpos_io[worldid, rot + i] -= dq[i]
                adj_qvel_io[worldid, rot + i] -= x[3] * g[i]
            if jnttype == _FREE:
                for i in range(3):
                    adj_qvel_io[worldid, adr + i] -= x[3] * linear[i]
            adj_input = -x[5]
        else:
            free = bool(True)
            if jnt_actfrclimited[jntid]:
                limits = jnt_actfrcrange[worldid % jnt_actfrcrange.shape[0], jntid]
                qfrc = qfrc_actuator_in[worldid, adr]
                free = qfrc > limits[0] and qfrc < limits[1]
            if free:
                m_w = float(0.0)
                m_e = float(0.0)
                if implicit:
                    m_w = gear[0] * w_in[worldid, adr]
                    m_e = gear[0] * (qacc_in[worldid, adr] - z_in[worldid, adr])
                x = phi_coefficients(f, h, gear[0] * mu_in[worldid, adr], m_w, m_e)
                adj_qpos_io[worldid, adr] -= x[4] * gear[0]
                adj_qvel_io[worldid, adr] -= x[3] * gear[0]
                adj_input = -x[5]
        if actuator_actadr[k] < 0:
            adj_ctrl_io[worldid, k] += adj_input
        else:
            adj_input_out[worldid, k] = adj_input


@wp.func
def _is_tendon_clamped(
    # Model:
    nactuator: int,
    tendon_actfrclimited: wp.array[bool],
    tendon_actfrcrange: wp.array2d[wp.vec2],
    actuator_trntype: wp.array[int],
    actuator_trnid: wp.array[wp.vec2i],
    # Record:
    actuator_force_in: wp.array2d[float],
    # In:
    worldid: int,
    tenid: int,
) -> bool:
    """Whether `actuatorfrcrange` has scaled the forces on a tendon, down to rounding."""
    if not tendon_actfrclimited[tenid]:
        return False
    force = float(0.0)
    for k in range(nactuator):
        if actuator_trntype[k] == _TENDON and actuator_trnid[k][0] == tenid:
            force += actuator_force_in[worldid, k]
    limits = tendon_actfrcrange[worldid % tendon_actfrcrange.shape[0], tenid]
    low = limits[0] + _ROUNDING * wp.abs(limits[0])
    high = limits[1] - _ROUNDING * wp.abs(limits[1])
    return force <= low or force >= high


@wp.kernel
def _tendon_actuator_vjp(
    # Model:
    nactuator: int,
    opt_timestep: wp.array[float],
    tendon_actfrclimited: wp.array[bool],
    tendon_actfrcrange: wp.array2d[wp.vec2],
    actuator_trntype: wp.array[int],
    actuator_trnid: wp.array[wp.vec2i],
    actuator_actadr: wp.array[int],
    actuator_gear: wp.array2d[wp.spatial_vector],
    # Record:
    actuator_force_in: wp.array2d[float],
    # In:
    implicit: bool,
    derivatives_in: wp.array2d[vec7],
    mu_in: wp.array2d[float],
    a_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    # Out:
    x_mu_io: wp.array2d[float],
    x_a_io: wp.array2d[float],
    x_v_io: wp.array2d[float],
    x_w_io: wp.array2d[float],
    x_z_io: wp.array2d[float],
    x_length_io: wp.array2d[float],
    adj_ctrl_io: wp.array2d[float],
    adj_input_out: wp.array2d[float],
):
    """One world per thread: several actuators may share a tendon, and the order stays fixed."""
    worldid = wp.tid()
    h = float(0.0)
    if implicit:
        h = opt_timestep[worldid % opt_timestep.shape[0]]
    for k in range(nactuator):
        if actuator_trntype[k] != _TENDON:
            continue
        tenid = actuator_trnid[k][0]
        gear = actuator_gear[worldid % actuator_gear.shape[0], k][0]
        m_w = float(0.0)
        m_e = float(0.0)
        if implicit:
            m_w = gear * w_in[worldid, tenid]
            m_e = gear * (a_in[worldid, tenid] - z_in[worldid, tenid])
        f = derivatives_in[worldid, k]
        if _is_tendon_clamped(
            nactuator,
            tendon_actfrclimited,
            tendon_actfrcrange,
            actuator_trntype,
            actuator_trnid,
            actuator_force_in,
            worldid,
            tenid,
        ):
            force = f[0]
            f = vec7(0.0)
            f[0] = force
        x = phi_coefficients(f, h, gear * mu_in[worldid, tenid], m_w, m_e)
        x_mu_io[worldid, tenid] += gear * x[0]
        x_v_io[worldid, tenid] += gear * x[3]
        x_length_io[worldid, tenid] += gear * x[4]
        if implicit:
            x_w_io[worldid, tenid] += gear * x[1]
            x_a_io[worldid, tenid] += gear * x[2]
            x_z_io[worldid, tenid] -= gear * x[2]
        if actuator_actadr[k] < 0:
            adj_ctrl_io[worldid, k] -= x[5]
        else:
            adj_input_out[worldid, k] = -x[5]


def joint_actuator_vjp(
    m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent
) -> None:
    """Adjoint of the actuators at joints, from the derivatives of their forces."""
    d = s.d
    wp.launch(
        _joint_actuator_vjp,
        dim=d.nworld,
        inputs=[
            m.nactuator,
            m.opt.timestep,
            m.jnt_type,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.jnt_actfrclimited,
            m.jnt_actfrcrange,
            m.actuator_trntype,
            m.actuator_trnid,
            m.actuator_actadr,
            m.actuator_gear,
            d.qpos,
            d.qvel,
            d.qacc,
            d.qfrc_actuator,
            flags.implicit_actuation,
            ws.force_derivatives,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[adj.qpos, adj.qvel, adj.ctrl, ws.adj_input],
    )


def tendon_actuator_vjp(
    m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent
) -> None:
    """Adjoint of the actuators at tendons; `tendon_vjp` carries it on."""
    wp.launch(
        _tendon_actuator_vjp,
        dim=s.d.nworld,
        inputs=[
            m.nactuator,
            m.opt.timestep,
            m.tendon_actfrclimited,
            m.tendon_actfrcrange,
            m.actuator_trntype,
            m.actuator_trnid,
            m.actuator_actadr,
            m.actuator_gear,
            s.d.actuator_force,
            flags.implicit_actuation,
            ws.force_derivatives,
            ws.ten_mu,
            ws.ten_a,
            ws.ten_w,
            ws.ten_z,
        ],
        outputs=[
            ws.x_ten_mu,
            ws.x_ten_a,
            ws.x_ten_v,
            ws.x_ten_w,
            ws.x_ten_z,
            ws.x_ten_length,
            adj.ctrl,
            ws.adj_input,
        ],
    )
