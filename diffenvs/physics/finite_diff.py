"""The oracle: derivatives of one MuJoCo step by central differences, in C MuJoCo and float64.

Only tests and the benchmark use this file; no gradient of the product comes from here.

A step maps (qpos, qvel, act, ctrl) to the next (qpos, qvel, act). Its derivative is taken in
tangent space: a displacement of qpos is a vector of length nv (`mj_integratePos`,
`mj_differentiatePos`), the convention of `mujoco.mjd_transitionFD`. With x = (dq, qvel, act), of
size 2 nv + na,

    A = d x_next / d x      (2 nv + na, 2 nv + na)
    B = d x_next / d ctrl   (2 nv + na, nu)

Applied forces and the poses of mocap bodies are further inputs on request; a mocap body turns by
rotation vectors in the axes of the world. Forces of the last substep (`forces.Forces`) are further
outputs on request, behind the others.

Differences are only worth something where the step is smooth across the perturbation. Every run
therefore also says on which smooth piece it was (`kinks.Stepper`); a state for which any perturbed
run disagrees with the unperturbed one is marked as a `kink`.
The differences are taken with three widths, whose disagreement estimates their own error.
"""

import copy
from typing import NamedTuple

import mujoco
import numpy as np

from .kinks import Stepper

_SCALES = (1.0, 10.0, 0.1)  # the widest alone looks for kinks, the others lie within it


class States(NamedTuple):
    """A batch of n states and controls, float64 values that float32 represents exactly."""

    qpos: np.ndarray  # (n, nq)
    qvel: np.ndarray  # (n, nv)
    act: np.ndarray  # (n, na)
    ctrl: np.ndarray  # (n, nu)
    qacc_warmstart: np.ndarray  # (n, nv): acceleration at the state, a good start for the solver
    ncon: np.ndarray  # (n,): number of contacts that carry a constraint


class Cotangent(NamedTuple):
    """Derivatives of a scalar with respect to the inputs of a step, rotations in tangent space."""

    qpos: np.ndarray  # (nv,)
    qvel: np.ndarray  # (nv,)
    act: np.ndarray  # (na,)
    ctrl: np.ndarray  # (nu,)
    # the inputs below only if they were given to `transition`
    qfrc_applied: np.ndarray | None = None  # (nv,)
    xfrc_applied: np.ndarray | None = None  # (nbody, 6)
    mocap_pos: np.ndarray | None = None  # (nmocap, 3)
    mocap_quat: np.ndarray | None = None  # (nmocap, 3), by rotation about the axes of the world


class Transition(NamedTuple):
    """Central differences of a step at one state; `n` is 2 nv + na and the size of the forces."""

    jacobians: tuple[np.ndarray, ...]  # (n, columns of all inputs), by three widths; first the best
    shapes: dict[str, tuple[int, ...]]  # of a cotangent of each input, in the order of the columns
    kink: bool  # a perturbed run had other active constraints or clamps than the state itself
    qpos: np.ndarray  # (nq,): the state after the step
    qvel: np.ndarray  # (nv,)
    act: np.ndarray  # (na,)
    forces: np.ndarray  # of the last substep, in one row

    @property
    def A(self) -> np.ndarray:
        """Derivative by the state (dq, qvel, act), (n, n)."""
        return np.hstack([self.by(name) for name in ("qpos", "qvel", "act")])

    @property
    def B(self) -> np.ndarray:
        """Derivative by ctrl, (n, nu)."""
        return self.by("ctrl")

    def by(self, name: str) -> np.ndarray:
        """Derivative by one input, (n, *shape of its cotangent)."""
        jacobian = self.jacobians[0]
        columns = np.split(jacobian, self._ends(), axis=1)[list(self.shapes).index(name)]
        return columns.reshape(len(jacobian), *self.shapes[name])

    def vjp(self, cotangent: np.ndarray) -> Cotangent:
        """Pull a cotangent of (dq, qvel, act) after the step, (n,), back to its inputs."""
        return self._split(cotangent @ self.jacobians[0])

    def vjp_error(self, cotangent: np.ndarray) -> tuple[float, ...]:
        """Relative disagreement of `vjp` with the other two widths, per input."""
        ref = self.vjp(cotangent)
        others = [self._split(cotangent @ J) for J in self.jacobians[1:]]
        return tuple(
            max(relative_error(getattr(o, name), getattr(ref, name)) for o in others)
            for name in self.shapes
        )

    def _split(self, row: np.ndarray) -> Cotangent:
        parts = zip(self.shapes.items(), np.split(row, self._ends()), strict=True)
        return Cotangent(**{name: part.reshape(shape) for (name, shape), part in parts})

    def _ends(self) -> np.ndarray:
        """Where the columns of each input but the last end."""
        return np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])[:-1]


def tangent_map(mjm: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    """Return d qpos / d tangent, (nq, nv); the columns of a rotation are half of quat * e_k."""
    jacobian = np.zeros((mjm.nq, mjm.nv))
    for kind, q, v in zip(mjm.jnt_type, mjm.jnt_qposadr, mjm.jnt_dofadr, strict=True):
        if kind == mujoco.mjtJoint.mjJNT_FREE.value:
            jacobian[q : q + 3, v : v + 3] = np.eye(3)
            q, v = q + 3, v + 3
        if kind in (mujoco.mjtJoint.mjJNT_FREE.value, mujoco.mjtJoint.mjJNT_BALL.value):
            for k in range(3):
                turned = np.zeros(4)
                mujoco.mju_mulQuat(turned, qpos[q : q + 4], np.eye(4)[k + 1])
                jacobian[q : q + 4, v + k] = turned / 2
        else:
            jacobian[q, v] = 1.0
    return jacobian


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """|value - reference| / |reference|; 0 where both vanish, infinite if only the latter does."""
    error, norm = np.linalg.norm(value - reference), np.linalg.norm(reference)
    return float(error / norm) if norm > 0 else (0.0 if error == 0 else np.inf)


def converged(mjm: mujoco.MjModel) -> mujoco.MjModel:
    """Copy a model, with a solver that is run to the end of float64; integrator and cone stay."""
    mjm = copy.copy(mjm)
    mjm.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    mjm.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    mjm.opt.iterations = mjm.opt.ls_iterations = 200
    mjm.opt.tolerance, mjm.opt.ls_tolerance = 1e-22, 1e-6
    mjm.opt.ccd_iterations, mjm.opt.ccd_tolerance = 300, 1e-14
    # Sensors and energy change nothing here; a run that diverges must not restart in silence.
    mjm.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    mjm.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    mjm.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    return mjm


def transition(
    mjm: mujoco.MjModel,
    qpos: np.ndarray,
    qvel: np.ndarray,
    ctrl: np.ndarray,
    act: np.ndarray | None = None,
    *,
    qfrc_applied: np.ndarray | None = None,
    xfrc_applied: np.ndarray | None = None,
    mocap_pos: np.ndarray | None = None,
    mocap_quat: np.ndarray | None = None,
    nstep: int = 1,
    eps: float = 1e-6,
    forces: tuple[str, ...] = (),
) -> Transition:
    """Differentiate `nstep` steps at one state under constant inputs; pass a `converged` model.

    Inputs other than the state and ctrl are differentiated by if they are given; else forces are
    zero and mocap bodies stay where the model has them. `forces` are names of further outputs.
    """
    data, stepper = mujoco.MjData(mjm), Stepper(mjm)
    given = {"qpos": qpos, "qvel": qvel, "act": np.zeros(mjm.na) if act is None else act}
    given |= {"ctrl": ctrl, "qfrc_applied": qfrc_applied, "xfrc_applied": xfrc_applied}
    given |= {"mocap_pos": mocap_pos, "mocap_quat": mocap_quat}
    start = {name: np.array(x, float) for name, x in given.items() if x is not None}
    shapes = {name: x.shape for name, x in start.items()} | {"qpos": (mjm.nv,)}
    if mocap_quat is not None:
        shapes["mocap_quat"] = (mjm.nmocap, 3)
    for name, x in start.items():
        getattr(data, name)[:] = x
    mujoco.mj_forward(mjm, data)
    warmstart = data.qacc.copy()
    *after, base = _run(stepper, data, start, warmstart, nstep, forces)
    jacobians, kink = [], False
    for scale in _SCALES:
        columns = []
        for name, shape in shapes.items():
            for i in range(int(np.prod(shape))):
                sides = []
                for h in (scale * eps, -scale * eps):
                    inputs = start | {name: _displaced(mjm, start[name], name, i, h)}
                    watched = scale == max(_SCALES)
                    run = (stepper, data, inputs, warmstart, nstep, forces, watched)
                    *state, signature = _run(*run)
                    kink |= watched and signature != base
                    sides.append(state)
                columns.append(_difference(mjm, sides, 2 * scale * eps))
        jacobians.append(np.stack(columns, axis=1))
    return Transition(tuple(jacobians), shapes, kink, *after)


def _displaced(mjm, value, name, i, h):
    """An input with component i of its tangent space moved by h."""
    value = value.copy()
    if name == "qpos":
        direction = np.zeros(mjm.nv)
        direction[i] = 1.0
        mujoco.mj_integratePos(mjm, value, direction, h)
    elif name == "mocap_quat":
        turn, turned = np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, np.eye(3)[i % 3], h)
        mujoco.mju_mulQuat(turned, turn, value[i // 3])
        value[i // 3] = turned
    else:
        value.flat[i] += h
    return value


def _difference(mjm, sides, width):
    plus, minus = sides
    dq = np.zeros(mjm.nv)
    mujoco.mj_differentiatePos(mjm, dq, width, minus[0], plus[0])
    rest = [(a - b) / width for a, b in zip(plus[1:], minus[1:], strict=True)]
    return np.concatenate([dq, *rest])


def _run(stepper, data, inputs, warmstart, nstep, forces, watched=True):
    """Run from a state; every run of one state starts its solver from the same point."""
    for name, x in inputs.items():
        getattr(data, name)[:] = x
    data.qacc_warmstart[:] = warmstart
    data.time = 0.0
    signature = []
    for _ in range(nstep):
        signature.append(stepper.step(data, watched))
    if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
        raise ValueError("the step diverged: no derivative can be taken at this state")
    if forces:
        mujoco.mj_rnePostConstraint(stepper.mjm, data)
    found = np.concatenate([np.zeros(0), *(getattr(data, name).ravel() for name in forces)])
    return data.qpos.copy(), data.qvel.copy(), data.act.copy(), found, signature


def contact_rich_states(
    mjm: mujoco.MjModel,
    n: int,
    seed: int = 0,
    *,
    contacts: float = 0.5,
    hold: int = 5,
    every: int = 7,
    restart: int = 300,
    max_speed: float = 60.0,
    max_height: float = 5.0,
    key: int | None = None,
    spread: float = 0.1,
    vigor: float = 1.0,
    accept=None,
) -> States:
    """Collect n states of random play, of which at least the fraction `contacts` touch something.

    Controls are uniform in their range ([-1, 1] where there is none) and change every `hold` steps;
    one state is taken every `every` steps. Play starts anew after `restart` steps and when a
    coordinate moves faster than `max_speed` (rad/s or m/s) or a body leaves the ball of radius
    `max_height` + the extent of the model: within about `spread` (rad or m, and per second) of
    qpos0, or of keyframe `key`. With `vigor` below 1 only that part of the range of the controls is
    used, about the middle or the keyframe's. `accept(mjm, data) -> bool`, if given, may refuse a
    state; `data` holds the forward pass at that state.
    """
    rng = np.random.default_rng(seed)
    data, probe = mujoco.MjData(mjm), mujoco.MjData(mjm)
    limited = mjm.actuator_ctrllimited[: mjm.nu].astype(bool)
    low = np.where(limited, mjm.actuator_ctrlrange[: mjm.nu, 0], -1.0)
    high = np.where(limited, mjm.actuator_ctrlrange[: mjm.nu, 1], 1.0)
    middle = (low + high) / 2 if key is None else mjm.key_ctrl[key].clip(low, high)
    low, high = low + (1 - vigor) * (middle - low), high - (1 - vigor) * (high - middle)
    need = int(np.ceil(contacts * n))
    found: list[tuple] = []
    free = 0
    for step in range(2000 * n):
        far = np.abs(data.xpos).max() > max_height + 2 * mjm.stat.extent
        lost = not np.isfinite(data.qpos).all() or np.abs(data.qvel).max(initial=0) > max_speed
        if step % restart == 0 or far or lost:
            _restart(mjm, data, rng, key, spread)
        if step % hold == 0:
            data.ctrl[:] = rng.uniform(low, high)
        mujoco.mj_step(mjm, data)
        if step % every or not np.isfinite(data.qpos).all():
            continue
        for name in ("qpos", "qvel", "act", "ctrl"):
            getattr(probe, name)[:] = getattr(data, name).astype(np.float32)
        mujoco.mj_forward(mjm, probe)
        ncon = int(np.sum(probe.contact.efc_address >= 0))
        if (ncon == 0 and free == n - need) or (accept is not None and not accept(mjm, probe)):
            continue
        free += ncon == 0
        state = (probe.qpos, probe.qvel, probe.act, probe.ctrl, probe.qacc)
        found.append((*(x.copy() for x in state), ncon))
        if len(found) == n:
            return States(*(np.array(x) for x in zip(*found, strict=True)))
    raise RuntimeError(f"only {len(found)} of {n} states found, {need} of them must have contacts")


def _restart(mjm, data, rng, key, spread):
    mujoco.mj_resetData(mjm, data)
    if key is not None:
        mujoco.mj_resetDataKeyframe(mjm, data, key)
    mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * spread, 1.0)
    data.qvel[:] += rng.normal(size=mjm.nv) * spread
    mujoco.mj_forward(mjm, data)


def has_steep_capsule(mjm: mujoco.MjModel, data: mujoco.MjData, degrees: float = 60.0) -> bool:
    """Whether a plane-capsule contact in `data` has a capsule steeper than `degrees` to the plane.

    mujoco_warp then aligns the two friction axes with the world instead of the capsule, so a
    pyramidal contact has another friction polygon there than in C MuJoCo.
    """
    plane, capsule = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)
    for contact in data.contact:
        for a, b in (contact.geom, contact.geom[::-1]):
            if mjm.geom_type[a] == plane and mjm.geom_type[b] == capsule:
                normal = data.geom_xmat[a].reshape(3, 3)[:, 2]
                axis = data.geom_xmat[b].reshape(3, 3)[:, 2]
                if abs(normal @ axis) > np.sin(np.radians(degrees)):
                    return True
    return False
