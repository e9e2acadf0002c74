"""Saved policies, in files that can be read without the code that trained them.

A policy file is one of

* `.pt2`: a program of `torch.export` with a dynamic batch, observations (n, obs_dim) float32 to
  actions (n, nu). The file holds the computation as well as its weights; `save_policy` writes it::

      save_policy("policy.pt2", module, obs_dim)

* `.py`: a Python file that defines `policy(obs)`, NumPy arrays of the same shapes, for everything
  else. It is executed, so use those that you trust. Around Stable-Baselines3, for example::

      from stable_baselines3 import PPO

      model = PPO.load("hopper.zip")

      def policy(obs):
          return model.predict(obs, deterministic=True)[0]

Observations are those that the environment returns, and actions those that it takes: a policy that
normalises or scales does so itself. `python -m diffenvs.evaluate` and `python -m diffenvs.play`
take such files.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diffenvs.task import Task

Policy = Callable[[np.ndarray], np.ndarray]
SUFFIXES = (".pt2", ".py")


def save_policy(path: str | Path, module: Any, obs_dim: int) -> None:
    """Write a `torch.nn.Module` as a policy file.

    Args:
        path: File to write, "....pt2".
        module: Maps observations (n, obs_dim) to actions (n, nu) for any n. It is written as it
            acts in evaluation mode, for the CPU; the module itself is left alone.
        obs_dim: Length of an observation.

    Raises:
        ValueError: The suffix is not ".pt2".
    """
    import torch

    if Path(path).suffix != ".pt2":
        raise ValueError(f"a torch policy is saved as a .pt2 file, not as {str(path)!r}")
    module = copy.deepcopy(module).cpu().eval()
    batch = {0: torch.export.Dim("num_envs")}
    program = torch.export.export(module, (torch.zeros(2, obs_dim),), dynamic_shapes=(batch,))
    for node in program.graph.nodes:  # the lines of code it came from, with this machine's folders
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def load_policy(path: str | Path, task: Task) -> Policy:
    """Read a policy file and try it on observations of the task's length.

    Args:
        path: A .pt2 or .py file, see the module docstring.
        task: Task whose observations and actions the policy is for.

    Returns:
        A function of NumPy arrays, observations (n, obs_dim) to actions (n, nu) float32. It raises
        a ValueError where the policy raises, or an action has another shape or is not finite.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no policy, or not one for this task.
        gymnasium.error.DependencyNotInstalled: A .pt2 file, and torch is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"policy: there is no file {str(path)!r}")
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"policy {path.name} is none of {list(SUFFIXES)}: a torch.export program, as "
            "diffenvs.policy.save_policy writes it, or a Python file that defines policy(obs)"
        )
    act = _load_program(path) if path.suffix == ".pt2" else _load_python(path)
    nobs, nu = task.obs_size, int(task.mjm.nu)

    def policy(obs: np.ndarray) -> np.ndarray:
        try:
            action = np.asarray(act(np.asarray(obs, dtype=np.float32)), dtype=np.float32)
        except Exception as error:
            raise ValueError(
                f"policy {path.name} raises {type(error).__name__}: {error}"
            ) from error
        if action.shape != (len(obs), nu):
            raise ValueError(
                f"{len(obs)} observations gave actions of the shape {action.shape}; {task.name} "
                f"takes ({len(obs)}, {nu})"
            )
        if not np.isfinite(action).all():
            world = int(np.flatnonzero(~np.isfinite(action).all(axis=1))[0])
            raise ValueError(
                f"policy {path.name}: the action {action[world]} is not finite; the observation "
                f"was {np.asarray(obs)[world]}"
            )
        return action

    for count in (1, 3):  # what is wrong with it shows here, and not in the middle of an episode
        try:
            policy(np.zeros((count, nobs)))
        except ValueError as error:
            raise ValueError(
                f"policy {path.name} fails on observations of the shape ({count}, {nobs}), which "
                f"are those of {task.name}{_layout(task)}: {error}"
            ) from error
    return policy


def _layout(task: Task) -> str:
    """Say which keywords decide the length of an observation, and what they are now."""
    names = [name for name in task.parameters if name.startswith(("include_", "exclude_"))]
    values = ", ".join(f"{name}={task.parameters[name]}" for name in names)
    return f" with {values} (--kwarg name=value sets them)" if names else ""


def _load_program(path: Path) -> Policy:
    """Read a torch.export program."""
    try:
        import torch
    except ImportError as error:
        from gymnasium.error import DependencyNotInstalled

        raise DependencyNotInstalled(
            f'policy {path.name} needs torch; pip install "diffenvs[torch]"'
        ) from error
    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise ValueError(
            f"policy {path.name} is not a program of torch.export, and a state_dict is not one "
            "either; diffenvs.policy.save_policy writes them"
        ) from error

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(obs)).numpy()

    return act


def _load_python(path: Path) -> Policy:
    """Run a Python file and take its `policy`."""
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise ValueError(
            f"policy {path.name} cannot be read, running the file raises {type(error).__name__}: "
            f"{error}"
        ) from error
    if not callable(names.get("policy")):
        raise ValueError(f"policy {path.name} defines no function policy(obs)")
    return names["policy"]
