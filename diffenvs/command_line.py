"""What the commands of the package share: the environment and its keywords on the command line."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gymnasium as gym
import warp as wp
from gymnasium.envs.registration import EnvSpec

import diffenvs
from diffenvs.task import Task
from diffenvs.vector_env import load_task


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with --env, --kwarg, --device and --seed."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--env", required=True, help='id, for example DiffAnt-v0; "module:Id-v0" imports the module'
    )
    parser.add_argument(
        "--kwarg",
        type=keyword,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="keyword of the environment, as Python writes it; may be given several times",
    )
    parser.add_argument("--device", help='"cpu", "cuda:0", ...; the first GPU if there is one')
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of the first episode")
    return parser


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return what reads an integer from `low` to `high` on the command line."""
    accepted = f">= {low}" if high is None else f"from {low} to {high}"

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer {accepted}")
        return int(text)

    return read


def keyword(text: str) -> tuple[str, Any]:
    """Read "name=value"; a value that is not Python's is a string."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def quiet() -> None:
    """Keep Warp from telling of every kernel."""
    wp.config.log_level = wp.LOG_WARNING


def announce() -> None:
    """Say why nothing seems to happen, once it is known that something will."""
    print("Compiling the physics; the first time this takes a minute or two.", file=sys.stderr)


def keywords(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of the environment that were given."""
    device = {} if options.device is None else {"device": options.device}
    return device | dict(options.kwarg)


def find_spec(env: str) -> EnvSpec:
    """Return the specification of an environment of this package, by its id.

    Raises:
        ValueError: The environment is none of a `diffenvs.Task`.
        gymnasium.error.Error: There is none of that id.
    """
    module, _, name = env.rpartition(":")
    if module:
        import_module(module)
    spec = gym.spec(name)
    if "task" not in spec.kwargs:
        ours = sorted(id for id, other in gym.registry.items() if "task" in other.kwargs)
        raise ValueError(f"{name} is not an environment of diffenvs; those are {', '.join(ours)}")
    return spec


def find_task(spec: EnvSpec) -> type[Task]:
    """Return the class of the task of an environment."""
    return load_task(spec.kwargs["task"])


def make_task(spec: EnvSpec, given: dict[str, Any]) -> Task:
    """Make the task alone from the keywords of its environment."""
    of_env = inspect.signature(diffenvs.DiffVectorEnv).parameters
    of_task = inspect.signature(Task).parameters
    mine = {name: value for name, value in given.items() if name in of_task or name not in of_env}
    return find_task(spec)(**mine)
