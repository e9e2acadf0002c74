"""Faces of boxes, convex meshes and cylinders: normals, corners, borders.

Faces 2 i and 2 i + 1 of a box belong to its axis i; faces 0 and 1 of a cylinder are its caps, which
the simulator clips as polygons of 16 corners that are fixed in the body. Functions for
`manifold_vjp`; all is in world axes, from the origin of `geom.xpos`.
"""

import mujoco
import warp as wp

from .contact_feature import Mesh
from .contact_geometry_vjp import Geom

wp.set_module_options({"enable_backward": False})

_CYLINDER = wp.constant(int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_BOX = wp.constant(int(mujoco.mjtGeom.mjGEOM_BOX))
_MESH = wp.constant(int(mujoco.mjtGeom.mjGEOM_MESH))


@wp.func
def num_faces(mesh: Mesh, geom: Geom) -> int:
    """How many faces a geom has."""
    if geom.type == _BOX:
        return 6
    if geom.type == _CYLINDER:
        return 2
    return mesh.polynum[geom.meshid]


@wp.func
def face_normal(mesh: Mesh, geom: Geom, face: int) -> wp.vec3:
    """Outward normal of a face; faces 2 i and 2 i + 1 of a box belong to axis i; 0, 1 are caps."""
    if geom.type != _MESH:
        i = face // 2
        if geom.type == _CYLINDER:
            i = 2
        axis = wp.vec3(geom.xmat[0, i], geom.xmat[1, i], geom.xmat[2, i])
        return float(1 - 2 * (face & 1)) * axis
    return geom.xmat * mesh.polynormal[mesh.polyadr[geom.meshid] + face]


@wp.func
def num_corners(mesh: Mesh, geom: Geom, face: int) -> int:
    """How many corners a face has."""
    if geom.type == _BOX:
        return 4
    if geom.type == _CYLINDER:
        return 16
    return mesh.polyvertnum[mesh.polyadr[geom.meshid] + face]


@wp.func
def corner_of(mesh: Mesh, geom: Geom, face: int, i: int) -> wp.vec3:
    """Corner `i` of a face, in the order around it, from the origin of `geom.xpos`."""
    if geom.type == _BOX:
        axis = face // 2
        x = geom.size
        x[axis] *= float(1 - 2 * (face & 1))
        if i == 1 or i == 2:
            x[(axis + 1) % 3] *= -1.0
        if i >= 2:
            x[(axis + 2) % 3] *= -1.0
        return geom.xpos + geom.xmat * x
    if geom.type == _CYLINDER:
        # the simulator takes a cap for a polygon that is fixed in the body
        angle = float(i) * (wp.pi / 8.0)
        x = wp.vec3(wp.cos(angle), wp.sin(angle), 0.0) * geom.size[0]
        x[2] = geom.size[1] * float(1 - 2 * (face & 1))
        return geom.xpos + geom.xmat * x
    adr = mesh.polyvertadr[mesh.polyadr[geom.meshid] + face]
    vert = mesh.vert[mesh.vertadr[geom.meshid] + mesh.polyvert[adr + i]]
    return geom.xpos + geom.xmat * vert


@wp.func
def size_of(geom: Geom) -> float:
    """A length of the size of a geom (`geom_size` of a mesh is that of its box)."""
    if geom.type == _CYLINDER:
        return wp.min(geom.size[0], geom.size[1])
    return wp.min(geom.size[0], wp.min(geom.size[1], geom.size[2]))


@wp.func
def area_of(mesh: Mesh, geom: Geom, face: int) -> float:
    """Twice the area of a face."""
    total = wp.vec3(0.0)
    corner = corner_of(mesh, geom, face, 0)
    for i in range(1, num_corners(mesh, geom, face) - 1):
        side = corner_of(mesh, geom, face, i) - corner
        total += wp.cross(side, corner_of(mesh, geom, face, i + 1) - corner)
    return wp.length(total)


@wp.func
def face_along(mesh: Mesh, geom: Geom, direction: wp.vec3, point: wp.vec3, scale: float) -> int:
    """The face whose normal is closest to a direction, of those through a point if `scale` > 0."""
    best = float(-wp.inf)
    face = int(0)
    for k in range(num_faces(mesh, geom)):
        normal = face_normal(mesh, geom, k)
        score = wp.dot(normal, direction)
        if scale > 0.0:
            score -= scale * wp.abs(wp.dot(normal, point - corner_of(mesh, geom, k, 0)))
        if score > best:
            best = score
            face = k
    return face


@wp.func
def edge_plane(
    mesh: Mesh, geom: Geom, face: int, v: wp.vec3, line: wp.vec3, normal: wp.vec3
) -> wp.vec4:
    """The plane through an edge of a face, and normal to the face, that is closest to `v`.

    The distance is measured along `line`, or if that is zero in the plane with the normal `normal`,
    so that planes parallel to these are far away. Returns the normal and the distance.
    """
    noise = 1.0e-6 * size_of(geom)
    m = face_normal(mesh, geom, face)
    best = wp.vec4(0.0, 0.0, 0.0, wp.inf)
    num = num_corners(mesh, geom, face)
    for i in range(num):
        corner = corner_of(mesh, geom, face, i)
        a = wp.normalize(wp.cross(corner_of(mesh, geom, face, (i + 1) % num) - corner, m))
        sine = wp.abs(wp.dot(line, a))
        if wp.length_sq(line) == 0.0:
            sine = wp.length(wp.cross(normal, a))
        distance = (wp.abs(wp.dot(a, v - corner)) + noise) / wp.max(sine, 1.0e-9)
        if distance < best[3]:
            best = wp.vec4(a[0], a[1], a[2], distance)
    return best


@wp.func
def is_corner(mesh: Mesh, geom: Geom, face: int, v: wp.vec3) -> bool:
    """Whether a point of a face is one of its corners."""
    for i in range(num_corners(mesh, geom, face)):
        if wp.length(corner_of(mesh, geom, face, i) - v) < 1.0e-2 * size_of(geom):
            return True
    return False


@wp.func
def is_inside(mesh: Mesh, geom: Geom, face: int, point: wp.vec3) -> bool:
    """Whether a point is over a face; caps of cylinders are round here."""
    normal = face_normal(mesh, geom, face)
    if geom.type == _CYLINDER:
        r = point - geom.xpos
        return wp.length(r - wp.dot(r, normal) * normal) < geom.size[0]
    num = num_corners(mesh, geom, face)
    center = wp.vec3(0.0)
    for i in range(num):
        center += corner_of(mesh, geom, face, i) / float(num)
    for i in range(num):
        corner = corner_of(mesh, geom, face, i)
        a = wp.cross(corner_of(mesh, geom, face, (i + 1) % num) - corner, normal)
        if wp.dot(a, point - corner) * wp.dot(a, center - corner) < 0.0:
            return False
    return True


@wp.func
def border_distance(mesh: Mesh, geom: Geom, face: int, point: wp.vec3) -> float:
    """How far a point is from the border of a face."""
    if geom.type == _CYLINDER:
        m = face_normal(mesh, geom, face)
        r = point - geom.xpos
        return wp.abs(wp.length(r - wp.dot(r, m) * m) - geom.size[0])
    nearest = float(wp.inf)
    num = num_corners(mesh, geom, face)
    for i in range(num):
        p = corner_of(mesh, geom, face, i)
        side = corner_of(mesh, geom, face, (i + 1) % num) - p
        w = wp.clamp(wp.dot(point - p, side) / wp.length_sq(side), 0.0, 1.0)
        nearest = wp.min(nearest, wp.length(point - p - w * side))
    return nearest


@wp.func
def border_point(
    mesh: Mesh, geom: Geom, face: int, start: wp.vec3, axis: wp.vec3, n: wp.vec3
) -> wp.vec3:
    """Where the border of a face is met by rays along `n` from the line `start + s axis`, s < 0.

    If `axis` is zero there is one ray. A corner that is hit exactly is preferred to its edges.
    """
    m = face_normal(mesh, geom, face)
    if geom.type == _CYLINDER:
        return geom.xpos + geom.size[1] * m + geom.size[0] * wp.normalize(wp.dot(n, m) * m - n)
    ray = start + (wp.dot(m, corner_of(mesh, geom, face, 0) - start) / wp.dot(m, n)) * n
    b = wp.cross(axis, n)
    best = float(-wp.inf)
    point = ray
    nearest = 1.0e-5 * size_of(geom)
    num = num_corners(mesh, geom, face)
    for i in range(num):
        p = corner_of(mesh, geom, face, i)
        u = corner_of(mesh, geom, face, (i + 1) % num) - p
        off = wp.length(p - ray)
        if wp.length_sq(axis) > 0.0:
            off = wp.abs(wp.dot(b, p - start))
            w = -wp.dot(b, p - start) / wp.dot(b, u)
            along = wp.dot(axis, p + w * u - start)
            if w >= 0.0 and w <= 1.0 and along > best:
                best = along
                point = p + w * u
        if off < nearest:
            nearest = off
            point = p
            best = float(wp.inf)
    return point
