"""Gradients of closed-loop rollouts against float64 central differences of C MuJoCo.

    u_t = center + half (0.6 tanh(W x_t) + action_t),   x_t = (qpos, 0.1 qvel, act) at step t
    L   = sum_t  c_t · x_t,   t = 1 ... T

with a random policy W, random actions and random cotangents c_t (the last weighs as much as all
others together). dL/d action, (T, nu), goes through the policy and through every step.

What is fair to compare: a rollout in single precision is another trajectory than one in double
precision. Where both, and all perturbed ones, stay on the same smooth pieces (`kinks.Stepper`), the
gradients must agree to what the stiffness of contacts makes of the rounding. Where the two pass a
contact or a limit in different steps they differentiate different functions, and neither gradient
is wrong. So two oracles are taken:

    free      central differences of whole rollouts in float64, from the same state; counts where
              no active set changes within the differences, nor between the two precisions
    followed  the product of the single steps' central differences, each at a state of the single
              precision trajectory (as if float64 were put back onto it after every step); counts
              wherever no step is at a kink, so that it says something of nearly every rollout

With pyramidal cones neither counts where a steep capsule touches a plane on the way and makes the
step of mujoco_warp, which has another friction pyramid there, another one than that of C MuJoCo. A
model whose legs are steep capsules, like an ant, is better compared with elliptic cones.
"""

import concurrent.futures as futures
import dataclasses
from typing import NamedTuple

import mujoco
import numpy as np
import warp as wp

from . import finite_diff as fd
from .kinks import Stepper
from .step import Physics

ERROR, COSINE = 1e-2, 0.9999  # what is promised of rollouts that compare
_EPS = (1e-6, 1e-5)  # widths of the free differences
_STEP = 1e-4  # of the relative error of a state after a step; beyond, the steps differ
_DOUBT = 1e-3  # where the two widths disagree more, they prove nothing


class Loop(NamedTuple):
    """A policy, its actions and a loss, for one or (by the first axis of the last two) n worlds."""

    W: np.ndarray  # (nu, nx)
    scale: np.ndarray  # (nx,): of x
    center: np.ndarray  # (nu,)
    half: np.ndarray  # (nu,)
    actions: np.ndarray  # (n, T, nu)
    cotangents: np.ndarray  # (n, T, nx): of x after each step

    def ctrl(self, x: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Controls of one or many worlds."""
        return self.center + self.half * (0.6 * np.tanh(x * self.scale @ self.W.T) + action)

    def ctrl_vjp(self, x: np.ndarray, adj_ctrl: np.ndarray) -> np.ndarray:
        """Cotangent of x by that of the controls."""
        slope = 1 - np.tanh(x * self.scale @ self.W.T) ** 2
        return (0.6 * self.half * adj_ctrl * slope) @ self.W * self.scale

    def world(self, i: int) -> "Loop":
        """The loop of one world."""
        return self._replace(actions=self.actions[i], cotangents=self.cotangents[i])


def make_loop(mjm: mujoco.MjModel, n: int, horizon: int, seed: int = 0) -> Loop:
    """A random loop that keeps controls within their range; exact in float32 where it matters."""
    rng = np.random.default_rng(seed)
    nx = mjm.nq + mjm.nv + mjm.na
    limited = mjm.actuator_ctrllimited[: mjm.nu].astype(bool)[:, None]
    low, high = np.where(limited, mjm.actuator_ctrlrange[: mjm.nu], (-1.0, 1.0)).T
    weight = np.full((horizon, 1), 1 / np.sqrt(max(horizon - 1, 1)))
    weight[-1] = 1.0
    scale = np.repeat((1.0, 0.1, 1.0), (mjm.nq, mjm.nv, mjm.na))
    return Loop(
        W=rng.normal(size=(mjm.nu, nx)) / np.sqrt(nx),
        scale=scale,
        center=(low + high) / 2,
        half=(high - low) / 2,
        actions=rng.uniform(-0.3, 0.3, (n, horizon, mjm.nu)),
        cotangents=rng.normal(size=(n, horizon, nx)) * weight * scale,
    )


@dataclasses.dataclass
class RolloutAccuracy:
    """Gradients of n rollouts by their actions, (n, T, nu) each; which of them compare, (n,).

    `steep` are those that a steep capsule leads elsewhere, (n,), which never compare.
    """

    ours: np.ndarray
    free: np.ndarray
    followed: np.ndarray
    free_counts: np.ndarray
    followed_counts: np.ndarray
    steep: np.ndarray

    def errors(self, oracle: str) -> tuple[np.ndarray, np.ndarray]:
        """Relative error and cosine of every rollout, (n,), by the oracle `free` or `followed`."""
        ours, reference = (x.reshape(len(x), -1) for x in (self.ours, getattr(self, oracle)))
        norms = [np.linalg.norm(x, axis=1) for x in (ours, reference)]
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.linalg.norm(ours - reference, axis=1) / norms[1]
            return error, (ours * reference).sum(axis=1) / (norms[0] * norms[1])

    def summary(self) -> dict[str, dict]:
        """Errors by oracle: of the rollouts that compare, and of all."""
        found = {}
        for oracle in ("followed", "free"):
            error, cosine = self.errors(oracle)
            counts = getattr(self, f"{oracle}_counts")
            found[oracle] = {"compared": int(counts.sum()), "of": len(counts)}
            found[oracle]["steep"] = int(self.steep.sum())
            for which, mask in (("those", counts), ("all", np.full(len(counts), True))):
                if mask.any():
                    marks = [*np.quantile(error[mask], (0.5, 0.9, 1.0)), 1 - cosine[mask].min()]
                    found[oracle][which] = [float(f"{x:.1e}") for x in marks]
        return found

    def failures(self) -> list[str]:
        """What is past its threshold among the rollouts that compare, in words."""
        found = []
        for oracle in ("followed", "free"):
            counts = getattr(self, f"{oracle}_counts")
            error, cosine = (x[counts] for x in self.errors(oracle))
            if not (error <= ERROR).all():
                found.append(f"rollout ({oracle}): relative error {error.max():.0e}")
            elif not (cosine >= COSINE).all():
                found.append(f"rollout ({oracle}): cosine {cosine.min():.6f}")
        if not (self.free_counts | self.followed_counts).any():
            found.append("no rollout compares")
        return found


def rollout_accuracy(
    mjm: mujoco.MjModel,
    states: fd.States,
    horizon: int = 32,
    *,
    nstep: int = 1,
    seed: int = 0,
    device=None,
    executor: futures.Executor | None = None,
    **sizes,
) -> RolloutAccuracy:
    """Differentiate a closed loop of `horizon` times `nstep` steps from every state."""
    n = len(states.qpos)
    loop = make_loop(mjm, n, horizon, seed)
    xs, ours = _ours(mjm, states, loop, nstep, device, **sizes)
    exact = fd.converged(mjm)
    jobs = [(exact, xs[i], loop.world(i), nstep) for i in range(n)]
    if executor is None:
        found = [_oracles(*job) for job in jobs]
    else:
        found = [p.result() for p in [executor.submit(_oracles, *job) for job in jobs]]
    return RolloutAccuracy(ours, *(np.array(x) for x in zip(*found, strict=True)))


def _ours(mjm, states, loop, nstep, device, **sizes):
    """Trajectories (n, T + 1, nx) in single precision, and the gradients by the actions."""
    n, horizon, nu = loop.actions.shape
    physics = Physics(mjm, n, device, nstep=nstep, **sizes)
    made = [physics.make_state() for _ in range(horizon + 1)]
    records = [physics.make_record() for _ in range(horizon)]
    ctrl, adj_ctrl = (wp.zeros((n, nu), dtype=float, device=physics.device) for _ in range(2))

    def read(state):
        return np.hstack([a.numpy().astype(float) for a in state.differentiable()])

    def write(state, x):
        parts = np.split(np.float32(x), np.cumsum([mjm.nq, mjm.nv]), axis=1)
        for array, part in zip(state.differentiable(), parts, strict=True):
            if array.size > 0:
                array.assign(np.ascontiguousarray(part))

    write(made[0], np.hstack([states.qpos, states.qvel, states.act]))
    xs = [read(made[0])]
    for t in range(horizon):
        ctrl.assign(np.float32(loop.ctrl(xs[t], loop.actions[:, t])))
        physics.launch_step(made[t], ctrl, made[t + 1], records[t])
        xs.append(read(made[t + 1]))
    physics.check_overflow()
    adj_after, adj_before = physics.make_state(), physics.make_state()
    gradient, adj_x = np.zeros_like(loop.actions), 0.0
    for t in reversed(range(horizon)):
        write(adj_after, adj_x + loop.cotangents[:, t])
        physics.launch_step_vjp(records[t], adj_after, adj_before, adj_ctrl)
        adj_u = adj_ctrl.numpy().astype(float)
        gradient[:, t] = adj_u * loop.half
        adj_x = read(adj_before) + loop.ctrl_vjp(xs[t], adj_u)
    return np.stack(xs, axis=1), gradient


def _oracles(mjm, xs, loop, nstep):
    """Both gradients of one rollout in float64, and whether each counts."""
    run = _Rollout(mjm, loop, nstep)
    followed, smooth = run.followed(xs)
    start = xs[0]
    trajectory, signatures = run.play(start, 0, loop.actions)
    same = all(run.signature(xs[t], t) == signatures[t] for t in range(len(signatures)))
    gradients = []
    for eps in _EPS:
        watched = eps == max(_EPS)  # the others lie within
        gradient = np.zeros_like(loop.actions)
        for t, i in np.ndindex(gradient.shape):
            values = []
            for h in (eps, -eps):
                actions = loop.actions.copy()
                actions[t, i] += h
                after, met = run.play(trajectory[t], t, actions, watched)
                same &= not watched or met == signatures[t:]
                values.append(np.sum(loop.cotangents[t:] * after[1:]))
            gradient[t, i] = (values[0] - values[1]) / (2 * eps)
        gradients.append(gradient)
    same &= fd.relative_error(gradients[1], gradients[0]) < _DOUBT
    steep = any(
        run.is_steep(xs[t])
        and fd.relative_error(xs[t + 1], run.play(xs[t], t, loop.actions[: t + 1])[0][1]) > _STEP
        for t in range(len(xs) - 1)
    )
    return gradients[0], followed, same and not steep, smooth and not steep, steep


class _Rollout:
    """The loop of one world in C MuJoCo."""

    def __init__(self, mjm, loop, nstep):
        self.mjm, self.loop, self.nstep = mjm, loop, nstep
        self.data, self.stepper = mujoco.MjData(mjm), Stepper(mjm)

    def _split(self, x):
        nq, nx = self.mjm.nq, self.mjm.nq + self.mjm.nv
        return x[:nq], x[nq:nx], x[nx:]

    def _step(self, x, action, watched=True):
        d = self.data
        d.qpos[:], d.qvel[:], d.act[:] = self._split(x)
        d.ctrl[:] = self.loop.ctrl(x, action)
        d.time = 0.0
        signature = [self.stepper.step(d, watched) for _ in range(self.nstep)]
        return np.concatenate([d.qpos, d.qvel, d.act]), signature

    def play(self, x, first, actions, watched=True):
        """States from step `first` on, the first is x, and the signatures of the steps."""
        states, signatures = [x], []
        for action in actions[first:]:
            x, signature = self._step(x, action, watched)
            states.append(x)
            signatures.append(signature)
        return np.array(states), signatures

    def signature(self, x, t):
        """The signature of step t from x."""
        return self._step(x, self.loop.actions[t])[1]

    def is_steep(self, x):
        """Whether a steep capsule touches a plane at x, with pyramidal cones."""
        if self.mjm.opt.cone != mujoco.mjtCone.mjCONE_PYRAMIDAL:
            return False
        d = self.data
        d.qpos[:], d.qvel[:], d.act[:] = self._split(x)
        mujoco.mj_forward(self.mjm, d)
        return fd.has_steep_capsule(self.mjm, d)

    def followed(self, xs):
        """Gradient by the product of single steps' differences at the states xs."""
        mjm, loop = self.mjm, self.loop
        gradient, smooth = np.zeros_like(loop.actions), True
        adj_x = np.zeros(2 * mjm.nv + mjm.na)
        for t in reversed(range(len(gradient))):
            q, v, act = self._split(xs[t])
            ctrl = loop.ctrl(xs[t], loop.actions[t])
            found = fd.transition(mjm, q, v, ctrl, act, nstep=self.nstep)
            after = np.concatenate([found.qpos, found.qvel, found.act])
            adj_after = adj_x + self._tangent(after, loop.cotangents[t])
            pulled = found.vjp(adj_after)
            smooth &= not found.kink
            gradient[t] = pulled.ctrl * loop.half
            adj_x = np.concatenate([pulled.qpos, pulled.qvel, pulled.act])
            adj_x += self._tangent(xs[t], loop.ctrl_vjp(xs[t], pulled.ctrl))
        return gradient, smooth

    def _tangent(self, x, gradient):
        """A gradient by the components of x as a cotangent of (dq, qvel, act)."""
        q, *rest = self._split(gradient)
        return np.concatenate([fd.tangent_map(self.mjm, self._split(x)[0]).T @ q, *rest])
