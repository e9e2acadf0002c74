"""Settings that every training script has, and what is refused of them."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import gymnasium as gym
import torch
import tyro

from diffenvs import command_line

LOWEST = {
    "num_envs": 1,
    "horizon": 1,
    "iterations": 1,
    "eval_every": 0,
    "eval_envs": 1,
    "gymnasium_episodes": 0,
    "checkpoint_seconds": 0,
    "seed": 0,
}
"""Settings that are numbers, and the lowest value of each."""

FREE = ("device", "checkpoint_seconds", "resume", "out", "video")
"""Settings with which a run may go on otherwise than it began: they are none of the algorithm."""


T = TypeVar("T", bound="Settings")


@dataclass
class Settings:
    """What a run is, but for the algorithm; a script derives its own settings from it."""

    env: str = "DiffHopper-v0"
    """Id of an environment; "module:Id-v0" imports the module first."""
    num_envs: int = 256
    """Worlds that a process steps together."""
    horizon: int = 32
    """Steps of every world in an iteration."""
    iterations: int = 1000
    """Iterations: each steps the worlds `horizon` times and updates the networks."""
    eval_every: int = 50
    """Iterations between evaluations; 0: only before the first and after the last."""
    eval_envs: int = 16
    """Worlds of an evaluation, one whole episode each, without noise."""
    gymnasium_episodes: int = 10
    """Episodes of every evaluation on Gymnasium's own environment, which a process of its own
    plays; 0: none."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, at least."""
    seed: int = 0
    """Seed of everything."""
    device: str | None = None
    """"cpu" or "cuda:0"; None is the first GPU if there is one. With torchrun "cpu", "cuda" or
    None."""
    resume: bool = False
    """Go on from the checkpoint of the run in `out`."""
    video: bool = True
    """Film an episode of the best policy at the end."""
    out: Path = Path("runs")
    """Folder of the results; a folder ENV/seedN of the run is made inside."""

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.out / self.env.rpartition(":")[2] / f"seed{self.seed}"


def parse(config: type[T], tasks: dict[str, dict[str, Any]], on_cpu: dict[str, Any]) -> T:
    """Read the settings from the command line, which goes before what a task wants.

    Args:
        config: Class of the script's settings.
        tasks: What an environment wants otherwise than the class has it, by id.
        on_cpu: What a run on a CPU wants otherwise, before that.
    """
    asked = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    first = tyro.cli(config, args=asked)  # the help shows what the task wants
    cpu = first.device == "cpu" or (first.device is None and not torch.cuda.is_available())
    wanted = tasks.get(first.env.rpartition(":")[2], {}) | (on_cpu if cpu else {})
    return tyro.cli(config, default=config(env=first.env, **wanted))


def check(cfg: Settings) -> None:
    """Refuse what is no setting: numbers that are none or too low, environments that are none."""
    if not isinstance(cfg, Settings):
        raise TypeError(f"the settings are a Settings, not {cfg!r}")
    for name, low in LOWEST.items():
        value = getattr(cfg, name)
        kind = float if name == "checkpoint_seconds" else int
        if isinstance(value, bool) or not isinstance(value, kind | int) or not value >= low:
            what = "a number" if kind is float else "an integer"
            refuse(f"{name} must be {what} >= {low}, not {value!r}")
    try:
        spec = command_line.find_spec(cfg.env)
    except (ValueError, ImportError, gym.error.Error) as error:
        refuse(f"env: {error}")
    if spec.max_episode_steps in (None, -1):
        refuse(f"env: {cfg.env} has no time limit, and its evaluations would not end")


def differences(cfg: Settings, before: dict[str, Any]) -> list[str]:
    """Say which settings are not those with which a run began, and what they were."""
    now, found = asdict(cfg), []
    for name in (*now, *(name for name in before if name not in now)):
        if name in FREE or (name in now and name in before and now[name] == before[name]):
            continue
        here = repr(now[name]) if name in now else "not there"
        there = repr(before[name]) if name in before else "not there"
        found.append(f"{name} is {here}, and was {there} when the run began")
    return found


def refuse(why: str) -> NoReturn:
    """End the script with a message."""
    raise SystemExit(f"error: {why}")
