"""How the points where a tendon touches a sphere or a cylinder follow the ends of its path.

The path comes straight from `p0`, touches at `t0`, runs along the geom to `t1` and goes straight to
`p1`; all vectors are measured from the centre of the geom, in a frame that moves with it. Around a
circle of radius `r` with unit normal `n`, in whose plane `p` is `rho` from the centre,

    t = alpha p + beta n x p,   alpha = (r/rho)^2,   beta = +-r sqrt(rho^2 - r^2) / rho^2

The plane of a sphere's circle goes through both ends: `n ~ p0 x p1`. Around a cylinder, `n` is the
axis, `p` and `t` stand for their parts normal to it, and along the axis the path climbs evenly,

    z(t0) = z0 + (z1 - z0) l0/l,   z(t1) = z1 - (z1 - z0) l1/l,   l = l0 + arc + l1

with the flat lengths `l_i^2 = rho_i^2 - r^2` of the straight parts.

`wrap_vjp` pulls cotangents of `t0, t1` back to `p0, p1`. Derivation: `DERIVATION.md`, section 9.
Not covered: paths inside of a geom.
"""

import mujoco
import warp as wp

wp.set_module_options({"enable_backward": False})

_SPHERE = wp.constant(int(mujoco.mjtWrap.mjWRAP_SPHERE))


@wp.func
def _scales(r: float, rho: float, sign: float) -> wp.vec4:
    """alpha, beta and their derivatives by rho."""
    s = wp.sqrt(wp.max(rho * rho - r * r, 1.0e-12))
    return wp.vec4(
        (r / rho) * (r / rho),
        sign * r * s / (rho * rho),
        -2.0 * (r / rho) * (r / rho) / rho,
        sign * r * (1.0 / (s * rho) - 2.0 * s / (rho * rho * rho)),
    )


@wp.func
def _touch_vjp(c: wp.vec4, n: wp.vec3, p: wp.vec3, adj_t: wp.vec3) -> wp.vec3:
    """Cotangent of p from that of `t = alpha p + beta n x p`, with `n` held."""
    np = wp.cross(n, p)
    along = wp.normalize(p) * (c[2] * wp.dot(adj_t, p) + c[3] * wp.dot(adj_t, np))
    return c[0] * adj_t + c[1] * wp.cross(adj_t, n) + along


@wp.func
def wrap_vjp(
    wraptype: int,
    r: float,
    axis: wp.vec3,
    p0: wp.vec3,
    p1: wp.vec3,
    t0: wp.vec3,
    t1: wp.vec3,
    adj_t0: wp.vec3,
    adj_t1: wp.vec3,
) -> tuple[wp.vec3, wp.vec3]:
    """Cotangents of (p0, p1) from those of (t0, t1)."""
    if wraptype == _SPHERE:
        normal = wp.cross(p0, p1)
        n = wp.normalize(normal)
        sign0 = wp.sign(wp.dot(wp.cross(n, p0), t0))
        c0 = _scales(r, wp.length(p0), sign0)
        c1 = _scales(r, wp.length(p1), -sign0)
        adj_n = c0[1] * wp.cross(p0, adj_t0) + c1[1] * wp.cross(p1, adj_t1)
        adj_normal = (adj_n - n * wp.dot(n, adj_n)) / wp.length(normal)
        adj_p0 = _touch_vjp(c0, n, p0, adj_t0) + wp.cross(p1, adj_normal)
        adj_p1 = _touch_vjp(c1, n, p1, adj_t1) + wp.cross(adj_normal, p0)
        return adj_p0, adj_p1

    z0 = wp.dot(axis, p0)
    z1 = wp.dot(axis, p1)
    flat_p0 = p0 - z0 * axis
    flat_p1 = p1 - z1 * axis
    flat_t0 = t0 - wp.dot(axis, t0) * axis
    flat_t1 = t1 - wp.dot(axis, t1) * axis
    sign = wp.sign(wp.dot(wp.cross(axis, flat_p0), flat_t0))
    angle = wp.atan2(sign * wp.dot(axis, wp.cross(flat_t0, flat_t1)), wp.dot(flat_t0, flat_t1))
    if angle < 0.0:
        angle += 2.0 * wp.pi
    arc = r * angle
    l0 = wp.length(flat_p0 - flat_t0)
    l1 = wp.length(flat_p1 - flat_t1)
    l = l0 + arc + l1

    # the climb
    adj_z0 = wp.dot(axis, adj_t0)
    adj_z1 = wp.dot(axis, adj_t1)
    adj_s0 = adj_z0 * (z1 - z0) / (l * l)  # of l0 / l, over l^2
    adj_s1 = -adj_z1 * (z1 - z0) / (l * l)  # of l1 / l, over l^2
    adj_l0 = adj_s0 * (l - l0) - adj_s1 * l1
    adj_l1 = adj_s1 * (l - l1) - adj_s0 * l0
    adj_arc = sign * (-adj_s0 * l0 - adj_s1 * l1) / r
    flat_adj0 = adj_t0 - adj_z0 * axis - adj_arc * wp.cross(axis, flat_t0)
    flat_adj1 = adj_t1 - adj_z1 * axis + adj_arc * wp.cross(axis, flat_t1)

    c0 = _scales(r, wp.length(flat_p0), sign)
    c1 = _scales(r, wp.length(flat_p1), -sign)
    adj_p0 = _touch_vjp(c0, axis, flat_p0, flat_adj0) + flat_p0 * (adj_l0 / wp.max(l0, 1.0e-6))
    adj_p1 = _touch_vjp(c1, axis, flat_p1, flat_adj1) + flat_p1 * (adj_l1 / wp.max(l1, 1.0e-6))
    adj_p0 += axis * (adj_z0 * (1.0 - l0 / l) + adj_z1 * l1 / l)
    adj_p1 += axis * (adj_z0 * l0 / l + adj_z1 * (1.0 - l1 / l))
    return adj_p0, adj_p1
