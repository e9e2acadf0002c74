"""The checkpoint of a run: one file, which is whole at every moment.

A file is written beside the old one and takes its place when it is on the disk, so a crash leaves
the old one or the new one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffenvs.training.settings import Settings, differences, refuse

NAME = "checkpoint.pt"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written takes the place of `path` in one go."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, path)
    if os.name == "posix":  # the new name is on the disk as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(cfg: Settings, parts: list[dict[str, Any]], records: dict[str, Any]) -> None:
    """Write the checkpoint.

    Args:
        cfg: Settings of the run.
        parts: What each process goes on from.
        records: What the run has found so far.
    """
    content = {"settings": asdict(cfg), "parts": parts, "records": records}
    with replacing(cfg.folder / NAME) as path:
        torch.save(content, path)


def read(cfg: Settings) -> dict[str, Any]:
    """Read the checkpoint; it is a pickle, so use those that you trust."""
    return torch.load(cfg.folder / NAME, map_location="cpu", weights_only=False)


def check(cfg: Settings, count: int) -> None:
    """Refuse to begin where a run is, or to go on where none is or with other settings."""
    path = cfg.folder / NAME
    if not cfg.resume:
        if path.exists():
            refuse(
                f"{cfg.folder} holds a run: --resume goes on with it; for a new one give another "
                "--seed or --out, or remove the folder"
            )
        return
    if not path.exists():
        refuse(f"--resume finds no checkpoint {path}; without --resume a new run begins there")
    before = read(cfg)
    found = differences(cfg, before["settings"])
    if len(before["parts"]) != count:
        found.append(f"the number of processes is {count}, and was {len(before['parts'])}")
    if found:
        refuse(f"--resume cannot go on with {path}: {'; '.join(found)}")


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all generators of random numbers."""
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with the random numbers from there."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def to_cpu(value: Any) -> Any:
    """Copy a state_dict: tensors to the CPU, the rest as it is."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_cpu(x) for key, x in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_cpu(x) for x in value)
    return value
