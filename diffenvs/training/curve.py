"""The learning curve: a row per evaluation, as CSV, JSON and a picture."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import diffenvs
from diffenvs.training.checkpoint import replacing
from diffenvs.training.settings import Settings

PACKAGES = ("diffenvs", "gymnasium", "mujoco", "mujoco-warp", "warp-lang", "torch")


@dataclass
class Row:
    """What was known of the policy after so many iterations.

    Attributes:
        iteration: Updates so far.
        steps: Steps of all worlds of all processes so far.
        seconds: Wall clock since the process began, with compiling and evaluating; after a resume
            the time of the runs before is added.
        returns: Mean return of an episode on our environment.
        gymnasium: Mean return on Gymnasium's, once it has arrived.
        gymnasium_error: Its standard error.
    """

    iteration: int
    steps: int
    seconds: float
    returns: float
    gymnasium: float | None = None
    gymnasium_error: float | None = None

    @property
    def score(self) -> float:
        """What tells the best policy: the lower of both returns.

        What a policy has learned of one simulation alone, or what luck gave it in few episodes,
        shows in the other. -inf if one is not finite.
        """
        known = [self.returns] if self.gymnasium is None else [self.returns, self.gymnasium]
        return min(known) if all(map(math.isfinite, known)) else -math.inf


HEADER = ["iteration", "steps", "seconds", "return", "gymnasium_return", "gymnasium_error"]


def write_tables(rows: list[Row], about: dict[str, Any], folder: Path) -> None:
    """Write curve.csv, and curve.json with what the run was."""
    names = [field.name for field in fields(Row)]
    table = [[getattr(row, name) for name in names] for row in rows]
    with replacing(folder / "curve.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *table])  # None is blank
    table = [[finite(x) for x in values] for values in table]
    content = about | {"curve": [dict(zip(HEADER, values, strict=True)) for values in table]}
    with replacing(folder / "curve.json") as path:
        path.write_text(json.dumps(content, indent=2, default=str) + "\n")


def draw(rows: list[Row], title: str, gymnasium: str | None, folder: Path) -> None:
    """Draw curve.png: both returns against wall clock and against steps."""
    # These cost a second, which is spent when the training is over.
    from matplotlib import figure as mpl
    from matplotlib import ticker

    scored = [row for row in rows if row.gymnasium is not None]
    figure = mpl.Figure(figsize=(10, 4), layout="constrained")
    time_axes, step_axes = figure.subplots(1, 2, sharey=True)
    minutes = rows[-1].seconds > 300.0
    sides = (
        (time_axes, lambda row: row.seconds / (60.0 if minutes else 1.0)),
        (step_axes, lambda row: row.steps),
    )
    for axes, place in sides:
        axes.plot(
            [place(row) for row in rows], [row.returns for row in rows], marker=".", label="ours"
        )
        if scored:
            axes.errorbar(
                [place(row) for row in scored],
                [row.gymnasium for row in scored],
                yerr=[row.gymnasium_error or 0.0 for row in scored],
                fmt="o",
                markersize=4,
                capsize=2,
                label=f"{gymnasium} (Gymnasium, C MuJoCo)",
            )
        axes.grid(alpha=0.3)
    time_axes.set_xlim(left=0.0)
    time_axes.set(
        xlabel=f"wall clock with compiling, {'minutes' if minutes else 'seconds'}",
        ylabel="return of an episode, without noise",
    )
    step_axes.set(xlabel="environment steps")
    step_axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    figure.legend(*time_axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    with replacing(folder / "curve.png") as path:
        figure.savefig(path, dpi=120)


def describe(cfg: Settings, device: torch.device, count: int) -> dict[str, Any]:
    """What the curve depends on: command, settings, machine, versions, commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": _command(count),
        "settings": asdict(cfg),
        "commit": _commit(),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "processes": count,
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
        },
        "versions": versions,
    }


def seconds_of_process() -> float:
    """Seconds since this process, or torchrun, began; if that is not known, since the import."""
    return _EARLIER + time.perf_counter() - _IMPORTED


def _seconds_before() -> float:
    """Seconds from the beginning of this process, or of torchrun, until now; 0 if not known."""
    process = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        began = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        found = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
    return found if 0.0 <= found < 300.0 else 0.0  # a script imports this at its start


_IMPORTED, _EARLIER = time.perf_counter(), _seconds_before()


def _command(count: int) -> str:
    """The command as it would be typed in the root of this tree."""
    script = Path(sys.argv[0]).resolve()
    root = Path(diffenvs.__file__).resolve().parents[1]
    name = str(script.relative_to(root)) if script.is_relative_to(root) else script.name
    launcher = ["python"] if count == 1 else ["torchrun", f"--nproc-per-node={count}"]
    return shlex.join([*launcher, name, *sys.argv[1:]])


def _commit() -> str | None:
    """The commit of this tree; "-dirty" where files differ from it. None where it is not known."""
    file = Path(diffenvs.__file__)
    known = ("ls-files", "--error-unmatch", file.name)  # and not in a tree of something else
    name = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        for words in (known, name):
            git = ["git", "-C", str(file.parent), *words]
            found = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def finite(value: float | None) -> float | None:
    """The number, or None where it is none: JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
