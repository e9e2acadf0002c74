"""The oracle: derivatives of one MuJoCo step by central differences, in C MuJoCo and float64.

Only tests and the benchmark use this file; no gradient of the product comes from here.

A step maps (qpos, qvel, act, ctrl) to the next (qpos, qvel, act). Its derivative is taken in
tangent space: a displacement of qpos is a vector of length nv (`mj_integratePos`,
`mj_differentiatePos`), the convention of `mujoco.mjd_transitionFD`. With x = (dq, qvel, act), of
size 2 nv + na,

    A = d x_next / d x      (2 nv + na, 2 nv + na)
    B = d x_next / d ctrl   (2 nv + na, nu)

Differences are only worth something where the step is smooth across the perturbation. Every run
therefore also reports which constraints pushed, in which cone zone and on which side of every
clamp; a state for which any perturbed run disagrees with the unperturbed one is marked as a `kink`.
The differences are taken with three widths, whose disagreement estimates their own error.
"""

import copy
from typing import NamedTuple

import mujoco
import numpy as np

_ELLIPTIC = int(mujoco.mjtConstraint.mjCNSTR_CONTACT_ELLIPTIC)
_FRICTION = (
    int(mujoco.mjtConstraint.mjCNSTR_FRICTION_DOF),
    int(mujoco.mjtConstraint.mjCNSTR_FRICTION_TENDON),
)
_EQUALITY = int(mujoco.mjtConstraint.mjCNSTR_EQUALITY)
_SCALES = (1.0, 10.0, 0.1)


class States(NamedTuple):
    """A batch of n states and controls, float64 values that float32 represents exactly."""

    qpos: np.ndarray  # (n, nq)
    qvel: np.ndarray  # (n, nv)
    act: np.ndarray  # (n, na)
    ctrl: np.ndarray  # (n, nu)
    qacc_warmstart: np.ndarray  # (n, nv): acceleration at the state, a good start for the solver
    ncon: np.ndarray  # (n,): number of contacts that carry a constraint


class Cotangent(NamedTuple):
    """Derivatives of a scalar with respect to the inputs of a step, qpos in tangent space."""

    qpos: np.ndarray  # (nv,)
    qvel: np.ndarray  # (nv,)
    act: np.ndarray  # (na,)
    ctrl: np.ndarray  # (nu,)


class Transition(NamedTuple):
    """Central differences of a step at one state."""

    A: np.ndarray  # (2 nv + na, 2 nv + na)
    B: np.ndarray  # (2 nv + na, nu)
    kink: bool  # a perturbed run had other active constraints or clamps than the state itself
    qpos: np.ndarray  # (nq,): the state after the step
    qvel: np.ndarray  # (nv,)
    others: tuple[np.ndarray, ...]  # [A B] with a ten times wider and a ten times narrower step
    nv: int
    na: int

    def vjp(self, cotangent: np.ndarray) -> Cotangent:
        """Pull a cotangent of (dq, qvel, act) after the step, (2 nv + na,), back to its inputs."""
        return self._split(cotangent @ np.hstack([self.A, self.B]))

    def vjp_error(self, cotangent: np.ndarray) -> tuple[float, ...]:
        """Relative disagreement of `vjp` with the other two widths, per field of its result."""
        ref = self.vjp(cotangent)
        others = [self._split(cotangent @ J) for J in self.others]
        return tuple(max(relative_error(o[i], ref[i]) for o in others) for i in range(4))

    def _split(self, row: np.ndarray) -> Cotangent:
        return Cotangent(*np.split(row, np.cumsum([self.nv, self.nv, self.na])))


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
    mjm.opt.tolerance, mjm.opt.ls_tolerance = 1e-15, 1e-6
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
    nstep: int = 1,
    eps: float = 1e-6,
) -> Transition:
    """Differentiate `nstep` steps at one state under a constant ctrl; pass a `converged` model."""
    data = mujoco.MjData(mjm)
    start = [np.array(qpos, float), np.array(qvel, float)]
    start += [np.zeros(mjm.na) if act is None else np.array(act, float), np.array(ctrl, float)]
    data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = start
    mujoco.mj_forward(mjm, data)
    warmstart = data.qacc.copy()
    qpos_next, qvel_next, _, base = _run(mjm, data, start, warmstart, nstep)
    jacobians, kink = [], False
    for scale in _SCALES:
        columns = []
        for slot, size in enumerate((mjm.nv, mjm.nv, mjm.na, mjm.nu)):
            for i in range(size):
                sides = []
                for h in (scale * eps, -scale * eps):
                    inputs = _displaced(mjm, start, slot, i, h)
                    *state, signature = _run(mjm, data, inputs, warmstart, nstep)
                    kink |= signature != base
                    sides.append(state)
                columns.append(_difference(mjm, sides, 2 * scale * eps))
        jacobians.append(np.stack(columns, axis=1))
    n = 2 * mjm.nv + mjm.na
    central = jacobians[0]
    return Transition(
        A=central[:, :n],
        B=central[:, n:],
        kink=kink,
        qpos=qpos_next,
        qvel=qvel_next,
        others=tuple(jacobians[1:]),
        nv=int(mjm.nv),
        na=int(mjm.na),
    )


def _displaced(mjm, start, slot, i, h):
    """`start` with component i of one of its parts (qpos: of the tangent space) moved by h."""
    inputs = [x.copy() for x in start]
    if slot == 0:
        direction = np.zeros(mjm.nv)
        direction[i] = 1.0
        mujoco.mj_integratePos(mjm, inputs[0], direction, h)
    else:
        inputs[slot][i] += h
    return inputs


def _difference(mjm, sides, width):
    plus, minus = sides
    dq = np.zeros(mjm.nv)
    mujoco.mj_differentiatePos(mjm, dq, width, minus[0], plus[0])
    return np.concatenate([dq, (plus[1] - minus[1]) / width, (plus[2] - minus[2]) / width])


def _run(mjm, data, inputs, warmstart, nstep):
    """Run from a state; every run of one state starts its solver from the same point."""
    data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = inputs
    data.qacc_warmstart[:] = warmstart
    data.time = 0.0
    signature = []
    for _ in range(nstep):
        mujoco.mj_step(mjm, data)
        signature.append(_signature(mjm, data))
    if not (np.isfinite(data.qpos).all() and np.isfinite(data.qvel).all()):
        raise ValueError("the step diverged: no derivative can be taken at this state")
    return data.qpos.copy(), data.qvel.copy(), data.act.copy(), signature


def _signature(mjm, data):
    """Everything discrete about the last forward pass in `data`; equal values: one smooth piece.

    The zone of a row follows from its residual J qacc - aref: `efc_state` of C MuJoCo 4.0 is stale
    where constraint islands are used.
    """
    geoms = data.contact.geom
    residual = data.efc_J.reshape(-1, mjm.nv) @ data.qacc - data.efc_aref
    types = data.efc_type
    zone = (residual < 0).astype(int)
    zone[types == _EQUALITY] = 0
    for row in np.flatnonzero(np.isin(types, _FRICTION)):
        limit = data.efc_frictionloss[row] / data.efc_D[row]
        zone[row] = int(np.sign(residual[row])) * int(abs(residual[row]) >= limit)
    for contact in data.contact:
        row, dim = contact.efc_address, contact.dim
        if row >= 0 and types[row] == _ELLIPTIC:
            zone[row : row + dim] = _cone_zone(residual[row : row + dim], contact)
    low, high = mjm.actuator_ctrlrange[: mjm.nu].T
    clamps = np.where(mjm.actuator_ctrllimited[: mjm.nu], _side(data.ctrl, low, high), 0)
    low, high = mjm.actuator_forcerange.T
    saturated = (data.actuator_force <= low) * -1 + (data.actuator_force >= high)
    saturated = np.where(mjm.actuator_forcelimited, saturated, 0)
    return [x.tolist() for x in (geoms, types, data.efc_id, zone, clamps, saturated)]


def _side(x, low, high):
    return (x > high).astype(int) - (x < low)


def _cone_zone(residual, contact):
    """0 the contact lets go, 1 all rows quadratic (it sticks), 2 on the cone (it slides)."""
    normal = residual[0] * contact.mu
    tangent = np.linalg.norm(residual[1:] * contact.friction[: contact.dim - 1])
    if normal >= contact.mu * tangent:
        return 0
    return 1 if contact.mu * normal + tangent <= 0 else 2


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
    accept=None,
) -> States:
    """Collect n states of random play, of which at least the fraction `contacts` touch something.

    Controls are uniform in their range ([-1, 1] where there is none) and change every `hold` steps;
    one state is taken every `every` steps. Play starts anew, near qpos0, after `restart` steps and
    when a coordinate moves faster than `max_speed` (rad/s or m/s) or a body leaves the ball of
    radius `max_height` + the extent of the model. `accept(mjm, data) -> bool`, if given, may refuse
    a state; `data` holds the forward pass at that state.
    """
    rng = np.random.default_rng(seed)
    data, probe = mujoco.MjData(mjm), mujoco.MjData(mjm)
    limited = mjm.actuator_ctrllimited[: mjm.nu].astype(bool)
    low = np.where(limited, mjm.actuator_ctrlrange[: mjm.nu, 0], -1.0)
    high = np.where(limited, mjm.actuator_ctrlrange[: mjm.nu, 1], 1.0)
    need = int(np.ceil(contacts * n))
    found: list[tuple] = []
    free = 0
    for step in range(2000 * n):
        far = np.abs(data.xpos).max() > max_height + 2 * mjm.stat.extent
        lost = not np.isfinite(data.qpos).all() or np.abs(data.qvel).max(initial=0) > max_speed
        if step % restart == 0 or far or lost:
            _restart(mjm, data, rng)
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


def _restart(mjm, data, rng):
    mujoco.mj_resetData(mjm, data)
    mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * 0.1, 1.0)
    data.qvel[:] = rng.normal(size=mjm.nv) * 0.1
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
