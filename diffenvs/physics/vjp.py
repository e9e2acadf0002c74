"""The adjoint of one recorded substep: the stages in reverse order, on preallocated memory.

    next_position -> integrator solve (w, z, adj_qacc) -> H mu = adj_qacc -> bodies, contacts, sweep
    -> limits, passive forces, actuators

Every function here only launches kernels, so a whole step is captured into one graph.
"""

import dataclasses

import mujoco
import mujoco_warp as mjw
import warp as wp

from . import actuator_vjp, constraint_vjp, contact_vjp, integrator_vjp, tree_vjp
from .check import has_manifolds, has_shapes
from .contact_shape_vjp import mesh_of
from .record import Substep
from .solve_vjp import solve_vjp

_DSBL = mujoco.mjtDisableBit
_FIELDS = ("mu", "a", "b", "w", "z", "x_mu", "x_a", "x_b", "x_v", "x_w", "x_z", "y")


@dataclasses.dataclass
class Flags:
    """What of the adjoint a model needs; constants of a captured graph."""

    implicitfast: bool
    elliptic: bool
    gravity: bool
    spring: bool
    damper: bool
    actuation: bool
    clamp_ctrl: bool
    implicit_damping: bool  # damping is in the integrator's system
    implicit_actuation: bool  # so are the actuators' velocity terms
    pair: bool  # the integrator's system differs from M
    free_bodies: bool  # gyroscopic blocks of single free bodies
    shapes: bool  # geoms collide that need contact_shape_vjp
    manifolds: bool  # geoms collide that need manifold_vjp

    @classmethod
    def of(cls, mjm: mujoco.MjModel, nfree: int) -> "Flags":
        """Reads the flags off a compiled model."""

        def enabled(*bits: int) -> bool:
            return not mjm.opt.disableflags & sum(int(b) for b in bits)

        damper = enabled(_DSBL.mjDSBL_DAMPER)
        spring = enabled(_DSBL.mjDSBL_SPRING)
        actuation = enabled(_DSBL.mjDSBL_ACTUATION)
        implicitfast = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        if implicitfast:
            implicit = damper or spring or actuation
            implicit_damping = implicit and damper
        else:
            implicit = enabled(_DSBL.mjDSBL_EULERDAMP, _DSBL.mjDSBL_DAMPER)
            implicit_damping = implicit
        implicit_actuation = implicitfast and actuation and mjm.nu > 0
        free_bodies = implicitfast and implicit and nfree > 0
        damped = implicit_damping and bool(mjm.dof_damping.any())
        pair = damped or implicit_actuation or free_bodies
        return cls(
            implicitfast=implicitfast,
            elliptic=mjm.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC,
            gravity=enabled(_DSBL.mjDSBL_GRAVITY),
            spring=spring,
            damper=damper,
            actuation=actuation and mjm.nu > 0,
            clamp_ctrl=enabled(_DSBL.mjDSBL_CLAMPCTRL),
            implicit_damping=implicit_damping,
            implicit_actuation=implicit_actuation,
            pair=pair,
            free_bodies=free_bodies,
            shapes=has_shapes(mjm),
            manifolds=has_manifolds(mjm),
        )


class Workspace:
    """Scratch memory of the adjoint; shared by all records of one Physics.

    Attributes:
        adj_qpos, adj_qvel: cotangents between substeps, in turn, (nworld, nv); qpos is tangent.
        joint_*: joint vectors, (nworld, nv): `mu`, and the integrator's pair `w`, `z`.
        mu, a, b, w, z: fields of the bodies; x_*: their cotangents; y: see `tree_vjp`.
        mesh: the meshes of the model.
        system: view of Data whose M is the integrator's matrix.
    """

    mu: wp.array
    a: wp.array
    b: wp.array
    w: wp.array
    z: wp.array
    x_mu: wp.array
    x_a: wp.array
    x_b: wp.array
    x_v: wp.array
    x_w: wp.array
    x_z: wp.array
    y: wp.array

    def __init__(self, m: mjw.Model, d: mjw.Data):
        def joint() -> wp.array:
            return wp.zeros((d.nworld, m.nv), dtype=float)

        self.adj_qpos = [joint(), joint()]
        self.adj_qvel = [joint(), joint()]
        self.rhs, self.rhs_z, self.implicit, self.adj_qacc = joint(), joint(), joint(), joint()
        self.joint_mu, self.joint_w, self.joint_z = joint(), joint(), joint()
        for name in _FIELDS:
            setattr(self, name, wp.zeros((d.nworld, m.nbody), dtype=wp.spatial_vector))
        self.mesh = mesh_of(m)
        self.system = dataclasses.replace(
            d, M=wp.zeros_like(d.M), qLD=wp.zeros_like(d.qLD), qLDiagInv=wp.zeros_like(d.qLDiagInv)
        )


def substep_vjp(
    m: mjw.Model,
    flags: Flags,
    s: Substep,
    ws: Workspace,
    qvel_next: wp.array,
    adj_qpos_next: wp.array,
    adj_qvel_next: wp.array,
    adj_qpos: wp.array,
    adj_qvel: wp.array,
    adj_ctrl: wp.array,
) -> None:
    """Cotangents of (qpos, qvel) before the substep; `adj_ctrl` is accumulated. qpos is tangent."""
    d = s.d
    wp.launch(
        integrator_vjp._next_position_vjp,
        dim=(d.nworld, m.njnt),
        inputs=[
            m.opt.timestep,
            m.jnt_type,
            m.jnt_dofadr,
            qvel_next,
            adj_qpos_next,
            adj_qvel_next,
        ],
        outputs=[adj_qpos, adj_qvel, ws.rhs],
    )
    adj_qacc = ws.rhs
    if flags.pair:
        adj_qacc = ws.adj_qacc
        _integrator_solve_vjp(m, flags, s, ws, adj_qpos, adj_qvel)
    solve_vjp(m.nv, s.solver_h, s.solver_hfactor, adj_qacc, ws.joint_mu)
    _tree_vjp(m, flags, s, ws, adj_qpos, adj_qvel)
    _joint_space_vjp(m, flags, s, ws, adj_qpos, adj_qvel, adj_ctrl)


def _integrator_solve_vjp(m, flags: Flags, s: Substep, ws: Workspace, adj_qpos, adj_qvel) -> None:
    d = s.d
    wp.launch(
        actuator_vjp._implicit_damping,
        dim=d.nworld,
        inputs=[
            m.nactuator,
            m.jnt_dofadr,
            m.dof_damping,
            m.actuator_trnid,
            m.actuator_gaintype,
            m.actuator_biastype,
            m.actuator_gainprm,
            m.actuator_biasprm,
            m.actuator_forcelimited,
            m.actuator_forcerange,
            m.actuator_gear,
            d.ctrl,
            d.actuator_force,
            flags.implicit_damping,
            flags.implicit_actuation,
        ],
        outputs=[ws.implicit],
    )
    wp.launch(
        integrator_vjp._implicit_diagonal,
        dim=(d.nworld, m.nv),
        inputs=[m.opt.timestep, m.M_rownnz, m.M_rowadr, d.M, d.qacc, ws.implicit],
        outputs=[ws.system.M, ws.rhs_z],
    )
    mjw.factor_m(m, ws.system)
    mjw.solve_m(m, ws.system, ws.joint_w, ws.rhs)
    mjw.solve_m(m, ws.system, ws.joint_z, ws.rhs_z)
    wp.launch(
        integrator_vjp._implicit_qacc_vjp,
        dim=(d.nworld, m.nv),
        inputs=[m.opt.timestep, ws.implicit, ws.rhs, ws.joint_w],
        outputs=[ws.adj_qacc],
    )
    if flags.free_bodies:
        wp.launch(
            integrator_vjp._free_body_vjp,
            dim=(d.nworld, m.body_freeadr.size),
            inputs=[
                m.opt.timestep,
                m.body_dofadr,
                m.dof_armature,
                m.M_rownnz,
                m.M_rowadr,
                m.M_colind,
                m.body_freeadr,
                d.qvel,
                d.qacc,
                d.xmat,
                d.M,
                ws.implicit,
                ws.rhs,
            ],
            outputs=[ws.joint_w, ws.joint_z, ws.adj_qacc, adj_qpos, adj_qvel],
        )


def _tree_vjp(m, flags: Flags, s: Substep, ws: Workspace, adj_qpos, adj_qvel) -> None:
    d = s.d
    wp.launch(
        tree_vjp._body_vjp,
        dim=(d.nworld, m.nbody),
        inputs=[
            m.opt.gravity,
            m.body_weldid,
            m.body_dofadr,
            m.body_dofnum,
            m.dof_parentid,
            d.qvel,
            d.qacc,
            d.cdof,
            d.cdof_dot,
            d.cinert,
            d.cvel,
            flags.gravity,
            flags.pair,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[getattr(ws, name) for name in _FIELDS],
    )
    wp.launch(
        contact_vjp.contact_kernel(flags.shapes, flags.manifolds),
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
            ws.mesh,
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
    wp.launch(
        tree_vjp._sweep_vjp,
        dim=d.nworld,
        inputs=[
            m.nbody,
            m.body_parentid,
            m.body_weldid,
            m.body_jntadr,
            m.body_jntnum,
            m.jnt_type,
            m.jnt_dofadr,
            d.qvel,
            d.qacc,
            d.cdof,
            d.cdof_dot,
            d.cvel,
            flags.pair,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
            ws.mu,
            ws.a,
            ws.b,
            ws.w,
            ws.z,
        ],
        outputs=[ws.x_mu, ws.x_a, ws.x_b, ws.x_v, ws.x_w, ws.x_z, ws.y, adj_qpos, adj_qvel],
    )


def _joint_space_vjp(
    m, flags: Flags, s: Substep, ws: Workspace, adj_qpos, adj_qvel, adj_ctrl
) -> None:
    d = s.d
    wp.launch(
        constraint_vjp._limit_vjp,
        dim=d.nworld,
        inputs=[
            m.opt.timestep,
            m.opt.disableflags,
            m.jnt_type,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.jnt_solref,
            m.jnt_solimp,
            m.jnt_range,
            m.jnt_margin,
            d.nl,
            d.qpos,
            d.qvel,
            d.qacc,
            d.efc.id,
            d.efc.D,
            d.efc.force,
            s.solver_Jaref,
            ws.joint_mu,
        ],
        outputs=[adj_qpos, adj_qvel],
    )
    wp.launch(
        actuator_vjp._passive_vjp,
        dim=(d.nworld, m.nv),
        inputs=[
            m.jnt_type,
            m.jnt_stiffness,
            m.dof_jntid,
            m.dof_damping,
            flags.spring,
            flags.damper,
            ws.joint_mu,
        ],
        outputs=[adj_qpos, adj_qvel],
    )
    if not flags.actuation:
        return
    wp.launch(
        actuator_vjp._actuator_vjp,
        dim=d.nworld,
        inputs=[
            m.nactuator,
            m.opt.timestep,
            m.jnt_dofadr,
            m.actuator_trnid,
            m.actuator_gaintype,
            m.actuator_biastype,
            m.actuator_gainprm,
            m.actuator_biasprm,
            m.actuator_ctrllimited,
            m.actuator_ctrlrange,
            m.actuator_forcelimited,
            m.actuator_forcerange,
            m.actuator_gear,
            d.ctrl,
            d.qacc,
            d.actuator_length,
            d.actuator_velocity,
            d.actuator_force,
            flags.clamp_ctrl,
            flags.implicit_actuation,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[adj_qpos, adj_qvel, adj_ctrl],
    )
