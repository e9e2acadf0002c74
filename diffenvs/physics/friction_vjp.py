"""Adjoint of friction loss, of dofs and of tendons.

Forward, a row with `J qvel` the velocity of a dof or tendon and `loss` its frictionloss:

    aref = -b J qvel,   force = -D (J qacc - aref), clamped to [-loss, loss]

There is no position, hence neither stiffness nor a change of `D`. With `y = J mu`, the force `f`
and `g = D y` where the force is not clamped, 0 where it is,

    coefficient of J mu: -f;   of J qacc: g;   of J qvel: b g

In:  the record's `D`, `force`, `Jaref`, and `mu` (or `ten_mu` of `tendon_vjp`).
Out: `adj_qvel` accumulated for dofs, whose `J` is constant; `x_ten_mu, x_ten_a, x_ten_v`
     accumulated for tendons.

Derivation: `DERIVATION.md`, sections 1 and 9.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .constraint_vjp import row_coefficients
from .record import Substep
from .spatial import vec5
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_FRICTION_DOF = wp.constant(int(mujoco.mjtConstraint.mjCNSTR_FRICTION_DOF))


@wp.kernel
def _friction_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_disableflags: int,
    dof_solref: wp.array2d[wp.vec2],
    dof_solimp: wp.array2d[vec5],
    dof_frictionloss: wp.array2d[float],
    tendon_solref_fri: wp.array2d[wp.vec2],
    tendon_solimp_fri: wp.array2d[vec5],
    tendon_frictionloss: wp.array2d[float],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    efc_type_in: wp.array2d[int],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    Jaref_in: wp.array2d[float],
    # In:
    discrete: bool,
    mu_in: wp.array2d[float],
    ten_mu_in: wp.array2d[float],
    # Out:
    x_ten_mu_io: wp.array2d[float],
    x_ten_a_io: wp.array2d[float],
    x_ten_v_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """One world per thread, rows in order."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    first = ne_in[worldid]
    for efcid in range(first, wp.min(first + nf_in[worldid], Jaref_in.shape[1])):
        i = efc_id_in[worldid, efcid]
        D = efc_D_in[worldid, efcid]
        if efc_type_in[worldid, efcid] == _FRICTION_DOF:
            loss = dof_frictionloss[worldid % dof_frictionloss.shape[0], i]
            if D * wp.abs(Jaref_in[worldid, efcid]) >= loss:
                continue
            solref = dof_solref[worldid % dof_solref.shape[0], i]
            solimp = dof_solimp[worldid % dof_solimp.shape[0], i]
            c = row_coefficients(discrete, opt_disableflags, h, solref, solimp, 0.0)
            adj_qvel_io[worldid, i] -= c.vel_friction * D * mu_in[worldid, i]
        else:
            loss = tendon_frictionloss[worldid % tendon_frictionloss.shape[0], i]
            x_ten_mu_io[worldid, i] -= efc_force_in[worldid, efcid]
            if D * wp.abs(Jaref_in[worldid, efcid]) >= loss:
                continue
            solref = tendon_solref_fri[worldid % tendon_solref_fri.shape[0], i]
            solimp = tendon_solimp_fri[worldid % tendon_solimp_fri.shape[0], i]
            c = row_coefficients(discrete, opt_disableflags, h, solref, solimp, 0.0)
            g = D * ten_mu_in[worldid, i]
            x_ten_a_io[worldid, i] += g
            x_ten_v_io[worldid, i] += c.vel_friction * g


def friction_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the friction losses."""
    d = s.d
    wp.launch(
        _friction_vjp,
        dim=d.nworld,
        inputs=[
            m.opt.timestep,
            m.opt.disableflags,
            m.dof_solref,
            m.dof_solimp,
            m.dof_frictionloss,
            m.tendon_solref_fri,
            m.tendon_solimp_fri,
            m.tendon_frictionloss,
            d.ne,
            d.nf,
            d.efc.type,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            s.solver_Jaref,
            flags.discrete,
            ws.joint_mu,
            ws.ten_mu,
        ],
        outputs=[ws.x_ten_mu, ws.x_ten_a, ws.x_ten_v, adj.qvel],
    )
