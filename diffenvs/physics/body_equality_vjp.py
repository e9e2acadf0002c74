"""Adjoint of connect and weld: what two bodies that are held together leave on their fields.

Forward: with `p1, p2` two points fixed in the bodies (or two sites), and for a weld also two
orientations `r1, r2` and `s = torquescale`,

    pos = p1 - p2                     three rows, along world axes
    pos = s vec(conj(r2) r1)          three more of a weld, in the frame of side 2
    r = J qacc + Jdot qvel + b J qvel + k I(|pos|) pos

`|pos|` is the norm of all rows, which thus share one impedance. `Jdot qvel` makes the rows feel
the bias field `b_`, and the velocities also squared. Every row of an equality always pushes.

In:  the bodies' fields `mu`, `a`, `b`, `v`, the poses of the bodies, the record's `D` and `force`.
Out: `x_mu, x_a, x_b, x_v, y` of both bodies, accumulated, rows in order. Static and mocap bodies
     receive theirs as well: `y - b_ x* x_b` is the cotangent of the pose of a mocap body.

Derivation: `DERIVATION.md`, section 10.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .constraint_vjp import kbip
from .record import Substep
from .spatial import ang, force_cross, vec5, vec12, velocity_at, wrench
from .workspace import Workspace

wp.set_module_options({"enable_backward": False})

_CONNECT = wp.constant(int(mujoco.mjtEq.mjEQ_CONNECT))
_WELD = wp.constant(int(mujoco.mjtEq.mjEQ_WELD))
_SITE = wp.constant(int(mujoco.mjtObj.mjOBJ_SITE))


@wp.struct
class _Body:
    """The fields of one side, and where its point is from the `o` of its tree."""

    p: wp.vec3
    mu: wp.spatial_vector
    a: wp.spatial_vector
    b: wp.spatial_vector
    v: wp.spatial_vector


@wp.struct
class _Cotangent:
    """What one side receives; that of `b` is `a`."""

    mu: wp.spatial_vector
    a: wp.spatial_vector
    v: wp.spatial_vector
    y: wp.spatial_vector


@wp.struct
class _Rows:
    """Coefficients of three rows, by what they multiply."""

    mu: wp.vec3  # J mu: -f
    a: wp.vec3  # J qacc and Jdot qvel: g
    v: wp.vec3  # J qvel: b g
    pos: wp.vec3


@wp.func
def _quat_mul(p: wp.quat, q: wp.quat) -> wp.quat:
    """Product of quaternions in MuJoCo's order, (w, x, y, z)."""
    u = wp.vec3(p[1], p[2], p[3])
    v = wp.vec3(q[1], q[2], q[3])
    r = p[0] * v + q[0] * u + wp.cross(u, v)
    return wp.quat(p[0] * q[0] - wp.dot(u, v), r[0], r[1], r[2])


@wp.func
def _quat_conj(q: wp.quat) -> wp.quat:
    """Inverse of a unit quaternion."""
    return wp.quat(q[0], -q[1], -q[2], -q[3])


@wp.func
def _rotate(q: wp.quat, x: wp.vec3) -> wp.vec3:
    """`x` rotated by a unit quaternion."""
    u = wp.vec3(q[1], q[2], q[3])
    t = 2.0 * wp.cross(u, x)
    return x + q[0] * t + wp.cross(u, t)


@wp.func
def _three_rows(
    first: int, D: wp.array[float], force: wp.array[float], b: float, y: wp.vec3
) -> _Rows:
    """Coefficients without `pos`."""
    rows = _Rows()
    for i in range(3):
        g = D[first + i] * y[i]
        rows.mu[i] = -force[first + i]
        rows.a[i] = g
        rows.v[i] = b * g
    return rows


@wp.func
def _negative(r: _Rows) -> _Rows:
    """The rows as the second side sees them."""
    out = _Rows()
    out.mu = -r.mu
    out.a = -r.a
    out.v = -r.v
    out.pos = -r.pos
    return out


@wp.func
def _to_world(q: wp.quat, r: _Rows) -> _Rows:
    """Rows of a frame with the orientation `q` in world axes."""
    out = _Rows()
    out.mu = _rotate(q, r.mu)
    out.a = _rotate(q, r.a)
    out.v = _rotate(q, r.v)
    out.pos = _rotate(q, r.pos)
    return out


@wp.func
def _sum(x: _Cotangent, z: _Cotangent) -> _Cotangent:
    """What two groups of rows leave together."""
    out = _Cotangent()
    out.mu = x.mu + z.mu
    out.a = x.a + z.a
    out.v = x.v + z.v
    out.y = x.y + z.y
    return out


@wp.func
def _norm_coefficient(p: wp.vec4, pos: wp.vec3, rows: _Rows, y: wp.vec3) -> float:
    """What three rows have for a change of `|pos|`, by the impedance alone; `p` is `kbip`."""
    return p[0] * p[3] * wp.dot(pos, rows.a) + wp.dot(y, rows.mu) * p[3] / (p[2] * (1.0 - p[2]))


@wp.func
def _point_vjp(side: _Body, rows: _Rows) -> _Cotangent:
    """Rows `F.(velocity of the point)` of one side, with `Jdot qvel`, for world forces `F`."""
    w = ang(side.v)
    zero = wp.vec3(0.0)
    wf = wp.cross(rows.a, w)
    out = _Cotangent()
    out.mu = wrench(side.p, rows.mu, zero)
    out.a = wrench(side.p, rows.a, zero)
    out.v = wrench(side.p, rows.v + wf, wp.cross(velocity_at(side.v, side.p), rows.a))
    point = rows.pos + wp.cross(rows.mu, ang(side.mu)) + wp.cross(rows.v, w) + wp.cross(wf, w)
    point += wp.cross(rows.a, ang(side.a) + ang(side.b))
    out.y = wrench(side.p, point, zero) + _moving_along(side, out)
    return out


@wp.func
def _moving_along(side: _Body, x: _Cotangent) -> wp.spatial_vector:
    """Part of `y` by the fields that a rigid displacement takes along."""
    y = force_cross(side.mu, x.mu) + force_cross(side.a + side.b, x.a)
    return y + force_cross(side.v, x.v)


@wp.func
def _turn_vjp(
    scale: float, e0: float, e: wp.vec3, rows: _Rows, side1: _Body, side2: _Body
) -> _Cotangent:
    """Rows of the orientation for the error quaternion (e0, e), all in world axes; side 1.

    Side 2 receives the opposite, since only differences of fields enter and turning everything
    changes nothing; but `v` enters by `w1 x w2` too, see `_opposite`.
    """
    w1 = ang(side1.v)
    w2 = ang(side2.v)
    w = w1 - w2
    mu = ang(side1.mu) - ang(side2.mu)
    a = ang(side1.a) - ang(side2.a) + ang(side1.b) - ang(side2.b) + wp.cross(w1, w2)
    half = 0.5 * scale
    t_mu = half * (e0 * rows.mu + wp.cross(e, rows.mu))
    t_a = half * (e0 * rows.a + wp.cross(e, rows.a))
    t_v = half * (e0 * rows.v + wp.cross(e, rows.v))
    t_v += wp.cross(w2, t_a) - half * wp.dot(rows.a, e) * w

    zero = wp.vec3(0.0)
    out = _Cotangent()
    out.mu = wp.spatial_vector(t_mu, zero)
    out.a = wp.spatial_vector(t_a, zero)
    out.v = wp.spatial_vector(t_v, zero)
    # cotangents of the error quaternion, which turns with side 1 by (0, theta) (e0, e) / 2
    l0 = half * (wp.dot(rows.mu, mu) + wp.dot(rows.a, a) + wp.dot(rows.v, w))
    l = wp.cross(rows.mu, mu) + wp.cross(rows.a, a) + wp.cross(rows.v, w)
    l = half * (l - 0.5 * wp.dot(w, w) * rows.a) + scale * rows.pos
    turn = 0.5 * (e0 * l + wp.cross(e, l) - l0 * e)
    out.y = wp.spatial_vector(turn, zero) + _moving_along(side1, out)
    return out


@wp.func
def _opposite(x: _Cotangent, side1: _Body, side2: _Body) -> _Cotangent:
    """What side 2 receives where side 1 receives `x` by rows of the orientation."""
    out = _Cotangent()
    out.mu = -x.mu
    out.a = -x.a
    out.v = wp.spatial_vector(wp.cross(ang(x.a), ang(side1.v) - ang(side2.v)), wp.vec3(0.0)) - x.v
    out.y = -x.y
    return out


@wp.kernel
def _body_equality_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_disableflags: int,
    body_rootid: wp.array[int],
    site_bodyid: wp.array[int],
    site_pos: wp.array2d[wp.vec3],
    site_quat: wp.array2d[wp.quat],
    eq_type: wp.array[int],
    eq_obj1id: wp.array[int],
    eq_obj2id: wp.array[int],
    eq_objtype: wp.array[int],
    eq_solref: wp.array2d[wp.vec2],
    eq_solimp: wp.array2d[vec5],
    eq_data: wp.array2d[vec12],
    # Record:
    ne_in: wp.array[int],
    xpos_in: wp.array2d[wp.vec3],
    xquat_in: wp.array2d[wp.quat],
    subtree_com_in: wp.array2d[wp.vec3],
    cvel_in: wp.array2d[wp.spatial_vector],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    # In:
    mu_body_in: wp.array2d[wp.spatial_vector],
    a_body_in: wp.array2d[wp.spatial_vector],
    b_body_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    x_a_io: wp.array2d[wp.spatial_vector],
    x_b_io: wp.array2d[wp.spatial_vector],
    x_v_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
):
    """Connect and weld."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    ne = wp.min(ne_in[worldid], efc_D_in.shape[1])
    efcid = int(0)
    while efcid < ne:
        first = efcid
        eqid = efc_id_in[worldid, first]
        is_weld = eq_type[eqid] == _WELD
        if is_weld:
            efcid += 6
        elif eq_type[eqid] == _CONNECT:
            efcid += 3
        else:
            efcid += 1
            continue
        if efcid > ne:
            # cut off by njmax; the overflow is reported by Physics.check_overflow
            continue

        # points, and orientations beyond those of the bodies
        data = eq_data[worldid % eq_data.shape[0], eqid]
        obj1 = eq_obj1id[eqid]
        obj2 = eq_obj2id[eqid]
        if eq_objtype[eqid] == _SITE:
            body1 = site_bodyid[obj1]
            body2 = site_bodyid[obj2]
            anchor1 = site_pos[worldid % site_pos.shape[0], obj1]
            anchor2 = site_pos[worldid % site_pos.shape[0], obj2]
            quat1 = site_quat[worldid % site_quat.shape[0], obj1]
            quat2 = site_quat[worldid % site_quat.shape[0], obj2]
        else:
            body1 = obj1
            body2 = obj2
            anchor1 = wp.vec3(data[0], data[1], data[2])
            anchor2 = wp.vec3(data[3], data[4], data[5])
            if is_weld:  # its data begin with the point of the second body
                anchor2 = wp.vec3(data[0], data[1], data[2])
                anchor1 = wp.vec3(data[3], data[4], data[5])
            quat1 = wp.quat(data[6], data[7], data[8], data[9])
            quat2 = wp.quat(1.0, 0.0, 0.0, 0.0)
        xquat1 = xquat_in[worldid, body1]
        xquat2 = xquat_in[worldid, body2]
        pos1 = xpos_in[worldid, body1] + _rotate(xquat1, anchor1)
        pos2 = xpos_in[worldid, body2] + _rotate(xquat2, anchor2)
        pos = pos1 - pos2

        side1 = _Body()
        side1.p = pos1 - subtree_com_in[worldid, body_rootid[body1]]
        side1.mu = mu_body_in[worldid, body1]
        side1.a = a_body_in[worldid, body1]
        side1.b = b_body_in[worldid, body1]
        side1.v = cvel_in[worldid, body1]
        side2 = _Body()
        side2.p = pos2 - subtree_com_in[worldid, body_rootid[body2]]
        side2.mu = mu_body_in[worldid, body2]
        side2.a = a_body_in[worldid, body2]
        side2.b = b_body_in[worldid, body2]
        side2.v = cvel_in[worldid, body2]

        # error of the orientation, in world axes (e0, e) and in the frame of side 2
        scale = float(0.0)
        e0 = float(1.0)
        e = wp.vec3(0.0)
        r2 = wp.quat(1.0, 0.0, 0.0, 0.0)
        if is_weld:
            scale = data[10]
            r2 = _quat_mul(xquat2, quat2)
            error = _quat_mul(_quat_mul(xquat1, quat1), _quat_conj(r2))
            e0 = error[0]
            e = wp.vec3(error[1], error[2], error[3])
        turn = scale * _rotate(_quat_conj(r2), e)

        norm = wp.sqrt(wp.dot(pos, pos) + wp.dot(turn, turn))
        p = kbip(
            opt_disableflags,
            h,
            eq_solref[worldid % eq_solref.shape[0], eqid],
            eq_solimp[worldid % eq_solimp.shape[0], eqid],
            norm,
        )
        y = velocity_at(side1.mu, side1.p) - velocity_at(side2.mu, side2.p)
        rows = _three_rows(first, efc_D_in[worldid], efc_force_in[worldid], p[1], y)
        by_norm = _norm_coefficient(p, pos, rows, y)
        turn_rows = _Rows()
        if is_weld:
            w = ang(side1.mu) - ang(side2.mu)
            y = 0.5 * scale * _rotate(_quat_conj(r2), e0 * w + wp.cross(w, e))
            turn_rows = _three_rows(first + 3, efc_D_in[worldid], efc_force_in[worldid], p[1], y)
            by_norm += _norm_coefficient(p, turn, turn_rows, y)
        by_norm = wp.where(norm > 0.0, by_norm / norm, 0.0)
        rows.pos = p[0] * p[2] * rows.a + by_norm * pos
        turn_rows.pos = p[0] * p[2] * turn_rows.a + by_norm * turn

        x1 = _point_vjp(side1, rows)
        x2 = _point_vjp(side2, _negative(rows))
        if is_weld:
            turn1 = _turn_vjp(scale, e0, e, _to_world(r2, turn_rows), side1, side2)
            x1 = _sum(x1, turn1)
            x2 = _sum(x2, _opposite(turn1, side1, side2))
        x_mu_io[worldid, body1] += x1.mu
        x_a_io[worldid, body1] += x1.a
        x_b_io[worldid, body1] += x1.a
        x_v_io[worldid, body1] += x1.v
        y_io[worldid, body1] += x1.y
        x_mu_io[worldid, body2] += x2.mu
        x_a_io[worldid, body2] += x2.a
        x_b_io[worldid, body2] += x2.a
        x_v_io[worldid, body2] += x2.v
        y_io[worldid, body2] += x2.y


def body_equality_vjp(m: mjw.Model, s: Substep, ws: Workspace) -> None:
    """Adjoint of connect and weld: accumulates into the cotangents of the bodies' fields."""
    d = s.d
    wp.launch(
        _body_equality_vjp,
        dim=d.nworld,
        inputs=[
            m.opt.timestep,
            m.opt.disableflags,
            m.body_rootid,
            m.site_bodyid,
            m.site_pos,
            m.site_quat,
            m.eq_type,
            m.eq_obj1id,
            m.eq_obj2id,
            m.eq_objtype,
            m.eq_solref,
            m.eq_solimp,
            m.eq_data,
            d.ne,
            d.xpos,
            d.xquat,
            d.subtree_com,
            d.cvel,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            ws.mu,
            ws.a,
            ws.b,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_b, ws.x_v, ws.y],
    )
