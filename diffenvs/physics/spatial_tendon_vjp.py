"""Adjoint of spatial tendons: the part of `tendon_vjp` in which the Jacobian changes.

A spatial tendon runs straight from site to site; behind a pulley its length counts less, by `s`.
For the segment from `p1` on body 1 to `p2` on body 2, with length `l` and direction `n`,

    L = s l,   J f = s n . d_f,   d_f = f_2(p2) - f_1(p1)

for a joint vector with the field `f`. So the coefficients `c_f = x_ten_f` of the fields f in (mu,
a, v, w, z) leave wrenches, the sites move with their bodies, and the direction turns:

    x_f of body 2 += X_f = wrench of c_f s n at p2,   of body 1 -= the same at p1
    on p2: (1/l) (1 - n n') sum_f c_f s d_f + sum_f c_f s n x w_f,   y += sum_f f_2 x* X_f

and the force of the cotangent of a point joins `y`; likewise, with the other sign, at `p1`. A path
that wraps around a geom has two such segments, which end in points that slide on the geom:
`tendon_wrap_vjp` takes their cotangents to the sites, relative to the geom.

Armature `A` gives the mass matrix `A J^T J` and the bias force `A J^T (dJ/dt qvel)`. Its part of
`phi` is `A (J mu)(J a + k) - A (J w)(J z)`, where per segment, with the accelerations `e_i` of the
points while qacc is 0, `d = d_v`, `r = n . d` and `p = d - r n`,

    k = dJ/dt qvel = s (n . (e_2 - e_1) + p.p / l),   e = b(p) + w x v(p)

In:  `x_ten_mu, x_ten_a, x_ten_v, x_ten_w, x_ten_z`; the record's `site_xpos`, `cvel` and, of paths
     that wrap, `wrap_obj`, `wrap_xpos`; the fields.
Out: `x_*` and `y` of the bodies, accumulated. The length itself is carried by `tendon_vjp`.

Derivation: `DERIVATION.md`, section 9. Not covered: armature of tendons that wrap around geoms.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import ang, force_cross, velocity_at, wrench
from .tendon_wrap_vjp import wrap_vjp
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})

_SITE = wp.constant(int(mujoco.mjtWrap.mjWRAP_SITE))
_PULLEY = wp.constant(int(mujoco.mjtWrap.mjWRAP_PULLEY))
_MINVAL = wp.constant(float(mujoco.mjMINVAL))


@wp.struct
class Point:
    """A point of a tendon's path: its body, and where it is."""

    bodyid: int
    xpos: wp.vec3  # in the world
    p: wp.vec3  # from the centre of the body's tree


@wp.func
def _point(
    # Model:
    body_rootid: wp.array[int],
    # Record:
    subtree_com_in: wp.array2d[wp.vec3],
    # In:
    worldid: int,
    bodyid: int,
    xpos: wp.vec3,
) -> Point:
    point = Point()
    point.bodyid = bodyid
    point.xpos = xpos
    point.p = xpos - subtree_com_in[worldid, body_rootid[bodyid]]
    return point


@wp.func
def _wrap_xpos(
    # Record:
    wrap_xpos_in: wp.array2d[wp.spatial_vector],
    # In:
    worldid: int,
    k: int,
) -> wp.vec3:
    """The k-th point of the paths of a world, which are stored in pairs."""
    pair = wrap_xpos_in[worldid, k // 2]
    if k % 2 == 0:
        return wp.vec3(pair[0], pair[1], pair[2])
    return wp.vec3(pair[3], pair[4], pair[5])


@wp.func
def _difference(
    # In:
    field_in: wp.array2d[wp.spatial_vector],
    worldid: int,
    first: Point,
    second: Point,
) -> wp.vec3:
    """f_2(p2) - f_1(p1)."""
    u2 = velocity_at(field_in[worldid, second.bodyid], second.p)
    return u2 - velocity_at(field_in[worldid, first.bodyid], first.p)


@wp.func
def _acceleration(
    # Record:
    cvel_in: wp.array2d[wp.spatial_vector],
    # In:
    b_in: wp.array2d[wp.spatial_vector],
    worldid: int,
    point: Point,
) -> wp.vec3:
    """The acceleration of a point while qacc is 0."""
    v = cvel_in[worldid, point.bodyid]
    e = velocity_at(b_in[worldid, point.bodyid], point.p)
    return e + wp.cross(ang(v), velocity_at(v, point.p))


@wp.func
def _force(
    # In:
    field_in: wp.array2d[wp.spatial_vector],
    worldid: int,
    point: Point,
    force: wp.vec3,
    torque: wp.vec3,
    # Out:
    x_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
) -> wp.vec3:
    """A force that `phi` has on a field at a point; returns what it leaves on the point."""
    f = field_in[worldid, point.bodyid]
    x = wrench(point.p, force, torque)
    x_io[worldid, point.bodyid] += x
    y_io[worldid, point.bodyid] += force_cross(f, x)
    return wp.cross(force, ang(f))


@wp.func
def _push(
    # In:
    worldid: int,
    point: Point,
    force: wp.vec3,
    # Out:
    y_io: wp.array2d[wp.spatial_vector],
):
    """Cotangent of a point that moves with its body."""
    y_io[worldid, point.bodyid] += wrench(point.p, force, wp.vec3(0.0))


@wp.kernel
def _tendon_armature_vjp(
    # Model:
    body_rootid: wp.array[int],
    site_bodyid: wp.array[int],
    tendon_adr: wp.array[int],
    tendon_num: wp.array[int],
    tendon_armature: wp.array2d[float],
    wrap_type: wp.array[int],
    wrap_objid: wp.array[int],
    wrap_pulley_scale: wp.array[float],
    # Record:
    subtree_com_in: wp.array2d[wp.vec3],
    cvel_in: wp.array2d[wp.spatial_vector],
    site_xpos_in: wp.array2d[wp.vec3],
    # In:
    b_in: wp.array2d[wp.spatial_vector],
    ten_mu_in: wp.array2d[float],
    ten_a_in: wp.array2d[float],
    ten_w_in: wp.array2d[float],
    ten_z_in: wp.array2d[float],
    # Out:
    x_ten_mu_io: wp.array2d[float],
    x_ten_a_io: wp.array2d[float],
    x_ten_w_io: wp.array2d[float],
    x_ten_z_io: wp.array2d[float],
):
    """Coefficients of the armature of one tendon."""
    worldid, tenid = wp.tid()
    armature = tendon_armature[worldid % tendon_armature.shape[0], tenid]
    if armature == 0.0:
        return
    k = float(0.0)
    adr = tendon_adr[tenid]
    for i in range(adr, adr + tendon_num[tenid] - 1):
        if wrap_type[i] != _SITE or wrap_type[i + 1] != _SITE:
            continue
        siteid = wrap_objid[i]
        xpos = site_xpos_in[worldid, siteid]
        first = _point(body_rootid, subtree_com_in, worldid, site_bodyid[siteid], xpos)
        siteid = wrap_objid[i + 1]
        xpos = site_xpos_in[worldid, siteid]
        second = _point(body_rootid, subtree_com_in, worldid, site_bodyid[siteid], xpos)
        dif = second.xpos - first.xpos
        length = wp.length(dif)
        if first.bodyid == second.bodyid or length < _MINVAL:
            continue
        n = dif / length
        d = _difference(cvel_in, worldid, first, second)
        p = d - n * wp.dot(n, d)
        e = _acceleration(cvel_in, b_in, worldid, second)
        e -= _acceleration(cvel_in, b_in, worldid, first)
        k += wrap_pulley_scale[i] * (wp.dot(n, e) + wp.dot(p, p) / length)
    x_ten_mu_io[worldid, tenid] += armature * (ten_a_in[worldid, tenid] + k)
    x_ten_a_io[worldid, tenid] += armature * ten_mu_in[worldid, tenid]
    x_ten_w_io[worldid, tenid] -= armature * ten_z_in[worldid, tenid]
    x_ten_z_io[worldid, tenid] -= armature * ten_w_in[worldid, tenid]


@wp.kernel
def _spatial_tendon_vjp(
    # Model:
    ntendon: int,
    body_rootid: wp.array[int],
    site_bodyid: wp.array[int],
    tendon_adr: wp.array[int],
    tendon_num: wp.array[int],
    tendon_armature: wp.array2d[float],
    wrap_type: wp.array[int],
    wrap_objid: wp.array[int],
    wrap_pulley_scale: wp.array[float],
    geom_bodyid: wp.array[int],
    geom_size: wp.array2d[wp.vec3],
    # Record:
    subtree_com_in: wp.array2d[wp.vec3],
    cvel_in: wp.array2d[wp.spatial_vector],
    site_xpos_in: wp.array2d[wp.vec3],
    geom_xpos_in: wp.array2d[wp.vec3],
    geom_xmat_in: wp.array2d[wp.mat33],
    ten_wrapadr_in: wp.array2d[int],
    wrap_obj_in: wp.array2d[wp.vec2i],
    wrap_xpos_in: wp.array2d[wp.spatial_vector],
    # In:
    with_pair: bool,
    with_wrap: bool,
    mu_in: wp.array2d[wp.spatial_vector],
    a_in: wp.array2d[wp.spatial_vector],
    b_in: wp.array2d[wp.spatial_vector],
    w_in: wp.array2d[wp.spatial_vector],
    z_in: wp.array2d[wp.spatial_vector],
    ten_mu_in: wp.array2d[float],
    x_ten_mu_in: wp.array2d[float],
    x_ten_a_in: wp.array2d[float],
    x_ten_v_in: wp.array2d[float],
    x_ten_w_in: wp.array2d[float],
    x_ten_z_in: wp.array2d[float],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    x_a_io: wp.array2d[wp.spatial_vector],
    x_b_io: wp.array2d[wp.spatial_vector],
    x_v_io: wp.array2d[wp.spatial_vector],
    x_w_io: wp.array2d[wp.spatial_vector],
    x_z_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
):
    """One world per thread: the segments of all tendons, in order."""
    worldid = wp.tid()
    zero = wp.vec3(0.0)
    for tenid in range(ntendon):
        c_mu = x_ten_mu_in[worldid, tenid]
        c_a = x_ten_a_in[worldid, tenid]
        c_v = x_ten_v_in[worldid, tenid]
        c_w = x_ten_w_in[worldid, tenid]
        c_z = x_ten_z_in[worldid, tenid]
        armature = tendon_armature[worldid % tendon_armature.shape[0], tenid]
        adr = tendon_adr[tenid]
        k = int(0)  # of the next point in the record's path
        if with_wrap:
            k = ten_wrapadr_in[worldid, tenid]
        for i in range(adr, adr + tendon_num[tenid] - 1):
            if wrap_type[i] == _PULLEY:
                k += 1
            if wrap_type[i] != _SITE:
                continue
            k += 1
            if wrap_type[i + 1] == _PULLEY:
                continue

            # from this site to the next, straight or by way of two points of a geom
            siteid = wrap_objid[i]
            xpos = site_xpos_in[worldid, siteid]
            start = _point(body_rootid, subtree_com_in, worldid, site_bodyid[siteid], xpos)
            nsegment = int(1)
            geomid = int(0)
            last = i + 1
            if with_wrap and wrap_type[i + 1] != _SITE:
                last = i + 2
                geomid = wrap_objid[i + 1]
                if wrap_obj_in[worldid, k // 2][k % 2] == geomid:
                    nsegment = 2
            siteid = wrap_objid[last]
            xpos = site_xpos_in[worldid, siteid]
            end = _point(body_rootid, subtree_com_in, worldid, site_bodyid[siteid], xpos)
            touch0 = start
            touch1 = end
            adj_touch0 = zero
            adj_touch1 = zero
            if nsegment == 2:
                bodyid = geom_bodyid[geomid]
                xpos = _wrap_xpos(wrap_xpos_in, worldid, k)
                touch0 = _point(body_rootid, subtree_com_in, worldid, bodyid, xpos)
                xpos = _wrap_xpos(wrap_xpos_in, worldid, k + 1)
                touch1 = _point(body_rootid, subtree_com_in, worldid, bodyid, xpos)
                k += 2

            for part in range(nsegment):
                first = start
                second = end
                if nsegment == 2 and part == 0:
                    second = touch0
                elif nsegment == 2:
                    first = touch1
                dif = second.xpos - first.xpos
                length = wp.length(dif)
                if first.bodyid == second.bodyid or length < _MINVAL:
                    continue
                n = dif / length
                sn = wrap_pulley_scale[i] * n

                d_v = _difference(cvel_in, worldid, first, second)
                turn = c_mu * _difference(mu_in, worldid, first, second)
                turn += c_a * _difference(a_in, worldid, first, second)
                turn += c_v * d_v
                on2 = _force(mu_in, worldid, second, c_mu * sn, zero, x_mu_io, y_io)
                on1 = _force(mu_in, worldid, first, -c_mu * sn, zero, x_mu_io, y_io)
                on2 += _force(a_in, worldid, second, c_a * sn, zero, x_a_io, y_io)
                on1 += _force(a_in, worldid, first, -c_a * sn, zero, x_a_io, y_io)
                on2 += _force(cvel_in, worldid, second, c_v * sn, zero, x_v_io, y_io)
                on1 += _force(cvel_in, worldid, first, -c_v * sn, zero, x_v_io, y_io)
                if with_pair:
                    turn += c_w * _difference(w_in, worldid, first, second)
                    turn += c_z * _difference(z_in, worldid, first, second)
                    on2 += _force(w_in, worldid, second, c_w * sn, zero, x_w_io, y_io)
                    on1 += _force(w_in, worldid, first, -c_w * sn, zero, x_w_io, y_io)
                    on2 += _force(z_in, worldid, second, c_z * sn, zero, x_z_io, y_io)
                    on1 += _force(z_in, worldid, first, -c_z * sn, zero, x_z_io, y_io)

                cot = zero  # of second - first, through the direction
                if armature != 0.0:
                    c = armature * ten_mu_in[worldid, tenid]
                    r = wp.dot(n, d_v)
                    p = d_v - r * n
                    e = _acceleration(cvel_in, b_in, worldid, second)
                    turn += c * (e - _acceleration(cvel_in, b_in, worldid, first))
                    scale = c * wrap_pulley_scale[i] / length
                    cot = -(scale / length) * (wp.dot(p, p) * n + 2.0 * r * p)
                    f = c * sn
                    on2 += _force(b_in, worldid, second, f, zero, x_b_io, y_io)
                    on1 += _force(b_in, worldid, first, -f, zero, x_b_io, y_io)
                    v2 = cvel_in[worldid, second.bodyid]
                    v1 = cvel_in[worldid, first.bodyid]
                    f2 = wp.cross(f, ang(v2)) + 2.0 * scale * p
                    f1 = wp.cross(f, ang(v1)) + 2.0 * scale * p
                    t2 = wp.cross(velocity_at(v2, second.p), f)
                    t1 = wp.cross(velocity_at(v1, first.p), f)
                    on2 += _force(cvel_in, worldid, second, f2, t2, x_v_io, y_io)
                    on1 += _force(cvel_in, worldid, first, -f1, -t1, x_v_io, y_io)
                cot += wrap_pulley_scale[i] / length * (turn - n * wp.dot(n, turn))
                on2 += cot
                on1 -= cot
                _push(worldid, second, on2, y_io)
                _push(worldid, first, on1, y_io)
                if part == 0:
                    adj_touch0 = on2
                else:
                    adj_touch1 = on1

            if nsegment == 2:
                # the touching points slide on the geom as the sites move relative to it
                center = geom_xpos_in[worldid, geomid]
                rot = geom_xmat_in[worldid, geomid]
                adj_start, adj_end = wrap_vjp(
                    wrap_type[i + 1],
                    geom_size[worldid % geom_size.shape[0], geomid][0],
                    wp.vec3(rot[0, 2], rot[1, 2], rot[2, 2]),
                    start.xpos - center,
                    end.xpos - center,
                    touch0.xpos - center,
                    touch1.xpos - center,
                    adj_touch0,
                    adj_touch1,
                )
                _push(worldid, start, adj_start, y_io)
                _push(worldid, end, adj_end, y_io)
                bodyid = geom_bodyid[geomid]
                start = _point(body_rootid, subtree_com_in, worldid, bodyid, start.xpos)
                end = _point(body_rootid, subtree_com_in, worldid, bodyid, end.xpos)
                _push(worldid, start, -adj_start, y_io)
                _push(worldid, end, -adj_end, y_io)


def spatial_tendon_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Carries what lies on spatial tendons to the fields of the bodies."""
    d = s.d
    path = [
        m.body_rootid,
        m.site_bodyid,
        m.tendon_adr,
        m.tendon_num,
        m.tendon_armature,
        m.wrap_type,
        m.wrap_objid,
        m.wrap_pulley_scale,
    ]
    record = [d.subtree_com, d.cvel, d.site_xpos]
    if flags.spatial_tendon_armature:
        wp.launch(
            _tendon_armature_vjp,
            dim=(d.nworld, m.ntendon),
            inputs=[*path, *record, ws.b, ws.ten_mu, ws.ten_a, ws.ten_w, ws.ten_z],
            outputs=[ws.x_ten_mu, ws.x_ten_a, ws.x_ten_w, ws.x_ten_z],
        )
    wp.launch(
        _spatial_tendon_vjp,
        dim=d.nworld,
        inputs=[
            m.ntendon,
            *path,
            m.geom_bodyid,
            m.geom_size,
            *record,
            d.geom_xpos,
            d.geom_xmat,
            d.ten_wrapadr,
            d.wrap_obj,
            d.wrap_xpos,
            flags.pair,
            flags.tendon_wrap,
            ws.mu,
            ws.a,
            ws.b,
            ws.w,
            ws.z,
            ws.ten_mu,
            ws.x_ten_mu,
            ws.x_ten_a,
            ws.x_ten_v,
            ws.x_ten_w,
            ws.x_ten_z,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_b, ws.x_v, ws.x_w, ws.x_z, ws.y],
    )
