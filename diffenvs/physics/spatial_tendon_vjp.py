"""Adjoint of spatial tendons: the part of `tendon_vjp` in which the Jacobian changes.

A spatial tendon runs straight from site to site; behind a pulley its length counts less, by `s`.
For the segment from `p1` on body 1 to `p2` on body 2, with length `l` and direction `n`,

    L = s l,   J f = s n . d_f,   d_f = f_2(p2) - f_1(p1)

for a joint vector with the field `f`. So the coefficients `c_f = x_ten_f` of the fields f in (mu,
a, v, w, z) leave wrenches, the sites move with their bodies, and the direction turns:

    x_f of body 2 += X_f = wrench of c_f s n at p2,   of body 1 -= the same at p1
    on p2: (1/l) (1 - n n') sum_f c_f s d_f + sum_f c_f s n x w_f,   y += sum_f f_2 x* X_f

and the force of the cotangent of a point joins `y`; likewise, with the other sign, at `p1`.

Armature `A` gives the mass matrix `A J^T J` and the bias force `A J^T (dJ/dt qvel)`. Its part of
`phi` is `A (J mu)(J a + k) - A (J w)(J z)`, where per segment, with the accelerations `e_i` of the
points while qacc is 0, `d = d_v`, `r = n . d` and `p = d - r n`,

    k = dJ/dt qvel = s (n . (e_2 - e_1) + p.p / l),   e = b(p) + w x v(p)

In:  `x_ten_mu, x_ten_a, x_ten_v, x_ten_w, x_ten_z`; the record's `site_xpos`, `cvel`; the fields.
Out: `x_*` and `y` of the bodies, accumulated. The length itself is carried by `tendon_vjp`.

Derivation: `DERIVATION.md`, section 8. Not covered: tendons that wrap around geoms.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import ang, force_cross, velocity_at, wrench
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})

_SITE = wp.constant(int(mujoco.mjtWrap.mjWRAP_SITE))
_MINVAL = wp.constant(float(mujoco.mjMINVAL))


@wp.struct
class Point:
    """A site of a tendon: its body, and where it is, measured from the centre of the tree."""

    bodyid: int
    p: wp.vec3


@wp.func
def _point(
    # Model:
    body_rootid: wp.array[int],
    site_bodyid: wp.array[int],
    # Record:
    subtree_com_in: wp.array2d[wp.vec3],
    site_xpos_in: wp.array2d[wp.vec3],
    # In:
    worldid: int,
    siteid: int,
) -> Point:
    point = Point()
    point.bodyid = site_bodyid[siteid]
    com = subtree_com_in[worldid, body_rootid[point.bodyid]]
    point.p = site_xpos_in[worldid, siteid] - com
    return point


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
):
    """A force that `phi` has on a field at a point that moves with its body."""
    f = field_in[worldid, point.bodyid]
    x = wrench(point.p, force, torque)
    x_io[worldid, point.bodyid] += x
    moved = wrench(point.p, wp.cross(force, ang(f)), wp.vec3(0.0))
    y_io[worldid, point.bodyid] += force_cross(f, x) + moved


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
        first = _point(
            body_rootid, site_bodyid, subtree_com_in, site_xpos_in, worldid, wrap_objid[i]
        )
        second = _point(
            body_rootid, site_bodyid, subtree_com_in, site_xpos_in, worldid, wrap_objid[i + 1]
        )
        dif = site_xpos_in[worldid, wrap_objid[i + 1]] - site_xpos_in[worldid, wrap_objid[i]]
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
    # Record:
    subtree_com_in: wp.array2d[wp.vec3],
    cvel_in: wp.array2d[wp.spatial_vector],
    site_xpos_in: wp.array2d[wp.vec3],
    # In:
    with_pair: bool,
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
        for i in range(adr, adr + tendon_num[tenid] - 1):
            if wrap_type[i] != _SITE or wrap_type[i + 1] != _SITE:
                continue
            first = _point(
                body_rootid, site_bodyid, subtree_com_in, site_xpos_in, worldid, wrap_objid[i]
            )
            second = _point(
                body_rootid, site_bodyid, subtree_com_in, site_xpos_in, worldid, wrap_objid[i + 1]
            )
            dif = site_xpos_in[worldid, wrap_objid[i + 1]] - site_xpos_in[worldid, wrap_objid[i]]
            length = wp.length(dif)
            if first.bodyid == second.bodyid or length < _MINVAL:
                continue
            n = dif / length
            sn = wrap_pulley_scale[i] * n

            d_v = _difference(cvel_in, worldid, first, second)
            turn = c_mu * _difference(mu_in, worldid, first, second)
            turn += c_a * _difference(a_in, worldid, first, second)
            turn += c_v * d_v
            _force(mu_in, worldid, second, c_mu * sn, zero, x_mu_io, y_io)
            _force(mu_in, worldid, first, -c_mu * sn, zero, x_mu_io, y_io)
            _force(a_in, worldid, second, c_a * sn, zero, x_a_io, y_io)
            _force(a_in, worldid, first, -c_a * sn, zero, x_a_io, y_io)
            _force(cvel_in, worldid, second, c_v * sn, zero, x_v_io, y_io)
            _force(cvel_in, worldid, first, -c_v * sn, zero, x_v_io, y_io)
            if with_pair:
                turn += c_w * _difference(w_in, worldid, first, second)
                turn += c_z * _difference(z_in, worldid, first, second)
                _force(w_in, worldid, second, c_w * sn, zero, x_w_io, y_io)
                _force(w_in, worldid, first, -c_w * sn, zero, x_w_io, y_io)
                _force(z_in, worldid, second, c_z * sn, zero, x_z_io, y_io)
                _force(z_in, worldid, first, -c_z * sn, zero, x_z_io, y_io)

            cot = zero  # of p2 - p1, through the direction
            if armature != 0.0:
                c = armature * ten_mu_in[worldid, tenid]
                r = wp.dot(n, d_v)
                p = d_v - r * n
                e = _acceleration(cvel_in, b_in, worldid, second)
                turn += c * (e - _acceleration(cvel_in, b_in, worldid, first))
                scale = c * wrap_pulley_scale[i] / length
                cot = -(scale / length) * (wp.dot(p, p) * n + 2.0 * r * p)
                force = c * sn
                for side in range(2):
                    point = first
                    sign = float(-1.0)
                    if side == 1:
                        point = second
                        sign = float(1.0)
                    v = cvel_in[worldid, point.bodyid]
                    u = velocity_at(v, point.p)
                    _force(b_in, worldid, point, sign * force, zero, x_b_io, y_io)
                    on_v = sign * (wp.cross(force, ang(v)) + 2.0 * scale * p)
                    torque = sign * wp.cross(u, force)
                    _force(cvel_in, worldid, point, on_v, torque, x_v_io, y_io)
            cot += wrap_pulley_scale[i] / length * (turn - n * wp.dot(n, turn))
            y_io[worldid, second.bodyid] += wrench(second.p, cot, zero)
            y_io[worldid, first.bodyid] -= wrench(first.p, cot, zero)


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
            *record,
            flags.pair,
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
