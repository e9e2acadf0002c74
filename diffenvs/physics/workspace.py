"""What the stages of the adjoint share: flags of the model, cotangents, scratch memory."""

import dataclasses
from collections.abc import Callable, Iterable

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from .check_actuator import depends_on_velocity, is_plain
from .check_contact import has_curved, has_manifolds, has_shapes
from .spatial import mat66, vec7

_DSBL, _TRN, _EQ = mujoco.mjtDisableBit, mujoco.mjtTrn, mujoco.mjtEq
FIELDS = ("mu", "a", "b", "w", "z", "x_mu", "x_a", "x_b", "x_v", "x_w", "x_z", "y")

TENDON_FIELDS = (
    *("ten_mu", "ten_a", "ten_w", "ten_z"),
    *("x_ten_mu", "x_ten_a", "x_ten_v", "x_ten_w", "x_ten_z", "x_ten_length"),
)


@dataclasses.dataclass
class Flags:
    """What of the adjoint a model needs; constants of a captured graph."""

    implicitfast: bool
    discrete: bool
    elliptic: bool
    gravity: bool
    spring: bool
    joint_spring: bool  # a joint has one
    damper: bool
    gravcomp: bool
    fluid: bool
    actuation: bool
    general_actuation: bool  # more than affine forces at hinges and slides, see `actuator_vjp`
    site_actuation: bool
    tendon_actuation: bool
    actuator_force_limit: bool  # joints have an actuatorfrcrange
    activation: bool
    clamp_ctrl: bool
    implicit_damping: bool  # damping is in the integrator's system
    implicit_actuation: bool  # so are the actuators' velocity terms
    implicit_fluid: bool  # so is the fluid
    implicit_matrix: bool  # the implicit terms couple joints: E is not diagonal
    pair: bool  # the integrator's system differs from M
    free_bodies: bool  # gyroscopic blocks of single free bodies
    friction: bool  # a dof or a tendon has friction loss
    tendon: bool  # a tendon exerts a force
    tendon_passive: bool  # a tendon has a spring or a damper
    tendon_limit: bool
    tendon_equality: bool
    spatial_tendon: bool
    spatial_tendon_armature: bool
    tendon_wrap: bool  # a path leads around a geom
    joint_equality: bool
    body_equality: bool  # connect or weld
    shapes: bool  # geoms collide that need contact_shape_vjp
    curved: bool  # or contact_refine
    surfacevel: bool  # surfaces of geoms move
    row_types: bool  # joints and tendons share the rows of limits or of friction loss
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
        discrete = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE
        if discrete or mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            implicit = implicit_damping = False
        implicit_actuation = implicitfast and actuation and bool(depends_on_velocity(mjm).any())
        free_bodies = (discrete or (implicitfast and implicit)) and nfree > 0
        damped = implicit_damping and bool(mjm.dof_damping.any() or mjm.dof_dampingpoly.any())
        # MuJoCo has no passive force at all where both are disabled
        passive = spring or damper
        gravity = enabled(_DSBL.mjDSBL_GRAVITY)
        fluid = passive and bool(mjm.opt.density or mjm.opt.viscosity)
        implicit_fluid = (discrete or (implicitfast and implicit)) and fluid
        pair = damped or implicit_actuation or (implicitfast and free_bodies)
        general = actuation and not bool(is_plain(mjm).all())
        implicit_matrix = implicitfast and (
            (implicit_actuation and general)
            or (implicit_damping and bool(mjm.tendon_damping.any() or mjm.tendon_dampingpoly.any()))
            or implicit_fluid
        )
        pair = pair or implicit_matrix
        equality = enabled(_DSBL.mjDSBL_CONSTRAINT, _DSBL.mjDSBL_EQUALITY)

        tendon = _tendon_flags(mjm, enabled)

        def has_equality(*types: mujoco.mjtEq) -> bool:
            return equality and bool(np.isin(mjm.eq_type, [int(t) for t in types]).any())

        return cls(
            implicitfast=implicitfast,
            discrete=discrete,
            elliptic=mjm.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC,
            gravity=gravity,
            spring=spring,
            joint_spring=spring and bool(mjm.jnt_stiffness.any() or mjm.jnt_stiffnesspoly.any()),
            damper=damper,
            gravcomp=passive and gravity and bool(mjm.body_gravcomp.any()),
            fluid=fluid,
            actuation=actuation and mjm.nu > 0,
            general_actuation=general,
            site_actuation=actuation and bool((mjm.actuator_trntype == int(_TRN.mjTRN_SITE)).any()),
            tendon_actuation=actuation
            and bool((mjm.actuator_trntype == int(_TRN.mjTRN_TENDON)).any()),
            actuator_force_limit=general and bool(mjm.jnt_actfrclimited.any()),
            activation=mjm.na > 0,
            clamp_ctrl=enabled(_DSBL.mjDSBL_CLAMPCTRL),
            implicit_damping=implicit_damping,
            implicit_actuation=implicit_actuation,
            implicit_fluid=implicit_fluid,
            implicit_matrix=implicit_matrix,
            pair=pair,
            free_bodies=free_bodies,
            shapes=has_shapes(mjm),
            manifolds=has_manifolds(mjm),
            curved=has_curved(mjm),
            surfacevel=bool(mjm.geom_surfacevel.any()),
            row_types=discrete or tendon["friction"] or tendon["tendon_limit"],
            **tendon,
            joint_equality=has_equality(_EQ.mjEQ_JOINT),
            body_equality=has_equality(_EQ.mjEQ_CONNECT, _EQ.mjEQ_WELD),
        )


def _tendon_flags(mjm: mujoco.MjModel, enabled: Callable[..., bool]) -> dict[str, bool]:
    """What of friction losses and tendons a model needs."""

    def exerted(*names: str) -> bool:
        return any(bool(np.any(getattr(mjm, name))) for name in names)

    spring = enabled(_DSBL.mjDSBL_SPRING) and exerted("tendon_stiffness", "tendon_stiffnesspoly")
    damper = enabled(_DSBL.mjDSBL_DAMPER) and exerted("tendon_damping", "tendon_dampingpoly")
    rows = enabled(_DSBL.mjDSBL_CONSTRAINT)
    frictional = rows and enabled(_DSBL.mjDSBL_FRICTIONLOSS)
    found = {
        "friction": frictional and exerted("dof_frictionloss", "tendon_frictionloss"),
        "tendon_passive": spring or damper,
        "tendon_limit": rows and enabled(_DSBL.mjDSBL_LIMIT) and exerted("tendon_limited"),
        "tendon_equality": rows
        and enabled(_DSBL.mjDSBL_EQUALITY)
        and bool(np.any(mjm.eq_type == int(mujoco.mjtEq.mjEQ_TENDON))),
    }
    driven = np.any(mjm.actuator_trntype == int(_TRN.mjTRN_TENDON))
    spatial = mjm.tendon_type == int(mujoco.mjtTendon.mjTENDON_SPATIAL)
    found["spatial_tendon_armature"] = bool(mjm.tendon_armature[spatial].any())
    found["tendon"] = (
        found["tendon_passive"]
        or found["tendon_limit"]
        or found["tendon_equality"]
        or (frictional and exerted("tendon_frictionloss"))
        or (enabled(_DSBL.mjDSBL_ACTUATION) and bool(driven))
        or found["spatial_tendon_armature"]
    )
    found["spatial_tendon"] = found["tendon"] and bool(spatial.any())
    geoms = (int(mujoco.mjtWrap.mjWRAP_SPHERE), int(mujoco.mjtWrap.mjWRAP_CYLINDER))
    found["tendon_wrap"] = found["tendon"] and bool(np.isin(mjm.wrap_type, geoms).any())
    return found


@dataclasses.dataclass
class Cotangent:
    """Cotangents of a state and of the inputs of a step.

    Attributes:
        qpos: tangent (world translation and body-frame rotation of free joints), (nworld, nv).
        qvel: (nworld, nv).
        act: (nworld, na).
        ctrl: (nworld, nu); shared by the substeps of a step, which hold the control.
        qfrc_applied, xfrc_applied, mocap_pos, mocap_quat: of the other fields of Inputs, in their
            shapes and shared likewise; None until a record is made for them.
    """

    qpos: wp.array
    qvel: wp.array
    act: wp.array
    ctrl: wp.array
    qfrc_applied: wp.array | None = None
    xfrc_applied: wp.array | None = None
    mocap_pos: wp.array | None = None
    mocap_quat: wp.array | None = None

    def zero_inputs(self, names: Iterable[str]) -> None:
        """Clears the cotangents of these inputs."""
        for name in _with_pose(names):
            getattr(self, name).zero_()

    def with_state(self, other: "Cotangent") -> "Cotangent":
        """With the state of another in the place of this one's."""
        return dataclasses.replace(self, qpos=other.qpos, qvel=other.qvel, act=other.act)

    def zero_state(self) -> None:
        """Clears all but the inputs."""
        for array in (self.qpos, self.qvel, self.act):
            array.zero_()


@dataclasses.dataclass
class RungeKutta4:
    """Cotangents of the stages of RK4, see `rungekutta4_vjp`."""

    adj: Cotangent  # of the state of one stage
    adj_qacc: list[wp.array]  # of every stage, (nworld, nv)
    adj_rate: list[wp.array]
    adj_rate_mean: wp.array
    adj_act_dot: list[wp.array]  # of every stage, (nworld, na)


def _with_pose(names: Iterable[str]) -> set[str]:
    """The two halves of a mocap body's pose have their cotangents computed together."""
    pose = {"mocap_pos", "mocap_quat"}
    return set(names) | (pose if pose & set(names) else set())


def _body_end(parentid: np.ndarray) -> np.ndarray:
    """One past the last body of each subtree; MuJoCo numbers bodies depth first."""
    end = np.arange(1, parentid.size + 1)
    for bodyid in range(parentid.size - 1, 0, -1):
        end[parentid[bodyid]] = max(end[parentid[bodyid]], end[bodyid])
    return end


class Workspace:
    """Scratch memory of the adjoint; shared by all records of one Physics.

    Attributes:
        adj_ends: cotangents of the state after a step and of that before it.
        adj_between: of the states between substeps, in turn.
        adj_act_dot: cotangent of the rate of the activations, (nworld, na).
        force_derivatives: of actuators, see `actuator_force_vjp`, (nworld, nactuator).
        adj_input: cotangent of what an actuator's gain multiplies, (nworld, nactuator).
        joint_*: joint vectors, (nworld, nv): `mu`, and the integrator's pair `w`, `z`.
        mu, a, b, w, z: fields of the bodies; x_*: their cotangents; y: see `tree_vjp`.
        body_end: the subtree of body i is i, i + 1, ... body_end[i] - 1, (nbody,).
        slots: how many threads share the constraint rows of a world.
        contact_wrenches: what a contact leaves on x_mu, x_a, x_v, y of its first body, then of its
            second, (naconmax, 8).
        ten_mu, ten_a, ten_w, ten_z: joint vectors multiplied by the tendons' Jacobian, (nworld,
            ntendon); that of qvel is `Data.ten_velocity`.
        x_ten_*: coefficients of phi on these, on `ten_velocity` and on `ten_length`; every force
            that acts along a tendon adds its own, `tendon_vjp` carries them to joints and bodies.
        dof_actuator: plain actuators in the order of their dofs; those of dof `i` stand from
            `dof_actuatoradr[i]` to `dof_actuatoradr[i + 1]`, (nv + 1,).
        system: view of Data whose M is the integrator's matrix.
        free_body_fluid: the fluid's part of the integrator's blocks, (nworld, free bodies).
        contact_point, contact_rotation: cotangents of contact points and of rotations of their
            frames, (naconmax,); adj_M, adj_qH: of the diagonals of M and qH, (nworld, nv). See
            `discrete_vjp`; empty for other integrators.
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
    ten_mu: wp.array
    ten_a: wp.array
    ten_w: wp.array
    ten_z: wp.array
    x_ten_mu: wp.array
    x_ten_a: wp.array
    x_ten_v: wp.array
    x_ten_w: wp.array
    x_ten_z: wp.array
    x_ten_length: wp.array

    def __init__(self, m: mjw.Model, d: mjw.Data, flags: Flags):
        def joint() -> wp.array:
            return wp.zeros((d.nworld, m.nv), dtype=float)

        def activation() -> wp.array:
            return wp.zeros((d.nworld, m.na), dtype=float)

        ctrl = wp.zeros((d.nworld, m.nu), dtype=float)
        adj = [Cotangent(joint(), joint(), activation(), ctrl) for _ in range(4)]
        self.adj_ends, self.adj_between = adj[:2], adj[2:]
        self.adj_act_dot = activation()
        self.force_derivatives = wp.zeros((d.nworld, m.nactuator), dtype=vec7)
        self.adj_input = wp.zeros((d.nworld, m.nactuator), dtype=float)
        self.rhs, self.rhs_z, self.implicit, self.adj_qacc = joint(), joint(), joint(), joint()
        self.implicit_M = wp.zeros_like(d.M)
        self.joint_mu, self.joint_w, self.joint_z = joint(), joint(), joint()
        for name in FIELDS:
            setattr(self, name, wp.zeros((d.nworld, m.nbody), dtype=wp.spatial_vector))
        for name in TENDON_FIELDS:
            setattr(self, name, wp.zeros((d.nworld, m.ntendon), dtype=float))
        self.body_end = wp.array(_body_end(m.body_parentid.numpy()), dtype=int)
        self.contact_wrenches = wp.zeros((d.naconmax, 8), dtype=wp.spatial_vector)
        self.slots = 8 if d.qpos.device.is_cuda else 1
        dof = np.zeros(0, dtype=int)
        if flags.actuation and not flags.general_actuation:
            dof = m.jnt_dofadr.numpy()[m.actuator_trnid.numpy()[:, 0]]
        self.dof_actuator = wp.array(np.argsort(dof, kind="stable"), dtype=int)
        dofs = np.searchsorted(np.sort(dof), np.arange(m.nv + 1))
        self.dof_actuatoradr = wp.array(dofs, dtype=int)
        self.system = dataclasses.replace(
            d, M=wp.zeros_like(d.M), qLD=wp.zeros_like(d.qLD), qLDiagInv=wp.zeros_like(d.qLDiagInv)
        )
        nfree = m.body_freeadr.size if flags.free_bodies and flags.implicit_fluid else 0
        self.free_body_fluid = wp.zeros((d.nworld, nfree), dtype=mat66)
        discrete = m.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE
        self.contact_point = wp.zeros(discrete * d.naconmax, dtype=wp.vec3)
        self.contact_rotation = wp.zeros_like(self.contact_point)
        self.adj_M = wp.zeros((discrete * d.nworld, m.nv), dtype=float)
        self.adj_qH = wp.zeros_like(self.adj_M)
        self.rungekutta4: RungeKutta4 | None = None
        if m.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            self.rungekutta4 = RungeKutta4(
                adj=Cotangent(joint(), joint(), activation(), ctrl),
                adj_qacc=[joint() for _ in range(4)],
                adj_rate=[joint() for _ in range(4)],
                adj_rate_mean=joint(),
                adj_act_dot=[activation() for _ in range(4)],
            )

    def make_inputs(self, d: mjw.Data, names: Iterable[str]) -> None:
        """Allocates the cotangents of these inputs, unless they are there."""
        for name in _with_pose(names):
            if getattr(self.adj_ends[1], name) is None:
                setattr(self.adj_ends[1], name, wp.zeros_like(getattr(d, name)))
