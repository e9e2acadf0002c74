"""Adjoint of contact geometry for boxes, cylinders, ellipsoids and convex meshes.

Forward, inputs and outputs: see `contact_geometry_vjp`. A pair of closest points is differentiated
there, given the flatness of both surfaces, which `contact_feature` finds for every shape.

A plane touches the lowest points of the other geom and up to three more. Corners and vertices are
points of the body. The point of an ellipsoid slides by `C th_2`. All points on the caps of a
cylinder keep their place relative to the axis `a` and the horizontal `b = a x e/|e|` (`e` is the
plane's normal less its part along the axis): they turn with the body and in addition about `a`, by
`w.(b x n)/|e|`. That grows without bound as a cylinder stands up: its lowest point runs around.

Derivation: `DERIVATION.md`, section 4. Points that come from clipping faces or edges against each
other are in `manifold_vjp`. Not covered: height fields, signed distance fields.
"""

import mujoco
import warp as wp

from .contact_feature import Mesh, ellipsoid_radii, feature_of, length_of
from .contact_geometry_vjp import (
    Contact,
    ContactGeometry,
    Geom,
    axis_of,
    pair_geometry_vjp,
    plane_geometry_vjp,
    plane_point_vjp,
)

wp.set_module_options({"enable_backward": False})

_PLANE = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
_ELLIPSOID = wp.constant(int(mujoco.mjtGeom.mjGEOM_ELLIPSOID))
_CYLINDER = wp.constant(int(mujoco.mjtGeom.mjGEOM_CYLINDER))


@wp.func
def _plane_ellipsoid_vjp(geom: Geom, c: Contact) -> ContactGeometry:
    out = plane_point_vjp(c, c.pos + 0.5 * c.dist * c.n)
    slide = ellipsoid_radii(geom, c, -c.n) * wp.vec2(wp.dot(c.e2, c.P), wp.dot(c.e3, c.P))
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
    L = wp.min(length_of(geom1), length_of(geom2))
    arm = (0.5 * c.dist) * c.n
    f1 = feature_of(mesh, geom1, c, c.n, c.pos - arm, L)
    f2 = feature_of(mesh, geom2, c, -c.n, c.pos + arm, L)
    return pair_geometry_vjp(c, f1.F, f2.F, L)
