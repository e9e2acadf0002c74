"""What a script logs, for TensorBoard: fetched together now and then, so that no device waits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class Log:
    """Means of what was logged, over some iterations.

    Args:
        folder: Where the events are written.
        steps: Environment steps so far.
        resumed: Whether a run goes on: what TensorBoard has behind these steps is hidden.
    """

    def __init__(self, folder: Path, steps: int, resumed: bool) -> None:
        if not resumed:
            for old in folder.glob("events.out.tfevents.*"):  # of a run without a checkpoint
                old.unlink()
        self.writer = SummaryWriter(str(folder), purge_step=steps + 1 if resumed else None)
        self._kept: list[dict[str, Any]] = []
        self._last = (steps, time.perf_counter())  # steps at the last write, and when it was

    def keep(self, values: dict[str, Tensor | float]) -> None:
        """Take the numbers of an iteration."""
        self._kept.append({name: _copy(value) for name, value in values.items()})

    def pause(self, began: float) -> None:
        """Leave the time since then out of the speed."""
        steps, last = self._last
        self._last = steps, last + time.perf_counter() - began

    def write(self, steps: int, seconds: float) -> None:
        """Fetch what was kept, all in one transfer, and write its means."""
        columns: dict[str, list[Any]] = {}
        for values in self._kept:
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        self._kept = []
        means, pending = {}, {}
        for name, values in columns.items():
            if all(isinstance(value, Tensor) for value in values):
                pending[name] = torch.stack(values).mean()
            else:
                means[name] = sum(map(float, values)) / len(values)
        if pending:
            means |= zip(pending, torch.stack(list(pending.values())).tolist(), strict=True)
        now = time.perf_counter()
        before, last = self._last
        if steps > before:
            means["time/env_steps_per_second"] = (steps - before) / (now - last)
        self._last = (steps, now)
        means["time/seconds"] = seconds
        for name, value in means.items():
            self.writer.add_scalar(name, value, steps)


def _copy(value: Tensor | float) -> Tensor | float:
    """Return a number, or a tensor on the GPU."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value.float().reshape(()).clone() if value.is_cuda else value.item()
    return float(value)
