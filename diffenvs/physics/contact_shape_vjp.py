"""Adjoint of contact geometry for boxes, cylinders, ellipsoids and convex meshes.

Forward, inputs and outputs: see `contact_geometry_vjp`, which says what flatness is. Here it is
found for every shape, from the witness point `x` and the outward normal `m` in the frame of the
geom. Which feature touches is decided without a tolerance: at a closest point either a face of the
shape holds the point (then the normal may lean towards it) or the point has some way to go to the
face (then the normal has no part along it). So what is larger decides, `|m|` times a length or the
way to go.

    box         corner, edge, face: three, two or one pair of faces hold the point
    cylinder    side: line with the radius across; cap: plane; rim: `C = r / |m_xy|` along it
    ellipsoid   `C = (S^2 - x x') / |S m|`, `S = diag(size)`, the Hessian of its support function
    mesh        corner, edge or face of the convex hull, found at the vertex farthest along `m`

A plane touches the lowest points of the other geom and up to three more. Corners and vertices are
points of the body. The point of an ellipsoid slides by `C th_2`. All points on the caps of a
cylinder keep their place relative to the axis `a` and the horizontal `b = a x e/|e|` (`e` is the
plane's normal less its part along the axis): they turn with the body and in addition about `a`, by
`w.(b x n)/|e|`. That grows without bound as a cylinder stands up: its lowest point runs around.

Derivation: `DERIVATION.md`, section 4. Not covered: points that come from clipping faces or edges
against each other, height fields, signed distance fields.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .contact_geometry_vjp import (
    Contact,
    ContactGeometry,
    Geom,
    axis_of,
    flat_along,
    pair_geometry_vjp,
    plane_geometry_vjp,
    plane_point_vjp,
    round_flatness,
)

wp.set_module_options({"enable_backward": False})

_PLANE = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
_CAPSULE = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))
_ELLIPSOID = wp.constant(int(mujoco.mjtGeom.mjGEOM_ELLIPSOID))
_CYLINDER = wp.constant(int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_BOX = wp.constant(int(mujoco.mjtGeom.mjGEOM_BOX))


@wp.struct
class Mesh:
    """Vertices and faces of the convex hulls of all meshes, as in `mujoco_warp.Model`."""

    vertadr: wp.array[int]
    vertnum: wp.array[int]
    vert: wp.array[wp.vec3]
    polynum: wp.array[int]
    polyadr: wp.array[int]
    polynormal: wp.array[wp.vec3]
    polyvertadr: wp.array[int]
    polyvertnum: wp.array[int]
    polyvert: wp.array[int]
    polymapadr: wp.array[int]
    polymapnum: wp.array[int]
    polymap: wp.array[int]


def mesh_of(m: mjw.Model) -> Mesh:
    """The meshes of a model."""
    mesh = Mesh()
    for name in Mesh.vars:
        setattr(mesh, name, getattr(m, f"mesh_{name}"))
    return mesh


@wp.func
def _length_of(geom: Geom) -> float:
    """A length of the size of the geom."""
    if geom.type <= _CAPSULE or geom.type == _CYLINDER:
        return geom.size[0]
    return wp.min(geom.size[0], wp.min(geom.size[1], geom.size[2]))


@wp.func
def _ellipsoid_radii(geom: Geom, c: Contact, out: wp.vec3) -> wp.mat22:
    """`C` of an ellipsoid where its outward normal is `out`."""
    local = wp.transpose(geom.xmat)
    scaled = wp.cw_mul(geom.size, local * out)
    h = wp.length(scaled)
    x = scaled / h
    v2 = wp.cw_mul(geom.size, local * c.e2)
    v3 = wp.cw_mul(geom.size, local * c.e3)
    x2 = wp.dot(v2, x)
    x3 = wp.dot(v3, x)
    off = wp.dot(v2, v3) - x2 * x3
    return wp.mat22(wp.dot(v2, v2) - x2 * x2, off, off, wp.dot(v3, v3) - x3 * x3) / h


@wp.func
def _box_flatness(geom: Geom, c: Contact, m: wp.vec3, x: wp.vec3, L: float) -> wp.mat22:
    held = int(0)
    free = int(0)
    for k in range(3):
        if L * wp.abs(m[k]) > geom.size[k] - wp.abs(x[k]):
            held += 1
        else:
            free = k
    if held == 3:
        return wp.mat22(0.0)
    if held == 2:
        u = wp.vec3(geom.xmat[0, free], geom.xmat[1, free], geom.xmat[2, free])
        return flat_along(c, u, 1.0, 0.0)
    return wp.identity(n=2, dtype=float)


@wp.func
def _cylinder_flatness(geom: Geom, c: Contact, m: wp.vec3, x: wp.vec3, L: float) -> wp.mat22:
    radius = geom.size[0]
    m_xy = wp.sqrt(m[0] * m[0] + m[1] * m[1])
    x_xy = wp.sqrt(x[0] * x[0] + x[1] * x[1])
    on_side = radius * m_xy > radius - x_xy
    on_cap = radius * wp.abs(m[2]) > geom.size[1] - wp.abs(x[2])
    if on_side and on_cap:
        around = geom.xmat * wp.vec3(-x[1], x[0], 0.0)
        return flat_along(c, around, radius / (radius + L * m_xy), 0.0)
    if on_side:
        return flat_along(c, axis_of(geom), 1.0, radius / (radius + L))
    return wp.identity(n=2, dtype=float)


@wp.func
def _mesh_flatness(
    mesh: Mesh, geom: Geom, c: Contact, m: wp.vec3, x: wp.vec3, L: float
) -> wp.mat22:
    vertadr = mesh.vertadr[geom.meshid]
    polyadr = mesh.polyadr[geom.meshid]
    vertid = int(0)
    farthest = float(-wp.inf)
    for i in range(mesh.vertnum[geom.meshid]):
        if mesh.polymapnum[vertadr + i] > 0:
            along = wp.dot(m, mesh.vert[vertadr + i])
            if along > farthest:
                farthest = along
                vertid = i
    corner = mesh.vert[vertadr + vertid]
    mapadr = mesh.polymapadr[vertadr + vertid]

    face = int(0)
    aligned = float(-wp.inf)
    nearest = float(wp.inf)  # distance from an edge
    rest = float(0.0)  # way to go to the ends of that edge
    edge = wp.vec3(0.0)
    for i in range(mesh.polymapnum[vertadr + vertid]):
        polyid = polyadr + mesh.polymap[mapadr + i]
        along = wp.dot(m, mesh.polynormal[polyid])
        if along > aligned:
            aligned = along
            face = polyid
        # every edge that ends at the vertex leaves it in one of its faces
        adr = mesh.polyvertadr[polyid]
        num = mesh.polyvertnum[polyid]
        for k in range(num):
            if mesh.polyvert[adr + k] == vertid:
                leaving = mesh.vert[vertadr + mesh.polyvert[adr + (k + 1) % num]] - corner
                length = wp.length(leaving)
                u = leaving / length
                t = wp.dot(x - corner, u)
                distance = wp.length(x - corner - wp.clamp(t, 0.0, length) * u)
                if distance < nearest:
                    nearest = distance
                    rest = wp.min(t, length - t)
                    edge = u

    normal = mesh.polynormal[face]
    inside = float(wp.inf)
    adr = mesh.polyvertadr[face]
    num = mesh.polyvertnum[face]
    for k in range(num):
        a = mesh.vert[vertadr + mesh.polyvert[adr + k]]
        b = mesh.vert[vertadr + mesh.polyvert[adr + (k + 1) % num]]
        inside = wp.min(inside, wp.dot(wp.normalize(wp.cross(normal, b - a)), x - a))
    if inside > L * wp.length(wp.cross(m, normal)):
        return wp.identity(n=2, dtype=float)
    if rest > L * wp.abs(wp.dot(m, edge)):
        return flat_along(c, geom.xmat * edge, 1.0, 0.0)
    return wp.mat22(0.0)


@wp.func
def _flatness(mesh: Mesh, geom: Geom, c: Contact, out: wp.vec3, L: float) -> wp.mat22:
    """Flatness of a geom where its outward normal is `out`, `n` or `-n`."""
    surface = c.pos - 0.5 * c.dist * c.n
    if wp.dot(out, c.n) < 0.0:
        surface = c.pos + 0.5 * c.dist * c.n
    if geom.type <= _CAPSULE:
        return round_flatness(geom, c, out, surface, L)
    if geom.type == _ELLIPSOID:
        one = wp.identity(n=2, dtype=float)
        return one - L * wp.inverse(_ellipsoid_radii(geom, c, out) + L * one)
    m = wp.transpose(geom.xmat) * out
    x = wp.transpose(geom.xmat) * (surface - geom.xpos)
    if geom.type == _CYLINDER:
        return _cylinder_flatness(geom, c, m, x, L)
    if geom.type == _BOX:
        return _box_flatness(geom, c, m, x, L)
    return _mesh_flatness(mesh, geom, c, m, x, L)


@wp.func
def _plane_ellipsoid_vjp(geom: Geom, c: Contact) -> ContactGeometry:
    out = plane_point_vjp(c, c.pos + 0.5 * c.dist * c.n)
    slide = _ellipsoid_radii(geom, c, -c.n) * wp.vec2(wp.dot(c.e2, c.P), wp.dot(c.e3, c.P))
    out.torque2 += wp.cross(c.n, c.e2 * slide[0] + c.e3 * slide[1])
    return out


@wp.func
def _plane_cylinder_vjp(geom: Geom, c: Contact) -> ContactGeometry:
    point = c.pos + 0.5 * c.dist * c.n
    out = plane_point_vjp(c, point)
    axis = axis_of(geom)
    e = c.n - axis * wp.dot(axis, c.n)
    length = wp.length(e)
    turn = wp.dot(out.force2, wp.cross(axis, point - geom.xpos))
    if length < 1.0e-6:
        # upright: the points do not turn about the axis at all
        out.torque2 -= turn * axis
    else:
        b = wp.cross(axis, e) / length
        out.torque2 += (turn / length) * wp.cross(b, c.n)
    return out


@wp.func
def shape_geometry_vjp(mesh: Mesh, geom1: Geom, geom2: Geom, c: Contact) -> ContactGeometry:
    """Any two geoms that touch at a pair of closest points, and a plane with any geom."""
    if geom1.type == _PLANE:
        if geom2.type == _ELLIPSOID:
            return _plane_ellipsoid_vjp(geom2, c)
        if geom2.type == _CYLINDER:
            return _plane_cylinder_vjp(geom2, c)
        return plane_geometry_vjp(geom2, c)
    L = wp.min(_length_of(geom1), _length_of(geom2))
    F1 = _flatness(mesh, geom1, c, c.n, L)
    F2 = _flatness(mesh, geom2, c, -c.n, L)
    return pair_geometry_vjp(c, F1, F2, L)
