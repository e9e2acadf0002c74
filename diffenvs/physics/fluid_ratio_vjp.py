"""Adjoint of a fluid's part in the ratio of metrics of the integrator discrete.

Forward: the matrix of that integrator holds `E = -h J^T D J` of the fluid (`fluid_vjp`), whose
diagonal is part of qH (`metric_ratio_vjp`). With `S_c` the motion axis of dof c, read in the axes
of a body's inertia at its centre of mass, `E_cc = -h sum_i D_i S_ci^2` over the bodies behind c.

In:  `adj_qH` (nworld, nv), the cotangent of the diagonal of qH.
Out: `adj_qpos`, `x_v`, `y`, accumulated, with `k = adj_qH_c` and `D' = 2 q sign(v)`:

    x_v -= h k D' S_c^2;   y += wind x (force part of that)
    adj_qpos_j += S_j . (S_c x* -2 h k D S_c)     for j behind the joint of c

Derivation: `DERIVATION.md`, sections 6 and 8.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .fluid_vjp import inertia_axes, inertia_box, inertial, local_twist, viscous, world_wrench
from .record import Substep
from .spatial import force_cross, lin, vec10
from .tree_vjp import last_dof
from .workspace import Cotangent, Workspace

wp.set_module_options({"enable_backward": False})

_MINVAL = wp.constant(float(mujoco.mjMINVAL))
_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.kernel
def _fluid_ratio_vjp(
    # Model:
    nbody: int,
    opt_timestep: wp.array[float],
    opt_wind: wp.array[wp.vec3],
    opt_density: wp.array[float],
    opt_viscosity: wp.array[float],
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    body_iquat: wp.array2d[wp.quat],
    body_mass: wp.array2d[float],
    body_inertia: wp.array2d[wp.vec3],
    jnt_type: wp.array[int],
    jnt_dofadr: wp.array[int],
    dof_jntid: wp.array[int],
    dof_parentid: wp.array[int],
    # Record:
    xmat_in: wp.array2d[wp.mat33],
    cinert_in: wp.array2d[vec10],
    cdof_in: wp.array2d[wp.spatial_vector],
    cvel_in: wp.array2d[wp.spatial_vector],
    # In:
    adj_qH_in: wp.array2d[float],
    # Out:
    x_v_io: wp.array2d[wp.spatial_vector],
    y_io: wp.array2d[wp.spatial_vector],
    adj_qpos_io: wp.array2d[float],
):
    """One world per thread."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    wind = opt_wind[worldid % opt_wind.shape[0]]
    still = wp.spatial_vector(wp.vec3(0.0), wind)
    for bodyid in range(1, nbody):
        mass = body_mass[worldid % body_mass.shape[0], bodyid]
        leaf = last_dof(body_weldid, body_dofadr, body_dofnum, bodyid)
        if mass < _MINVAL or leaf < 0:
            continue
        cinert = cinert_in[worldid, bodyid]
        com = wp.vec3(cinert[6], cinert[7], cinert[8]) / cinert[9]
        iquat = body_iquat[worldid % body_iquat.shape[0], bodyid]
        axes = inertia_axes(xmat_in[worldid, bodyid], iquat)
        box = inertia_box(mass, body_inertia[worldid % body_inertia.shape[0], bodyid])
        coef = viscous(box, opt_viscosity[worldid % opt_viscosity.shape[0]])
        q = inertial(box, opt_density[worldid % opt_density.shape[0]])
        v = local_twist(axes, com, cvel_in[worldid, bodyid] - still)
        d_v = wp.spatial_vector()
        c = leaf
        while c >= 0:
            k = adj_qH_in[worldid, c]
            if k != 0.0:
                s = cdof_in[worldid, c]
                local = local_twist(axes, com, s)
                d_s = wp.spatial_vector()
                for i in range(6):
                    slope = coef[i] + 2.0 * q[i] * wp.abs(v[i])
                    d_s[i] = -2.0 * h * k * slope * local[i]
                    d_v[i] -= h * k * 2.0 * q[i] * wp.sign(v[i]) * local[i] * local[i]
                moved = force_cross(s, world_wrench(axes, com, d_s))
                j = leaf
                while j > c:
                    # the three dofs of a rotation are one block
                    jntid = dof_jntid[j]
                    block = j
                    if jnt_type[jntid] == _BALL:
                        block = jnt_dofadr[jntid]
                    elif jnt_type[jntid] == _FREE:
                        block = wp.min(j, jnt_dofadr[jntid] + 3)
                    if block > c:
                        adj_qpos_io[worldid, j] += wp.dot(cdof_in[worldid, j], moved)
                    j = dof_parentid[j]
            c = dof_parentid[c]
        x_v = world_wrench(axes, com, d_v)
        x_v_io[worldid, bodyid] += x_v
        y_io[worldid, bodyid] += wp.spatial_vector(wp.cross(wind, lin(x_v)), wp.vec3(0.0))


def fluid_ratio_vjp(m: mjw.Model, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adds to the bodies' fields and to the positions what `ws.adj_qH` leaves there."""
    d = s.d
    wp.launch(
        _fluid_ratio_vjp,
        dim=d.nworld,
        inputs=[
            m.nbody,
            m.opt.timestep,
            m.opt.wind,
            m.opt.density,
            m.opt.viscosity,
            m.body_weldid,
            m.body_dofadr,
            m.body_dofnum,
            m.body_iquat,
            m.body_mass,
            m.body_inertia,
            m.jnt_type,
            m.jnt_dofadr,
            m.dof_jntid,
            m.dof_parentid,
            d.xmat,
            d.cinert,
            d.cdof,
            d.cvel,
            ws.adj_qH,
        ],
        outputs=[ws.x_v, ws.y, adj.qpos],
    )
