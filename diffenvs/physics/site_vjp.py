"""Adjoint of actuators at sites.

Without a reference site the gear is a wrench `X` in the site's frame, and on its body

    m x = X . x_   (x_ the field of a joint vector x),   L = 0

The wrench moves with the body, so the body's fields alone carry it: `y = 0`.

With a reference site `F`, `T` are the gear's parts in the frame of the reference site. With `s`,
`r` the two sites and `c` the deepest dof that moves both, whose moment MuJoCo leaves out,

    m x = X_s . (x_s - x_c) - X_r . (x_r - x_c),   X_i = the wrench of (F, T) at p_i
    L = F . (p_s - p_r) + gear_rot . rotation vector of R_r' R_s

In:  `force_derivatives`, the fields of the bodies.
Out: `x_mu, x_a, x_v, x_w, x_z, y` of the bodies, accumulated; `adj_ctrl`, `adj_input`.

Derivation: `DERIVATION.md`, section 11.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import ang, force_cross, inverse_right_jacobian, vec7, velocity_at, wrench
from .transmission_vjp import phi_coefficients, rotation_vector
from .tree_vjp import last_dof
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_SITE = wp.constant(int(mujoco.mjtTrn.mjTRN_SITE))


@wp.func
def _frame_vjp(
    # In:
    s: wp.spatial_vector,
    r: wp.spatial_vector,
    c: wp.spatial_vector,
    p_s: wp.vec3,
    p_r: wp.vec3,
    force: wp.vec3,
    torque: wp.vec3,
) -> tuple[wp.spatial_vector, wp.spatial_vector, wp.spatial_vector]:
    """(y_s, y_r, y_c) of `m x` for one field x of the bodies s, r and c."""
    none = wp.vec3(0.0)
    u_s = velocity_at(s, p_s)
    at_s = wp.cross(u_s, force) + wp.cross(ang(s), torque)
    pull = wp.cross(force, ang(c))  # of the point that c carries along
    y_s = wp.spatial_vector(at_s, none) - wrench(p_s, pull, none)
    # the frame of (force, torque) turns with r
    u_c = velocity_at(c, p_s) - velocity_at(c, p_r)
    at_r = wp.cross(force, u_s - u_c) + wp.cross(torque, ang(s))
    y_r = wp.spatial_vector(at_r, none) + wrench(p_r, pull, none)
    y_c = force_cross(c, wrench(p_r, force, none) - wrench(p_s, force, none))
    return y_s, y_r, y_c


@wp.kernel
def _site_actuator_vjp(
    # Model:
    nactuator: int,
    opt_timestep: wp.array[float],
    body_rootid: wp.array[int],
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    dof_bodyid: wp.array[int],
    dof_parentid: wp.array[int],
    site_bodyid: wp.array[int],
    actuator_trntype: wp.array[int],
    actuator_trnid: wp.array[wp.vec2i],
    actuator_actadr: wp.array[int],
    actuator_gear: wp.array2d[wp.spatial_vector],
    # Record:
    subtree_com_in: wp.array2d[wp.vec3],
    site_xpos_in: wp.array2d[wp.vec3],
    site_xmat_in: wp.array2d[wp.mat33],
    cvel_in: wp.array2d[wp.spatial_vector],
    # In:
    implicit: bool,
    derivatives_in: wp.array2d[vec7],
    mu_in: wp.array2d[wp.spatial_vector],
    a_in: wp.array2d[wp.spatial_vector],
    w_in: wp.array2d[wp.spatial_vector],
    z_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    x_a_io: wp.array2d[wp.spatial_vector],
    x_v_io: wp.array2d[wp.spatial_vector],
    x_w_io: wp.array2d[wp.spatial_vector],
    x_z_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
    adj_ctrl_io: wp.array2d[float],
    adj_input_out: wp.array2d[float],
):
    """One world per thread: several actuators may act on a body, and the order stays fixed."""
    worldid = wp.tid()
    h = float(0.0)
    if implicit:
        h = opt_timestep[worldid % opt_timestep.shape[0]]
    for k in range(nactuator):
        if actuator_trntype[k] != _SITE:
            continue
        siteid = actuator_trnid[k][0]
        refid = actuator_trnid[k][1]
        gear = actuator_gear[worldid % actuator_gear.shape[0], k]
        gear_pos = wp.vec3(gear[0], gear[1], gear[2])
        gear_rot = wp.vec3(gear[3], gear[4], gear[5])
        s = site_bodyid[siteid]
        frame = site_xmat_in[worldid, siteid]
        if refid >= 0:
            frame = site_xmat_in[worldid, refid]
        force = frame @ gear_pos
        torque = frame @ gear_rot
        p_s = site_xpos_in[worldid, siteid] - subtree_com_in[worldid, body_rootid[s]]
        wrench_s = wrench(p_s, force, torque)

        # fields of the site's body; with a reference site its body and the common ancestor too
        r = int(0)
        c = int(0)
        mu_s = mu_in[worldid, s]
        v_s = cvel_in[worldid, s]
        m_mu = wp.dot(wrench_s, mu_s)
        w_s = wp.spatial_vector()
        e_s = wp.spatial_vector()
        if implicit:
            w_s = w_in[worldid, s]
            e_s = a_in[worldid, s] - z_in[worldid, s]
        m_w = wp.dot(wrench_s, w_s)
        m_e = wp.dot(wrench_s, e_s)
        p_r = wp.vec3(0.0)
        wrench_r = wp.spatial_vector()
        wrench_c = wp.spatial_vector()
        mu_r = wp.spatial_vector()
        mu_c = wp.spatial_vector()
        w_r = wp.spatial_vector()
        w_c = wp.spatial_vector()
        e_r = wp.spatial_vector()
        e_c = wp.spatial_vector()
        v_c = wp.spatial_vector()
        if refid >= 0:
            r = site_bodyid[refid]
            i = last_dof(body_weldid, body_dofadr, body_dofnum, s)
            j = last_dof(body_weldid, body_dofadr, body_dofnum, r)
            while i != j:
                if i > j:
                    i = dof_parentid[i]
                else:
                    j = dof_parentid[j]
            p_r = site_xpos_in[worldid, refid] - subtree_com_in[worldid, body_rootid[r]]
            wrench_r = wrench(p_r, force, torque)
            mu_r = mu_in[worldid, r]
            if implicit:
                w_r = w_in[worldid, r]
                e_r = a_in[worldid, r] - z_in[worldid, r]
            if i >= 0:
                c = dof_bodyid[i]
                wrench_c = wrench_r - wrench_s
                mu_c = mu_in[worldid, c]
                v_c = cvel_in[worldid, c]
                if implicit:
                    w_c = w_in[worldid, c]
                    e_c = a_in[worldid, c] - z_in[worldid, c]
            m_mu += wp.dot(wrench_c, mu_c) - wp.dot(wrench_r, mu_r)
            m_w += wp.dot(wrench_c, w_c) - wp.dot(wrench_r, w_r)
            m_e += wp.dot(wrench_c, e_c) - wp.dot(wrench_r, e_r)

        x = phi_coefficients(derivatives_in[worldid, k], h, m_mu, m_w, m_e)
        if actuator_actadr[k] < 0:
            adj_ctrl_io[worldid, k] -= x[5]
        else:
            adj_input_out[worldid, k] = -x[5]
        x_mu_io[worldid, s] += x[0] * wrench_s
        x_v_io[worldid, s] += x[3] * wrench_s
        if implicit:
            x_w_io[worldid, s] += x[1] * wrench_s
            x_a_io[worldid, s] += x[2] * wrench_s
            x_z_io[worldid, s] -= x[2] * wrench_s
        if refid < 0:
            continue

        x_mu_io[worldid, r] -= x[0] * wrench_r
        x_v_io[worldid, r] -= x[3] * wrench_r
        x_mu_io[worldid, c] += x[0] * wrench_c
        x_v_io[worldid, c] += x[3] * wrench_c
        if implicit:
            x_w_io[worldid, r] -= x[1] * wrench_r
            x_a_io[worldid, r] -= x[2] * wrench_r
            x_z_io[worldid, r] += x[2] * wrench_r
            x_w_io[worldid, c] += x[1] * wrench_c
            x_a_io[worldid, c] += x[2] * wrench_c
            x_z_io[worldid, c] -= x[2] * wrench_c

        # `m x` is linear in the fields: one sum of them, each with its coefficient
        sum_s = x[0] * mu_s + x[1] * w_s + x[2] * e_s + x[3] * v_s
        sum_r = x[0] * mu_r + x[1] * w_r + x[2] * e_r + x[3] * cvel_in[worldid, r]
        sum_c = x[0] * mu_c + x[1] * w_c + x[2] * e_c + x[3] * v_c
        y_s, y_r, y_c = _frame_vjp(sum_s, sum_r, sum_c, p_s, p_r, force, torque)
        rel = wp.transpose(frame) @ site_xmat_in[worldid, siteid]
        turn = rotation_vector(wp.quat_from_matrix(rel))
        along = frame @ inverse_right_jacobian(turn, gear_rot)
        y_s += x[4] * wrench(p_s, force, along)
        gap = site_xpos_in[worldid, siteid] - site_xpos_in[worldid, refid]
        y_r -= x[4] * wrench(p_r, force, along + wp.cross(gap, force))
        y_io[worldid, s] += y_s
        y_io[worldid, r] += y_r
        y_io[worldid, c] += y_c


def site_actuator_vjp(
    m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent
) -> None:
    """Adjoint of the actuators at sites, from the derivatives of their forces."""
    d = s.d
    wp.launch(
        _site_actuator_vjp,
        dim=d.nworld,
        inputs=[
            m.nactuator,
            m.opt.timestep,
            m.body_rootid,
            m.body_weldid,
            m.body_dofadr,
            m.body_dofnum,
            m.dof_bodyid,
            m.dof_parentid,
            m.site_bodyid,
            m.actuator_trntype,
            m.actuator_trnid,
            m.actuator_actadr,
            m.actuator_gear,
            d.subtree_com,
            d.site_xpos,
            d.site_xmat,
            d.cvel,
            flags.implicit_actuation,
            ws.force_derivatives,
            ws.mu,
            ws.a,
            ws.w,
            ws.z,
        ],
        outputs=[
            ws.x_mu,
            ws.x_a,
            ws.x_v,
            ws.x_w,
            ws.x_z,
            ws.y,
            adj.ctrl,
            ws.adj_input,
        ],
    )
