"""Adjoint of constraint rows: what a row's own position leaves, and the limits of joints.

Forward, for a row with Jacobian `J`, position `pos` beyond its margin and velocity `J qvel`:

    aref = -k I pos - b J qvel,   force = -D (J qacc - aref) if negative residual,   1/D ~ (1 - I)/I

with stiffness `k`, damping `b` and impedance `I(pos)` from solref and solimp. With `y = J mu` and
`g = D y` on an active row, three coefficients carry everything (`f` is the force):

    of J mu: -f;   of J qacc: g;   of J qvel: b g
    of pos: kappa = k (I + I' pos) g - y f I' / (I (1 - I))

In:  the record's `D`, `force`, `Jaref`, and `mu`.
Out: `adj_qpos`, `adj_qvel`, accumulated; a joint limit has `J = +-1` (hinge, slide) or minus the
     rotation axis in the body frame (ball), whose derivative is included.

Derivation: `DERIVATION.md`, sections 1 and 7. Not covered: equality, friction loss, tendons.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import vec5
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


@wp.func
def kappa(p: wp.vec4, pos: float, g: float, yf: float) -> float:
    """Cotangent of a row's position; `p` is `kbip`, `yf` the sum of `y f` of the rows sharing D."""
    return p[0] * (p[2] + p[3] * pos) * g - yf * p[3] / (p[2] * (1.0 - p[2]))


@wp.func
def _ball_limit_axis_vjp(axis: wp.vec3, angle: float, l: wp.vec3) -> wp.vec3:
    """`(d axis / d rotation)^T l` for the rotation vector `angle * axis`, body-frame rotation."""
    # Jr^-1(r) = 1 + [r]/2 + c [r]^2, c = (1 - (x/2) cot(x/2)) / x^2; the axis sees its transpose
    t = (l - axis * wp.dot(axis, l)) / angle
    r = angle * axis
    half = 0.5 * angle
    c = (1.0 - half / wp.tan(half)) / (angle * angle)
    rt = wp.cross(r, t)
    return t - 0.5 * rt + c * wp.cross(r, rt)


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
    mu_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """One world per thread, rows in order."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    first = ne_in[worldid] + nf_in[worldid]
    for efcid in range(first, wp.min(first + nl_in[worldid], Jaref_in.shape[1])):
        if efc_type_in[worldid, efcid] != _LIMIT_JOINT or Jaref_in[worldid, efcid] >= 0.0:
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
            p = kbip(opt_disableflags, h, solref, solimp, pos)
            y = -wp.dot(axis, mu)
            g = D * y
            dq = -axis * kappa(p, pos, g, y * f)
            dq += _ball_limit_axis_vjp(axis, angle, f * mu - g * (a + p[1] * v))
            for i in range(3):
                adj_qpos_io[worldid, adr + i] -= dq[i]
                adj_qvel_io[worldid, adr + i] += p[1] * g * axis[i]
        else:
            low = qpos_in[worldid, qadr] - jntrange[0]
            high = jntrange[1] - qpos_in[worldid, qadr]
            J = wp.where(low < high, 1.0, -1.0)
            pos = wp.min(low, high) - margin
            p = kbip(opt_disableflags, h, solref, solimp, pos)
            y = J * mu_in[worldid, adr]
            g = D * y
            adj_qpos_io[worldid, adr] -= J * kappa(p, pos, g, y * f)
            adj_qvel_io[worldid, adr] -= J * p[1] * g


def limit_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the limits of joints."""
    d = s.d
    wp.launch(
        _limit_vjp,
        dim=d.nworld,
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
            ws.joint_mu,
        ],
        outputs=[adj.qpos, adj.qvel],
    )
