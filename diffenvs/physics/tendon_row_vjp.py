"""Adjoint of constraint rows along tendons: limits and equalities.

A limit has `J = +-ten_J` and `pos` the distance of the length from the bound, less the margin. An
equality holds the length of one tendon at a polynomial `p` of that of another (or at a constant),
both measured from their lengths in `qpos0`, so its row is

    pos = L_1 - p(L_2),   J = J_1 - p'(L_2) J_2

With the coefficients of `constraint_vjp` (-f of J mu, g of J qacc, b g of J qvel, kappa of pos),
where the row is `s J_1` or `J_1 - p' J_2`, each tendon takes them times its factor, and

    x_ten_length of tendon 2 -= p''(L_2) (-f J_2 mu + g J_2 qacc + b g J_2 qvel)

In:  the record's `D`, `force`, `Jaref`, `ten_length`, `ten_velocity`; `ten_mu`, `ten_a`.
Out: `x_ten_mu, x_ten_a, x_ten_v, x_ten_length`, accumulated.

Derivation: `DERIVATION.md`, sections 1 and 9. Friction losses are in `friction_vjp`.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .constraint_vjp import position_cotangent, row_coefficients
from .record import Substep
from .spatial import vec5, vec12
from .workspace import Flags, Workspace

wp.set_module_options({"enable_backward": False})

_LIMIT_TENDON = wp.constant(int(mujoco.mjtConstraint.mjCNSTR_LIMIT_TENDON))
_EQ_TENDON = wp.constant(int(mujoco.mjtEq.mjEQ_TENDON))


@wp.kernel
def _tendon_limit_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_disableflags: int,
    tendon_solref_lim: wp.array2d[wp.vec2],
    tendon_solimp_lim: wp.array2d[vec5],
    tendon_range: wp.array2d[wp.vec2],
    tendon_margin: wp.array2d[float],
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    ten_length_in: wp.array2d[float],
    efc_type_in: wp.array2d[int],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    Jaref_in: wp.array2d[float],
    # In:
    ten_mu_in: wp.array2d[float],
    # Out:
    x_ten_mu_io: wp.array2d[float],
    x_ten_a_io: wp.array2d[float],
    x_ten_v_io: wp.array2d[float],
    x_ten_length_io: wp.array2d[float],
):
    """One world per thread, rows in order."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    first = ne_in[worldid] + nf_in[worldid]
    for efcid in range(first, wp.min(first + nl_in[worldid], Jaref_in.shape[1])):
        if efc_type_in[worldid, efcid] != _LIMIT_TENDON or Jaref_in[worldid, efcid] >= 0.0:
            continue
        tenid = efc_id_in[worldid, efcid]
        bounds = tendon_range[worldid % tendon_range.shape[0], tenid]
        low = ten_length_in[worldid, tenid] - bounds[0]
        high = bounds[1] - ten_length_in[worldid, tenid]
        sign = wp.where(low < high, 1.0, -1.0)
        pos = wp.min(low, high) - tendon_margin[worldid % tendon_margin.shape[0], tenid]
        # such tendons are refused under discrete
        c = row_coefficients(
            False,
            opt_disableflags,
            h,
            tendon_solref_lim[worldid % tendon_solref_lim.shape[0], tenid],
            tendon_solimp_lim[worldid % tendon_solimp_lim.shape[0], tenid],
            pos,
        )
        f = efc_force_in[worldid, efcid]
        y = sign * ten_mu_in[worldid, tenid]
        g = efc_D_in[worldid, efcid] * y
        x_ten_mu_io[worldid, tenid] -= sign * f
        x_ten_a_io[worldid, tenid] += sign * g
        x_ten_v_io[worldid, tenid] += sign * c.vel * g
        x_ten_length_io[worldid, tenid] += sign * position_cotangent(c, 0.0, g, y * f)


@wp.kernel
def _tendon_equality_vjp(
    # Model:
    opt_timestep: wp.array[float],
    opt_disableflags: int,
    eq_type: wp.array[int],
    eq_obj1id: wp.array[int],
    eq_obj2id: wp.array[int],
    eq_solref: wp.array2d[wp.vec2],
    eq_solimp: wp.array2d[vec5],
    eq_data: wp.array2d[vec12],
    tendon_length0: wp.array2d[float],
    # Record:
    ne_in: wp.array[int],
    ten_length_in: wp.array2d[float],
    ten_velocity_in: wp.array2d[float],
    efc_id_in: wp.array2d[int],
    efc_D_in: wp.array2d[float],
    efc_force_in: wp.array2d[float],
    # In:
    ten_mu_in: wp.array2d[float],
    ten_a_in: wp.array2d[float],
    # Out:
    x_ten_mu_io: wp.array2d[float],
    x_ten_a_io: wp.array2d[float],
    x_ten_v_io: wp.array2d[float],
    x_ten_length_io: wp.array2d[float],
):
    """One world per thread, rows in order."""
    worldid = wp.tid()
    h = opt_timestep[worldid % opt_timestep.shape[0]]
    for efcid in range(wp.min(ne_in[worldid], efc_D_in.shape[1])):
        eqid = efc_id_in[worldid, efcid]
        if eq_type[eqid] != _EQ_TENDON:
            continue
        first = eq_obj1id[eqid]
        second = eq_obj2id[eqid]
        data = eq_data[worldid % eq_data.shape[0], eqid]
        length0 = worldid % tendon_length0.shape[0]
        pos = ten_length_in[worldid, first] - tendon_length0[length0, first] - data[0]
        slope = float(0.0)
        curvature = float(0.0)
        y = ten_mu_in[worldid, first]
        if second >= 0:
            x = ten_length_in[worldid, second] - tendon_length0[length0, second]
            pos -= x * (data[1] + x * (data[2] + x * (data[3] + x * data[4])))
            slope = data[1] + x * (2.0 * data[2] + x * (3.0 * data[3] + x * 4.0 * data[4]))
            curvature = 2.0 * data[2] + x * (6.0 * data[3] + x * 12.0 * data[4])
            y -= slope * ten_mu_in[worldid, second]
        c = row_coefficients(
            False,
            opt_disableflags,
            h,
            eq_solref[worldid % eq_solref.shape[0], eqid],
            eq_solimp[worldid % eq_solimp.shape[0], eqid],
            pos,
        )
        f = efc_force_in[worldid, efcid]
        g = efc_D_in[worldid, efcid] * y
        gw = c.vel * g
        k = position_cotangent(c, 0.0, g, y * f)
        x_ten_mu_io[worldid, first] -= f
        x_ten_a_io[worldid, first] += g
        x_ten_v_io[worldid, first] += gw
        x_ten_length_io[worldid, first] += k
        if second >= 0:
            x_ten_mu_io[worldid, second] += slope * f
            x_ten_a_io[worldid, second] -= slope * g
            x_ten_v_io[worldid, second] -= slope * gw
            turn = g * ten_a_in[worldid, second] + gw * ten_velocity_in[worldid, second]
            turn -= f * ten_mu_in[worldid, second]
            x_ten_length_io[worldid, second] -= slope * k + curvature * turn


def tendon_row_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Adjoint of the limits and the equalities of tendons."""
    d = s.d
    outputs = [ws.x_ten_mu, ws.x_ten_a, ws.x_ten_v, ws.x_ten_length]
    if flags.tendon_limit:
        wp.launch(
            _tendon_limit_vjp,
            dim=d.nworld,
            inputs=[
                m.opt.timestep,
                m.opt.disableflags,
                m.tendon_solref_lim,
                m.tendon_solimp_lim,
                m.tendon_range,
                m.tendon_margin,
                d.ne,
                d.nf,
                d.nl,
                d.ten_length,
                d.efc.type,
                d.efc.id,
                d.efc.D,
                d.efc.force,
                s.solver_Jaref,
                ws.ten_mu,
            ],
            outputs=outputs,
        )
    if flags.tendon_equality:
        wp.launch(
            _tendon_equality_vjp,
            dim=d.nworld,
            inputs=[
                m.opt.timestep,
                m.opt.disableflags,
                m.eq_type,
                m.eq_obj1id,
                m.eq_obj2id,
                m.eq_solref,
                m.eq_solimp,
                m.eq_data,
                m.tendon_length0,
                d.ne,
                d.ten_length,
                d.ten_velocity,
                d.efc.id,
                d.efc.D,
                d.efc.force,
                ws.ten_mu,
                ws.ten_a,
            ],
            outputs=outputs,
        )
