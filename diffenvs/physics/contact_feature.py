"""What of a geom touches: a corner, an edge, a face or a smooth part.

In:  a geom, a point `surface` near its surface and the outward normal `out` there, of a contact.
Out: `Feature`: its flatness (see `contact_geometry_vjp`), the point of the feature that is closest
     to `surface`, and the normal of the feature that is closest to `out`.

At a closest point either a face of the shape holds the point (then the normal may lean towards it)
or the point has some way to go to the face (then the normal has no part along it). One of the two
numbers vanishes, so the larger one decides, the part of the normal times a length or the way to go,
and no tolerance is needed. With the normal `m` and the point `x` in the frame of the geom:

    sphere      `r / (r + L)`
    capsule     side: 1 along the axis, `r / (r + L)` across; end: sphere
    box         corner, edge, face: three, two or one pair of faces hold the point
    cylinder    side: line with the radius across; cap: plane; rim: `C = r / |m_xy|` along it
    ellipsoid   `C = (S^2 - x x') / |S m|`, `S = diag(size)`, the Hessian of its support function
    mesh        corner, edge or face of the convex hull, found at the vertex farthest along `m`

Derivation: `DERIVATION.md`, section 4.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .contact_geometry_vjp import Contact, Geom, axis_of, flat_along, on_side, round_flatness

wp.set_module_options({"enable_backward": False})

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


@wp.struct
class Feature:
    """What of a geom touches; point and normal are in the frame of the geom, then of the world."""

    F: wp.mat22
    point: wp.vec3
    normal: wp.vec3


def mesh_of(m: mjw.Model) -> Mesh:
    """The meshes of a model."""
    mesh = Mesh()
    for name in Mesh.vars:
        setattr(mesh, name, getattr(m, f"mesh_{name}"))
    return mesh


@wp.func
def length_of(geom: Geom) -> float:
    """A length of the size of the geom."""
    if geom.type <= _CAPSULE or geom.type == _CYLINDER:
        return geom.size[0]
    return wp.min(geom.size[0], wp.min(geom.size[1], geom.size[2]))


@wp.func
def ellipsoid_radii(geom: Geom, c: Contact, out: wp.vec3) -> wp.mat22:
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
def _sign(x: float) -> float:
    return wp.where(x < 0.0, -1.0, 1.0)


@wp.func
def _round(geom: Geom, m: wp.vec3, x: wp.vec3, flat: bool) -> Feature:
    out = Feature()
    radius = geom.size[0]
    out.normal = m
    out.point = radius * m
    if geom.type == _CAPSULE:
        z = x[2] - radius * m[2]
        if flat:
            out.normal = wp.normalize(wp.vec3(m[0], m[1], 0.0))
        else:
            z = _sign(z) * geom.size[1]
        out.point = radius * out.normal + wp.vec3(0.0, 0.0, z)
    return out


@wp.func
def _ellipsoid(geom: Geom, c: Contact, out_normal: wp.vec3, m: wp.vec3, L: float) -> Feature:
    out = Feature()
    one = wp.identity(n=2, dtype=float)
    out.F = one - L * wp.inverse(ellipsoid_radii(geom, c, out_normal) + L * one)
    scaled = wp.cw_mul(geom.size, m)
    out.point = wp.cw_mul(geom.size, scaled) / wp.length(scaled)
    out.normal = m
    return out


@wp.func
def _box(geom: Geom, c: Contact, m: wp.vec3, x: wp.vec3, L: float) -> Feature:
    out = Feature()
    out.point = x
    out.normal = m
    most = wp.max(wp.abs(m[0]), wp.max(wp.abs(m[1]), wp.abs(m[2])))
    held = int(0)
    free = int(0)
    for k in range(3):
        if wp.abs(m[k]) == most or L * wp.abs(m[k]) > geom.size[k] - wp.abs(x[k]):
            held += 1
            out.point[k] = _sign(x[k]) * geom.size[k]
        else:
            free = k
            out.normal[k] = 0.0
    out.normal = wp.normalize(out.normal)
    if held == 1:
        out.F = wp.identity(n=2, dtype=float)
    elif held == 2:
        u = wp.vec3(geom.xmat[0, free], geom.xmat[1, free], geom.xmat[2, free])
        out.F = flat_along(c, u, 1.0, 0.0)
    return out


@wp.func
def _cylinder(geom: Geom, c: Contact, m: wp.vec3, x: wp.vec3, L: float) -> Feature:
    out = Feature()
    radius = geom.size[0]
    m_xy = wp.sqrt(m[0] * m[0] + m[1] * m[1])
    x_xy = wp.sqrt(x[0] * x[0] + x[1] * x[1])
    on_side = radius * m_xy > radius - x_xy
    on_cap = radius * wp.abs(m[2]) > geom.size[1] - wp.abs(x[2])
    z = _sign(x[2]) * geom.size[1]
    aside = wp.normalize(wp.vec3(m[0], m[1], 0.0))
    if on_side and on_cap:
        around = geom.xmat * wp.vec3(-m[1], m[0], 0.0)
        out.F = flat_along(c, around, radius / (radius + L * m_xy), 0.0)
        out.point = radius * aside + wp.vec3(0.0, 0.0, z)
        out.normal = m
    elif on_side:
        out.F = flat_along(c, axis_of(geom), 1.0, radius / (radius + L))
        out.point = radius * aside + wp.vec3(0.0, 0.0, x[2])
        out.normal = aside
    else:
        out.F = wp.identity(n=2, dtype=float)
        out.point = wp.vec3(x[0], x[1], z)
        out.normal = wp.vec3(0.0, 0.0, _sign(m[2]))
    return out


@wp.func
def _mesh(mesh: Mesh, geom: Geom, c: Contact, m: wp.vec3, x: wp.vec3, L: float) -> Feature:
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
    place = float(0.0)  # along it
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
                    place = t
                    edge = u

    normal = mesh.polynormal[face]
    inside = float(wp.inf)
    adr = mesh.polyvertadr[face]
    num = mesh.polyvertnum[face]
    for k in range(num):
        a = mesh.vert[vertadr + mesh.polyvert[adr + k]]
        b = mesh.vert[vertadr + mesh.polyvert[adr + (k + 1) % num]]
        inside = wp.min(inside, wp.dot(wp.normalize(wp.cross(normal, b - a)), x - a))
    out = Feature()
    if inside > L * wp.length(wp.cross(m, normal)):
        out.F = wp.identity(n=2, dtype=float)
        out.point = x - wp.dot(normal, x - corner) * normal
        out.normal = normal
    elif rest > L * wp.abs(wp.dot(m, edge)):
        out.F = flat_along(c, geom.xmat * edge, 1.0, 0.0)
        out.point = corner + place * edge
        out.normal = wp.normalize(m - wp.dot(m, edge) * edge)
    else:
        out.point = corner
        out.normal = m
    return out


@wp.func
def feature_of(
    mesh: Mesh, geom: Geom, c: Contact, out: wp.vec3, surface: wp.vec3, L: float
) -> Feature:
    """What of a geom touches at `surface`, where its outward normal is `out`, `n` or `-n`."""
    m = wp.transpose(geom.xmat) * out
    x = wp.transpose(geom.xmat) * (surface - geom.xpos)
    feature = Feature()
    if geom.type <= _CAPSULE:
        feature = _round(geom, m, x, on_side(geom, out, surface))
        feature.F = round_flatness(geom, c, out, surface, L)
    elif geom.type == _ELLIPSOID:
        feature = _ellipsoid(geom, c, out, m, L)
    elif geom.type == _CYLINDER:
        feature = _cylinder(geom, c, m, x, L)
    elif geom.type == _BOX:
        feature = _box(geom, c, m, x, L)
    else:
        feature = _mesh(mesh, geom, c, m, x, L)
    feature.point = geom.xpos + geom.xmat * feature.point
    feature.normal = geom.xmat * feature.normal
    return feature
