"""One step of an environment, timed: `step`, `grad_step`, its gradient, and what a window holds.

What is timed is what a step does on the device, frame skip, observation, reward and autoreset
included: the replays of `Rollout`, without the copies from and to the host that NumPy arrays need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import warp as wp

from diffenvs.benchmark_physics import HOLD, PLAY, Case, medians
from diffenvs.vector_env import DiffVectorEnv
from diffenvs.window import RETAIN

WINDOW = 32  # env steps, of the window whose memory is told
_FEW = 16  # worlds are enough to see what one of them holds

# A process of its own, that says when it has a gradient on the host.
_FIRST_OF_ENV = """
import json, sys, time
import gymnasium as gym, numpy as np, warp as wp
import diffenvs
wp.config.log_level = wp.LOG_WARNING
env, keywords = sys.argv[1], json.loads(sys.argv[2])
envs = gym.make_vec(env, **keywords)
envs.reset(seed=0)
obs, *_ = envs.grad_step(envs.action_space.sample())
gradient = envs.backward(np.ones((1, *obs.shape)), None)
assert np.isfinite(gradient).all() and gradient.any()
print(time.time())
"""
_FIRST_OF_MODEL = """
import json, sys, time
import mujoco, numpy as np, warp as wp
from diffenvs.physics import Physics
wp.config.log_level = wp.LOG_WARNING
model, (nworld, device) = sys.argv[1], json.loads(sys.argv[2])
physics = Physics(mujoco.MjModel.from_binary_path(model), nworld, device)
state = physics.make_state(requires_grad=True)
ctrl = wp.zeros((nworld, physics.nu), dtype=float, device=device)
with wp.Tape() as tape:
    after = physics.step(state, ctrl)
tape.backward(grads={after.qvel: wp.ones_like(after.qvel)})
gradient = state.qvel.grad.numpy()
assert np.isfinite(gradient).all() and gradient.any()
print(time.time())
"""


def measure_env(case: Case, replays: int, seconds: float) -> tuple[dict[str, float], list[str]]:
    """Time the steps of the case's environment.

    Args:
        case: With an environment.
        replays: See `medians`.
        seconds: See `medians`.

    Returns:
        Metrics by name, and what is wrong with the gradient, in words.
    """
    envs = _make(case, case.nworld)
    rollout, adj = envs.rollout, envs.rollout.adj
    rng = np.random.default_rng(case.seed)
    envs.action_space.seed(case.seed)
    for step in range(-(-PLAY // envs.task.nstep)):
        if step * envs.task.nstep % HOLD < envs.task.nstep:
            action = wp.array(envs.action_space.sample(), dtype=float, device=case.device)
        rollout.step(action)
    kept = {name: wp.clone(array) for name, array in rollout.carried().items()}
    adj.obs.assign(np.float32(rng.normal(size=adj.obs.shape)))
    adj.reward.fill_(1.0)

    def restore() -> None:
        for name, array in rollout.carried().items():
            if array.size:
                wp.copy(array, kept[name])
        rollout.detach()

    def record() -> None:
        restore()
        rollout.grad_step(action)

    def backward() -> None:
        rollout.backward(rollout.ticket(0))

    with wp.ScopedDevice(case.device):
        record()  # compiles and captures
        backward()
        adjoint = rollout.last.graphs["backward"]
        variants = {
            "step": (restore, lambda: rollout.step(action)),
            "grad_step": (restore, lambda: rollout.grad_step(action)),
            # the graph alone: `backward` looks at the step's health first, and waits for that
            "backward": (record, lambda: wp.capture_launch(adjoint)),
        }
        us = medians(case.device, variants, replays, seconds)
        record()
        backward()
    rollout.settle()
    size = np.linalg.norm(adj.action.numpy(), axis=1) + np.linalg.norm(
        adj.state.qvel.numpy(), axis=1
    )
    useless = int((~np.isfinite(size) | (size == 0)).sum())
    failures = [f"environment: gradient zero or not finite in {useless} worlds"] if useless else []
    both = us["grad_step"] + us["backward"]
    metrics = {f"env_{name}_us": value for name, value in us.items()}
    metrics |= {
        "env_ratio": both / us["step"],
        "env_steps_per_second": 1e6 * case.nworld / us["step"],
        "env_gradients_per_second": 1e6 * case.nworld / both,
        "env_physics_steps": envs.task.nstep,
    }
    envs.close()
    return metrics | window_memory(case), failures


def _make(case: Case, num_envs: int, **keywords: Any) -> DiffVectorEnv:
    given = {"num_envs": num_envs, "device": str(case.device), "arrays": "warp"}
    envs: Any = gym.make_vec(str(case.env), **given | (case.keywords or {}) | keywords)
    envs.reset(seed=case.seed)
    return envs


def window_memory(case: Case) -> dict[str, float]:
    """Memory of a window of `WINDOW` recorded steps of all worlds, in MiB, by what they retain.

    Of a few worlds, and in proportion of all: nothing of that size is allocated.
    """
    found = {}
    for retain in RETAIN:
        envs = _make(case, _FEW, retain=retain)
        held = envs.window_memory.of(WINDOW) * case.nworld / _FEW
        found[f"window_{WINDOW}_{retain}_mib"] = held / 2**20
        envs.close()
    return found


def first_gradient(case: Case, cold: bool) -> dict[str, float]:
    """Seconds from the start of a process to its first gradient on the host.

    Of the environment through NumPy arrays, or of the physics where there is no environment.

    Args:
        case: What is differentiated.
        cold: Whether the process starts without any compiled kernel; it is then timed a second
            time, with those that the first one left.

    Raises:
        RuntimeError: The process failed; the message has what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        if case.env is not None:
            keywords = {"num_envs": case.nworld, "device": str(case.device)}
            code, what = _FIRST_OF_ENV, (case.env, keywords | (case.keywords or {}))
        else:
            model = str(Path(folder) / "model.mjb")
            mujoco.mj_saveModel(case.mjm, model, None)
            code, what = _FIRST_OF_MODEL, (model, (case.nworld, str(case.device)))
        command = [sys.executable, "-c", code, what[0], json.dumps(what[1])]
        found = {}
        for kind in ("cold", "warm") if cold else ("warm",):
            cache = {"WARP_CACHE_PATH": str(Path(folder) / "warp")} if cold else {}
            begin = time.time()
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cache)
            if done.returncode:
                raise RuntimeError(f"{case.name}: no first gradient: {done.stderr.strip()}")
            end = float(done.stdout.strip().splitlines()[-1])
            found[f"first_gradient_{kind}_seconds"] = end - begin
    return found
