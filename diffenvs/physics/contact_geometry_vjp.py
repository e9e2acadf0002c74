"""Adjoint of contact geometry: how point, frame and distance of a contact follow its two bodies.

Forward: two surfaces touch at a pair of closest points `pos -+ dist/2 n`; `n` points from geom 1
to geom 2, `make_frame` builds the tangents from `n` and a world axis.

In:  the geoms and their poses; `pos`, `dist`, `n`, `e2`, `e3` of the contact; cotangents `P` of the
     contact point, `N` of a rotation of the frame, `kappa` of the distance.
Out: `ContactGeometry`: wrenches about `pos` on the two bodies, cotangents of their rigid motion.

In the tangent plane a surface is known by its radii of curvature, the matrix `C`: 0 at a corner,
infinite along a straight line. Its flatness `F = C (C + L)^-1`, `L` some length of the size of the
geoms, is always finite. If the bodies turn their surfaces' normals by `th_i` and move the closest
points by `d` against each other, the contact's normal changes by `dn` and the closest point slides
on body 1 by `s`:

    A z = F2 (th_2 - th_1) + (1 - F2)(d/L - dist/L th_1),   dn = th_1 + (1 - F1) z,   s = L F1 z
    A = F2 (1 - F1) + (1 - F2) F1 + dist/L (1 - F2)(1 - F1)

Planes do not move: there `dn = 0`, and the points need not be closest ones. This file holds spheres
and capsules, and boxes on planes; `contact_shape_vjp` the other shapes. Derivation:
`DERIVATION.md`, section 4.
"""

import mujoco
import warp as wp

wp.set_module_options({"enable_backward": False})

_PLANE = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
_CAPSULE = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))
# Below this determinant two features are parallel, within about 3e-3 rad.
_PARALLEL = wp.constant(1.0e-5)


@wp.struct
class Geom:
    """A geom in world coordinates; `meshid` is -1 but for meshes."""

    type: int
    size: wp.vec3
    xpos: wp.vec3
    xmat: wp.mat33
    meshid: int


@wp.struct
class Contact:
    """A contact and the cotangents of its geometry."""

    pos: wp.vec3
    dist: float
    n: wp.vec3
    e2: wp.vec3
    e3: wp.vec3
    P: wp.vec3  # of pos
    N: wp.vec3  # of a rotation of the frame
    kappa: float  # of dist


@wp.struct
class ContactGeometry:
    """Cotangents of the rigid motions of the two bodies: wrenches about the contact point."""

    force1: wp.vec3
    torque1: wp.vec3
    force2: wp.vec3
    torque2: wp.vec3


@wp.func
def axis_of(geom: Geom) -> wp.vec3:
    """The z axis of a geom: of a capsule or a cylinder, the normal of a plane."""
    return wp.vec3(geom.xmat[0, 2], geom.xmat[1, 2], geom.xmat[2, 2])


@wp.func
def flat_along(c: Contact, u: wp.vec3, along: float, across: float) -> wp.mat22:
    """Flatness with the eigenvector `u` (world), brought into the basis (e2, e3)."""
    x = wp.normalize(wp.vec2(wp.dot(c.e2, u), wp.dot(c.e3, u)))
    return across * wp.identity(n=2, dtype=float) + (along - across) * wp.outer(x, x)


@wp.func
def round_flatness(geom: Geom, c: Contact, out: wp.vec3, surface: wp.vec3, L: float) -> wp.mat22:
    """Flatness of a sphere or a capsule at `surface`, where its outward normal is `out`."""
    radius = geom.size[0]
    across = radius / (radius + L)
    along = across
    if geom.type == _CAPSULE:
        axis = axis_of(geom)
        rest = geom.size[1] - wp.abs(wp.dot(surface - radius * out - geom.xpos, axis))
        # on the side the normal has no part along the axis, at an end there is no rest
        if rest > radius * wp.abs(wp.dot(out, axis)):
            along = 1.0
        return flat_along(c, axis, along, across)
    return across * wp.identity(n=2, dtype=float)


@wp.func
def _rounded(F: wp.mat22) -> wp.mat22:
    """The end of a line, a corner of a face: what is left where features are parallel."""
    left = wp.trace(F) - 1.0
    return wp.where(left > 0.99, 0.0, wp.max(left, 0.0)) * wp.identity(n=2, dtype=float)


@wp.func
def _sliding(F1: wp.mat22, F2: wp.mat22, delta: float) -> wp.mat22:
    """The matrix `A`."""
    one = wp.identity(n=2, dtype=float)
    return F2 * (one - F1) + (one - F2) * (F1 + delta * (one - F1))


@wp.func
def pair_geometry_vjp(c: Contact, F1: wp.mat22, F2: wp.mat22, L: float) -> ContactGeometry:
    """Adjoint of a pair of closest points, given the flatness of both surfaces."""
    ref = wp.vec3(0.0, 1.0, 0.0)
    if wp.abs(c.n[1]) >= 0.5:
        ref = wp.vec3(0.0, 0.0, 1.0)
    nref = wp.dot(c.n, ref)
    turn = wp.cross(c.N, c.n)
    pt = wp.vec2(wp.dot(c.e2, c.P), wp.dot(c.e3, c.P))
    # of dn; the frame turns about n as the tangents follow the world axis
    nu = wp.vec2(wp.dot(c.e2, turn), wp.dot(c.e3, turn)) + 0.5 * c.dist * pt
    nu[1] -= wp.dot(c.N, c.n) * nref / wp.length(ref - c.n * nref)

    delta = c.dist / L
    A = _sliding(F1, F2, delta)
    if wp.abs(wp.determinant(A)) < _PARALLEL:
        # one-sided: the closest point sits at the end of the shorter feature
        if wp.trace(F1) < wp.trace(F2):
            F1 = _rounded(F1)
        else:
            F2 = _rounded(F2)
        A = _sliding(F1, F2, delta)
    w = wp.inverse(wp.transpose(A)) * (nu - F1 * nu + L * (F1 * pt))
    adj_d = (w - F2 * w) / L
    adj_theta2 = F2 * w
    adj_theta1 = nu - adj_theta2 - c.dist * adj_d

    normal = (0.5 * wp.dot(c.n, c.P)) * c.n
    relative = c.kappa * c.n + c.e2 * adj_d[0] + c.e3 * adj_d[1]
    out = ContactGeometry()
    out.force1 = normal + c.e2 * pt[0] + c.e3 * pt[1] - relative
    out.force2 = normal + relative
    arm = (0.5 * c.dist) * c.n
    out.torque1 = wp.cross(c.n, c.e2 * adj_theta1[0] + c.e3 * adj_theta1[1])
    out.torque1 -= wp.cross(arm, out.force1)
    out.torque2 = wp.cross(c.n, c.e2 * adj_theta2[0] + c.e3 * adj_theta2[1])
    out.torque2 += wp.cross(arm, out.force2)
    return out


@wp.func
def plane_point_vjp(c: Contact, point: wp.vec3) -> ContactGeometry:
    """A static plane and a point that moves with the body; `pos` is halfway to the plane."""
    out = ContactGeometry()
    out.force2 = c.P + (c.kappa - 0.5 * wp.dot(c.n, c.P)) * c.n
    out.torque2 = wp.cross(point - c.pos, out.force2)
    return out


@wp.func
def plane_geometry_vjp(geom: Geom, c: Contact) -> ContactGeometry:
    """A static plane and a sphere, an end of a capsule or a corner of a box."""
    surface = c.pos + 0.5 * c.dist * c.n
    if geom.type > _CAPSULE:
        return plane_point_vjp(c, surface)
    out = plane_point_vjp(c, surface + geom.size[0] * c.n)
    if geom.type == _CAPSULE:
        # the first tangent is the projected axis, but for capsules steeper than 60 degrees
        axis = axis_of(geom)
        length = wp.length(axis - c.n * wp.dot(c.n, axis))
        if length >= 0.5:
            out.torque2 += wp.cross(axis, c.e3) * (wp.dot(c.N, c.n) / length)
    return out


@wp.func
def geometry_vjp(geom1: Geom, geom2: Geom, c: Contact) -> ContactGeometry:
    """Spheres and capsules among each other, and planes with these or a box."""
    if geom1.type == _PLANE:
        return plane_geometry_vjp(geom2, c)
    L = wp.min(geom1.size[0], geom2.size[0])
    arm = (0.5 * c.dist) * c.n
    F1 = round_flatness(geom1, c, c.n, c.pos - arm, L)
    F2 = round_flatness(geom2, c, -c.n, c.pos + arm, L)
    return pair_geometry_vjp(c, F1, F2, L)
