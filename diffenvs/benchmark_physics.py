"""One physics step, timed: stock mujoco_warp, ours, ours recorded, and its gradient.

All four are captured graphs of the same worlds, in the states in which random play left them, or
all in one state that has constraint rows. They are replayed in turn, so that a slow moment of the
machine meets them alike. The gradient that the last replay left behind is then compared with
float64 central differences of C MuJoCo, by the oracle of `python -m diffenvs.physics.accuracy`: a
fast step that is wrong shows.
"""

from __future__ import annotations

import collections
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from diffenvs.physics import Physics, State, accuracy
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.load import load_kernels
from diffenvs.physics.tape import captured

PLAY, HOLD = 100, 5  # steps of random play, and how many of them hold a control
STATES = ("random", "contact")
ROWS = 4  # constraint rows that the state "contact" has at least
_TRIES = 10  # times that `PLAY` steps are played
SET_ASIDE = 0.5  # of a few worlds more may be set aside than of the many of the accuracy tool


@dataclass
class Case:
    """What is timed.

    Attributes:
        name: Of the model, as rows have it.
        mjm: The model, with the options that it is timed with.
        nworld: Number of worlds.
        device: Where.
        state: "random": every world where random play left it; "contact": all in one state with at
            least `ROWS` constraint rows.
        seed: Of controls and cotangents.
        env: Id of the environment; None without one.
        keywords: Of the environment.
    """

    name: str
    mjm: mujoco.MjModel
    nworld: int
    device: wp.Device
    state: str = "random"
    seed: int = 0
    env: str | None = None
    keywords: dict | None = None


def medians(
    device: wp.Device,
    variants: dict[str, tuple[Callable[[], None], Callable[[], None]]],
    replays: int,
    seconds: float,
) -> dict[str, float]:
    """Time variants of a computation in turn.

    Args:
        device: Where they run. On CUDA it is its own clock that counts, on the CPU the wall's.
        variants: What is called before each run, untimed, and the run itself.
        replays: Runs of each.
        seconds: Limit; where all replays would take longer there are fewer, but at least five.

    Returns:
        The median of each, in microseconds.
    """
    begin = time.perf_counter()
    for prepare, run in variants.values():
        prepare()
        run()
    wp.synchronize_device(device)
    fit = int(seconds / (time.perf_counter() - begin))
    found: dict[str, list] = {name: [] for name in variants}
    # Nothing waits for the device in here: its queue must not run dry, or gaps would be timed.
    for _ in range(min(replays, max(fit, 5))):
        for name, (prepare, run) in variants.items():
            prepare()
            if device.is_cpu:
                begin = time.perf_counter()
                run()
                found[name].append(1e6 * (time.perf_counter() - begin))
            else:
                events = [wp.Event(device, enable_timing=True) for _ in range(2)]
                device.stream.record_event(events[0])
                run()
                device.stream.record_event(events[1])
                found[name].append(events)
    wp.synchronize_device(device)
    if device.is_cuda:
        found = {
            name: [1e3 * wp.get_event_elapsed_time(*events) for events in runs]
            for name, runs in found.items()
        }
    return {name: float(np.median(times)) for name, times in found.items()}


class StepBenchmark:
    """The step of one case and its gradient, on memory and graphs of its own.

    Raises:
        UnsupportedFeature: The model has no gradient.
        ValueError: Random play finds no state of the kind that the case asks for.
    """

    def __init__(self, case: Case):
        self.case = case
        self.physics = p = Physics(case.mjm, case.nworld, case.device)
        self.rng = np.random.default_rng(case.seed)
        self.state, self.out, self.adj_out, self.adj = (p.make_state() for _ in range(4))
        self.record = p.make_record()
        with wp.ScopedDevice(p.device):
            self.ctrl, self.adj_ctrl = (
                wp.zeros((case.nworld, p.nu), dtype=float) for _ in range(2)
            )
            self.stock = mjw.put_model(case.mjm)
            self.stock_data = mjw.make_data(
                case.mjm, case.nworld, nconmax=p.nconmax, njmax=p.d.njmax
            )
        self.launches: dict[str, Callable[[], None]] = {
            "stock": lambda: mjw.step(self.stock, self.stock_data),
            "step": lambda: p.launch_step(self.state, self.ctrl, self.out),
            "recorded": lambda: p.launch_step(self.state, self.ctrl, self.out, self.record),
            "backward": lambda: p.launch_step_vjp(
                self.record, self.adj_out, self.adj, self.adj_ctrl
            ),
        }
        load_kernels(p.device, *self.launches.values())
        self.graphs = {name: captured(p.device, run) for name, run in self.launches.items()}
        self._draw_cotangents()
        world = self._play_on()
        if case.state == "contact":
            for array in (*self.state.arrays(), self.ctrl):
                if array.size:
                    array.assign(np.tile(array.numpy()[world], (case.nworld, 1)))

    def _play(self) -> None:
        """Play at random, from the model's reference configuration or from where it was left."""
        mjm = self.case.mjm
        limited = mjm.actuator_ctrllimited.astype(bool)[:, None]
        low, high = np.where(limited, mjm.actuator_ctrlrange, [-1.0, 1.0]).T
        for step in range(PLAY):
            if step % HOLD == 0 and self.ctrl.size:
                self.ctrl.assign(np.float32(self.rng.uniform(low, high, self.ctrl.shape)))
            wp.capture_launch(self.graphs["step"])
            _copy(self.state, self.out)
        self.physics.check_overflow()

    def _draw_cotangents(self) -> None:
        """Random ones of all that a step gives, by the components of its arrays."""
        for array in self.adj_out.differentiable():
            if array.size:
                array.assign(np.float32(self.rng.normal(size=array.shape)))

    def _play_on(self) -> int:
        """Play until there is a world of the kind that the case asks for, in which we can compare.

        Returns:
            The first such world: neither steep nor at a kink, and with enough rows.
        """
        exact = fd.converged(self.case.mjm)
        least = ROWS if self.case.state == "contact" else 0
        for _ in range(_TRIES):
            self._play()
            wp.capture_launch(self.graphs["recorded"])
            for world in np.flatnonzero(self.rows() >= least)[:20]:
                state = self.states([world])
                if self._is_steep(state):
                    continue
                cotangent = self.rng.normal(size=(1, 2 * self.physics.nv + self.physics.na))
                (row,) = accuracy.differences(exact, state, cotangent)
                if not row["kink"] and row["doubt"] < accuracy.DOUBT:
                    return int(world)
        raise ValueError(
            f"{self.case.name}: {_TRIES * PLAY} steps of random play in {self.case.nworld} worlds "
            f"have no state with at least {least} constraint rows in which differences of C MuJoCo "
            "can be taken"
        )

    # What is measured

    def time(self, replays: int, seconds: float) -> dict[str, float]:
        """Microseconds of a step of all worlds, by variant; see `medians`."""
        p, d = self.physics, self.stock_data

        def restore() -> None:
            for name, array in vars(self.state).items():
                if array.size:
                    wp.copy(getattr(d, name), array)

        def nothing() -> None:
            pass

        if self.ctrl.size:
            wp.copy(d.ctrl, self.ctrl)
        with wp.ScopedDevice(p.device):
            variants = {
                name: (
                    restore if name == "stock" else nothing,
                    lambda graph=graph: wp.capture_launch(graph),
                )
                for name, graph in self.graphs.items()
            }
            found = medians(p.device, variants, replays, seconds)
        p.check_overflow()
        return found

    def count_launches(self) -> dict[str, int]:
        """Kernels, copies and fills of a replay; on the CPU a loop of the solver counts once."""
        if self.physics.device.is_cuda:
            return {name: len(self._activities(run)) for name, run in self.launches.items()}
        core = wp._src.context.runtime.core
        return {
            name: int(core.wp_apic_get_operation_count(graph.apic_state))
            for name, graph in self.graphs.items()
        }

    def profile(self, runs: int = 5) -> dict[str, list[tuple[str, float, float]]]:
        """Names of kernels with microseconds and launches per step, the slowest first (CUDA).

        Launched one by one, so that the figures of all have some microseconds more than in a graph.
        """
        found = {}
        for variant, run in self.launches.items():
            sums = collections.defaultdict(lambda: [0.0, 0])
            self._activities(run)
            for _ in range(runs):
                for activity in self._activities(run):
                    sums[activity.name][0] += 1e3 * activity.elapsed
                    sums[activity.name][1] += 1
            rows = [(name, us / runs, count / runs) for name, (us, count) in sums.items()]
            found[variant] = sorted(rows, key=lambda row: -row[1])
        return found

    def _activities(self, run: Callable[[], None]) -> list:
        """Everything that the launches make the device do, timed one by one."""
        with wp.ScopedDevice(self.physics.device):
            wp.timing_begin(cuda_filter=wp.TIMING_ALL)
            run()
            return wp.timing_end()

    # What was computed

    def rows(self) -> np.ndarray:
        """Constraint rows of every world in the timed step, (nworld,)."""
        return self.record.substeps[0].d.nefc.numpy().copy()

    def in_contact(self) -> np.ndarray:
        """Which worlds have rows of contacts in the timed step, (nworld,)."""
        d = self.record.substeps[0].d
        others = sum(getattr(d, name).numpy() for name in ("ne", "nf", "nl"))
        return self.rows() > others

    def difference_from_stock(self) -> float:
        """Largest difference of a velocity after the step from that of stock mujoco_warp."""
        return float(np.abs(self.out.qvel.numpy() - self.stock_data.qvel.numpy()).max(initial=0))

    def useless_gradients(self) -> int:
        """Worlds whose gradient of the timed replay is zero, or not finite."""
        size = sum(
            np.linalg.norm(array.numpy(), axis=1)
            for array in (*self.adj.differentiable(), self.adj_ctrl)
            if array.size
        )
        return int((~np.isfinite(size) | (size == 0)).sum())

    def gradient_error(self, count: int) -> tuple[accuracy.Accuracy, int]:
        """Compare the gradient of the last replay with differences, in some worlds.

        Args:
            count: Number of worlds; half of them are in contact, if that many are.

        Returns:
            The comparison, and how many worlds were passed over because mujoco_warp has another
            friction pyramid there than C MuJoCo.
        """
        worlds, steep = self._choose(count)
        mjm, states = self.case.mjm, self.states(worlds)

        def of(state: State, turn: np.ndarray) -> list[np.ndarray]:
            """Gradients by qpos, qvel and act, that of qpos in tangent space at `turn`."""
            parts = [array.numpy()[worlds].astype(float) for array in state.differentiable()]
            tangent = [fd.tangent_map(mjm, q).T @ g for q, g in zip(turn, parts[0], strict=True)]
            return [np.array(tangent), *parts[1:]]

        after = [array.numpy()[worlds].astype(float) for array in self.out.differentiable()]
        cotangents = np.hstack(of(self.adj_out, after[0]))
        parts = [*of(self.adj, states.qpos), self.adj_ctrl.numpy()[worlds].astype(float)]
        ours: dict[str, np.ndarray] = dict(zip(accuracy.INPUTS, parts, strict=True))
        found = accuracy.differences(fd.converged(mjm), states, cotangents)
        result = accuracy.compare(states, cotangents, np.hstack(after), ours, found)
        return result, steep

    def states(self, worlds: list[int]) -> fd.States:
        """The states before the timed step, of some worlds."""
        arrays = (*self.state.differentiable(), self.ctrl, self.state.qacc_warmstart)
        parts = [array.numpy()[worlds].astype(float) for array in arrays]
        return fd.States(*parts, ncon=self.rows()[worlds])

    def _choose(self, count: int) -> tuple[list[int], int]:
        """Worlds to compare, in a random order, and how many steep ones were passed over."""
        order = self.rng.permutation(self.case.nworld)
        touching = self.in_contact()[order]
        half = order[touching][: count // 2]
        rest = [world for world in order if world not in half]
        chosen, steep = [], 0
        for world in [*half, *rest]:
            if len(chosen) == count:
                break
            if self._is_steep(self.states([world])):
                steep += 1
            else:
                chosen.append(int(world))
        return chosen, steep

    def _is_steep(self, states: fd.States) -> bool:
        """Whether mujoco_warp and C MuJoCo have different friction pyramids in the (one) state."""
        mjm = self.case.mjm
        if mjm.opt.cone != mujoco.mjtCone.mjCONE_PYRAMIDAL:
            return False
        data = mujoco.MjData(mjm)
        for name in accuracy.INPUTS:
            getattr(data, name)[:] = getattr(states, name)[0]
        mujoco.mj_forward(mjm, data)
        if fd.has_steep_capsule(mjm, data):
            return True
        if mjm.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4:
            return False
        after = copy.copy(data)  # RK4 also sees the contacts at the end of the step
        mujoco.mj_step(mjm, after)
        mujoco.mj_forward(mjm, after)
        return fd.has_steep_capsule(mjm, after)


def _copy(target: State, source: State) -> None:
    for to, given in zip(target.arrays(), source.arrays(), strict=True):
        if to.size:
            wp.copy(to, given)


def measure_step(
    case: Case, replays: int, seconds: float, check: int, profile: bool = False
) -> tuple[dict[str, float], list[str], dict]:
    """Time the step of a case, and compare its gradient.

    Args:
        case: What to time.
        replays: See `medians`.
        seconds: See `medians`.
        check: Number of worlds whose gradient is compared.
        profile: Whether to time every kernel as well (CUDA).

    Returns:
        Metrics by name; what is wrong with the gradient, in words; and the profile.
    """
    bench = StepBenchmark(case)
    us = bench.time(replays, seconds)
    found, steep = bench.gradient_error(check)
    pairs = [p for p in map(found.quantiles, accuracy.INPUTS) if isinstance(p, tuple)]
    pairs = pairs or [(float("nan"), float("nan"))]
    median, worst = (max(marks) for marks in zip(*pairs, strict=True))
    failures = [f"gradient: {text}" for text in found.failures(set_aside=SET_ASIDE)]
    useless = bench.useless_gradients()
    if useless:
        failures.append(f"gradient: zero or not finite in {useless} of {case.nworld} worlds")
    rows = bench.rows()
    both = us["recorded"] + us["backward"]
    metrics = {f"{name}_us": value for name, value in us.items()}
    metrics |= {
        "ratio": both / us["stock"],
        "recorded_ratio": us["recorded"] / us["stock"],
        "backward_ratio": us["backward"] / us["stock"],
        "steps_per_second": 1e6 * case.nworld / us["step"],
        "gradients_per_second": 1e6 * case.nworld / both,
        "bytes_per_world_and_substep": bench.record.nbytes() / case.nworld,
        "worlds_in_contact": int(bench.in_contact().sum()),
        "rows_mean": float(rows.mean()),
        "rows_max": int(rows.max()),
        "difference_from_stock": bench.difference_from_stock(),
        "gradient_error_median": median,
        "gradient_error_worst": worst,
        "worlds_compared": int(found.trusted.sum()),
        "worlds_set_aside": int((~found.trusted).sum()),
        "worlds_steep": steep,
    }
    metrics |= {f"{name}_launches": count for name, count in bench.count_launches().items()}
    return metrics, failures, bench.profile() if profile else {}
