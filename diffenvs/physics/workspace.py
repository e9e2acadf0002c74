"""What the stages of the adjoint share: flags of the model, cotangents, scratch memory."""

import dataclasses

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from .check import has_manifolds, has_shapes

_DSBL, _JNT, _TRN = mujoco.mjtDisableBit, mujoco.mjtJoint, mujoco.mjtTrn
FIELDS = ("mu", "a", "b", "w", "z", "x_mu", "x_a", "x_b", "x_v", "x_w", "x_z", "y")

TENDON_FIELDS = (
    *("ten_mu", "ten_a", "ten_w", "ten_z"),
    *("x_ten_mu", "x_ten_a", "x_ten_v", "x_ten_w", "x_ten_z", "x_ten_length"),
)


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
    implicit_matrix: bool  # the implicit terms couple joints: E is not diagonal
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
        if mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            implicit = implicit_damping = False
        implicit_actuation = implicitfast and actuation and mjm.nu > 0
        free_bodies = implicitfast and implicit and nfree > 0
        damped = implicit_damping and bool(mjm.dof_damping.any())
        pair = damped or implicit_actuation or free_bodies
        scalar = np.isin(mjm.jnt_type, (int(_JNT.mjJNT_HINGE), int(_JNT.mjJNT_SLIDE)))
        joint_driven = np.isin(
            mjm.actuator_trntype, (int(_TRN.mjTRN_JOINT), int(_TRN.mjTRN_JOINTINPARENT))
        )
        joint_driven[joint_driven] = scalar[mjm.actuator_trnid[joint_driven, 0]]
        implicit_matrix = implicitfast and (
            (implicit_actuation and not joint_driven.all())
            or (implicit_damping and bool(mjm.tendon_damping.any() or mjm.tendon_dampingpoly.any()))
            or bool(mjm.opt.density or mjm.opt.viscosity)
        )
        pair = pair or implicit_matrix
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
            implicit_matrix=implicit_matrix,
            pair=pair,
            free_bodies=free_bodies,
            shapes=has_shapes(mjm),
            manifolds=has_manifolds(mjm),
        )


@dataclasses.dataclass
class Cotangent:
    """Cotangents of a state and of the inputs of a step.

    Attributes:
        qpos: tangent (world translation and body-frame rotation of free joints), (nworld, nv).
        qvel: (nworld, nv).
        act: (nworld, na).
        ctrl: (nworld, nu); shared by the substeps of a step, which hold the control.
    """

    qpos: wp.array
    qvel: wp.array
    act: wp.array
    ctrl: wp.array

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


class Workspace:
    """Scratch memory of the adjoint; shared by all records of one Physics.

    Attributes:
        adj: cotangents between substeps, in turn; they share that of the control.
        adj_act_dot: cotangent of the rate of the activations, (nworld, na).
        joint_*: joint vectors, (nworld, nv): `mu`, and the integrator's pair `w`, `z`.
        mu, a, b, w, z: fields of the bodies; x_*: their cotangents; y: see `tree_vjp`.
        ten_mu, ten_a, ten_w, ten_z: joint vectors multiplied by the tendons' Jacobian, (nworld,
            ntendon); that of qvel is `Data.ten_velocity`.
        x_ten_*: coefficients of phi on these, on `ten_velocity` and on `ten_length`; every force
            that acts along a tendon adds its own, `tendon_vjp` carries them to joints and bodies.
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

    def __init__(self, m: mjw.Model, d: mjw.Data):
        def joint() -> wp.array:
            return wp.zeros((d.nworld, m.nv), dtype=float)

        def activation() -> wp.array:
            return wp.zeros((d.nworld, m.na), dtype=float)

        ctrl = wp.zeros((d.nworld, m.nu), dtype=float)
        self.adj = [Cotangent(joint(), joint(), activation(), ctrl) for _ in range(2)]
        self.adj_act_dot = activation()
        self.rhs, self.rhs_z, self.implicit, self.adj_qacc = joint(), joint(), joint(), joint()
        self.implicit_M = wp.zeros_like(d.M)
        self.joint_mu, self.joint_w, self.joint_z = joint(), joint(), joint()
        for name in FIELDS:
            setattr(self, name, wp.zeros((d.nworld, m.nbody), dtype=wp.spatial_vector))
        for name in TENDON_FIELDS:
            setattr(self, name, wp.zeros((d.nworld, m.ntendon), dtype=float))
        self.system = dataclasses.replace(
            d, M=wp.zeros_like(d.M), qLD=wp.zeros_like(d.qLD), qLDiagInv=wp.zeros_like(d.qLDiagInv)
        )
        self.rungekutta4: RungeKutta4 | None = None
        if m.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            self.rungekutta4 = RungeKutta4(
                adj=Cotangent(joint(), joint(), activation(), ctrl),
                adj_qacc=[joint() for _ in range(4)],
                adj_rate=[joint() for _ in range(4)],
                adj_rate_mean=joint(),
            )
