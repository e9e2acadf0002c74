"""Adjoint of clipped contacts: between capsules, cylinders, boxes and convex meshes.

Forward: where a face touches, the simulator projects points of the other geom onto it and reports
up to eight contacts. Each has a reference face with the outward normal `m` and a point `v` at the
height `h` above that face; `q` is the normal of the second face, or `-m`:

    dist = -h (m.q),   pos = v - h m + (h/2) (m.q) q,   n = -q or q

`v` is where three planes meet, each of which moves with one of the two bodies: the face that `v`
lies in, and two that hold its edges or the edges of the reference face (a corner; an edge that was
cut off; a face that was cut off at a corner). Or `v` is on the side of a cylinder or capsule: an
end of the line on it that touches, or where that line is cut off. A capsule touches a box as a
sphere does whose centre is an end of its axis, or where a side of the box cuts the axis off.

In:  the geoms and their poses; the contact; cotangents of its point, frame and distance.
Out: `ContactGeometry`, as in `contact_geometry_vjp`. A cotangent `V` of `v` is split along the
     normals of its three planes; each part is a force on the body that owns the plane.

Which planes hold `v` is read from the contact itself: those that are closest to it. Where no face
rules the contact, points touch as in `contact_shape_vjp`. Derivation: `DERIVATION.md`, section 4b.
Not covered: flex, height fields, signed distance fields; the only contact of two faces whose
penetration is deepest between two edges (its distance is then taken normal to the face).
"""

import mujoco
import warp as wp

from .contact_face import (
    area_of,
    border_distance,
    border_point,
    edge_plane,
    face_along,
    face_normal,
    is_corner,
    is_inside,
    size_of,
)
from .contact_feature import Mesh
from .contact_geometry_vjp import Contact, ContactGeometry, Geom, axis_of
from .contact_shape_vjp import shape_geometry_vjp

wp.set_module_options({"enable_backward": False})

_CAPSULE = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))
_SPHERE = wp.constant(int(mujoco.mjtGeom.mjGEOM_SPHERE))
_ELLIPSOID = wp.constant(int(mujoco.mjtGeom.mjGEOM_ELLIPSOID))
_CYLINDER = wp.constant(int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_BOX = wp.constant(int(mujoco.mjtGeom.mjGEOM_BOX))
_NATIVECCD = wp.constant(int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD))
_MULTICCD = wp.constant(int(mujoco.mjtDisableBit.mjDSBL_MULTICCD))
# mujoco_warp clips two faces against each other whose normals are that close to opposite
_ALIGNED = wp.constant(0.99605)  # cos(0.0889)
_STEEP = wp.constant(0.08878)  # sin(0.0889)


@wp.func
def has_manifold(type1: int, type2: int, disableflags: int) -> bool:
    """Whether geoms of these types, in the order of a contact, may touch in clipped points."""
    if type2 == _BOX and (type1 == _BOX or type1 == _CAPSULE):
        return True
    if type1 == _ELLIPSOID:
        return False
    return (disableflags & _MULTICCD) == 0 and type1 >= _CAPSULE and type2 >= _CYLINDER


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
def _corner_vjp(
    mesh: Mesh,
    ref: Geom,
    other: Geom,
    face: int,
    other_face: int,
    ref_is_first: bool,
    v: wp.vec3,
    V: wp.vec3,
) -> ContactGeometry:
    """A point of the face `other_face` held by the edges of that face, or of the face of `ref`."""
    normal = face_normal(mesh, other, other_face)
    first = wp.vec3(0.0)
    first_of_ref = bool(False)
    second = wp.vec3(0.0)
    second_of_ref = bool(False)
    for k in range(2):
        line = wp.normalize(wp.cross(normal, first))
        of_other = edge_plane(mesh, other, other_face, v, line, normal)
        of_ref = edge_plane(mesh, ref, face, v, line, normal)
        is_ref = of_ref[3] < of_other[3]
        plane = wp.where(is_ref, of_ref, of_other)
        if k == 0:
            first = wp.vec3(plane[0], plane[1], plane[2])
            first_of_ref = is_ref
        else:
            second = wp.vec3(plane[0], plane[1], plane[2])
            second_of_ref = is_ref
    part = wp.inverse(wp.matrix_from_cols(normal, first, second)) * V
    none = wp.vec3(0.0)
    out = ContactGeometry()
    out = _added(out, not ref_is_first, part[0] * normal, v, none)
    out = _added(out, ref_is_first == first_of_ref, part[1] * first, v, none)
    return _added(out, ref_is_first == second_of_ref, part[2] * second, v, none)


@wp.func
def _side_vjp(
    mesh: Mesh, ref: Geom, other: Geom, face: int, ref_is_first: bool, v: wp.vec3, V: wp.vec3
) -> ContactGeometry:
    """A point of a line on the side of a cylinder or capsule: one of its ends, or where it is cut.

    The line is at `radius` along the normal of the closest points, less its part along the axis.
    """
    none = wp.vec3(0.0)
    out = ContactGeometry()
    axis = axis_of(other)
    radius = other.size[0]
    m = face_normal(mesh, ref, face)
    s = wp.dot(v - other.xpos, axis)
    plane = edge_plane(mesh, ref, face, v, axis, m)
    if plane[3] < wp.abs(other.size[1] - wp.abs(s)):
        a = wp.vec3(plane[0], plane[1], plane[2])
        push = (wp.dot(V, axis) / wp.dot(a, axis)) * a
        out = _added(out, ref_is_first, push, v, none)
        V -= push

    outward = -wp.sign(wp.dot(axis, m)) * axis
    r = v - other.xpos - s * axis
    core = other.xpos + other.size[1] * outward  # the lower end of the axis
    low = core
    if other.type == _CYLINDER:
        low -= radius * wp.normalize(m - wp.dot(m, axis) * axis)
    out = _added(out, not ref_is_first, V, v, none)
    V_across = V - wp.dot(V, axis) * axis
    if is_inside(mesh, ref, face, low):
        # the normal of the face; the line runs around the axis as the face tilts against it
        slide = -radius * V_across
        if other.type == _CYLINDER:
            across = wp.cross(axis, m)
            slide = (wp.dot(slide, across) / wp.pow(wp.length(across), 3.0)) * across
        turn = wp.cross(m, slide)
        out = _added(out, ref_is_first, none, none, turn)
        return _added(out, not ref_is_first, none, none, -turn)

    # the normal of the closest points of the axis, or its end, and of an edge or corner of the face
    sine = wp.length(r) / radius
    n = wp.normalize(r)
    if other.type == _CAPSULE and sine < 1.0 - 1.0e-5:
        # of an end, the lower one or the other
        n = r / radius + wp.sqrt(1.0 - sine * sine) * outward
        border = border_point(mesh, ref, face, core, none, n)
        if border_distance(mesh, ref, face, border) > 1.0e-3 * size_of(ref):
            n -= 2.0 * wp.sqrt(1.0 - sine * sine) * outward
            core -= 2.0 * other.size[1] * outward
            border = border_point(mesh, ref, face, core, none, n)
    else:
        border = border_point(mesh, ref, face, core, outward, n)
        core += wp.dot(border - core, axis) * axis
    c = Contact()
    c.pos = 0.5 * (border + core + radius * n)
    c.dist = wp.dot(border - core, n) - radius
    c.n = n
    c.e2 = wp.normalize(wp.cross(n, m))
    c.e3 = wp.cross(n, c.e2)
    c.N = wp.cross(n, radius * V_across)
    turned = shape_geometry_vjp(mesh, other, ref, c)
    out = _added(out, not ref_is_first, turned.force1, c.pos, turned.torque1 - c.N)
    return _added(out, ref_is_first, turned.force2, c.pos, turned.torque2)


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
    m = face_normal(mesh, ref, face)
    mq = wp.dot(m, q)
    h = -c.dist / mq
    v = h * m - (0.5 * h * mq) * q

    # cotangents of h, of the normals, and of v
    pq = wp.dot(c.P, q)
    adj_h = -mq * c.kappa - wp.dot(c.P, m) + 0.5 * mq * pq
    adj_mq = h * (0.5 * pq - c.kappa)

    if alone and q_of_other:
        # the only contact has the depth of the penetration, whatever its normal; that of a corner
        # of `other` is measured along `m`
        if is_corner(mesh, other, other_face, v):
            adj_h += (1.0 + mq) * c.kappa
            adj_mq += h * c.kappa
    V = c.P + adj_h * m
    out = ContactGeometry()
    if other.type == _CAPSULE or (other.type == _CYLINDER and other_face < 0):
        out = _side_vjp(mesh, ref, other, face, ref_is_first, v, V)
    else:
        if other_face < 0:
            other_face = face_along(mesh, other, -m, v, 1000.0 / size_of(other))
        out = _corner_vjp(mesh, ref, other, face, other_face, ref_is_first, v, V)
    none = wp.vec3(0.0)
    out = _added(out, ref_is_first, -adj_h * m, v, wp.cross(m, adj_mq * q - h * c.P))
    turn = _frame_torque(c) + wp.cross(q, adj_mq * m + (0.5 * h * mq) * c.P)
    return _added(out, ref_is_first != q_of_other, none, none, turn)


@wp.func
def _solid_vjp(
    mesh: Mesh, geom1: Geom, geom2: Geom, c: Contact, alone: bool, disableflags: int
) -> ContactGeometry:
    """Cylinders, boxes and meshes; poses are given from the contact point."""
    # one call of each of the two ways, at the end: every call is code that is compiled again
    closest = c  # for the closest points
    by_closest = bool(True)
    by_face = bool(False)
    ref = geom1
    other = geom2
    face = int(0)
    other_face = int(-1)
    ref_is_first = bool(True)
    q = -c.n
    q_of_other = bool(False)

    face2 = face_along(mesh, geom2, -c.n, wp.vec3(0.0), 0.0)
    m2 = face_normal(mesh, geom2, face2)
    if geom1.type == _CAPSULE:
        steep = wp.abs(wp.dot(m2, axis_of(geom1))) > _STEEP
        if not steep and wp.length(m2 + c.n) <= 1.0e-3:
            by_face = True
            by_closest = alone
            if alone:
                # the only contact has the distance of the closest points
                closest.P = wp.vec3(0.0)
                closest.N = wp.vec3(0.0)
                c.kappa = 0.0
    else:
        face1 = face_along(mesh, geom1, c.n, wp.vec3(0.0), 0.0)
        m1 = face_normal(mesh, geom1, face1)
        off1 = wp.length(m1 - c.n)
        off2 = wp.length(m2 + c.n)
        tolerance = float(1.0e-4)
        boxes = geom1.type == _BOX and geom2.type == _BOX
        if not boxes or (disableflags & _NATIVECCD) == 0:
            # the normal is the difference of two points at the distance `dist`
            scale = wp.min(size_of(geom1), size_of(geom2))
            tolerance = wp.min(2.0e-3 + 1.0e-6 * scale / wp.abs(c.dist), 0.04)
            if geom1.type == _CYLINDER:
                tolerance = wp.max(tolerance, 0.01)
            # two faces: that of geom 2 is cut off at that of geom 1 and gives the normal
            q_of_other = off2 < tolerance and wp.dot(m1, m2) < -_ALIGNED
        elif off1 < tolerance and off2 < tolerance and wp.abs(off1 - off2) < 1.0e-6:
            # boxes by the separating axis, a face of either at any angle to one of the other; if
            # parallel: as soon as they tilt, the larger face is the reference
            if area_of(mesh, geom2, face2) > area_of(mesh, geom1, face1):
                off1 = float(wp.inf)
        on_first = q_of_other or (off1 < tolerance and off1 <= off2)
        by_face = on_first or off2 < tolerance
        by_closest = not by_face
        ref_is_first = on_first
        if on_first:
            face = face1
            q = -m1
        if q_of_other:
            other_face = face2
            q = m2
    if by_face and (geom1.type == _CAPSULE or not ref_is_first):
        ref = geom2
        other = geom1
        face = face2
        ref_is_first = False
        q = -m2

    out = ContactGeometry()
    if by_closest:
        out = shape_geometry_vjp(mesh, geom1, geom2, closest)
    if by_face:
        clipped = _clipped_vjp(
            mesh, ref, other, face, other_face, ref_is_first, q, q_of_other, alone, c
        )
        out.force1 += clipped.force1
        out.torque1 += clipped.torque1
        out.force2 += clipped.force2
        out.torque2 += clipped.torque2
    return out


@wp.func
def _cut_vjp(capsule: Geom, box: Geom, center: wp.vec3, out: ContactGeometry) -> ContactGeometry:
    """Passes on the cotangent of a point `center` of the axis that the box cuts off.

    The point lies on a side of the box, or as far from the point that touches first as the box is
    wide: `b.(center - start) = +-2 size`, where `start` is the point of the axis closest to an edge
    or a corner, or an end of the axis.
    """
    u = axis_of(capsule)
    local = wp.transpose(box.xmat)
    x = local * (center - box.xpos)
    u_local = local * u
    nearest = float(wp.inf)
    cut = int(0)
    shift = float(0.0)
    for k in range(3):
        off = wp.abs(wp.abs(x[k]) - box.size[k])
        if off < nearest and wp.abs(u_local[k]) > 1.0e-4:
            nearest = off
            cut = k
    for k in range(6):
        i = k // 2
        t = float(1 - 2 * (k & 1)) * 2.0 * box.size[i] / wp.max(wp.abs(u_local[i]), 1.0e-4)
        rest = capsule.size[1] - wp.abs(wp.dot(center - t * u - capsule.xpos, u))
        m = x - t * u_local
        m -= wp.max(-box.size, wp.min(box.size, m))
        off = wp.min(wp.abs(rest), wp.abs(wp.dot(m, u_local)))
        if rest > -nearest and off < nearest:
            nearest = off
            cut = i
            shift = t

    b = wp.vec3(box.xmat[0, cut], box.xmat[1, cut], box.xmat[2, cut])
    along = wp.dot(out.force1, u)
    none = wp.vec3(0.0)
    if shift == 0.0:
        push = (along / wp.dot(b, u)) * b
        out = _added(out, True, -push, center, none)
        return _added(out, False, push, center, none)

    turn = (along / wp.dot(b, u)) * wp.cross(b, shift * u)
    out = _added(out, True, none, none, turn)
    out = _added(out, False, none, none, -turn)
    start = center - shift * u
    if capsule.size[1] - wp.abs(wp.dot(start - capsule.xpos, u)) <= nearest:
        return out
    # the closest points of the axis and of an edge `e` or a corner
    y = x - shift * u_local
    e = wp.vec3(0.0)
    for k in range(3):
        if wp.abs(y[k]) < box.size[k]:
            e = wp.vec3(box.xmat[0, k], box.xmat[1, k], box.xmat[2, k])
    m = box.xmat * (y - wp.max(-box.size, wp.min(box.size, y)))
    ue = wp.dot(u, e)
    slide_u = -along / (1.0 - ue * ue)
    slide_e = -ue * slide_u
    force = slide_u * u + slide_e * e
    out = _added(out, True, force, start, slide_u * wp.cross(u, m))
    return _added(out, False, -force, start - m, slide_e * wp.cross(e, m))


@wp.func
def _capsule_box_vjp(mesh: Mesh, capsule: Geom, box: Geom, c: Contact) -> ContactGeometry:
    """A sphere at a point of the axis touches the box; poses are given from the contact point."""
    center = -(capsule.size[0] + 0.5 * c.dist) * c.n
    u = axis_of(capsule)
    to_end = wp.abs(capsule.size[1] - wp.abs(wp.dot(center, u) - wp.dot(capsule.xpos, u)))
    x = wp.transpose(box.xmat) * (center - box.xpos)
    m = wp.transpose(box.xmat) * c.n
    to_side = float(wp.inf)
    on_face = bool(False)
    for k in range(3):
        to_side = wp.min(to_side, wp.abs(wp.abs(x[k]) - box.size[k]))
        if m[(k + 1) % 3] * m[(k + 1) % 3] + m[(k + 2) % 3] * m[(k + 2) % 3] < 1.0e-8:
            on_face = True
    slope = capsule.size[0] * wp.abs(wp.dot(c.n, u))
    if not on_face and slope < to_end and slope < to_side:
        # the point of the axis that is closest to an edge or a corner
        return shape_geometry_vjp(mesh, capsule, box, c)
    sphere = capsule
    sphere.type = _SPHERE
    out = shape_geometry_vjp(mesh, sphere, box, c)
    if to_end < 1.0e-5 * (capsule.size[0] + capsule.size[1]):
        return out
    return _cut_vjp(capsule, box, center, out)


@wp.func
def manifold_vjp(
    mesh: Mesh, geom1: Geom, geom2: Geom, c: Contact, alone: bool, disableflags: int
) -> ContactGeometry:
    """The pairs of `has_manifold`.

    `alone` tells whether this is the only contact of the pair. If `disableflags` has `nativeccd`,
    two boxes touch along a separating axis and not by clipping only faces that are almost parallel.
    """
    # measured from the contact point, lengths lose least in single precision
    geom1.xpos -= c.pos
    geom2.xpos -= c.pos
    c.pos = wp.vec3(0.0)
    if geom1.type == _CAPSULE and geom2.type == _BOX:
        return _capsule_box_vjp(mesh, geom1, geom2, c)
    return _solid_vjp(mesh, geom1, geom2, c, alone, disableflags)
