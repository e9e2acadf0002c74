"""What else one could take, timed beside ours: finite differences in C MuJoCo, Gymnasium, MJX."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import warp as wp

from diffenvs import command_line
from diffenvs.benchmark_physics import Case, StepBenchmark
from diffenvs.evaluate import both_keywords
from diffenvs.physics import linearize

_STATES = 64  # of the differences, which cost the same in every state
_LINEARIZED = 256  # worlds, at most
_GYM_STEPS, _GYM_ROUNDS = 100, 9
_MJX_LS = 8  # steps of its line search, which reverse mode unrolls


def transition_fd(bench: StepBenchmark, replays: int) -> dict[str, float]:
    """Time `mujoco.mjd_transitionFD` on one core, and beside it our VJP and `linearize`.

    Differences and `linearize` give all of both matrices, a VJP one row. All in states of random
    play: the VJP, alone and with the recorded step, of all worlds of the case; `linearize` of up
    to 256.

    Returns:
        Microseconds per state, and how many times as long as ours the differences take.
    """
    case = bench.case
    mjm, some = case.mjm, min(case.nworld, _STATES)
    states = bench.states(list(range(min(case.nworld, _LINEARIZED))))
    data, n = mujoco.MjData(mjm), 2 * mjm.nv + mjm.na
    A, B = np.zeros((n, n)), np.zeros((n, mjm.nu))

    def differences(centred: bool) -> None:
        for i in range(some):
            for name in ("qpos", "qvel", "act", "ctrl", "qacc_warmstart"):
                getattr(data, name)[:] = getattr(states, name)[i]
            mujoco.mjd_transitionFD(mjm, data, 1e-6, centred, A, B, None, None)

    def replay(*names: str) -> None:
        for name in names:
            wp.capture_launch(bench.graphs[name])
        wp.synchronize_device(case.device)

    given = (mjm, states.qpos, states.qvel, states.ctrl, states.act, str(case.device))
    variants = {
        "transition_fd_one_sided": (some, lambda: differences(False)),
        "transition_fd_centred": (some, lambda: differences(True)),
        "step_and_vjp": (case.nworld, lambda: replay("recorded", "backward")),
        "vjp": (case.nworld, lambda: replay("backward")),
        "linearize": (len(states.qpos), lambda: linearize(*given)),
    }
    linearize(*given)  # compiles, captures
    us = _medians({name: run for name, (_, run) in variants.items()}, max(replays // 4, 3))
    found = {f"{name}_us_per_state": us[name] / count for name, (count, _) in variants.items()}
    for ours in ("step_and_vjp", "vjp", "linearize"):
        for kind in ("one_sided", "centred"):
            theirs = found[f"transition_fd_{kind}_us_per_state"]
            found[f"{ours}_speedup_{kind}"] = theirs / found[f"{ours}_us_per_state"]
    return found


def _medians(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Microseconds of what ends on the host, in turn; the second of two calls, as in a loop."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            run()  # a GPU that has waited for the others is slower
            begin = time.perf_counter()
            run()
            found[name].append(1e6 * (time.perf_counter() - begin))
    return {name: float(np.median(times)) for name, times in found.items()}


def gymnasium_rate(case: Case) -> dict[str, float]:
    """Steps per second of one world with NumPy arrays: ours, and Gymnasium's own environment.

    Gymnasium's has our integrator and observation. Nothing where it has no such task.
    """
    spec = command_line.find_spec(str(case.env))
    keywords = both_keywords(spec, {})
    if "gymnasium" not in keywords:
        return {}
    ours: Any = gym.make(spec.id, device=str(case.device), **case.keywords or {})
    theirs: Any = gym.make(str(command_line.find_task(spec).gymnasium), **keywords["gymnasium"])
    theirs.unwrapped.model.opt.integrator = ours.unwrapped.model.opt.integrator
    actions = np.random.default_rng(case.seed).uniform(-1, 1, (_GYM_STEPS, case.mjm.nu))
    scale = np.where(np.isfinite(ours.action_space.high), ours.action_space.high, 1.0)

    def play(env: Any) -> float:
        seconds = 0.0
        for action in actions:
            begin = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(np.float32(scale * action))
            seconds += time.perf_counter() - begin
            if terminated or truncated:
                env.reset()
        return seconds

    for env in (ours, theirs):
        env.reset(seed=case.seed)
        play(env)
    seconds = np.median([(play(ours), play(theirs)) for _ in range(_GYM_ROUNDS)], axis=0)
    for env in (ours, theirs):
        env.close()
    return {
        "single_steps_per_second": _GYM_STEPS / seconds[0],
        "gymnasium_steps_per_second": _GYM_STEPS / seconds[1],
        "single_by_gymnasium": seconds[1] / seconds[0],
    }


def mjx(bench: StepBenchmark, replays: int) -> dict[str, float]:
    """Microseconds of a step of all worlds in MJX, and of the step with its gradient by `jax.grad`.

    With one iteration of Newton, as reverse mode does not pass through more: its physics is not
    converged, and neither is the gradient.

    Raises:
        ImportError: jax or mujoco-mjx is not installed.
        NotImplementedError, ValueError, RuntimeError: MJX does not have what the model needs.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax  # pyright: ignore[reportMissingImports]
    from mujoco import mjx  # pyright: ignore[reportAttributeAccessIssue]

    case = bench.case
    mjm = copy.copy(case.mjm)
    mjm.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    mjm.opt.iterations, mjm.opt.ls_iterations = 1, _MJX_LS
    device = jax.devices("cpu" if case.device.is_cpu else "gpu")[0]
    s = bench.states(list(range(case.nworld)))
    with jax.default_device(device):
        model, data = mjx.put_model(mjm), mjx.make_data(mjm)

        def step(qpos: Any, qvel: Any, ctrl: Any) -> tuple[Any, Any]:
            after = mjx.step(model, data.replace(qpos=qpos, qvel=qvel, ctrl=ctrl))
            return after.qpos, after.qvel

        def loss(*given: Any) -> Any:
            qpos, qvel = step(*given)
            return qpos.sum() + qvel.sum()

        forward = jax.jit(jax.vmap(step))
        gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2))))
        given = [jax.numpy.asarray(np.float32(x)) for x in (s.qpos, s.qvel, s.ctrl)]
        begin = time.perf_counter()
        jax.block_until_ready(forward(*given))
        if not all(bool(jax.numpy.isfinite(g).all()) for g in gradient(*given)):
            raise RuntimeError("its gradient is not finite")
        seconds = time.perf_counter() - begin
        us = _medians(
            {
                "step": lambda: jax.block_until_ready(forward(*given)),
                "gradient": lambda: jax.block_until_ready(gradient(*given)),
            },
            replays,
        )
    return {
        "mjx_step_us": us["step"],
        "mjx_step_and_gradient_us": us["gradient"],
        "mjx_compile_seconds": seconds,
    }


def measure_peers(case: Case, replays: int) -> tuple[dict[str, float], list[str]]:
    """Time what is installed of the peers.

    Args:
        case: What to time them on.
        replays: Runs of each; fewer of what takes long.

    Returns:
        Metrics by name, and what could not be timed, in words.
    """
    bench = StepBenchmark(case)
    found, left_out = transition_fd(bench, replays), []
    if case.env is not None:
        found |= gymnasium_rate(case)
    try:
        found |= mjx(bench, replays)
    except ImportError as error:
        left_out.append(f"mjx: not installed (pip install mujoco-mjx): {error}")
    except Exception as error:  # whatever JAX raises about a model is no error of ours
        left_out.append(f"mjx: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return found, left_out
