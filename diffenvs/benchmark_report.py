"""What the benchmark prints and keeps: rows, JSON, the scaling plot.

A JSON file holds one run: machine, versions, date, command, and its cases, each with what it was
and its metrics. Times are in microseconds per step of all worlds.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from diffenvs.benchmark_physics import Case
from diffenvs.physics.accuracy_tool import CONES, INTEGRATORS

PACKAGES = ("mujoco", "mujoco-warp", "warp-lang", "gymnasium", "numpy", "jax", "mujoco-mjx")
CURVES = {"stock_us": "forward, stock", "recorded_us": "recorded", "backward_us": "backward"}

OPTIONS = ("state", "integrator", "cone", "timestep", "date")  # what else tells curves apart


def begin_run(command: list[str]) -> dict[str, Any]:
    """What figures depend on besides the case, as it is kept: of files the names alone."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python -m diffenvs.benchmark", *map(_without_folder, command)]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
        },
        "versions": versions,
        "cases": [],
    }


def _without_folder(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() else word


def _cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(case: Case) -> dict[str, Any]:
    """What a case is, as it is kept."""
    opt = case.mjm.opt
    return {
        "task": case.name,
        "nworld": case.nworld,
        "device": "cpu" if case.device.is_cpu else case.device.name,
        "state": case.state,
        "integrator": _name(INTEGRATORS, opt.integrator),
        "cone": _name(CONES, opt.cone),
        "timestep": float(opt.timestep),
        "nv": int(case.mjm.nv),
    }


def _name(known: dict[str, Any], value: Any) -> str:
    return next((name for name, x in known.items() if x == value), str(value))


def heading(kept: dict[str, Any]) -> str:
    """Line above the rows of a case."""
    worlds = f"{kept['nworld']:,} world{'s'[: kept['nworld'] > 1]}"
    state = "random play" if kept["state"] == "random" else "one state with contacts"
    where = kept["device"]
    return (
        f"# {kept['task']}, {worlds}, {kept['integrator']}, {kept['cone']}, "
        f"{1e3 * kept['timestep']:g} ms, {state}, {where}"
    )


def rows(task: str, metrics: dict[str, float]) -> list[str]:
    """One row per metric, `task.metric value`."""
    return [f"{task}.{name} {number(value)}" for name, value in metrics.items()]


def number(value: float) -> str:
    """A figure with as many digits as mean something."""
    if isinstance(value, int):
        return str(value)
    if value != 0 and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def profile_table(profile: dict[str, list[tuple[str, float, float]]], most: int = 25) -> str:
    """Kernels by the time that they take, of each variant."""
    lines = []
    for variant, kernels in profile.items():
        total = sum(us for _, us, _ in kernels)
        count = sum(count for *_, count in kernels)
        lines.append(f"{variant}: {count:.0f} launches, {total:.0f} us, launched one by one")
        lines += [f"  {us:8.1f} us x{n:<3g} {name[:70]}" for name, us, n in kernels[:most]]
    return "\n".join(lines)


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Read the runs of a file: one, or a list of them.

    Raises:
        ValueError: The file holds none.
        OSError: It cannot be read.
    """
    try:
        found = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    runs = found if isinstance(found, list) else [found]
    if not runs or not all(_is_run(run) for run in runs):
        raise ValueError(f"{path} holds no run of the benchmark")
    return runs


def _is_run(run: Any) -> bool:
    """Whether this looks like what the benchmark keeps."""
    return (
        isinstance(run, dict)
        and isinstance(run.get("machine"), dict)
        and isinstance(run.get("cases"), list)
        and all(
            isinstance(case, dict)
            and {"task", "device", "nworld"} <= case.keys()
            and isinstance(case.get("metrics"), dict)
            for case in run["cases"]
        )
    )


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw time over worlds, both logarithmic: a colour per device, a line per kind of step.

    Cases of other tasks, options or days are curves of their own, and are named by what differs.
    What failed before it was timed is left out.

    Raises:
        ValueError: No run has a case of `--scaling` that was timed.
    """
    curves: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        for case in run["cases"]:
            if case.get("scaling") and CURVES.keys() <= case["metrics"].keys():
                options = (str((run | case).get(name, "")) for name in OPTIONS)
                curves.setdefault((case["task"], device_name(run, case), *options), []).append(case)
    if not curves:
        raise ValueError("there is no case of --scaling to plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = dict(zip(CURVES, (":", "-", "--"), strict=True))
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    differ = [len(set(values)) > 1 for values in zip(*curves, strict=True)]
    for index, (key, cases) in enumerate(curves.items()):
        shown = [text for i, text in enumerate(key) if i < 2 or differ[i]]
        cases = sorted(cases, key=lambda case: case["nworld"])
        for metric, label in CURVES.items():
            axes.plot(
                [case["nworld"] for case in cases],
                [case["metrics"][metric] for case in cases],
                styles[metric],
                color=f"C{index}",
                marker="o",
                markersize=3.5,
                label=f"{', '.join(shown)}: {label}",
            )
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    axes.set(xlabel="worlds", ylabel="one physics step of all worlds, µs")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(which="major", color="#dfe5ea", linewidth=0.8)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def device_name(run: dict[str, Any], case: dict[str, Any]) -> str:
    """Where a case ran: the name of the GPU, or the processor's, of which Warp takes one core."""
    return f"one core of {run['machine']['cpu']}" if case["device"] == "cpu" else case["device"]
