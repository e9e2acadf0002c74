"""The error of the gradients of a model against float64 central differences of C MuJoCo.

Run as a program, this is the tool of `accuracy_tool.py`, which says what is measured.

Nothing of a gradient of the product comes from here.
"""

import concurrent.futures as futures
import contextlib
import copy
import dataclasses
import sys
from typing import Any

import mujoco
import numpy as np
import warp as wp

from . import finite_diff as fd
from .check_contact import colliding_pairs
from .step import Physics

INPUTS = ("qpos", "qvel", "act", "ctrl")
MEDIAN, WORST = 1e-4, 3e-3  # of the relative error, what is promised
STEP = 1e-4  # of the relative error of the next state; beyond, the steps themselves differ
SET_ASIDE = 0.1  # of the states may be at kinks or doubtful
DOUBT = 3e-4  # where central differences of several widths disagree more, they prove nothing
_ZERO = 1e-9  # times the norm of the cotangent: rounding of differences, no influence


@dataclasses.dataclass
class Accuracy:
    """One VJP of a step in each of n states, and what the oracle says to it.

    Attributes:
        states: the states before the step.
        cotangents: of (dq, qvel, act) after the step and of the forces, (n, 2 nv + na + ...).
        ours, oracle: by input, the cotangents of (tangent qpos, qvel, act, ctrl) before it.
        errors: by input, the relative errors (n,); nan where the input has no influence, infinite
            where only the oracle says so.
        step_error: relative error of the state after the step, (n,).
        kink: whether no derivative exists, (n,).
        doubt: how much the oracle disagrees with itself, (n,).
        ncon, nrow: contacts and constraint rows, (n,).
    """

    states: fd.States
    cotangents: np.ndarray
    ours: dict[str, np.ndarray]
    oracle: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    step_error: np.ndarray
    kink: np.ndarray
    doubt: np.ndarray
    ncon: np.ndarray
    nrow: np.ndarray

    @property
    def trusted(self) -> np.ndarray:
        """States that count, (n,)."""
        return ~self.kink & (self.doubt < DOUBT)

    def quantiles(self, name: str) -> tuple[float, float] | str | None:
        """Median and worst error of an input; `none` without influence, None without the input."""
        if self.ours[name].shape[1] == 0:
            return None
        errors = self.errors[name][self.trusted]
        errors = errors[~np.isnan(errors)]
        return (float(np.median(errors)), float(errors.max())) if errors.size > 0 else "none"

    def worst_state(self) -> tuple[float, int, str]:
        """The largest error among the states that count, its state and its input."""
        found = [
            (float(error), i, name)
            for name in INPUTS
            for i, error in enumerate(self.errors[name])
            if self.trusted[i] and not np.isnan(error)
        ]
        return max(found, default=(0.0, 0, INPUTS[0]))

    def failures(
        self, median: float = MEDIAN, worst: float = WORST, set_aside: float = SET_ASIDE
    ) -> list[str]:
        """What is past its threshold, in words; empty if nothing is.

        Args:
            median: of the relative errors of an input.
            worst: of the relative errors of an input.
            set_aside: fraction of the states that may be at kinks or doubtful.
        """
        found = []
        aside, total = int((~self.trusted).sum()), len(self.trusted)
        if aside > set_aside * total:
            found.append(f"{aside} of {total} states set aside")
        if aside == total:
            return found or ["no state compares"]
        step = self.step_error[self.trusted].max()
        if not step <= STEP:
            found.append(f"the step itself differs by {step:.0e}")
        for name in INPUTS:
            values = self.quantiles(name)
            if isinstance(values, tuple):
                for value, limit, what in zip(
                    values, (median, worst), ("median", "worst"), strict=True
                ):
                    if not value <= limit:
                        found.append(f"{what} of {name} {value:.0e}")
        return found


def measure(
    mjm: mujoco.MjModel,
    states: fd.States,
    *,
    nstep: int = 1,
    seed: int = 0,
    device=None,
    oracle: mujoco.MjModel | None = None,
    executor: futures.Executor | None = None,
    chunks: int = 1,
    forces: tuple[str, ...] = (),
    cotangents: np.ndarray | None = None,
    **sizes,
) -> Accuracy:
    """Compare the VJP of `nstep` steps with central differences of C MuJoCo in every state.

    Args:
        mjm: the model.
        states: n states, one world each.
        nstep: physics steps under a constant control.
        seed: of the cotangents.
        device: where `Physics` runs.
        oracle: another model for the oracle; its solver is made to converge.
        executor: runs the oracle, in `chunks` parts, while this process runs `Physics`.
        chunks: see `executor`.
        forces: of the last substep, that have cotangents too; names of fields of `Forces`.
        cotangents: of (dq, qvel, act) after the step and of the forces; None for random ones.
        **sizes: `nconmax` and `njmax` of `Physics`.
    """
    n = len(states.qpos)
    if cotangents is None:
        data = mujoco.MjData(mjm)
        size = 2 * mjm.nv + mjm.na + sum(getattr(data, name).size for name in forces)
        cotangents = np.random.default_rng(seed).normal(size=(n, size))
    exact = fd.converged(mjm if oracle is None else oracle)
    parts = np.array_split(np.arange(n), min(chunks, n)) if executor else [np.arange(n)]
    jobs = [
        (exact, fd.States(*(x[i] for x in states)), cotangents[i], nstep, forces) for i in parts
    ]
    pending = [executor.submit(differences, *job) for job in jobs] if executor else []
    after, ours = step_vjp(mjm, states, cotangents, nstep, device, forces, **sizes)
    found = [p.result() for p in pending] or [differences(*job) for job in jobs]
    rows = [row for part in found for row in part]
    return compare(states, cotangents, after, ours, rows)


def compare(
    states: fd.States,
    cotangents: np.ndarray,
    after: np.ndarray,
    ours: dict[str, np.ndarray],
    rows: list[dict],
) -> Accuracy:
    """Compare VJPs that are there with `differences` that are there.

    Args:
        states: n states.
        cotangents: of (dq, qvel, act) after the step, (n, 2 nv + na).
        after: (qpos, qvel, act) after the step, (n, nq + nv + na).
        ours: VJPs by input, as `step_vjp` returns them.
        rows: what `differences` found in these states.
    """
    pulled = {name: np.array([getattr(r["pulled"], name) for r in rows]) for name in INPUTS}
    exact_after = np.array([r["after"] for r in rows])
    zero = _ZERO * np.linalg.norm(cotangents, axis=1)
    return Accuracy(
        states=states,
        cotangents=cotangents,
        ours=ours,
        oracle=pulled,
        errors={name: _errors(ours[name], pulled[name], zero) for name in INPUTS},
        step_error=_errors(after, exact_after, 0 * zero),
        **{name: np.array([r[name] for r in rows]) for name in ("kink", "doubt", "ncon", "nrow")},
    )


def _errors(value, reference, zero):
    """Relative errors of the rows; nan where both vanish, infinite where only the oracle does."""
    error, norm = (np.linalg.norm(x, axis=1) for x in (value - reference, reference))
    size = np.linalg.norm(value, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(norm > zero, error / norm, np.where(size > zero, np.inf, np.nan))
    return np.where(np.isfinite(size), found, np.inf)


def differences(mjm, states, cotangents, nstep=1, forces=()):
    """What the oracle says about some states; a function of plain data, for other processes."""
    rows = []
    data = mujoco.MjData(mjm)
    for q, v, act, u, cotangent in zip(*states[:4], cotangents, strict=True):
        found = fd.transition(mjm, q, v, u, act, nstep=nstep, forces=forces)
        pulled = found.vjp(cotangent)
        zero = _ZERO * np.linalg.norm(cotangent)
        doubts = [
            doubt
            for name, doubt in zip(found.shapes, found.vjp_error(cotangent), strict=True)
            if np.linalg.norm(getattr(pulled, name)) > zero
        ]
        data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = q, v, act, u
        mujoco.mj_forward(mjm, data)
        rows.append(
            {
                "pulled": pulled,
                "after": np.concatenate([found.qpos, found.qvel, found.act]),
                "kink": found.kink,
                "doubt": max(doubts, default=0.0),
                "ncon": int(np.sum(data.contact.efc_address >= 0)),
                "nrow": int(data.nefc),
            }
        )
    return rows


def step_vjp(
    mjm: mujoco.MjModel,
    states: fd.States,
    cotangents: np.ndarray,
    nstep: int = 1,
    device=None,
    forces: tuple[str, ...] = (),
    **sizes,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Step all states at once, pull cotangents of (dq, qvel, act) after it and of forces back.

    Returns:
        (qpos, qvel, act) after the step in one array, (n, nq + nv + na), and the cotangents before
        it by input, that of qpos in tangent space.
    """
    n, nv = len(states.qpos), mjm.nv
    physics = Physics(mjm, n, device, nstep=nstep, **sizes)
    state, out, adj_out, adj = (physics.make_state() for _ in range(4))
    record = physics.make_record()
    ctrl, adj_ctrl = (wp.zeros((n, mjm.nu), dtype=float, device=physics.device) for _ in range(2))

    def assign(array: wp.array, values: np.ndarray) -> None:
        if array.size > 0:
            array.assign(np.float32(values))

    for name in INPUTS[:3]:
        assign(getattr(state, name), getattr(states, name))
    assign(ctrl, states.ctrl)
    physics.launch_step(state, ctrl, out, record)
    physics.check_overflow()
    after = [getattr(out, name).numpy().astype(float) for name in INPUTS[:3]]
    # Of all gradients by the components of qpos, that without a part along a quaternion.
    assign(
        adj_out.qpos,
        np.array(
            [
                np.linalg.pinv(fd.tangent_map(mjm, q)).T @ c[:nv]
                for q, c in zip(after[0], cotangents, strict=True)
            ]
        ),
    )
    assign(adj_out.qvel, cotangents[:, nv : 2 * nv])
    assign(adj_out.act, cotangents[:, 2 * nv : 2 * nv + mjm.na])
    adj_forces, end = physics.make_forces(forces), 2 * nv + mjm.na
    for array in adj_forces.given().values():
        shape = array.numpy().shape
        start, end = end, end + int(np.prod(shape[1:]))
        assign(array, cotangents[:, start:end].reshape(shape))
    physics.launch_step_vjp(record, adj_out, adj, adj_ctrl, adj_forces)
    pulled = {name: getattr(adj, name).numpy().astype(float) for name in INPUTS[:3]}
    pulled["qpos"] = np.array(
        [fd.tangent_map(mjm, q).T @ g for q, g in zip(states.qpos, pulled["qpos"], strict=True)]
    )
    return np.hstack(after), pulled | {"ctrl": adj_ctrl.numpy().astype(float)}


def play(mjm: mujoco.MjModel, n: int, seed: int = 0, **options: Any) -> tuple[fd.States, int]:
    """Collect n states of random play, half of them in contact if the model plays like that.

    With pyramidal cones, states with a steep capsule on a plane, under RK4 also at the end of the
    step, are left out: there mujoco_warp has another friction pyramid than C MuJoCo, so that the
    two steps differ. For the options see `finite_diff.contact_rich_states`.

    Returns:
        The states, and how many were left out on the way.
    """
    steep = 0

    def accept(model: mujoco.MjModel, data: mujoco.MjData) -> bool:
        nonlocal steep
        pyramidal = model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
        refused = pyramidal and fd.has_steep_capsule(model, data)
        if pyramidal and not refused and model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            after = copy.copy(data)
            mujoco.mj_step(model, after)
            mujoco.mj_forward(model, after)
            refused = fd.has_steep_capsule(model, after)
        steep += refused
        return not refused

    options.setdefault("accept", accept)
    if colliding_pairs(mjm):
        with contextlib.suppress(RuntimeError):  # too rarely in contact
            return fd.contact_rich_states(mjm, n, seed, **options), steep
        steep = 0
    options["contacts"] = 0.0
    return fd.contact_rich_states(mjm, n, seed, **options), steep


if __name__ == "__main__":
    from .accuracy_tool import main

    sys.exit(main())
