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

`geometry` is the adjoint of how point, frame and distance follow the two bodies: see
`contact_geometry_vjp`. Derivation: `DERIVATION.md`, sections 1, 3 and 4. Not covered: surface
velocity, adhesion.
"""

import functools

import mujoco_warp as mjw
import warp as wp

from .constraint_vjp import kappa, kbip
from .contact_geometry_vjp import Contact, ContactGeometry, Geom, geometry_vjp
from .contact_shape_vjp import Mesh, mesh_of, shape_geometry_vjp
from .manifold_vjp import has_manifold, is_alone, manifold_vjp
from .record import Substep
from .spatial import ang, force_cross, vec5, velocity_at, wrench
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})

vec6 = wp.types.vector(length=6, dtype=wp.float32)


@wp.struct
class _Rows:
    """Coefficients of one contact in the basis of its frame."""

    mu: vec6  # of J mu: -f
    a: vec6  # of J qacc: g
    v: vec6  # of J qvel: b g
    kappa: float  # of the distance


@wp.func
def _pyramidal_rows(
    dim: int,
    friction: vec5,
    first: int,
    D: wp.array[float],
    force: wp.array[float],
    Jaref: wp.array[float],
    y: vec6,
    p: wp.vec4,
    pos: float,
) -> _Rows:
    """Rows `n +- friction_k e_k`, active where the residual is negative (dim 1: the normal)."""
    rows = _Rows()
    nrow = wp.max(1, 2 * (dim - 1))
    for i in range(nrow):
        k = i // 2 + 1
        mu_k = float(0.0)
        if dim > 1:
            mu_k = friction[k - 1] * (1.0 - 2.0 * float(i & 1))
        if Jaref[first + i] < 0.0:
            y_row = y[0]
            if dim > 1:
                y_row += mu_k * y[k]
            f = force[first + i]
            g = D[first + i] * y_row
            gw = p[1] * g
            rows.mu[0] -= f
            rows.a[0] += g
            rows.v[0] += gw
            if dim > 1:
                rows.mu[k] -= mu_k * f
                rows.a[k] += mu_k * g
                rows.v[k] += mu_k * gw
            rows.kappa += kappa(p, pos, g, y_row * f)
    return rows


@wp.func
def _elliptic_rows(
    dim: int,
    friction: vec5,
    impratio_invsqrt: float,
    first: int,
    D: wp.array[float],
    force: wp.array[float],
    Jaref: wp.array[float],
    y: vec6,
    p: wp.vec4,
    pos: float,
    friction_damping: float,
) -> _Rows:
    """Normal and friction rows, coupled by the cone where the contact slides."""
    rows = _Rows()
    mu = friction[0] * impratio_invsqrt
    scale = vec6(0.0)
    scale[0] = mu
    tangent2 = float(0.0)
    for k in range(1, dim):
        scale[k] = friction[k - 1]
        u = Jaref[first + k] * scale[k]
        tangent2 += u * u
    normal = Jaref[first] * mu
    tangent = wp.sqrt(tangent2)

    if normal >= mu * tangent:
        return rows
    g = vec6(0.0)
    if mu * normal + tangent <= 0.0:
        for k in range(dim):
            g[k] = D[first + k] * y[k]
    else:
        # Hessian of the squared distance to the cone, applied to scaled y
        dm = D[first] / (mu * mu * (1.0 + mu * mu))
        ty = float(0.0)
        for k in range(1, dim):
            ty += Jaref[first + k] * scale[k] / tangent * (scale[k] * y[k])
        curvature = -dm * (normal - mu * tangent) * mu / tangent
        g[0] = scale[0] * dm * (scale[0] * y[0] - mu * ty)
        for k in range(1, dim):
            t = Jaref[first + k] * scale[k] / tangent
            along = dm * mu * (mu * ty - scale[0] * y[0])
            g[k] = scale[k] * (t * along + curvature * (scale[k] * y[k] - t * ty))
    yf = float(0.0)
    for k in range(dim):
        f = force[first + k]
        rows.mu[k] = -f
        rows.a[k] = g[k]
        rows.v[k] = wp.where(k > 0, friction_damping, p[1]) * g[k]
        yf += y[k] * f
    rows.kappa = kappa(p, pos, g[0], yf)
    return rows


@functools.cache
def contact_kernel(shapes: bool, manifolds: bool) -> wp.Kernel:
    """The kernel; with `shapes` for all geoms, else for what `contact_geometry_vjp` covers.

    With `manifolds` also for pairs of geoms that are clipped against each other.
    """

    @wp.kernel(module="unique", enable_backward=False)
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
        contact_geom_in: wp.array[wp.vec2i],
        efc_id_in: wp.array2d[int],
        efc_D_in: wp.array2d[float],
        efc_force_in: wp.array2d[float],
        Jaref_in: wp.array2d[float],
        # In:
        elliptic: bool,
        mu_body_in: wp.array2d[wp.spatial_vector],
        a_body_in: wp.array2d[wp.spatial_vector],
        # Out:
        x_mu_io: wp.array2d[wp.spatial_vector],
        x_a_io: wp.array2d[wp.spatial_vector],
        x_v_io: wp.array2d[wp.spatial_vector],
        y_io: wp.array2d[wp.spatial_vector],
    ):
        """Contacts in the order of their rows, one world per thread: repeatable sums."""
        worldid = wp.tid()
        h = opt_timestep[worldid % opt_timestep.shape[0]]
        nefc = wp.min(nefc_in[worldid], Jaref_in.shape[1])
        first_contact = ne_in[worldid] + nf_in[worldid] + nl_in[worldid]
        efcid = first_contact
        while efcid < nefc:
            conid = efc_id_in[worldid, efcid]
            dim = contact_dim_in[conid]
            first = efcid
            if elliptic:
                efcid += dim
            else:
                efcid += wp.max(1, 2 * (dim - 1))
            if efcid > nefc:
                # a contact cut off by njmax; the overflow is reported by Physics.check_overflow
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
            y = vec6(
                wp.dot(n, d_mu),
                wp.dot(e2, d_mu),
                wp.dot(e3, d_mu),
                wp.dot(n, w_mu),
                wp.dot(e2, w_mu),
                wp.dot(e3, w_mu),
            )
            dist = contact_dist_in[conid]
            depth = dist - contact_includemargin_in[conid]
            friction = contact_friction_in[conid]
            solimp = contact_solimp_in[conid]
            p = kbip(opt_disableflags, h, contact_solref_in[conid], solimp, depth)
            rows = _Rows()
            if elliptic and dim > 1:
                friction_damping = p[1]
                ref = contact_solreffriction_in[conid]
                if ref[0] != 0.0 or ref[1] != 0.0:
                    friction_damping = kbip(opt_disableflags, h, ref, solimp, depth)[1]
                rows = _elliptic_rows(
                    dim,
                    friction,
                    opt_impratio_invsqrt[worldid % opt_impratio_invsqrt.shape[0]],
                    first,
                    efc_D_in[worldid],
                    efc_force_in[worldid],
                    Jaref_in[worldid],
                    y,
                    p,
                    depth,
                    friction_damping,
                )
            else:
                rows = _pyramidal_rows(
                    dim,
                    friction,
                    first,
                    efc_D_in[worldid],
                    efc_force_in[worldid],
                    Jaref_in[worldid],
                    y,
                    p,
                    depth,
                )

            f_mu = n * rows.mu[0] + e2 * rows.mu[1] + e3 * rows.mu[2]
            t_mu = n * rows.mu[3] + e2 * rows.mu[4] + e3 * rows.mu[5]
            f_a = n * rows.a[0] + e2 * rows.a[1] + e3 * rows.a[2]
            t_a = n * rows.a[3] + e2 * rows.a[4] + e3 * rows.a[5]
            f_v = n * rows.v[0] + e2 * rows.v[1] + e3 * rows.v[2]
            t_v = n * rows.v[3] + e2 * rows.v[4] + e3 * rows.v[5]

            w_a = ang(a2) - ang(a1)
            w_v = ang(v2) - ang(v1)

            c = Contact()
            c.pos = pos
            c.dist = dist
            c.n = n
            c.e2 = e2
            c.e3 = e3
            c.P = wp.cross(f_mu, w_mu) + wp.cross(f_a, w_a) + wp.cross(f_v, w_v)
            c.N = wp.cross(f_mu, d_mu)
            c.N += wp.cross(f_a, velocity_at(a2, p2) - velocity_at(a1, p1))
            c.N += wp.cross(f_v, velocity_at(v2, p2) - velocity_at(v1, p1))
            c.N += wp.cross(t_mu, w_mu) + wp.cross(t_a, w_a) + wp.cross(t_v, w_v)
            c.kappa = rows.kappa

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
            y1 = -force_cross(mu1, x1_mu) - force_cross(a1, x1_a) - force_cross(v1, x1_v)
            y1 += wrench(p1, geometry.force1, geometry.torque1)
            x_mu_io[worldid, body1] -= x1_mu
            x_a_io[worldid, body1] -= x1_a
            x_v_io[worldid, body1] -= x1_v
            y_io[worldid, body1] += y1

            x2_mu = wrench(p2, f_mu, t_mu)
            x2_a = wrench(p2, f_a, t_a)
            x2_v = wrench(p2, f_v, t_v)
            y2 = force_cross(mu2, x2_mu) + force_cross(a2, x2_a) + force_cross(v2, x2_v)
            y2 += wrench(p2, geometry.force2, geometry.torque2)
            x_mu_io[worldid, body2] += x2_mu
            x_a_io[worldid, body2] += x2_a
            x_v_io[worldid, body2] += x2_v
            y_io[worldid, body2] += y2

    return _contact_vjp


def contact_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Adjoint of contacts: accumulates into the cotangents of the bodies' fields."""
    d = s.d
    wp.launch(
        contact_kernel(flags.shapes, flags.manifolds),
        dim=d.nworld,
        inputs=[
            m.opt.timestep,
            m.opt.impratio_invsqrt,
            m.opt.disableflags,
            m.body_rootid,
            m.geom_type,
            m.geom_bodyid,
            m.geom_size,
            m.geom_dataid,
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
            d.contact.geom,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            s.solver_Jaref,
            flags.elliptic,
            ws.mu,
            ws.a,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_v, ws.y],
    )
