"""Adjoint of the contacts of boxes, capsules on boxes and convex meshes, clipped or not.

Forward: where a face touches, the simulator projects points of the other geom onto it and reports
up to eight contacts. Each has a reference face with the normal `m` and a point `v` at the height
`h` above that face; `q` is the normal of the second face, or `-m`, and `rho` the radius of a capsule:

    dist = -h (m.q) - rho,   pos = v - h m + (h/2) (m.q) q + (rho/2) q,   n = +-q

`v` is where three planes meet, each of which moves with one of the two bodies: the face that `v`
lies in, and two that hold its edges or the edges of the reference face (a corner, an edge that was
cut off at the reference face, a face that was cut off at a corner of it). For a capsule `v` is a
point of its axis: one end, or where the axis crosses an edge of the face.

In:  the geoms and their poses, the contact, cotangents of its point, frame and distance.
Out: `ContactGeometry`, as in `contact_geometry_vjp`. A cotangent `V` of `v` is split along the
     normals of its three planes; each part is a force on the body that owns the plane.

Which planes hold `v` is read from the contact itself: those that are closest to it. Where no face
rules the contact, edges and corners touch as in `contact_shape_vjp`. Derivation: `DERIVATION.md`,
section 4b. Not covered: rims of cylinders; the second contact of a capsule that is longer than a
box and lies across two of its edges.
"""

import mujoco
import warp as wp

from .contact_geometry_vjp import Contact, ContactGeometry, Geom, axis_of
from .contact_shape_vjp import Mesh, shape_geometry_vjp

wp.set_module_options({"enable_backward": False})

_CAPSULE = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))
_BOX = wp.constant(int(mujoco.mjtGeom.mjGEOM_BOX))
_MESH = wp.constant(int(mujoco.mjtGeom.mjGEOM_MESH))
# mujoco_warp clips two faces against each other whose normals are that close to opposite
_ALIGNED = wp.constant(0.99605)  # cos(0.0889)
# Below this sine two planes are as good as parallel.
_PARALLEL = wp.constant(0.02)


@wp.func
def has_manifold(type1: int, type2: int) -> bool:
    """Whether a pair of geoms, in the order of a contact, is one of those of this file."""
    solid = type2 == _BOX or type2 == _MESH
    return solid and (type1 == _BOX or type1 == _MESH or (type1 == _CAPSULE and type2 == _BOX))


@wp.func
def is_alone(
    conid: int,
    first: int,
    nefc: int,
    efc_id: wp.array[int],
    contact_geom: wp.array[wp.vec2i],
) -> bool:
    """Whether no other contact with rows from `first` on is between the same two geoms."""
    geom = contact_geom[conid]
    for i in range(first, nefc):
        other = efc_id[i]
        if other != conid:
            if contact_geom[other][0] == geom[0] and contact_geom[other][1] == geom[1]:
                return False
    return True


@wp.func
def _num_faces(mesh: Mesh, geom: Geom) -> int:
    if geom.type == _BOX:
        return 6
    return mesh.polynum[geom.meshid]


@wp.func
def _face_normal(mesh: Mesh, geom: Geom, face: int) -> wp.vec3:
    """Outward normal of a face, world axes; faces 2 i and 2 i + 1 of a box belong to its axis i."""
    if geom.type == _BOX:
        i = face // 2
        return wp.vec3(geom.xmat[0, i], geom.xmat[1, i], geom.xmat[2, i]) * float(1 - 2 * (face & 1))
    return geom.xmat * mesh.polynormal[mesh.polyadr[geom.meshid] + face]


@wp.func
def _num_corners(mesh: Mesh, geom: Geom, face: int) -> int:
    if geom.type == _BOX:
        return 4
    return mesh.polyvertnum[mesh.polyadr[geom.meshid] + face]


@wp.func
def _corner(mesh: Mesh, geom: Geom, face: int, i: int) -> wp.vec3:
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
    adr = mesh.polyvertadr[mesh.polyadr[geom.meshid] + face]
    vert = mesh.vert[mesh.vertadr[geom.meshid] + mesh.polyvert[adr + i]]
    return geom.xpos + geom.xmat * vert


@wp.func
def _size_of(geom: Geom) -> float:
    """A length of the size of a capsule or a polytope (`geom_size` of a mesh is its box)."""
    if geom.type == _CAPSULE:
        return geom.size[0]
    return wp.min(geom.size[0], wp.min(geom.size[1], geom.size[2]))


@wp.func
def _face_along(mesh: Mesh, geom: Geom, direction: wp.vec3, point: wp.vec3, scale: float) -> int:
    """The face whose normal is closest to a direction, of those through a point if `scale` > 0."""
    best = float(-wp.inf)
    face = int(0)
    for k in range(_num_faces(mesh, geom)):
        normal = _face_normal(mesh, geom, k)
        score = wp.dot(normal, direction)
        if scale > 0.0:
            score -= scale * wp.abs(wp.dot(normal, point - _corner(mesh, geom, k, 0)))
        if score > best:
            best = score
            face = k
    return face


@wp.func
def _edge_plane(
    mesh: Mesh, geom: Geom, face: int, v: wp.vec3, line: wp.vec3, normal: wp.vec3
) -> wp.vec4:
    """The plane through an edge of a face, and normal to the face, that is closest to `v`.

    It must cross `line`, or if that is zero the plane with the normal `normal`. Returns the plane's
    normal and its distance from `v`.
    """
    face_normal = _face_normal(mesh, geom, face)
    best = wp.vec4(0.0, 0.0, 0.0, wp.inf)
    num = _num_corners(mesh, geom, face)
    for i in range(num):
        corner = _corner(mesh, geom, face, i)
        a = wp.normalize(wp.cross(_corner(mesh, geom, face, (i + 1) % num) - corner, face_normal))
        sine = wp.abs(wp.dot(line, a))
        if wp.length_sq(line) == 0.0:
            sine = wp.length(wp.cross(normal, a))
        distance = wp.abs(wp.dot(a, v - corner))
        if sine > _PARALLEL and distance < best[3]:
            best = wp.vec4(a[0], a[1], a[2], distance)
    return best


@wp.func
def _frame_torque(c: Contact) -> wp.vec3:
    """Torque on the body that owns the normal, from the cotangent of the frame."""
    ref = wp.vec3(0.0, 1.0, 0.0)
    if wp.abs(c.n[1]) >= 0.5:
        ref = wp.vec3(0.0, 0.0, 1.0)
    nref = wp.dot(c.n, ref)
    spin = wp.dot(c.N, c.n)
    return c.N - spin * c.n + c.e2 * (spin * nref / wp.length(ref - c.n * nref))


@wp.func
def _added(
    out: ContactGeometry, on_first: bool, force: wp.vec3, at: wp.vec3, torque: wp.vec3
) -> ContactGeometry:
    """Adds a force at a point (from the contact point) and a torque to one of the bodies."""
    if on_first:
        out.force1 += force
        out.torque1 += torque + wp.cross(at, force)
    else:
        out.force2 += force
        out.torque2 += torque + wp.cross(at, force)
    return out


@wp.func
def _clipped_vjp(
    mesh: Mesh,
    ref: Geom,
    other: Geom,
    face: int,
    other_face: int,
    ref_is_first: bool,
    q: wp.vec3,
    q_of_other: bool,
    alone: bool,
    c: Contact,
) -> ContactGeometry:
    """A contact over the face `face` of `ref`; poses are given from the contact point.

    `other_face` is a face of `other` that holds `v`, or -1 to look for it.
    """
    m = _face_normal(mesh, ref, face)
    mq = wp.dot(m, q)
    h = -c.dist / mq
    rho = float(0.0)
    if other.type == _CAPSULE:
        rho = other.size[0]
        h = c.dist + rho
    v = h * m - (0.5 * h * mq + 0.5 * rho) * q

    # cotangents of h, of the normals, and of v
    pq = wp.dot(c.P, q)
    adj_h = -mq * c.kappa - wp.dot(c.P, m) + 0.5 * mq * pq
    adj_mq = h * (0.5 * pq - c.kappa)

    out = ContactGeometry()
    none = wp.vec3(0.0)
    if other.type == _CAPSULE:
        V = c.P + adj_h * m
        axis = axis_of(other)
        if wp.abs(wp.dot(v - other.xpos, axis)) < other.size[1] - 1.0e-5 * (other.size[1] + rho):
            plane = _edge_plane(mesh, ref, face, v, axis, m)
            a = wp.vec3(plane[0], plane[1], plane[2])
            # the point slides along the axis
            push = (wp.dot(V, axis) / wp.dot(a, axis)) * a
            out = _added(out, ref_is_first, push, v, none)
            V -= push
        out = _added(out, not ref_is_first, V, v, none)
    else:
        if other_face < 0:
            scale = 1000.0 / _size_of(other)
            other_face = _face_along(mesh, other, -m, v, scale)
        normal = _face_normal(mesh, other, other_face)
        first = wp.vec3(0.0)
        first_of_ref = bool(False)
        second = wp.vec3(0.0)
        second_of_ref = bool(False)
        for k in range(2):
            line = wp.normalize(wp.cross(normal, first))
            of_other = _edge_plane(mesh, other, other_face, v, line, normal)
            of_ref = _edge_plane(mesh, ref, face, v, line, normal)
            is_ref = of_ref[3] < of_other[3]
            plane = wp.where(is_ref, of_ref, of_other)
            if k == 0:
                first = wp.vec3(plane[0], plane[1], plane[2])
                first_of_ref = is_ref
            else:
                second = wp.vec3(plane[0], plane[1], plane[2])
                second_of_ref = is_ref
        if alone and q_of_other and not first_of_ref and not second_of_ref:
            # the only contact has the depth of the penetration, whatever its normal
            adj_h += (1.0 + mq) * c.kappa
            adj_mq += h * c.kappa
        V = c.P + adj_h * m
        planes = wp.matrix_from_cols(normal, first, second)
        part = wp.inverse(planes) * V
        out = _added(out, not ref_is_first, part[0] * normal, v, none)
        out = _added(out, ref_is_first == first_of_ref, part[1] * first, v, none)
        out = _added(out, ref_is_first == second_of_ref, part[2] * second, v, none)

    out = _added(out, ref_is_first, -adj_h * m, v, wp.cross(m, adj_mq * q - h * c.P))
    turn = _frame_torque(c) + wp.cross(q, adj_mq * m + (0.5 * h * mq + 0.5 * rho) * c.P)
    return _added(out, ref_is_first != q_of_other, none, none, turn)


@wp.func
def manifold_vjp(
    mesh: Mesh, geom1: Geom, geom2: Geom, c: Contact, alone: bool, nativeccd: bool
) -> ContactGeometry:
    """Boxes, capsules on boxes, and meshes.

    `alone` tells whether this is the only contact of the pair. Without `nativeccd` boxes touch by
    the separating axis, whose reference face may be at any angle to the face of the other box.
    """
    # lengths from the contact point lose least in single precision
    geom1.xpos -= c.pos
    geom2.xpos -= c.pos
    zero = wp.vec3(0.0)
    is_box_box = geom1.type == _BOX and geom2.type == _BOX
    gjk = geom1.type != _CAPSULE and (nativeccd or not is_box_box)
    tolerance = float(1.0e-4)
    if gjk:
        # the normal is the difference of two points at the distance `dist`
        scale = wp.min(_size_of(geom1), _size_of(geom2))
        tolerance = wp.min(2.0e-3 + 1.0e-6 * scale / wp.abs(c.dist), 0.04)

    face1 = int(-1)
    face2 = _face_along(mesh, geom2, -c.n, zero, 0.0)
    m1 = wp.vec3(0.0)
    m2 = _face_normal(mesh, geom2, face2)
    off1 = float(wp.inf)
    off2 = wp.length(m2 + c.n)
    if geom1.type != _CAPSULE:
        face1 = _face_along(mesh, geom1, c.n, zero, 0.0)
        m1 = _face_normal(mesh, geom1, face1)
        off1 = wp.length(m1 - c.n)
    aligned = gjk and wp.dot(m1, m2) < -_ALIGNED

    if aligned and off2 < tolerance:
        # two faces: that of geom 2 is cut off at that of geom 1 and gives the normal
        return _clipped_vjp(mesh, geom1, geom2, face1, face2, True, m2, True, alone, c)
    if off1 < tolerance and off1 <= off2:
        return _clipped_vjp(mesh, geom1, geom2, face1, -1, True, -m1, False, alone, c)
    if off2 < tolerance:
        return _clipped_vjp(mesh, geom2, geom1, face2, -1, False, -m2, False, alone, c)
    geom1.xpos += c.pos
    geom2.xpos += c.pos
    return shape_geometry_vjp(mesh, geom1, geom2, c)
