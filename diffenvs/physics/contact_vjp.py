"""Adjoint of contacts: their rows, their point and their frame.

A contact has rows in the basis of its frame `(n, e2, e3)`: three of the relative velocity of the
two bodies at the contact point, then three of the relative rotation. A pyramidal cone combines
them (`row = n +- friction_k * e_k`), an elliptic cone takes them as they are. Per row the
coefficients of `constraint_vjp` are known once `y = J mu` is; `y` is read off the bodies' twists,
no Jacobian needed.

In:  the bodies' fields `mu`, `a`, `v` (`tree_vjp`), the record's contact list, `D`, `force`,
     `Jaref`.
Out: `x_mu, x_a, x_v, y` of both bodies, accumulated. With world force `F_f` and torque `T_f` of
     each field `f` and the relative twist `d_f = f_2 - f_1`:

    x_f of body 2 += wrench(p, F_f, T_f), body 1 the opposite
    y   of body 2 += sum_f f_2 x* wrench + geometry_2, body 1 likewise
    P = sum_f F_f x d_f.ang               cotangent of the contact point
    N = sum_f F_f x d_f(p) + T_f x d_f.ang   cotangent of a rotation of the frame

Every contact is one thread's, which leaves its wrenches in `contact_wrenches`; then every body adds
those of the contacts that touch it, in the order of their rows: repeatable sums, no atomics.

`geometry` is the adjoint of how point, frame and distance follow the two bodies: see
`contact_geometry_vjp`. A moving surface (`surfacevel`) is a twist `s` fixed to its body, which the
friction rows 1 to 3 add to the relative velocity; its part of `y`, `P` and `N` is that of `v`.
Adhesion pulls along `n`, and as much is added to the constraint force by `adhesion / D` in `aref`.

Derivation: `DERIVATION.md`, sections 1, 3 and 4.
"""

import functools

import mujoco
import mujoco_warp as mjw
import warp as wp

from .constraint_vjp import row_coefficients
from .contact_feature import Mesh, mesh_of
from .contact_geometry_vjp import Contact, ContactGeometry, Geom, geometry_vjp
from .contact_row_vjp import Rows, elliptic_rows, in_frame, pyramidal_rows, row_count
from .contact_shape_vjp import shape_geometry_vjp
from .manifold_vjp import has_manifold, is_alone, manifold_vjp
from .record import Substep
from .spatial import ang, force_cross, vec5, vec6, velocity_at, wrench
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})

# adhesion pulls by a passive force, and these are left out if both kinds are disabled
_NO_PASSIVE = wp.constant(
    int(mujoco.mjtDisableBit.mjDSBL_SPRING | mujoco.mjtDisableBit.mjDSBL_DAMPER)
)


@wp.func
def _surface_velocity(geom: Geom, surfacevel: vec6, pos: wp.vec3, p: wp.vec3) -> wp.spatial_vector:
    """Twist of a moving surface; `p` is the contact point from where twists are taken."""
    linear = geom.xmat * wp.vec3(surfacevel[0], surfacevel[1], surfacevel[2])
    angular = geom.xmat * wp.vec3(surfacevel[3], surfacevel[4], surfacevel[5])
    return wp.spatial_vector(angular, linear + wp.cross(angular, pos - geom.xpos - p))


@functools.cache
def contact_kernel(shapes: bool, manifolds: bool, surfacevel: bool) -> wp.Kernel:
    """The kernel for what a model has.

    Args:
        shapes: geoms that `contact_geometry_vjp` does not cover.
        manifolds: pairs of geoms that are clipped against each other.
        surfacevel: surfaces that move.
    """
    # on CUDA the compiler inlines every function: with manifolds that takes it minutes
    options = {"max_unroll": 1} if manifolds else {}

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def _contact_vjp(
        # Model:
        opt_timestep: wp.array[float],
        opt_impratio_invsqrt: wp.array[float],
        opt_disableflags: int,
        body_rootid: wp.array[int],
        geom_type: wp.array[int],
        geom_bodyid: wp.array[int],
        geom_size: wp.array2d[wp.vec3],
        geom_dataid: wp.array2d[int],
        geom_surfacevel: wp.array2d[vec6],
        mesh: Mesh,
        # Record:
        ne_in: wp.array[int],
        nf_in: wp.array[int],
        nl_in: wp.array[int],
        nefc_in: wp.array[int],
        subtree_com_in: wp.array2d[wp.vec3],
        cvel_in: wp.array2d[wp.spatial_vector],
        geom_xpos_in: wp.array2d[wp.vec3],
        geom_xmat_in: wp.array2d[wp.mat33],
        contact_dist_in: wp.array[float],
        contact_pos_in: wp.array[wp.vec3],
        contact_frame_in: wp.array[wp.mat33],
        contact_includemargin_in: wp.array[float],
        contact_friction_in: wp.array[vec5],
        contact_solref_in: wp.array[wp.vec2],
        contact_solreffriction_in: wp.array[wp.vec2],
        contact_solimp_in: wp.array[vec5],
        contact_dim_in: wp.array[int],
        contact_adhesion_in: wp.array[float],
        contact_geom_in: wp.array[wp.vec2i],
        efc_id_in: wp.array2d[int],
        efc_D_in: wp.array2d[float],
        efc_force_in: wp.array2d[float],
        Jaref_in: wp.array2d[float],
        # In:
        slots: int,
        elliptic: bool,
        discrete: bool,
        mu_body_in: wp.array2d[wp.spatial_vector],
        a_body_in: wp.array2d[wp.spatial_vector],
        point_in: wp.array[wp.vec3],
        rotation_in: wp.array[wp.vec3],
        # Out:
        contact_wrenches_out: wp.array2d[wp.spatial_vector],
    ):
        """Every `slots`-th contact of a world."""
        slot, worldid = wp.tid()
        h = opt_timestep[worldid % opt_timestep.shape[0]]
        nefc = wp.min(nefc_in[worldid], Jaref_in.shape[1])
        first_contact = ne_in[worldid] + nf_in[worldid] + nl_in[worldid]
        efcid = first_contact
        turn = int(0)
        while efcid < nefc:
            conid = efc_id_in[worldid, efcid]
            dim = contact_dim_in[conid]
            first = efcid
            efcid += row_count(elliptic, dim)
            mine = turn == slot
            turn = (turn + 1) % slots
            # a contact cut off by njmax is left out; Physics.check_overflow reports it
            if not mine or efcid > nefc:
                continue

            geom = contact_geom_in[conid]
            body1 = geom_bodyid[geom[0]]
            body2 = geom_bodyid[geom[1]]
            frame = contact_frame_in[conid]
            n = wp.vec3(frame[0, 0], frame[0, 1], frame[0, 2])
            e2 = wp.vec3(frame[1, 0], frame[1, 1], frame[1, 2])
            e3 = wp.vec3(frame[2, 0], frame[2, 1], frame[2, 2])
            pos = contact_pos_in[conid]
            p1 = pos - subtree_com_in[worldid, body_rootid[body1]]
            p2 = pos - subtree_com_in[worldid, body_rootid[body2]]

            mu1 = mu_body_in[worldid, body1]
            mu2 = mu_body_in[worldid, body2]
            a1 = a_body_in[worldid, body1]
            a2 = a_body_in[worldid, body2]
            v1 = cvel_in[worldid, body1]
            v2 = cvel_in[worldid, body2]

            d_mu = velocity_at(mu2, p2) - velocity_at(mu1, p1)
            w_mu = ang(mu2) - ang(mu1)
            d_v = velocity_at(v2, p2) - velocity_at(v1, p1)
            w_v = ang(v2) - ang(v1)
            y = in_frame(n, e2, e3, d_mu, w_mu)
            v = in_frame(n, e2, e3, d_v, w_v)
            geom1 = Geom()
            geom1.type = geom_type[geom[0]]
            geom1.size = geom_size[worldid % geom_size.shape[0], geom[0]]
            geom1.xpos = geom_xpos_in[worldid, geom[0]]
            geom1.xmat = geom_xmat_in[worldid, geom[0]]
            geom1.meshid = geom_dataid[worldid % geom_dataid.shape[0], geom[0]]
            geom2 = Geom()
            geom2.type = geom_type[geom[1]]
            geom2.size = geom_size[worldid % geom_size.shape[0], geom[1]]
            geom2.xpos = geom_xpos_in[worldid, geom[1]]
            geom2.xmat = geom_xmat_in[worldid, geom[1]]
            geom2.meshid = geom_dataid[worldid % geom_dataid.shape[0], geom[1]]
            if wp.static(surfacevel):
                row = worldid % geom_surfacevel.shape[0]
                s1 = _surface_velocity(geom1, geom_surfacevel[row, geom[0]], pos, p1)
                s2 = _surface_velocity(geom2, geom_surfacevel[row, geom[1]], pos, p2)
                d_s = velocity_at(s2, p2) - velocity_at(s1, p1)
                w_s = ang(s2) - ang(s1)
                v += vec6(0.0, wp.dot(e2, d_s), wp.dot(e3, d_s), wp.dot(n, w_s), 0.0, 0.0)
            dist = contact_dist_in[conid]
            depth = dist - contact_includemargin_in[conid]
            friction = contact_friction_in[conid]
            solimp = contact_solimp_in[conid]
            solref = contact_solref_in[conid]
            coefficients = row_coefficients(discrete, opt_disableflags, h, solref, solimp, depth)
            adhesion = contact_adhesion_in[conid]
            rows = Rows()
            if elliptic and dim > 1:
                ref = contact_solreffriction_in[conid]
                if ref[0] != 0.0 or ref[1] != 0.0:
                    of_ref = row_coefficients(discrete, opt_disableflags, h, ref, solimp, depth)
                    coefficients.vel_friction = of_ref.vel_friction
                rows = elliptic_rows(
                    dim,
                    friction,
                    opt_impratio_invsqrt[worldid % opt_impratio_invsqrt.shape[0]],
                    first,
                    efc_D_in[worldid],
                    efc_force_in[worldid],
                    Jaref_in[worldid],
                    y,
                    v,
                    coefficients,
                    adhesion,
                )
            else:
                rows = pyramidal_rows(
                    dim,
                    friction,
                    first,
                    efc_D_in[worldid],
                    efc_force_in[worldid],
                    Jaref_in[worldid],
                    y,
                    v,
                    coefficients,
                    adhesion,
                )

            if (opt_disableflags & _NO_PASSIVE) != _NO_PASSIVE:
                rows.mu[0] += adhesion
            f_mu = n * rows.mu[0] + e2 * rows.mu[1] + e3 * rows.mu[2]
            t_mu = n * rows.mu[3] + e2 * rows.mu[4] + e3 * rows.mu[5]
            f_a = n * rows.a[0] + e2 * rows.a[1] + e3 * rows.a[2]
            t_a = n * rows.a[3] + e2 * rows.a[4] + e3 * rows.a[5]
            f_v = n * rows.v[0] + e2 * rows.v[1] + e3 * rows.v[2]
            t_v = n * rows.v[3] + e2 * rows.v[4] + e3 * rows.v[5]

            w_a = ang(a2) - ang(a1)

            c = Contact()
            c.pos = pos
            c.dist = dist
            c.n = n
            c.e2 = e2
            c.e3 = e3
            c.P = wp.cross(f_mu, w_mu) + wp.cross(f_a, w_a) + wp.cross(f_v, w_v)
            c.N = wp.cross(f_mu, d_mu)
            c.N += wp.cross(f_a, velocity_at(a2, p2) - velocity_at(a1, p1))
            c.N += wp.cross(f_v, d_v)
            c.N += wp.cross(t_mu, w_mu) + wp.cross(t_a, w_a) + wp.cross(t_v, w_v)
            if discrete:
                c.P += point_in[conid]
                c.N += rotation_in[conid]
            c.kappa = rows.kappa

            y1 = wp.spatial_vector()
            y2 = wp.spatial_vector()
            if wp.static(surfacevel):
                f_s = e2 * rows.v[1] + e3 * rows.v[2]
                t_s = n * rows.v[3]
                c.P += wp.cross(f_s, w_s)
                c.N += wp.cross(f_s, d_s) + wp.cross(t_s, w_s)
                y1 -= force_cross(s1, wrench(p1, f_s, t_s))
                y2 += force_cross(s2, wrench(p2, f_s, t_s))
            geometry = ContactGeometry()
            if wp.static(manifolds):
                if has_manifold(geom1.type, geom2.type, opt_disableflags):
                    geometry = manifold_vjp(
                        mesh,
                        geom1,
                        geom2,
                        c,
                        is_alone(conid, first_contact, nefc, efc_id_in[worldid], contact_geom_in),
                        opt_disableflags,
                    )
                else:
                    geometry = shape_geometry_vjp(mesh, geom1, geom2, c)
            elif wp.static(shapes):
                geometry = shape_geometry_vjp(mesh, geom1, geom2, c)
            else:
                geometry = geometry_vjp(geom1, geom2, c)

            x1_mu = wrench(p1, f_mu, t_mu)
            x1_a = wrench(p1, f_a, t_a)
            x1_v = wrench(p1, f_v, t_v)
            y1 -= force_cross(mu1, x1_mu) + force_cross(a1, x1_a) + force_cross(v1, x1_v)
            y1 += wrench(p1, geometry.force1, geometry.torque1)
            contact_wrenches_out[conid, 0] = -x1_mu
            contact_wrenches_out[conid, 1] = -x1_a
            contact_wrenches_out[conid, 2] = -x1_v
            contact_wrenches_out[conid, 3] = y1

            x2_mu = wrench(p2, f_mu, t_mu)
            x2_a = wrench(p2, f_a, t_a)
            x2_v = wrench(p2, f_v, t_v)
            y2 += force_cross(mu2, x2_mu) + force_cross(a2, x2_a) + force_cross(v2, x2_v)
            y2 += wrench(p2, geometry.force2, geometry.torque2)
            contact_wrenches_out[conid, 4] = x2_mu
            contact_wrenches_out[conid, 5] = x2_a
            contact_wrenches_out[conid, 6] = x2_v
            contact_wrenches_out[conid, 7] = y2

    return _contact_vjp


@wp.kernel
def _touched_bodies(
    # Model:
    geom_bodyid: wp.array[int],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    nefc_in: wp.array[int],
    contact_dim_in: wp.array[int],
    contact_geom_in: wp.array[wp.vec2i],
    efc_id_in: wp.array2d[int],
    # In:
    elliptic: bool,
    contact_wrenches_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    x_a_io: wp.array2d[wp.spatial_vector],
    x_v_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
):
    """What the contacts of one body leave on it."""
    worldid, bodyid = wp.tid()
    nefc = wp.min(nefc_in[worldid], efc_id_in.shape[1])
    efcid = ne_in[worldid] + nf_in[worldid] + nl_in[worldid]
    while efcid < nefc:
        conid = efc_id_in[worldid, efcid]
        efcid += row_count(elliptic, contact_dim_in[conid])
        if efcid > nefc:
            continue
        geom = contact_geom_in[conid]
        for side in range(2):
            if geom_bodyid[geom[side]] == bodyid:
                x_mu_io[worldid, bodyid] += contact_wrenches_in[conid, 4 * side]
                x_a_io[worldid, bodyid] += contact_wrenches_in[conid, 4 * side + 1]
                x_v_io[worldid, bodyid] += contact_wrenches_in[conid, 4 * side + 2]
                y_io[worldid, bodyid] += contact_wrenches_in[conid, 4 * side + 3]


def contact_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Adjoint of contacts: accumulates into the cotangents of the bodies' fields."""
    d = s.d
    wp.launch(
        contact_kernel(flags.shapes, flags.manifolds, flags.surfacevel),
        dim=(ws.slots, d.nworld),
        inputs=[
            m.opt.timestep,
            m.opt.impratio_invsqrt,
            m.opt.disableflags,
            m.body_rootid,
            m.geom_type,
            m.geom_bodyid,
            m.geom_size,
            m.geom_dataid,
            m.geom_surfacevel,
            mesh_of(m),
            d.ne,
            d.nf,
            d.nl,
            d.nefc,
            d.subtree_com,
            d.cvel,
            d.geom_xpos,
            d.geom_xmat,
            d.contact.dist,
            d.contact.pos,
            d.contact.frame,
            d.contact.includemargin,
            d.contact.friction,
            d.contact.solref,
            d.contact.solreffriction,
            d.contact.solimp,
            d.contact.dim,
            d.contact.adhesion,
            d.contact.geom,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            s.solver_Jaref,
            ws.slots,
            flags.elliptic,
            flags.discrete,
            ws.mu,
            ws.a,
            ws.contact_point,
            ws.contact_rotation,
        ],
        outputs=[ws.contact_wrenches],
    )
    wp.launch(
        _touched_bodies,
        dim=(d.nworld, m.nbody),
        inputs=[
            m.geom_bodyid,
            d.ne,
            d.nf,
            d.nl,
            d.nefc,
            d.contact.dim,
            d.contact.geom,
            d.efc.id,
            flags.elliptic,
            ws.contact_wrenches,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_v, ws.y],
    )
