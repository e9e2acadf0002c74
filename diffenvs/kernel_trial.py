"""A trial of a task's outputs kernel when an environment is made: does it stay in its arrays?

A kernel has no bounds and no types to lean on: what it reads or writes outside of its arrays is the
memory of something else, what it forgets to write is what stood there before, and neither shows.
So it runs a few times on two worlds whose arrays lie in larger ones, and its outputs are compared:

* with other numbers in the outputs before the run: what it does not write, or adds to;
* with other numbers all around the row of a world in its inputs, the other world among them: what
  it reads that is not of its world.

Nothing but its inputs may change an output, and nothing but its outputs may change at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import warp as wp

from diffenvs.physics import FORCES
from diffenvs.physics.kinematics import FIELDS as KINEMATICS
from diffenvs.step_fields import PREV

if TYPE_CHECKING:
    from diffenvs.task import Task

_NWORLD = 2
_ROWS = 2  # guard rows before and after
_COLUMNS = 512  # guard columns behind each row, which are also those before the next row
_STATES = {"qpos": (float, "nq"), "qvel": (float, "nv"), "act": (float, "na")}
_STATES["action"] = float, "nu"
_SIZES = "nq", "nv", "na", "nu", "nbody", "nsite"
_OUTPUTS = "obs", "reward", "terminated", "info"
_BEFORE = 64  # how many of them a message counts as those before the next row
_AROUND = 0.1, 1000.0, -777.0  # told apart by a bound, a clamp, an even and a periodic function


def try_kernel(task: Task, device: wp.Device) -> None:
    """Run the outputs kernel of a task on guarded arrays, without its adjoint.

    Args:
        task: The task.
        device: Where its environment lives.

    Raises:
        ValueError: The kernel writes outside of its outputs or into an input, leaves an output as
            it was or adds to it, or reads what is not there or belongs to another world.
    """
    trial = _Trial(task, device)
    outputs = trial.run()
    trial.check_written(outputs, trial.run(before=-3.0))
    for around in _AROUND[1:]:
        for world in range(_NWORLD):
            trial.check_read(outputs, around, world)


class _Guarded:
    """An array whose rows lie in a larger array."""

    def __init__(
        self, shape: tuple[int, ...], fill: float, dtype: Any, device: wp.Device, ndim: int = 2
    ) -> None:
        rows, columns, width = shape
        self.columns = columns
        self.host = np.full((rows + 2 * _ROWS, columns + _COLUMNS, width), fill, np.float32)
        if dtype is wp.bool:
            self.host = self.host.astype(bool)
        self.inside = self.host[_ROWS:-_ROWS, :columns]
        self._dtype, self._device, self._ndim = dtype, device, ndim

    def send(self) -> wp.array:
        """Copy `host` to the device; return the part that the kernel gets."""
        flat = self.host[:, :, 0] if self._dtype in (float, wp.bool) else self.host
        self._array = wp.array(flat, dtype=self._dtype, ndim=2, device=self._device)
        rows = slice(_ROWS, self.host.shape[0] - _ROWS)
        return self._array[rows, : self.columns] if self._ndim == 2 else self._array[rows, 0]

    def fetch(self) -> np.ndarray:
        """Return the whole array as it is now."""
        return self._array.numpy().reshape(self.host.shape)


class _Trial:
    """A task's outputs kernel on two worlds with values as they occur, one near the start."""

    def __init__(self, task: Task, device: wp.Device) -> None:
        self.task = task
        self.device = device
        self.info = (*task.state_info, *task.step_info)
        rng = np.random.default_rng(0)
        spread = np.array([0.01, 0.5])[:, None]
        start = {"qpos": task.init_qpos, "qvel": task.init_qvel}
        active = task.active_reads()
        self.fields: dict[str, tuple[Any, str, np.ndarray]] = {}
        for field in task.reads:
            name = field.removesuffix(PREV)
            dtype, size = _STATES.get(name) or (KINEMATICS | FORCES)[name]
            columns = getattr(task.mjm, size) if field in active else 0
            width = 1 if dtype is float else wp.types.type_size(dtype)
            values = rng.normal(size=(_NWORLD, columns, width))
            if name in start:
                values[:, :, 0] = start[name] + spread * values[:, :, 0]
            self.fields[field] = dtype, size, values

    def run(
        self,
        before: float = np.nan,
        around: float = _AROUND[0],
        world: int | None = None,
        fields: Iterable[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Run the kernel, see that it wrote into its outputs only, and return these.

        Args:
            before: What stands in and around the outputs; in flags, whether it is a number.
            around: What stands around the values of `fields`.
            world: The world that has its values in `fields`, None is all.
            fields: The fields of which this is said, None is all.
        """
        inputs, outputs = {}, {}
        for field, (dtype, _, values) in self.fields.items():
            here = fields is None or field in fields
            fill = around if here else _AROUND[0]
            inputs[field] = _Guarded(values.shape, fill, dtype, self.device)
            rows = slice(None) if world is None or not here else slice(world, world + 1)
            inputs[field].inside[rows] = values[rows]
        for name, columns in {"obs": self.task.obs_size, "info": len(self.info)}.items():
            outputs[name] = _Guarded((_NWORLD, columns, 1), before, float, self.device)
        for name, dtype, fill in (
            ("reward", float, before),
            ("terminated", wp.bool, not np.isnan(before)),
        ):
            outputs[name] = _Guarded((_NWORLD, 1, 1), fill, dtype, self.device, ndim=1)
        self.task.launch_outputs(
            {field: guarded.send() for field, guarded in inputs.items()},
            tuple(outputs[name].send() for name in _OUTPUTS),
        )
        for field, guarded in inputs.items():
            if (guarded.fetch() != guarded.host).any():
                self._refuse(
                    f"writes into {field}_in, which the step still needs. A kernel writes into "
                    "its last four arguments only; compute in local variables"
                )
        return {name: self._inside(name, outputs[name]) for name in _OUTPUTS}

    def _inside(self, name: str, guarded: _Guarded) -> np.ndarray:
        """Return an output (world, column); refuse what was written around it."""
        after, n = guarded.fetch()[:, :, 0].astype(float), guarded.columns
        touched = _differs(after, guarded.host[:, :, 0].astype(float))
        touched[_ROWS:-_ROWS, :n] = False
        if touched.any():
            columns = np.flatnonzero(touched.any(axis=0))
            columns = np.where(columns >= n + _COLUMNS - _BEFORE, columns - n - _COLUMNS, columns)
            where = f"column {_list(columns)}" if (columns >= n).any() or columns.min() < 0 else ""
            self._refuse(
                f"writes outside of {name}_out{where and ', into ' + where}: a thread writes into "
                f"the row of its own world, which has {self._length(name)}"
            )
        return after[_ROWS:-_ROWS, :n]

    def _length(self, name: str) -> str:
        """Say how long a row of an output is, and what decides that."""
        if name == "obs":
            return (
                f"{self.task.obs_size} columns. That is `obs_dim`, or what observation_size() "
                "returns: it has to be the number of columns that the kernel writes"
            )
        if name == "info":
            return (
                f"{len(self.info)} columns. These are state_info, then step_info: "
                f"{', '.join(self.info)}; name one for each column that the kernel writes"
            )
        return "one entry"

    def check_written(self, first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
        """Refuse outputs that depend on what stood in them, given those of two such contents."""
        for name in _OUTPUTS:
            depends = _differs(first[name], second[name])
            if not depends.any():
                continue
            blank = 0.0 if name == "terminated" else np.nan
            filled = 1.0 if name == "terminated" else -3.0
            left = ~_differs(first[name], blank) & ~_differs(second[name], filled) & depends
            kept = np.asarray(left if left.any() else depends)
            columns = np.flatnonzero(kept.any(axis=0))
            where = f"{name}_out"
            if name in ("obs", "info"):
                where = f"column {_list(columns)} of {where}"
            if name == "info":
                where += f" ({', '.join(self.info[i] for i in columns)})"
            if left.any():
                often = "" if kept[:, columns].all() else " in some states"
                advice = "every entry is written in every state"
                if name in ("obs", "info"):
                    advice += f"; a row has {self._length(name)}"
                self._refuse(f"does not write {where}{often}: {advice}")
            self._refuse(
                f"computes {where} from what stood there before, which is left from an earlier "
                "step. Write with `=`, not `+=`, and sum in a local variable"
            )

    def check_read(self, outputs: dict[str, np.ndarray], around: float, world: int) -> None:
        """Refuse outputs of a world that depend on what stands around its row of the fields."""

        def depends(fields: Iterable[str] | None) -> list[str]:
            run = self.run(around=around, world=world, fields=fields)
            return [n for n in _OUTPUTS if _differs(run[n][world], outputs[n][world]).any()]

        found = depends(None)
        if not found:
            return
        fields = [field for field in self.fields if depends([field])] or list(self.fields)
        rows = []
        for field in fields:
            _, size, values = self.fields[field]
            of = f"{size}={values.shape[1]}"
            if field not in self.task.active_reads():
                of = f"none while {' and '.join(self.task.reads_if[field])} is False or 0"
            rows.append(f"{field}_in ({of})")
        self._refuse(
            f"computes {', '.join(name + '_out' for name in found)} from numbers outside of the "
            f"columns or of the world of {', '.join(rows)}. A thread reads the row of its world, "
            "as far as it goes; the robot has to have what the task is written for"
        )

    def _refuse(self, what: str) -> NoReturn:
        sizes = ", ".join(f"{size}={getattr(self.task.mjm, size)}" for size in _SIZES)
        raise ValueError(
            f"{self.task.name}: its outputs kernel {self.task.kernel.key} {what} "
            f"(the model has {sizes})"
        )


def _differs(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    """Where two arrays of numbers are not the same, NaN being the same as NaN."""
    return np.asarray((a != b) & ~(np.isnan(a) & np.isnan(b)))


def _list(numbers: np.ndarray) -> str:
    """The first of some sorted numbers, as text."""
    text = ", ".join(str(number) for number in numbers[:6])
    return text + ", ..." * (len(numbers) > 6)
