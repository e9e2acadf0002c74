"""Scores of a saved policy: on Gymnasium's own environment, in C MuJoCo, and on ours.

    python -m diffenvs.evaluate --env DiffAnt-v0 --policy policy.pt2

plays whole episodes on both and prints returns and lengths with their standard errors. A policy
that has learned something of our simulation alone would show here.

Both sides are played by the same code. Gymnasium's environment gets those of the task's parameters
that it knows by name, so that the observations have the same layout, and pays its own reward: its
weights are its own unless they were given. Ours pays that reward too, where the task has a choice.
Episode i starts from seed + i on either side; the two draw different starts from it.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs.env import load_task
from diffenvs.policy import Policy, load_policy
from diffenvs.task import Task

SIDES = ("gymnasium", "diffenvs")


@dataclass
class Episodes:
    """Whole episodes of one environment.

    Attributes:
        returns: Sum of the rewards of each, (n,).
        lengths: Steps of each, (n,).
    """

    returns: np.ndarray
    lengths: np.ndarray


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, which is nan for a single value."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def run_episodes(
    envs: gym.vector.VectorEnv, policy: Policy, episodes: int, seed: int = 0
) -> Episodes:
    """Play whole episodes: of every world the first one after a reset, until all have ended.

    So a short episode counts as much as a long one. Worlds that are through go on in episodes of
    which nothing is counted.

    Args:
        envs: Vector environment that resets by itself in the same step, with a time limit.
        policy: Maps observations to actions, NumPy (num_envs, ...).
        episodes: Number of episodes; not more than num_envs run at a time.
        seed: Episode i starts from `seed + i`.
    """
    if envs.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
        raise ValueError(f"run_episodes needs autoreset_mode SAME_STEP of {envs}")
    found = Episodes(np.zeros(episodes), np.zeros(episodes, dtype=int))
    for first in range(0, episodes, envs.num_envs):
        part = slice(first, min(first + envs.num_envs, episodes))
        count = part.stop - part.start
        obs, _ = envs.reset(seed=seed + first)
        running = np.ones(count, dtype=bool)
        while running.any():
            obs, reward, terminated, truncated, _ = envs.step(policy(obs))
            found.returns[part] += np.where(running, reward[:count], 0.0)
            found.lengths[part] += running
            running &= ~(terminated | truncated)[:count]
    return found


def keywords(task_class: type[Task], given: dict[str, Any]) -> tuple[dict, dict]:
    """Keywords with which both environments show the same observation and pay the same reward.

    Args:
        task_class: Task that has a counterpart in Gymnasium.
        given: Keywords that the user asked for.

    Returns:
        Those of Gymnasium's environment, and those of ours.
    """
    ours = {name: value for name, value in task_class.v5.items() if _pays(name)} | given
    creator = load_env_creator(gym.spec(task_class.gymnasium).entry_point)
    known = inspect.signature(creator).parameters
    task = _make_task(task_class, ours)
    fixed = {name: value for name, (value, _) in task_class.refused.items()}
    theirs = {
        name: value
        for name, value in (fixed | task.parameters | given).items()
        if name in known and (name in given or not _pays(name))
    }
    return theirs, ours


def _pays(name: str) -> bool:
    """Say whether a keyword decides what is paid, and not what is seen or simulated."""
    return name in ("reward", "healthy_reward") or name.endswith("_weight")


def _make_task(task_class: type[Task], given: dict[str, Any]) -> Task:
    """Make a task from the keywords of an environment."""
    of_env = inspect.signature(diffenvs.DiffVectorEnv).parameters
    of_task = inspect.signature(Task).parameters
    return task_class(
        **{name: value for name, value in given.items() if name in of_task or name not in of_env}
    )


def evaluate(
    env: str,
    policy: str | Path,
    on: str | None = None,
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 100,
    device: str | None = None,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a policy file.

    Args:
        env: Id of one of our environments; "module:Id-v0" imports the module that registers it.
        policy: File, see `diffenvs.policy`.
        on: "gymnasium", "diffenvs", or None for both, as far as Gymnasium has the task.
        episodes: Number of episodes on either side.
        seed: Episode i starts from `seed + i`.
        num_envs: Episodes that run side by side.
        device: Of ours: "cpu", "cuda:0", ...; None is Warp's default.
        given: Keywords of the environments.

    Returns:
        What was played and, under "results", for each side the environment's id and keywords, mean,
        standard error, minimum and maximum of the return, mean and standard error of the length,
        and the list of both.
    """
    given = dict(given or {})
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if value < 1:
            raise ValueError(f"evaluate: {name} must be an integer >= 1, not {value!r}")
    if on not in (None, *SIDES):
        raise ValueError(f"evaluate: on={on!r} is not one of {list(SIDES)}")
    spec = find_spec(env)
    task_class = load_task(spec.kwargs["task"])
    twin = task_class.gymnasium
    if on == "gymnasium" and twin is None:
        raise ValueError(
            f"{spec.id} is a task of ours, Gymnasium has no environment to score it on; "
            "--on diffenvs scores it here"
        )
    limit = given.pop("max_episode_steps", spec.max_episode_steps)
    if limit in (None, -1):
        raise ValueError(f"{spec.id} has no time limit; give one: --kwarg max_episode_steps=1000")
    theirs, ours = keywords(task_class, given) if twin else ({}, given)
    act = load_policy(policy, _make_task(task_class, ours))
    shared = {"num_envs": min(num_envs, episodes), "max_episode_steps": limit}
    results = {}
    for side in SIDES if on is None else (on,):
        if side == "diffenvs":
            name, options = spec.id, ours
            envs = gym.make_vec(spec, **shared, device=device, **ours)
        elif twin is not None:
            name, options = twin, theirs
            envs = gym.make_vec(
                twin,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
                **shared,
                **theirs,
            )
        else:
            continue
        try:
            found = run_episodes(envs, act, episodes, seed)
        finally:
            envs.close()
        results[side] = {"env": name, "keywords": options} | _summary(found)
    return {
        "env": spec.id,
        "policy": str(policy),
        "episodes": episodes,
        "seed": seed,
        "max_episode_steps": limit,
        "results": results,
    }


def find_spec(env: str) -> Any:
    """Return the specification of one of our environments by its id."""
    module, _, name = env.rpartition(":")
    if module:
        import_module(module)
    spec = gym.spec(name)
    if "task" not in spec.kwargs:
        ours = [known for known, other in gym.registry.items() if "task" in other.kwargs]
        raise ValueError(f"{env} is not an environment of diffenvs; those are {sorted(ours)}")
    return spec


def _summary(found: Episodes) -> dict[str, Any]:
    """What is kept of one side."""
    mean, error = mean_and_error(found.returns)
    length, length_error = mean_and_error(found.lengths)
    return {
        "return": mean,
        "return_error": error,
        "return_min": float(found.returns.min()),
        "return_max": float(found.returns.max()),
        "length": length,
        "length_error": length_error,
        "returns": found.returns.tolist(),
        "lengths": found.lengths.tolist(),
    }


def report(scores: dict[str, Any]) -> str:
    """What `evaluate` returned, as a table for the terminal."""
    count, seed = scores["episodes"], scores["seed"]
    lines = [
        f"{scores['policy']} on {scores['env']}: {count} episodes, seeds {seed} to "
        f"{seed + count - 1}; mean and its standard error",
        "",
        f"{'':30}{'return':>20}{'lowest':>10}{'highest':>10}{'steps':>18}",
    ]
    where = {"gymnasium": "Gymnasium, C MuJoCo", "diffenvs": "ours"}
    for side, found in scores["results"].items():
        lines.append(
            f"{found['env'] + ' (' + where[side] + ')':30}"
            f"{found['return']:>11.1f} ± {found['return_error']:<6.1f}"
            f"{found['return_min']:>10.1f}{found['return_max']:>10.1f}"
            f"{found['length']:>10.1f} ± {found['length_error']:<5.1f}"
        )
    if len(scores["results"]) == 2:
        theirs, ours = (scores["results"][side] for side in SIDES)
        difference = ours["return"] - theirs["return"]
        error = float(np.hypot(ours["return_error"], theirs["return_error"]))
        lines += ["", f"The returns differ by {difference:.1f} ± {error:.1f} (ours - Gymnasium's)."]
    elif "gymnasium" not in scores["results"] and scores["twin"] is None:
        lines += ["", "The task is ours: Gymnasium has no environment to score it on."]
    return "\n".join(lines)
