"""The processes of a run: one, or those that torchrun started, each with its worlds and device."""

from __future__ import annotations

import atexit
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from diffenvs import command_line
from diffenvs.training import checkpoint, settings
from diffenvs.training.settings import Settings


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: Number of this process; 0 evaluates, logs and writes.
        count: Number of processes.
        device: Where this process has its worlds and networks.
    """

    rank: int
    count: int
    device: torch.device

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, all in one message."""
        if self.count == 1:
            return
        given = [tensor.detach() for tensor in tensors]  # of the same shapes in every process
        flat = torch.cat([tensor.reshape(-1) for tensor in given])
        dist.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in given])
        for tensor, part in zip(given, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def any(self, *flags: bool) -> list[bool]:
        """Say of each flag whether it is up in any process; no device waits."""
        if self.count == 1:
            return list(flags)
        up = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(up, dist.ReduceOp.MAX)
        return [bool(flag) for flag in up.tolist()]

    def gather(self, part: Any) -> list[Any]:
        """Return the parts of all processes, in rank 0; elsewhere nothing."""
        if self.count == 1:
            return [part]
        parts: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(part, parts)
        return parts or []

    def leave(self) -> None:
        """Take leave of the others when this process ends, but not if it fails before.

        The others may be waiting for one that failed; it must not wait for them as well. Until the
        end the group stays: a second one would find the addresses of the first.
        """
        if self.count > 1:
            atexit.unregister(dist.destroy_process_group)
            atexit.register(dist.destroy_process_group)


def start_processes(cfg: Settings) -> Processes:
    """Check the settings, join the other processes of torchrun, and seed all random numbers.

    Call it first: whatever is refused is refused here, before anything compiles, and the networks
    that are made next begin with the same weights in every process.
    """
    settings.check(cfg)
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    checkpoint.check(cfg, count)
    device = _choose_device(cfg.device, count)
    try:
        cfg.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        settings.refuse(f"out: the folder of the run cannot be made: {error}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count > 1 and not dist.is_initialized():  # one group for all runs of a process
        # gloo as well, for what is said from CPU to CPU; rank 0 may evaluate for long
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    seed_all(cfg.seed)
    command_line.quiet()
    if rank == 0:
        print("Compiling the physics; the first time this takes a minute or two.", flush=True)
    return Processes(rank, count, device)


def seed_all(seed: int) -> None:
    """Seed the random numbers of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (for who uses them)
    random.seed(seed)


def _choose_device(name: str | None, count: int) -> torch.device:
    """Return the device of this process."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        settings.refuse(f'device must be "cpu", "cuda" or "cuda:0", not {name!r}')
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        settings.refuse(f"device is {name!r}, and torch finds no GPU here")
    if count > 1 and device.index is not None:
        settings.refuse(f'device {name!r} is one device; with {count} processes give "cuda"')
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        settings.refuse(
            f"process {index} of this machine finds {torch.cuda.device_count()} GPUs; torchrun "
            "takes --nproc-per-node of at most as many"
        )
    return torch.device("cuda", index)
