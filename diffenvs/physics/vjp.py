"""The adjoint of one recorded substep: the stages in reverse order, on preallocated memory.

    next_activation, next_position -> velocity solve (w, z, adj_qacc) -> forward_vjp

    forward_vjp: H mu = adj_qacc -> bodies -> actuators, passive forces, constraints -> subtrees
                  -> mocap bodies

Cotangents of forces (`forces_vjp`) have constraint rows and actuators see another vector than mu.
Forces in joint space add to the cotangents at once; what acts along tendons waits for `tendon_vjp`,
what acts on bodies for `subtree_vjp`.

Every stage only launches kernels, so a whole step is captured into one graph.
"""

import mujoco_warp as mjw
import warp as wp

from .activation_vjp import next_activation_vjp
from .actuator_force_vjp import general_actuator_vjp
from .actuator_vjp import dof_force_vjp
from .constraint_vjp import limit_vjp
from .contact_vjp import contact_vjp
from .discrete_vjp import discrete_vjp, free_body_vjp
from .equality_vjp import equality_vjp
from .fluid_ratio_vjp import fluid_ratio_vjp
from .fluid_vjp import fluid_vjp
from .forces_vjp import ForceCotangent, forces_fields, forces_seed, forces_vjp
from .friction_vjp import friction_vjp
from .gravcomp_vjp import gravcomp_vjp
from .inputs_vjp import applied_vjp, mocap_vjp
from .integrator_vjp import next_position_vjp, velocity_solve_vjp
from .metric_ratio_vjp import metric_ratio_vjp
from .passive_vjp import spring_vjp
from .record import Substep
from .rungekutta4_vjp import rungekutta4_vjp
from .solve_vjp import solve_vjp
from .tendon_row_vjp import tendon_row_vjp
from .tendon_vjp import tendon_fields, tendon_passive_vjp, tendon_vjp
from .tree_vjp import body_vjp, subtree_vjp
from .workspace import Cotangent, Flags, Workspace


def substep_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    qvel_next: wp.array,
    adj_next: Cotangent,
    adj: Cotangent,
    forces: ForceCotangent | None = None,
) -> None:
    """Cotangents of the state before the substep from those after it; of inputs, accumulated."""
    if s.rungekutta4 is not None:
        rungekutta4_vjp(m, flags, s, ws, adj_next, adj, forward_vjp, forces)
        return
    if flags.activation:
        next_activation_vjp(m, s, s.d.act_dot, adj_next, adj, ws.adj_act_dot)
    next_position_vjp(m, flags, s, ws, qvel_next, adj_next, adj)
    adj_qacc = ws.rhs
    if flags.pair:
        velocity_solve_vjp(m, flags, s, ws, adj)
        adj_qacc = ws.adj_qacc
    forward_vjp(m, flags, s, ws, adj_qacc, ws.adj_act_dot, adj, forces)


def forward_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    adj_qacc: wp.array,
    adj_act_dot: wp.array,
    adj: Cotangent,
    forces: ForceCotangent | None = None,
) -> None:
    """Adds to the cotangents of state and inputs what follows from those of (qacc, act_dot).

    And from those of the forces, if there are any: see `forces_vjp`.
    """
    rows = drive = ws  # where constraint rows and actuators find their joint vectors and fields
    if forces is not None:
        rows, drive = forces.work.rows, forces.work.drive
        adj_qacc = forces_seed(m, flags, s, ws, forces, adj_qacc)
    solve_vjp(m.nv, s.solver_h, s.solver_hfactor, adj_qacc, rows.joint_mu)
    if forces is not None:
        forces_fields(m, flags, s, ws, forces)
    if flags.discrete:
        ws.adj_M.zero_()
        ws.adj_qH.zero_()
        if flags.free_bodies:
            free_body_vjp(m, s, ws, adj_qacc, adj)
    body_vjp(m, flags, s, ws)
    if flags.tendon:
        tendon_fields(m, flags, s, ws)
    if flags.general_actuation:
        general_actuator_vjp(m, flags, s, drive, adj_act_dot, adj)
    if flags.damper or flags.actuation:
        dof_force_vjp(m, flags, s, ws, drive, adj)
    if flags.joint_spring:
        spring_vjp(m, s, ws, adj)
    if flags.gravcomp:
        gravcomp_vjp(m, flags, s, ws)
    if flags.fluid:
        fluid_vjp(m, flags, s, ws)
    equality_vjp(m, flags, s, rows, adj)
    applied_vjp(m, flags, s, ws, adj)
    limit_vjp(m, flags, s, rows, adj)
    if flags.friction:
        friction_vjp(m, flags, s, rows, adj)
    if flags.discrete:
        metric_ratio_vjp(m, flags, s, ws, adj)
        discrete_vjp(m, flags, s, ws, adj)
        if flags.implicit_fluid:
            fluid_ratio_vjp(m, s, ws, adj)
    contact_vjp(m, flags, s, rows)
    if flags.tendon:
        if flags.tendon_passive:
            tendon_passive_vjp(m, flags, s, ws)
        if flags.tendon_limit or flags.tendon_equality:
            tendon_row_vjp(m, flags, s, rows)
        tendon_vjp(m, flags, s, ws, adj)
    if forces is not None:
        forces_vjp(m, flags, s, ws, forces, adj)
    subtree_vjp(m, flags, s, ws, adj)
    mocap_vjp(m, flags, s, ws, adj)
