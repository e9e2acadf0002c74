"""Scores of a saved policy: on Gymnasium's own environment, in C MuJoCo, and on ours.

    python -m diffenvs.evaluate --env DiffAnt-v0 --policy policy.pt2

plays whole episodes on both and prints returns and lengths with their standard errors. What a
policy has learned of our simulation alone shows in the difference.

Both sides are played by the same code. Gymnasium's environment gets those of the task's parameters
that it knows by name, so that the observations have the same layout, and pays its own reward, by
its own weights unless one was given. Ours pays that reward too. It keeps its own integrator
(`--kwarg integrator=rk4` for that of most v5 tasks). Episode i starts from seed + i on either side;
the two make different starts of it.
"""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from diffenvs import command_line
from diffenvs.policy import Policy, load_policy
from diffenvs.task import pays

SIDES = {"gymnasium": "Gymnasium, C MuJoCo", "diffenvs": "ours"}
FIXED = {
    # keywords of the environments that are not for the user to choose: why
    "num_envs": "it is an argument of its own, on the command line --num-envs",
    "autoreset_mode": "episodes are counted in SAME_STEP",
    "arrays": "policies take NumPy arrays",
    "task": "the id decides it",
    "vectorization_mode": "each side has its own",
    "vector_kwargs": "each side has its own",
    "wrappers": "policies see the bare environments",
}


@dataclass
class Episodes:
    """Whole episodes of one environment.

    Attributes:
        returns: Sum of the rewards of each, (n,).
        lengths: Steps of each, (n,).
    """

    returns: np.ndarray
    lengths: np.ndarray


def run_episodes(envs: VectorEnv, policy: Policy, episodes: int, seed: int = 0) -> Episodes:
    """Play whole episodes: of every world the first one after a reset, until all have ended.

    So a short episode counts as much as a long one. Worlds that are through go on in episodes of
    which nothing is counted.

    Args:
        envs: Vector environment with a time limit, in the autoreset mode SAME_STEP.
        policy: Maps observations to actions, NumPy arrays (num_envs, ...).
        episodes: Number of episodes; not more than num_envs of them run at a time.
        seed: Episode i starts from `seed + i`.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.SAME_STEP:
        raise ValueError(f"run_episodes needs an environment in SAME_STEP, not in {mode}")
    found = Episodes(np.zeros(episodes), np.zeros(episodes, dtype=int))
    for first in range(0, episodes, envs.num_envs):
        count = min(envs.num_envs, episodes - first)
        part = slice(first, first + count)
        obs, _ = envs.reset(seed=seed + first)
        running = np.ones(count, dtype=bool)
        while running.any():
            obs, reward, terminated, truncated, _ = envs.step(policy(obs))
            found.returns[part] += np.where(running, reward[:count], 0.0)
            found.lengths[part] += running
            running &= ~(terminated | truncated)[:count]
    return found


def both_keywords(spec: EnvSpec, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keywords with which both sides show the same observation and pay the same reward.

    Args:
        spec: Specification of our environment.
        given: Keywords that the user asked for.

    Returns:
        The keywords by side; without "gymnasium" where Gymnasium has no such task.
    """
    task_class = command_line.find_task(spec)
    if task_class.gymnasium is None:
        return {"diffenvs": given}
    ours = {"reward": "v5"} | given
    creator = load_env_creator(str(gym.spec(task_class.gymnasium).entry_point))
    known = inspect.signature(creator).parameters
    fixed = {name: value for name, (value, _) in task_class.refused.items()}
    task = command_line.make_task(spec, ours)
    theirs = {
        name: value
        for name, value in (fixed | task.parameters | given).items()
        if name in known and (name in given or not pays(name))
    }
    return {"gymnasium": theirs, "diffenvs": ours}


@dataclass
class _Plan:
    """What is to be played: all arguments, checked, and what was made of them."""

    spec: EnvSpec
    policy: Policy
    obs_size: int
    limit: int
    sides: dict[str, tuple[str, dict[str, Any]]]  # id and keywords by side


def evaluate(
    env: str,
    policy: str | Path,
    on: str = "both",
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 100,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a policy file.

    Args:
        env: Id of one of our environments; "module:Id-v0" imports the module that registers it.
        policy: File, see `diffenvs.policy`.
        on: "gymnasium", "diffenvs", or "both", as far as Gymnasium has the task.
        episodes: Number of episodes on either side.
        seed: Episode i starts from `seed + i`.
        num_envs: Episodes that run side by side.
        given: Keywords of the environments.

    Returns:
        What was played and, under "results", for each side the environment's id and keywords (as
        Python writes them); mean, standard error, lowest and highest of the returns; mean and
        standard error of the lengths; and both lists. All of it can be written as JSON.

    Raises:
        ValueError: An argument is not accepted, the policy does not fit, or Gymnasium was asked
            for and has no such task.
    """
    plan = _prepare(env, policy, on, episodes, seed, num_envs, given)
    return _score(plan, str(policy), episodes, seed, num_envs)


def _prepare(
    env: str,
    policy: str | Path,
    on: str,
    episodes: int,
    seed: int,
    num_envs: int,
    given: dict[str, Any] | None,
) -> _Plan:
    """Check the arguments of `evaluate` and read the policy, before anything is compiled."""
    given = dict(given or {})
    for name, value, low in (
        ("episodes", episodes, 1),
        ("num_envs", num_envs, 1),
        ("seed", seed, 0),
    ):
        if value < low:
            raise ValueError(f"evaluate: {name} must be an integer >= {low}, not {value!r}")
    for name in FIXED.keys() & given:
        raise ValueError(f"evaluate: {name} is no keyword to give: {FIXED[name]}")
    spec = command_line.find_spec(env)
    limit = given.pop("max_episode_steps", spec.max_episode_steps)
    if limit in (None, -1):
        raise ValueError(f"{spec.id} has no time limit; give max_episode_steps")
    keywords = both_keywords(spec, given)
    if on == "gymnasium" and "gymnasium" not in keywords:
        raise ValueError(
            f"{spec.id} is a task of its own: Gymnasium has no environment to score it on, only "
            "--on diffenvs has"
        )
    sides = [side for side in keywords if on in (side, "both")]
    if not sides:
        raise ValueError(f"evaluate: on={on!r} is not one of {[*SIDES, 'both']}")
    task = command_line.make_task(spec, keywords["diffenvs"])
    ids = {"gymnasium": str(task.gymnasium), "diffenvs": spec.id}
    return _Plan(
        spec,
        load_policy(policy, task),
        task.obs_size,
        limit,
        {side: (ids[side], keywords[side]) for side in sides},
    )


def _score(plan: _Plan, policy: str, episodes: int, seed: int, num_envs: int) -> dict[str, Any]:
    """Play; the return value is that of `evaluate`."""
    results = {}
    for side, (id, keywords) in plan.sides.items():
        sizes = {"num_envs": min(num_envs, episodes), "max_episode_steps": plan.limit}
        envs = _make(side, id, sizes | keywords)
        try:
            width = envs.single_observation_space.shape
            if width != (plan.obs_size,):
                raise ValueError(
                    f"{id} with {keywords} has observations of the shape {width}, {plan.spec.id} "
                    f"of ({plan.obs_size},)"
                )
            found = run_episodes(envs, plan.policy, episodes, seed)
        finally:
            envs.close()
        given_to = {name: repr(value) for name, value in keywords.items()}
        results[side] = {"env": id, "keywords": given_to} | _summary(found)
    return {
        "env": plan.spec.id,
        "policy": policy,
        "episodes": episodes,
        "seed": seed,
        "max_episode_steps": plan.limit,
        "results": results,
    }


def _make(side: str, id: str, options: dict[str, Any]) -> VectorEnv:
    """Make the vector environment of a side, in the mode SAME_STEP."""
    if side == "diffenvs":
        return gym.make_vec(id, autoreset_mode=AutoresetMode.SAME_STEP, **options)
    return gym.make_vec(
        id,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **options,
    )


def _mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and its standard error; a single value has none."""
    if len(values) == 1:
        return float(values[0]), None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def _summary(found: Episodes) -> dict[str, Any]:
    """What is kept of one side."""
    mean, error = _mean_and_error(found.returns)
    length, length_error = _mean_and_error(found.lengths)
    return {
        "return": mean,
        "return_error": error,
        "return_lowest": float(found.returns.min()),
        "return_highest": float(found.returns.max()),
        "length": length,
        "length_error": length_error,
        "returns": found.returns.tolist(),
        "lengths": found.lengths.tolist(),
    }


def report(scores: dict[str, Any]) -> str:
    """Write what `evaluate` returned for a reader."""
    count, seed, results = scores["episodes"], scores["seed"], scores["results"]
    rows = [("", "return of an episode", "lowest", "highest", "steps of an episode")]
    rows += [
        (
            f"{found['env']} ({SIDES[side]})",
            _with_error(found["return"], found["return_error"]),
            f"{found['return_lowest']:.1f}",
            f"{found['return_highest']:.1f}",
            _with_error(found["length"], found["length_error"]),
        )
        for side, found in results.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{count} episodes, seeds {seed} to {seed + count - 1}; mean ± standard error", ""]
    for label, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("   ".join([label.ljust(widths[0]), *right]))
    if len(results) == 2 and count > 1:
        theirs, ours = results["gymnasium"], results["diffenvs"]
        difference = theirs["return"] - ours["return"]
        error = float(np.hypot(theirs["return_error"], ours["return_error"]))
        lines += ["", f"Gymnasium's return less ours: {_with_error(difference, error)}"]
    return "\n".join(lines)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"


def _check_writable(path: Path) -> None:
    """Refuse a file for the scores that cannot be written, before they are played for."""
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no {path.parent}"
        raise ValueError(f"--json {path} {what}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--json {path} cannot be written: there is no permission")


def main(arguments: list[str] | None = None) -> None:
    """Score a policy from the command line."""
    parser = command_line.make_parser(
        "diffenvs.evaluate",
        "Score a saved policy on Gymnasium's own environment, in C MuJoCo, and on ours.",
    )
    parser.add_argument("--policy", required=True, type=Path, help=".pt2 or .py file")
    parser.add_argument("--on", choices=[*SIDES, "both"], default="both", help="where to score it")
    parser.add_argument("--episodes", type=int, default=100, help="whole episodes on either side")
    parser.add_argument("--num-envs", type=int, default=100, help="episodes side by side")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    options = parser.parse_args(arguments)
    command_line.quiet()
    sizes = options.episodes, options.seed, options.num_envs
    try:
        if options.json is not None:
            _check_writable(options.json)
        given = command_line.keywords(options)
        plan = _prepare(options.env, options.policy, options.on, *sizes, given)
        if "diffenvs" in plan.sides:
            command_line.announce()
        scores = _score(plan, str(options.policy), *sizes)
    except (ValueError, TypeError, OSError, ImportError, gym.error.Error) as error:
        raise SystemExit(f"diffenvs.evaluate: {error}") from error
    print(report(scores))
    if options.on == "both" and "gymnasium" not in scores["results"]:
        print(f"\nGymnasium has no environment for {scores['env']}: scored on ours alone.")
    if options.json is not None:
        options.json.write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
