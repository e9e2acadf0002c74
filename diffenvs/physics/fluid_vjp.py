"""Adjoint of the forces of a fluid on the bodies' inertia boxes (density, viscosity, wind).

Forward, per body with mass, in the axes of its inertia, with the velocity `v = [angular; linear]`
at the centre of mass relative to the wind, and box edges `s_i` of equal inertia:

    force_i = c_i v_i + q_i |v_i| v_i
    c = -viscosity pi [d^3 d^3 d^3; 3 d 3 d 3 d],   d = mean(s)
    q = -density [s_0 (s_1^4 + s_2^4) / 64 ...; s_1 s_2 / 2 ...]

In:  the fields `mu`, `a`, `w`, `z` of the bodies.
Out: with `D = c + 2 q |v|`, `D' = 2 q sign(v)` and fields read in the same axes at the same point

    x_mu -= force;   x_v -= D mu;   y += wind x (force part of what x_v got)

and under implicitfast, whose `E` holds `-J^T D J`, with `t = a - z`:

    x_w -= h D t;   x_a -= h D w;   x_z += h D w;   x_v -= h D' w t

and under discrete, whose matrix holds `-h J^T D J`, the same with `mu` for `w`, and `t = a`.

`free_body_fluid` gives `-h J^T D J` of trees that are one free body, which `integrator_vjp` solves
by themselves. Derivation: `DERIVATION.md`, section 8. Not covered: the ellipsoid model.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import ang, lin, mat66, vec10, velocity_at, wrench
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})

_MINVAL = wp.constant(float(mujoco.mjMINVAL))


@wp.func
def inertia_box(mass: float, inertia: wp.vec3) -> wp.vec3:
    """Edges of the box that has this mass and these moments of inertia."""
    edges = wp.vec3()
    for i in range(3):
        square = inertia[(i + 1) % 3] + inertia[(i + 2) % 3] - inertia[i]
        edges[i] = wp.sqrt(wp.max(_MINVAL, square) * 6.0 / mass)
    return edges


@wp.func
def viscous(box: wp.vec3, viscosity: float) -> wp.spatial_vector:
    """`c`: the coefficients of the velocity."""
    d = (box[0] + box[1] + box[2]) / 3.0
    turn = -wp.pi * d * d * d * viscosity
    move = -3.0 * wp.pi * d * viscosity
    return wp.spatial_vector(turn, turn, turn, move, move, move)


@wp.func
def inertial(box: wp.vec3, density: float) -> wp.spatial_vector:
    """`q`: the coefficients of the velocity times its absolute value."""
    q = wp.spatial_vector()
    for i in range(3):
        j = (i + 1) % 3
        k = (i + 2) % 3
        q[i] = -density * box[i] * (wp.pow(box[j], 4.0) + wp.pow(box[k], 4.0)) / 64.0
        q[3 + i] = -0.5 * density * box[j] * box[k]
    return q


@wp.func
def inertia_axes(xmat: wp.mat33, iquat: wp.quat) -> wp.mat33:
    """World orientation of the inertia; MuJoCo's quaternions begin with the scalar."""
    s = iquat[0]
    r = wp.vec3(iquat[1], iquat[2], iquat[3])
    skew = wp.skew(r)
    turn = wp.identity(n=3, dtype=float) + 2.0 * (s * skew + skew @ skew)
    return xmat @ turn


@wp.func
def local_twist(axes: wp.mat33, com: wp.vec3, z: wp.spatial_vector) -> wp.spatial_vector:
    """A twist in the axes of the inertia, at the centre of mass."""
    transposed = wp.transpose(axes)
    return wp.spatial_vector(transposed @ ang(z), transposed @ velocity_at(z, com))


@wp.func
def world_wrench(axes: wp.mat33, com: wp.vec3, l: wp.spatial_vector) -> wp.spatial_vector:
    """The wrench about `o` of a torque and a force at the centre of mass in those axes."""
    return wrench(com, axes @ lin(l), axes @ ang(l))


@wp.kernel
def _fluid_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_wind: wp.array[wp.vec3],
    opt_density: wp.array[float],
    opt_viscosity: wp.array[float],
    body_weldid: wp.array[int],
    body_iquat: wp.array2d[wp.quat],
    body_mass: wp.array2d[float],
    body_inertia: wp.array2d[wp.vec3],
    # Record:
    xmat_in: wp.array2d[wp.mat33],
    cinert_in: wp.array2d[vec10],
    cvel_in: wp.array2d[wp.spatial_vector],
    # In:
    implicit: bool,
    pair: bool,
    mu_in: wp.array2d[wp.spatial_vector],
    a_in: wp.array2d[wp.spatial_vector],
    w_in: wp.array2d[wp.spatial_vector],
    z_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_mu_io: wp.array2d[wp.spatial_vector],
    x_a_io: wp.array2d[wp.spatial_vector],
    x_v_io: wp.array2d[wp.spatial_vector],
    x_w_io: wp.array2d[wp.spatial_vector],
    x_z_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
):
    """One body per thread; `cinert` ends with (mass * offset of the com, mass)."""
    worldid, bodyid = wp.tid()
    mass = body_mass[worldid % body_mass.shape[0], bodyid]
    if body_weldid[bodyid] == 0 or mass < _MINVAL:
        return
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    wind = opt_wind[worldid % opt_wind.shape[0]]
    cinert = cinert_in[worldid, bodyid]
    com = wp.vec3(cinert[6], cinert[7], cinert[8]) / cinert[9]
    axes = inertia_axes(xmat_in[worldid, bodyid], body_iquat[worldid % body_iquat.shape[0], bodyid])
    box = inertia_box(mass, body_inertia[worldid % body_inertia.shape[0], bodyid])
    c = viscous(box, opt_viscosity[worldid % opt_viscosity.shape[0]])
    q = inertial(box, opt_density[worldid % opt_density.shape[0]])
    still = wp.spatial_vector(wp.vec3(0.0), wind)
    v = local_twist(axes, com, cvel_in[worldid, bodyid] - still)
    mu = local_twist(axes, com, mu_in[worldid, bodyid])
    w = wp.spatial_vector()
    t = wp.spatial_vector()
    if implicit:
        w = local_twist(axes, com, w_in[worldid, bodyid])
        t = local_twist(axes, com, a_in[worldid, bodyid] - z_in[worldid, bodyid])

    force = wp.spatial_vector()
    d_mu = wp.spatial_vector()
    d_w = wp.spatial_vector()
    d_t = wp.spatial_vector()
    for i in range(6):
        slope = c[i] + 2.0 * q[i] * wp.abs(v[i])
        force[i] = (c[i] + q[i] * wp.abs(v[i])) * v[i]
        d_mu[i] = slope * mu[i] + h * 2.0 * q[i] * wp.sign(v[i]) * w[i] * t[i]
        d_w[i] = h * slope * w[i]
        d_t[i] = h * slope * t[i]

    x_mu_io[worldid, bodyid] -= world_wrench(axes, com, force)
    x_v = -world_wrench(axes, com, d_mu)
    x_v_io[worldid, bodyid] += x_v
    y_io[worldid, bodyid] += wp.spatial_vector(wp.cross(wind, lin(x_v)), wp.vec3(0.0))
    if implicit:
        x_w_io[worldid, bodyid] -= world_wrench(axes, com, d_t)
        x_a_io[worldid, bodyid] -= world_wrench(axes, com, d_w)
        if pair:
            x_z_io[worldid, bodyid] += world_wrench(axes, com, d_w)


@wp.kernel
def _free_body_fluid(
    # Model:
    nbody: int,
    opt_timestep: wp.array[float],
    opt_wind: wp.array[wp.vec3],
    opt_density: wp.array[float],
    opt_viscosity: wp.array[float],
    body_rootid: wp.array[int],
    body_dofadr: wp.array[int],
    body_iquat: wp.array2d[wp.quat],
    body_mass: wp.array2d[float],
    body_inertia: wp.array2d[wp.vec3],
    body_freeadr: wp.array[int],
    # Record:
    xmat_in: wp.array2d[wp.mat33],
    cinert_in: wp.array2d[vec10],
    cdof_in: wp.array2d[wp.spatial_vector],
    cvel_in: wp.array2d[wp.spatial_vector],
    # Out:
    fluid_out: wp.array2d[mat66],
):
    """`-h J^T D J` of one free body and of the bodies welded to it."""
    worldid, freeid = wp.tid()
    rootid = body_freeadr[freeid]
    adr = body_dofadr[rootid]
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    still = wp.spatial_vector(wp.vec3(0.0), opt_wind[worldid % opt_wind.shape[0]])
    fluid = mat66(0.0)
    for bodyid in range(rootid, nbody):
        mass = body_mass[worldid % body_mass.shape[0], bodyid]
        if body_rootid[bodyid] == rootid and mass >= _MINVAL:
            cinert = cinert_in[worldid, bodyid]
            com = wp.vec3(cinert[6], cinert[7], cinert[8]) / cinert[9]
            axes = inertia_axes(
                xmat_in[worldid, bodyid], body_iquat[worldid % body_iquat.shape[0], bodyid]
            )
            box = inertia_box(mass, body_inertia[worldid % body_inertia.shape[0], bodyid])
            c = viscous(box, opt_viscosity[worldid % opt_viscosity.shape[0]])
            q = inertial(box, opt_density[worldid % opt_density.shape[0]])
            v = local_twist(axes, com, cvel_in[worldid, bodyid] - still)
            for r in range(6):
                jr = local_twist(axes, com, cdof_in[worldid, adr + r])
                for k in range(6):
                    jk = local_twist(axes, com, cdof_in[worldid, adr + k])
                    for i in range(6):
                        slope = c[i] + 2.0 * q[i] * wp.abs(v[i])
                        fluid[r, k] -= h * slope * jr[i] * jk[i]
    fluid_out[worldid, freeid] = fluid


def free_body_fluid(m: mjw.Model, s: Substep, ws: Workspace) -> None:
    """Fills `ws.free_body_fluid`, the fluid's part of the integrator's blocks of free bodies."""
    d = s.d
    wp.launch(
        _free_body_fluid,
        dim=(d.nworld, m.body_freeadr.size),
        inputs=[
            m.nbody,
            m.opt.timestep,
            m.opt.wind,
            m.opt.density,
            m.opt.viscosity,
            m.body_rootid,
            m.body_dofadr,
            m.body_iquat,
            m.body_mass,
            m.body_inertia,
            m.body_freeadr,
            d.xmat,
            d.cinert,
            d.cdof,
            d.cvel,
        ],
        outputs=[ws.free_body_fluid],
    )


def fluid_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Adjoint of the fluid's forces."""
    d = s.d
    # under discrete there is no pair, so that z is zero and x_z stays so
    w, x_w = (ws.mu, ws.x_mu) if flags.discrete else (ws.w, ws.x_w)
    wp.launch(
        _fluid_vjp,
        dim=(d.nworld, m.nbody),
        inputs=[
            m.opt.timestep,
            m.opt.wind,
            m.opt.density,
            m.opt.viscosity,
            m.body_weldid,
            m.body_iquat,
            m.body_mass,
            m.body_inertia,
            d.xmat,
            d.cinert,
            d.cvel,
            flags.implicit_fluid,
            flags.pair,
            ws.mu,
            ws.a,
            w,
            ws.z,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_v, x_w, ws.x_z, ws.y],
    )
