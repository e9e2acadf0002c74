"""Contacts of curved shapes, brought from the accuracy of the search to single precision.

The simulator searches the closest points of an ellipsoid, or a cylinder, and another shape until
the distance is known to about 1e-6. Its derivative by the normal vanishes there, so the normal is
known only to about 1e-3, and what follows from it no better. A few Newton steps make up for that:
the condition that the gap between the closest points is along both normals is what
`DERIVATION.md`, section 4, differentiates, so one step solves the same two equations with `th_i`,
what the normal lacks from that of the feature on geom i, and `d`, the part of the gap across the
normal.

In:  the contacts that the simulator found, the geoms and their poses.
Out: `dist`, `pos` and `frame` of these contacts, overwritten; a contact whose features are
     parallel, or whose normal would turn by more than 0.3, is left as it was.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .contact_feature import Mesh, feature_of, length_of, mesh_of
from .contact_geometry_vjp import Contact, Geom, sliding_matrix

wp.set_module_options({"enable_backward": False})

_PLANE = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
_ELLIPSOID = wp.constant(int(mujoco.mjtGeom.mjGEOM_ELLIPSOID))
_CYLINDER = wp.constant(int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_STEPS = wp.constant(4)
_MOST_TURN = wp.constant(0.3)
_CONVERGED = wp.constant(1.0e-3)


@wp.func
def _make_frame(n: wp.vec3) -> wp.mat33:
    """MuJoCo's frame of a contact with this normal."""
    ref = wp.vec3(0.0, 1.0, 0.0)
    if wp.abs(n[1]) >= 0.5:
        ref = wp.vec3(0.0, 0.0, 1.0)
    e2 = wp.normalize(ref - wp.dot(n, ref) * n)
    return wp.matrix_from_rows(n, e2, wp.cross(n, e2))


@wp.kernel
def _refine_contacts(
    # Model:
    geom_type: wp.array[int],
    geom_size: wp.array2d[wp.vec3],
    geom_dataid: wp.array2d[int],
    mesh: Mesh,
    # Data:
    geom_xpos_in: wp.array2d[wp.vec3],
    geom_xmat_in: wp.array2d[wp.mat33],
    nacon_in: wp.array[int],
    contact_geom_in: wp.array[wp.vec2i],
    contact_worldid_in: wp.array[int],
    # In:
    with_cylinders: bool,
    # Out:
    contact_dist_io: wp.array[float],
    contact_pos_io: wp.array[wp.vec3],
    contact_frame_io: wp.array[wp.mat33],
):
    conid = wp.tid()
    if conid >= nacon_in[0]:
        return
    worldid = contact_worldid_in[conid]
    geom = contact_geom_in[conid]
    geom1 = Geom()
    geom1.type = geom_type[geom[0]]
    geom2 = Geom()
    geom2.type = geom_type[geom[1]]
    curved = geom1.type == _ELLIPSOID or geom2.type == _ELLIPSOID
    if with_cylinders and (geom1.type == _CYLINDER or geom2.type == _CYLINDER):
        curved = True
    if not curved or geom1.type == _PLANE:
        return
    geom1.size = geom_size[worldid % geom_size.shape[0], geom[0]]
    geom2.size = geom_size[worldid % geom_size.shape[0], geom[1]]
    geom1.meshid = geom_dataid[worldid % geom_dataid.shape[0], geom[0]]
    geom2.meshid = geom_dataid[worldid % geom_dataid.shape[0], geom[1]]
    geom1.xmat = geom_xmat_in[worldid, geom[0]]
    geom2.xmat = geom_xmat_in[worldid, geom[1]]
    # relative to geom 1: single precision loses digits far from the origin
    origin = geom_xpos_in[worldid, geom[0]]
    geom2.xpos = geom_xpos_in[worldid, geom[1]] - origin
    L = wp.min(length_of(geom1), length_of(geom2))

    c = Contact()
    frame = contact_frame_io[conid]
    first_n = wp.vec3(frame[0, 0], frame[0, 1], frame[0, 2])
    c.n = first_n
    c.dist = contact_dist_io[conid]
    x1 = contact_pos_io[conid] - origin - (0.5 * c.dist) * c.n
    x2 = x1 + c.dist * c.n
    one = wp.identity(n=2, dtype=float)
    turn = float(0.0)
    step = int(0)
    while step < _STEPS:  # not unrolled
        step += 1
        frame = _make_frame(c.n)
        c.e2 = wp.vec3(frame[1, 0], frame[1, 1], frame[1, 2])
        c.e3 = wp.vec3(frame[2, 0], frame[2, 1], frame[2, 2])
        f1 = feature_of(mesh, geom1, c, c.n, x1, L)
        f2 = feature_of(mesh, geom2, c, -c.n, x2, L)
        gap = f2.point - f1.point
        c.dist = wp.dot(c.n, gap)
        d = wp.vec2(wp.dot(c.e2, gap), wp.dot(c.e3, gap))
        th1 = wp.vec2(wp.dot(c.e2, f1.normal), wp.dot(c.e3, f1.normal))
        th2 = -wp.vec2(wp.dot(c.e2, f2.normal), wp.dot(c.e3, f2.normal))
        A = sliding_matrix(f1.F, f2.F, c.dist / L)
        if wp.abs(wp.determinant(A)) < 1.0e-5:
            return
        z = wp.inverse(A) * (f2.F * (th2 - th1) + (one - f2.F) * (d - c.dist * th1) / L)
        dn = th1 + z - f1.F * z
        turn = wp.length(dn)
        s1 = L * (f1.F * z)
        s2 = s1 + c.dist * dn - d
        c.n = wp.normalize(c.n + dn[0] * c.e2 + dn[1] * c.e3)
        x1 = f1.point + s1[0] * c.e2 + s1[1] * c.e3
        x2 = f2.point + s2[0] * c.e2 + s2[1] * c.e3
    if turn > _CONVERGED or wp.length(c.n - first_n) > _MOST_TURN:
        return
    contact_dist_io[conid] = wp.dot(c.n, x2 - x1)
    contact_pos_io[conid] = origin + 0.5 * (x1 + x2)
    contact_frame_io[conid] = _make_frame(c.n)


def refine_contacts(m: mjw.Model, d: mjw.Data) -> None:
    """Overwrites the contacts of ellipsoids, and of cylinders that touch in single points."""
    single = bool(m.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_MULTICCD))
    wp.launch(
        _refine_contacts,
        dim=d.naconmax,
        inputs=[
            m.geom_type,
            m.geom_size,
            m.geom_dataid,
            mesh_of(m),
            d.geom_xpos,
            d.geom_xmat,
            d.nacon,
            d.contact.geom,
            d.contact.worldid,
            single,
        ],
        outputs=[d.contact.dist, d.contact.pos, d.contact.frame],
    )
