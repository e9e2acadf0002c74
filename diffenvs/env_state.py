"""States of environments: what the physics starts from, and all that decides how they go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class EnvState(NamedTuple):
    """State of all worlds, or its cotangent: arrays of the kind that the environment returns."""

    qpos: Any  # (num_envs, nq)
    qvel: Any  # (num_envs, nv)
    act: Any  # (num_envs, na)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that decides how an environment goes on: what `get_state` returns, for `set_state`.

    It is NumPy whatever the environment returns, can be pickled, and fits every environment of the
    task with as many worlds, in any process and on any device.

    Attributes:
        task: Name of the task.
        arrays: By name, with a row per world: qpos, qvel, act and qacc_warmstart, where the solver
            starts; seed and episode, of which the next start state is drawn; elapsed, the steps of
            the episode so far; pending, whether the world is done and waits for its reset; obs,
            the last observation.
    """

    task: str
    arrays: dict[str, np.ndarray]

    def check(self, name: str, wanted: dict[str, np.ndarray]) -> None:
        """Refuse what is not a snapshot of task `name` with arrays like those that are wanted."""
        if self.task != name:
            raise ValueError(f"{name}: this is a snapshot of {self.task}, not of {name}")
        if self.arrays.keys() != wanted.keys():
            raise ValueError(
                f"{name}: a snapshot has the arrays {list(wanted)}, not {list(self.arrays)}"
            )
        for key, array in wanted.items():
            given = np.asarray(self.arrays[key])
            if (given.shape, given.dtype) != (array.shape, array.dtype):
                raise ValueError(
                    f"{name}: {key} of a snapshot has the shape {array.shape} and dtype "
                    f"{array.dtype} here, not {given.shape} and {given.dtype}"
                )


def check_state(what: str, given: Any, wanted: dict[str, tuple[int, int]]) -> None:
    """Refuse arrays qpos, qvel, act that do not have the shapes that are wanted."""
    for (field, shape), value in zip(wanted.items(), given, strict=True):
        if tuple(np.shape(value)) != shape:
            raise ValueError(f"{what}: {field} has the shape {shape}, not {tuple(np.shape(value))}")
