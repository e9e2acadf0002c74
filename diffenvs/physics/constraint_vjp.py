"""Adjoint of constraint rows: what a row's own position leaves, and the limits of joints.

Forward, for a row with Jacobian `J`, position `pos` beyond its margin and velocity `J qvel`:

    aref = -k I pos - b J qvel,   force = -D (J qacc - aref) if negative residual,   1/D ~ (1 - I)/I

with stiffness `k`, damping `b` and impedance `I(pos)` from solref and solimp. With `y = J mu` and
`g = D y` on an active row, three coefficients carry everything (`f` is the force):

    of J mu: -f;   of J qacc: g;   of J qvel: b g
    of pos: kappa = k (I + I' pos) g - y f I' / (I (1 - I))

The integrator `discrete` changes k, b, I into the coefficients of section 6; `row_coefficients`
holds both kinds.

In:  the record's `D`, `force`, `Jaref`, and `mu`.
Out: `adj_qpos`, `adj_qvel`, accumulated; a joint limit has `J = +-1` (hinge, slide) or minus the
     rotation axis in the body frame (ball), whose derivative is included.

Derivation: `DERIVATION.md`, sections 1, 6 and 7. Other rows: `equality_vjp`, `body_equality_vjp`,
`friction_vjp`, `tendon_row_vjp`, `contact_vjp`.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import inverse_right_jacobian, vec5
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_LIMIT_JOINT = wp.constant(int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))
_DSBL_REFSAFE = wp.constant(int(mujoco.mjtDisableBit.mjDSBL_REFSAFE))
_MINVAL = wp.constant(float(mujoco.mjMINVAL))
_MINIMP = wp.constant(float(mujoco.mjMINIMP))
_MAXIMP = wp.constant(float(mujoco.mjMAXIMP))


@wp.func
def kbip(disableflags: int, timestep: float, solref: wp.vec2, solimp: vec5, pos: float) -> wp.vec4:
    """(k, b, I, dI/dpos) of a row, as MuJoCo documents solref and solimp."""
    timeconst = solref[0]
    dmin = wp.clamp(solimp[0], _MINIMP, _MAXIMP)
    dmax = wp.clamp(solimp[1], _MINIMP, _MAXIMP)
    width = wp.max(solimp[2], _MINVAL)
    mid = wp.clamp(solimp[3], _MINIMP, _MAXIMP)
    power = wp.max(solimp[4], 1.0)
    if (disableflags & _DSBL_REFSAFE) == 0:
        timeconst = wp.max(timeconst, 2.0 * timestep)

    k = -solref[0] / wp.max(dmax * dmax, _MINVAL)
    if solref[0] > 0.0:
        dampratio = solref[1]
        k = 1.0 / wp.max(dmax * dmax * timeconst * timeconst * dampratio * dampratio, _MINVAL)
    b = -solref[1] / wp.max(dmax, _MINVAL)
    if solref[1] > 0.0:
        b = 2.0 / wp.max(dmax * timeconst, _MINVAL)

    x = wp.abs(pos) / width
    if dmin == dmax or solimp[2] <= _MINVAL:
        return wp.vec4(k, b, 0.5 * (dmin + dmax), 0.0)
    if x >= 1.0:
        return wp.vec4(k, b, dmax, 0.0)
    y = x
    dy = float(1.0)
    if power > 1.0:
        if x <= mid:
            y = wp.pow(x / mid, power) * mid
            dy = power * wp.pow(x / mid, power - 1.0)
        else:
            rest = (1.0 - x) / (1.0 - mid)
            y = 1.0 - wp.pow(rest, power) * (1.0 - mid)
            dy = power * wp.pow(rest, power - 1.0)
    return wp.vec4(k, b, dmin + y * (dmax - dmin), wp.sign(pos) * dy * (dmax - dmin) / width)


@wp.struct
class RowCoefficients:
    """Derivatives of a row's `-aref` and `log D`."""

    pos: float  # of -aref by pos, where J qvel is zero
    pos_vel: float  # what J qvel adds to that, per unit
    vel: float  # of -aref by J qvel
    vel_friction: float  # the same for rows without stiffness: friction
    log_D: float  # of log D by pos


@wp.func
def row_coefficients(
    discrete: bool,
    disableflags: int,
    timestep: float,
    solref: wp.vec2,
    solimp: vec5,
    pos: float,
) -> RowCoefficients:
    """Of a row with an impedance of its own; for discrete see `DERIVATION.md`, section 6."""
    flags = disableflags
    if discrete:
        flags = flags | _DSBL_REFSAFE  # it treats stiff rows in its own way, below
    p = kbip(flags, timestep, solref, solimp, pos)
    b = p[1]
    imp = p[2]
    d_imp = p[3]
    k_imp = p[0] * imp
    d_k_imp = p[0] * d_imp
    c = RowCoefficients()
    c.log_D = d_imp / (imp * (1.0 - imp))
    if not discrete:
        c.pos = k_imp + d_k_imp * pos
        c.vel = b
        c.vel_friction = b
        return c

    c.vel_friction = b / (1.0 + timestep * b)
    d_b = float(0.0)
    step2 = timestep * timestep
    ratio = _MAXIMP / (1.0 - _MAXIMP)
    room = ratio * (1.0 - imp) / imp  # 1/D is not less than what F = room gives
    if (disableflags & _DSBL_REFSAFE) == 0 and solref[0] > 0.0 and step2 * k_imp > 1.0:
        # a spring that the step can't resolve: k I = 1 / h^2, and b less in proportion
        b = b / wp.sqrt(step2 * k_imp)
        d_b = -0.5 * b * d_imp / imp
        most = wp.max(0.0, room - 2.0) / timestep
        if b > most:
            b = most
            d_b = wp.where(most > 0.0, -ratio * d_imp / (imp * imp * timestep), 0.0)
        k_imp = 1.0 / step2
        d_k_imp = 0.0
    F = 1.0 + timestep * b + step2 * k_imp
    d_F = timestep * d_b + step2 * d_k_imp
    c.vel = (b + timestep * k_imp) / F
    c.pos = (k_imp + d_k_imp * pos - k_imp * pos * d_F / F) / F
    c.pos_vel = (d_b + timestep * d_k_imp) / F - c.vel * d_F / F
    c.log_D = wp.where(F < room, c.log_D + d_F / F, 0.0)
    return c


@wp.func
def position_cotangent(c: RowCoefficients, vel: float, g: float, yf: float) -> float:
    """Kappa of a row with `vel = J qvel`; `yf` is the sum of `y f` of the rows sharing D."""
    return (c.pos + c.pos_vel * vel) * g - yf * c.log_D


@wp.func
def ball_limit_axis_vjp(axis: wp.vec3, angle: float, l: wp.vec3) -> wp.vec3:
    """`(d axis / d rotation)^T l` for the rotation vector `angle * axis`, body-frame rotation."""
    return inverse_right_jacobian(-angle * axis, (l - axis * wp.dot(axis, l)) / angle)


@wp.kernel
def _limit_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_disableflags: int,
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    jnt_solref: wp.array2d[wp.vec2],
    jnt_solimp: wp.array2d[vec5],
    jnt_range: wp.array2d[wp.vec2],
    jnt_margin: wp.array2d[float],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    qacc_in: wp.array2d[float],
    efc_type_in: wp.array2d[int],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    Jaref_in: wp.array2d[float],
    # In:
    slots: int,
    with_tendons: bool,
    discrete: bool,
    mu_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """Every `slots`-th limit of a world; no two of them act on the same joint."""
    slot, worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    first = ne_in[worldid] + nf_in[worldid]
    for efcid in range(first + slot, wp.min(first + nl_in[worldid], Jaref_in.shape[1]), slots):
        if Jaref_in[worldid, efcid] >= 0.0:
            continue
        if with_tendons and efc_type_in[worldid, efcid] != _LIMIT_JOINT:
            continue
        jntid = efc_id_in[worldid, efcid]
        adr = jnt_dofadr[jntid]
        qadr = jnt_qposadr[jntid]
        jntrange = jnt_range[worldid % jnt_range.shape[0], jntid]
        margin = jnt_margin[worldid % jnt_margin.shape[0], jntid]
        solref = jnt_solref[worldid % jnt_solref.shape[0], jntid]
        solimp = jnt_solimp[worldid % jnt_solimp.shape[0], jntid]
        D = efc_D_in[worldid, efcid]
        f = efc_force_in[worldid, efcid]

        if jnt_type[jntid] == _BALL:
            q = wp.vec4(
                qpos_in[worldid, qadr],
                qpos_in[worldid, qadr + 1],
                qpos_in[worldid, qadr + 2],
                qpos_in[worldid, qadr + 3],
            )
            if q[0] < 0.0:
                q = -q
            imag = wp.vec3(q[1], q[2], q[3])
            axis = wp.normalize(imag)
            angle = 2.0 * wp.atan2(wp.length(imag), q[0])
            pos = wp.max(jntrange[0], jntrange[1]) - angle - margin
            mu = wp.vec3(mu_in[worldid, adr], mu_in[worldid, adr + 1], mu_in[worldid, adr + 2])
            a = wp.vec3(qacc_in[worldid, adr], qacc_in[worldid, adr + 1], qacc_in[worldid, adr + 2])
            v = wp.vec3(qvel_in[worldid, adr], qvel_in[worldid, adr + 1], qvel_in[worldid, adr + 2])
            c = row_coefficients(discrete, opt_disableflags, h, solref, solimp, pos)
            y = -wp.dot(axis, mu)
            g = D * y
            dq = -axis * position_cotangent(c, -wp.dot(axis, v), g, y * f)
            dq += ball_limit_axis_vjp(axis, angle, f * mu - g * (a + c.vel * v))
            for i in range(3):
                adj_qpos_io[worldid, adr + i] -= dq[i]
                adj_qvel_io[worldid, adr + i] += c.vel * g * axis[i]
        else:
            low = qpos_in[worldid, qadr] - jntrange[0]
            high = jntrange[1] - qpos_in[worldid, qadr]
            J = wp.where(low < high, 1.0, -1.0)
            pos = wp.min(low, high) - margin
            c = row_coefficients(discrete, opt_disableflags, h, solref, solimp, pos)
            y = J * mu_in[worldid, adr]
            g = D * y
            vel = J * qvel_in[worldid, adr]
            adj_qpos_io[worldid, adr] -= J * position_cotangent(c, vel, g, y * f)
            adj_qvel_io[worldid, adr] -= J * c.vel * g


def limit_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the limits of joints."""
    d = s.d
    wp.launch(
        _limit_vjp,
        dim=(ws.slots, d.nworld),
        inputs=[
            m.opt.timestep,
            m.opt.disableflags,
            m.jnt_type,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.jnt_solref,
            m.jnt_solimp,
            m.jnt_range,
            m.jnt_margin,
            d.ne,
            d.nf,
            d.nl,
            d.qpos,
            d.qvel,
            d.qacc,
            d.efc.type,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            s.solver_Jaref,
            ws.slots,
            flags.tendon_limit,
            flags.discrete,
            ws.joint_mu,
        ],
        outputs=[adj.qpos, adj.qvel],
    )
