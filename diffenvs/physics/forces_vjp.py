"""Adjoint of the forces of a substep; it takes part in the adjoint of the forward dynamics.

The cotangents `g_a, g_c, g_b` of qfrc_actuator, qfrc_constraint and cfrc_ext join `mu`: actuators
see `mu + g_a`, constraint rows `nu = mu + g_c`. In contacts the body `b` has the twist `g_b`, about
the centre of mass of its tree, in addition. As `nu` solves

    H nu = adj_qacc + M g_c - J^T Hc (rows of g_b)

it comes first, and `mu = nu - g_c`. The stages that treat rows or actuators are called with a view
of the workspace, `rows` or `drive`, in which `nu` or `mu + g_a` stands in the place of `mu`.

In:  the cotangents of the forces, and adj_qacc.
Out: what the rows leave on the field of `nu` is `x_row`. It joins `x_mu`, and the difference of the
     two fields, `g_` of `g_c`, is swept alone:

    adj_qpos += S . (g_in x* x_row)

     A twist `g_b` does not move with its body, but the centre of mass of the tree does. With the
     force `F_b` of cfrc_ext, `l = sum_b angular g_b x F_b`, `m_b` the mass of the body and `m` that
     of the tree,

    y -= g_b x* x_row + wrench of l m_b / m at the com of b

     For an applied force `F`, which is a part of `F_b`,

    y -= wrench of F x angular g_b at the com;   adj.xfrc_applied += [g_b(com); angular g_b]

Derivation: `DERIVATION.md`, section 13. Not covered: what `forces.check_forces` refuses.
"""

import copy
from typing import NamedTuple

import mujoco_warp as mjw
import warp as wp

from .contact_vjp import contact_vjp
from .forces import Forces
from .inputs import accumulate_vectors
from .record import Substep
from .spatial import ang, force_cross, lin, vec10, velocity_at, wrench
from .tape import accumulate
from .tendon_vjp import tendon_fields
from .tree_vjp import last_dof, subtree_vjp
from .workspace import Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})


class ForceWorkspace:
    """Scratch memory, shared by all records of one Physics.

    Attributes:
        names: of the forces that were found to have a gradient.
        rows, drive: views of the workspace, for stages that treat constraint rows and actuators.
        constraint: `g_c`, 0 in worlds where no row acts.
        twist: `g_b` of the bodies, the world's 0; twist_rows: a view that has it in place of `mu`.
        field: `g` of the bodies; alone: a view that has it and its cotangent, and zeros for all
            other cotangents.
        moment: cotangent of the centre of mass of a tree, at the index of its root.
    """

    def __init__(self, m: mjw.Model, d: mjw.Data, ws: Workspace):
        self.names: set[str] = set()
        self.rows, self.drive, self.twist_rows = (copy.copy(ws) for _ in range(3))
        self.adj_qacc, self.constraint = (wp.zeros_like(ws.joint_mu) for _ in range(2))
        self.no_joint, self.no_twist = wp.zeros_like(ws.joint_mu), wp.zeros_like(ws.mu)
        self.rows.joint_mu, self.drive.joint_mu = (wp.zeros_like(ws.joint_mu) for _ in range(2))
        self.rows.ten_mu, self.drive.ten_mu = (wp.zeros_like(ws.ten_mu) for _ in range(2))
        self.rows.mu, self.rows.x_mu = wp.zeros_like(ws.mu), wp.zeros_like(ws.mu)
        self.twist, self.field = wp.zeros_like(ws.mu), wp.zeros_like(ws.mu)
        self.twist_rows.mu = self.twist
        self.moment = wp.zeros((d.nworld, m.nbody), dtype=wp.vec3)
        self.alone, zero = copy.copy(ws), wp.zeros_like(ws.mu)
        self.alone.joint_mu = self.constraint
        self.alone.mu, self.alone.x_mu = self.field, self.rows.x_mu
        for name in ("x_a", "x_b", "x_v", "x_w", "x_z", "y"):
            setattr(self.alone, name, zero)


class ForceCotangent(NamedTuple):
    """The cotangents of the forces, and the memory to work with."""

    adj: Forces
    work: ForceWorkspace

    @property
    def actuator(self) -> wp.array:
        """`g_a`."""
        return self.work.no_joint if self.adj.qfrc_actuator is None else self.adj.qfrc_actuator

    @property
    def constraint(self) -> wp.array:
        """`g_c`."""
        return self.work.no_joint if self.adj.qfrc_constraint is None else self.work.constraint

    @property
    def twist(self) -> wp.array:
        """`g_b`."""
        return self.work.no_twist if self.adj.cfrc_ext is None else self.work.twist


def force_cotangent(adj: Forces | None, work: ForceWorkspace | None) -> ForceCotangent | None:
    """None if there is no cotangent.

    Raises:
        ValueError: there is one of a force that was not checked.
    """
    if adj is None or not adj.given():
        return None
    if work is None or not work.names >= adj.given().keys():
        raise ValueError(
            f"Physics.launch_step_vjp: adj_forces has {', '.join(adj.given())}; make it by"
            " Physics.make_forces, which checks that these forces have a gradient"
        )
    return ForceCotangent(adj, work)


@wp.kernel
def _constraint(
    # Record:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nefc_in: wp.array[int],
    efc_force_in: wp.array2d[float],
    # In:
    adj_qfrc_constraint_in: wp.array2d[float],
    # Out:
    constraint_out: wp.array2d[float],
):
    """0 where no row acts: there nu - g_c is 0, of which rounding would leave something."""
    worldid = wp.tid()
    acts = ne_in[worldid] + nf_in[worldid] > 0
    for efcid in range(wp.min(nefc_in[worldid], efc_force_in.shape[1])):
        if efc_force_in[worldid, efcid] != 0.0:
            acts = True
    for dofid in range(constraint_out.shape[1]):
        constraint_out[worldid, dofid] = wp.where(acts, adj_qfrc_constraint_in[worldid, dofid], 0.0)


@wp.kernel
def _twist(
    # In:
    adj_cfrc_ext_in: wp.array2d[wp.spatial_vector],
    # Out:
    twist_out: wp.array2d[wp.spatial_vector],
):
    """That of the world is 0, like its force."""
    worldid, bodyid = wp.tid()
    twist_out[worldid, bodyid] = wp.where(
        bodyid > 0, adj_cfrc_ext_in[worldid, bodyid], wp.spatial_vector()
    )


@wp.kernel
def _subtract_projected(
    # Model:
    nbody: int,
    body_parentid: wp.array[int],
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    # Record:
    cdof_in: wp.array2d[wp.spatial_vector],
    # Out:
    x_io: wp.array2d[wp.spatial_vector],
    joint_io: wp.array2d[float],
):
    """joint -= S . (sum of x over the subtree), one world per thread."""
    worldid = wp.tid()
    for k in range(nbody - 1):
        bodyid = nbody - 1 - k
        if body_weldid[bodyid] == 0:
            continue
        x = x_io[worldid, bodyid]
        adr = body_dofadr[bodyid]
        for i in range(adr, adr + body_dofnum[bodyid]):
            joint_io[worldid, i] -= wp.dot(cdof_in[worldid, i], x)
        x_io[worldid, body_parentid[bodyid]] += x


@wp.kernel
def _split(
    # In:
    row_in: wp.array2d[float],
    constraint_in: wp.array2d[float],
    actuator_in: wp.array2d[float],
    # Out:
    mu_out: wp.array2d[float],
    drive_out: wp.array2d[float],
):
    """mu = nu - g_c, and what actuators see."""
    worldid, dofid = wp.tid()
    mu = row_in[worldid, dofid] - constraint_in[worldid, dofid]
    mu_out[worldid, dofid] = mu
    drive_out[worldid, dofid] = mu + actuator_in[worldid, dofid]


@wp.kernel
def _row_fields(
    # Model:
    body_weldid: wp.array[int],
    body_dofadr: wp.array[int],
    body_dofnum: wp.array[int],
    dof_parentid: wp.array[int],
    # Record:
    cdof_in: wp.array2d[wp.spatial_vector],
    # In:
    row_in: wp.array2d[float],
    constraint_in: wp.array2d[float],
    twist_in: wp.array2d[wp.spatial_vector],
    # Out:
    row_out: wp.array2d[wp.spatial_vector],
    field_out: wp.array2d[wp.spatial_vector],
    x_row_out: wp.array2d[wp.spatial_vector],
):
    """Fields of nu (and the body's own twist) and of g of one body."""
    worldid, bodyid = wp.tid()
    row = twist_in[worldid, bodyid]
    field = wp.spatial_vector()
    dofid = last_dof(body_weldid, body_dofadr, body_dofnum, bodyid)
    while dofid >= 0:
        s = cdof_in[worldid, dofid]
        row += s * row_in[worldid, dofid]
        field += s * constraint_in[worldid, dofid]
        dofid = dof_parentid[dofid]
    row_out[worldid, bodyid] = row
    field_out[worldid, bodyid] = field
    x_row_out[worldid, bodyid] = wp.spatial_vector()


@wp.kernel
def _twist_vjp(
    # Model:
    nbody: int,
    body_rootid: wp.array[int],
    body_subtreemass: wp.array2d[float],
    # Record:
    xfrc_applied_in: wp.array2d[wp.spatial_vector],
    xipos_in: wp.array2d[wp.vec3],
    subtree_com_in: wp.array2d[wp.vec3],
    cinert_in: wp.array2d[vec10],
    # In:
    applied: bool,
    twist_in: wp.array2d[wp.spatial_vector],
    x_row_in: wp.array2d[wp.spatial_vector],
    # Out:
    moment_out: wp.array2d[wp.vec3],
    y_io: wp.array2d[wp.spatial_vector],
    adj_xfrc_applied_io: wp.array2d[wp.spatial_vector],
):
    """What follows from the twists, one world per thread."""
    worldid = wp.tid()
    for bodyid in range(nbody):
        moment_out[worldid, bodyid] = wp.vec3()
    for bodyid in range(1, nbody):
        twist = twist_in[worldid, bodyid]
        x = x_row_in[worldid, bodyid]
        y = force_cross(twist, x)
        rootid = body_rootid[bodyid]
        force = -lin(x)
        if applied:
            xfrc = xfrc_applied_in[worldid, bodyid]
            f = wp.vec3(xfrc[0], xfrc[1], xfrc[2])
            com = xipos_in[worldid, bodyid] - subtree_com_in[worldid, rootid]
            force += f
            y += wrench(com, wp.cross(f, ang(twist)), wp.vec3())
            adj_xfrc_applied_io[worldid, bodyid] += wp.spatial_vector(
                velocity_at(twist, com), ang(twist)
            )
        moment_out[worldid, rootid] += wp.cross(ang(twist), force)
        y_io[worldid, bodyid] -= y
    for bodyid in range(1, nbody):
        rootid = body_rootid[bodyid]
        mass = body_subtreemass[worldid % body_subtreemass.shape[0], rootid]
        inertia = cinert_in[worldid, bodyid]
        if inertia[9] > 0.0:
            l = moment_out[worldid, rootid] / mass
            mc = wp.vec3(inertia[6], inertia[7], inertia[8])
            y_io[worldid, bodyid] -= wp.spatial_vector(wp.cross(mc, l), inertia[9] * l)


def forces_seed(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    forces: ForceCotangent,
    adj_qacc: wp.array,
) -> wp.array:
    """The right-hand side of the solve for nu. Uses the fields' cotangents as scratch."""
    d, work = s.d, forces.work
    if forces.adj.qfrc_constraint is None:
        work.adj_qacc.zero_()
    else:
        wp.launch(
            _constraint,
            dim=d.nworld,
            inputs=[d.ne, d.nf, d.nefc, d.efc.force, forces.adj.qfrc_constraint],
            outputs=[work.constraint],
        )
        mjw.mul_m(m, d, work.adj_qacc, work.constraint, M=d.M)
    wp.launch(accumulate, dim=(d.nworld, m.nv), inputs=[adj_qacc], outputs=[work.adj_qacc])
    if forces.adj.cfrc_ext is not None:
        wp.launch(
            _twist,
            dim=(d.nworld, m.nbody),
            inputs=[forces.adj.cfrc_ext],
            outputs=[work.twist],
        )
        ws.x_a.zero_()
        contact_vjp(m, flags, s, work.twist_rows)  # leaves the wrenches of Hc (rows of g_b) on x_a
        wp.launch(
            _subtract_projected,
            dim=d.nworld,
            inputs=[
                m.nbody,
                m.body_parentid,
                m.body_weldid,
                m.body_dofadr,
                m.body_dofnum,
                d.cdof,
            ],
            outputs=[ws.x_a, work.adj_qacc],
        )
    return work.adj_qacc


def forces_fields(
    m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, forces: ForceCotangent
) -> None:
    """From nu: mu, and what rows and actuators see in its place."""
    d, work = s.d, forces.work
    rows, drive = work.rows, work.drive
    wp.launch(
        _split,
        dim=(d.nworld, m.nv),
        inputs=[rows.joint_mu, forces.constraint, forces.actuator],
        outputs=[ws.joint_mu, drive.joint_mu],
    )
    wp.launch(
        _row_fields,
        dim=(d.nworld, m.nbody),
        inputs=[
            m.body_weldid,
            m.body_dofadr,
            m.body_dofnum,
            m.dof_parentid,
            d.cdof,
            rows.joint_mu,
            forces.constraint,
            forces.twist,
        ],
        outputs=[rows.mu, work.field, rows.x_mu],
    )
    if flags.tendon:
        tendon_fields(m, flags, s, rows)
        tendon_fields(m, flags, s, drive)


def forces_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    forces: ForceCotangent,
    adj: Cotangent,
) -> None:
    """What rows have left on the field of nu, and the twists on their points of reference."""
    d, work = s.d, forces.work
    rows = work.rows
    wp.launch(accumulate_vectors, dim=(d.nworld, m.nbody), inputs=[rows.x_mu], outputs=[ws.x_mu])
    if forces.adj.cfrc_ext is not None:
        applied = "xfrc_applied" in s.inputs
        wp.launch(
            _twist_vjp,
            dim=d.nworld,
            inputs=[
                m.nbody,
                m.body_rootid,
                m.body_subtreemass,
                d.xfrc_applied,
                d.xipos,
                d.subtree_com,
                d.cinert,
                applied,
                work.twist,
                rows.x_mu,
            ],
            outputs=[work.moment, ws.y, adj.xfrc_applied],
        )
    if forces.adj.qfrc_constraint is not None:
        subtree_vjp(m, flags, s, work.alone, adj)
