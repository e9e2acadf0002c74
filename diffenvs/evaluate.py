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
    given = dict(given or {})
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if value < 1:
            raise ValueError(f"evaluate: {name} must be an integer >= 1, not {value!r}")
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
    act = load_policy(policy, task)
    results = {}
    for side in sides:
        id = task.gymnasium if side == "gymnasium" else spec.id
        assert id is not None
        sizes = {"num_envs": min(num_envs, episodes), "max_episode_steps": limit}
        envs = _make(side, id, sizes | keywords[side])
        try:
            width = envs.single_observation_space.shape
            if width != (task.obs_size,):
                raise ValueError(
                    f"{id} with {keywords[side]} has observations of the shape {width}, "
                    f"{task.name} of ({task.obs_size},)"
                )
            found = run_episodes(envs, act, episodes, seed)
        finally:
            envs.close()
        given_to = {name: repr(value) for name, value in keywords[side].items()}
        results[side] = {"env": id, "keywords": given_to} | _summary(found)
    return {
        "env": spec.id,
        "policy": str(policy),
        "episodes": episodes,
        "seed": seed,
        "max_episode_steps": limit,
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
    command_line.announce()
    try:
        scores = evaluate(
            options.env,
            options.policy,
            options.on,
            options.episodes,
            options.seed,
            options.num_envs,
            command_line.keywords(options),
        )
    except (ValueError, TypeError, OSError, ImportError, gym.error.Error) as error:
        raise SystemExit(f"diffenvs.evaluate: {error}") from error
    print(report(scores))
    if options.on == "both" and "gymnasium" not in scores["results"]:
        print(f"\nGymnasium has no environment for {scores['env']}: scored on ours alone.")
    if options.json is not None:
        options.json.write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
