"""The adjoint of one recorded substep: the stages in reverse order, on preallocated memory.

    next_position, next_activation -> velocity solve (w, z, adj_qacc) -> forward_vjp

    forward_vjp: H mu = adj_qacc -> bodies -> actuators, passive forces, limits, contacts -> sweep

Forces in joint space add to the cotangents at once; what acts on bodies waits for the sweep.

Every stage only launches kernels, so a whole step is captured into one graph.
"""

import mujoco_warp as mjw
import warp as wp

from .actuator_vjp import actuator_vjp, passive_vjp
from .constraint_vjp import limit_vjp
from .contact_vjp import contact_vjp
from .integrator_vjp import next_position_vjp, velocity_solve_vjp
from .record import Substep
from .rungekutta4_vjp import rungekutta4_vjp
from .solve_vjp import solve_vjp
from .tree_vjp import body_vjp, sweep_vjp
from .workspace import Cotangent, Flags, Workspace


def substep_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    qvel_next: wp.array,
    adj_next: Cotangent,
    adj: Cotangent,
) -> None:
    """Cotangents of the state before the substep from those after it; `adj.ctrl` accumulates."""
    if s.rungekutta4 is not None:
        rungekutta4_vjp(m, flags, s, ws, adj_next, adj, forward_vjp)
        return
    adj.act.zero_()
    next_position_vjp(m, flags, s, ws, qvel_next, adj_next, adj)
    adj_qacc = ws.rhs
    if flags.pair:
        velocity_solve_vjp(m, flags, s, ws, adj)
        adj_qacc = ws.adj_qacc
    forward_vjp(m, flags, s, ws, adj_qacc, ws.adj_act_dot, adj)


def forward_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    adj_qacc: wp.array,
    adj_act_dot: wp.array,
    adj: Cotangent,
) -> None:
    """Adds the cotangents of (qpos, qvel, act, ctrl) that follow from those of (qacc, act_dot)."""
    del adj_act_dot
    solve_vjp(m.nv, s.solver_h, s.solver_hfactor, adj_qacc, ws.joint_mu)
    body_vjp(m, flags, s, ws)
    if flags.actuation:
        actuator_vjp(m, flags, s, ws, adj)
    passive_vjp(m, flags, s, ws, adj)
    limit_vjp(m, flags, s, ws, adj)
    contact_vjp(m, flags, s, ws)
    sweep_vjp(m, flags, s, ws, adj)
