"""What the accuracy tool prints and keeps: lines for the terminal, JSON, Markdown, a worst state.

The JSON file holds one entry per model (by the name of its file), integrator and cone.
"""

import argparse
import json
import os
import pathlib
from importlib import metadata

import mujoco
import numpy as np
import warp as wp

from .accuracy import INPUTS, Accuracy

_WIDTHS = (13, 10, *[17] * len(INPUTS), 7, 10, 10, 12)
_PACKAGES = ("mujoco", "mujoco-warp", "warp-lang")


def settings(options: argparse.Namespace) -> dict:
    """What the numbers of a run depend on."""
    device = wp.get_device(options.device)
    return {
        "states": options.states,
        "nstep": options.nstep,
        "seed": options.seed,
        "rollout": options.rollout,
        "play": [options.keyframe, options.spread, options.vigor],
        "thresholds": [
            options.threshold_median,
            options.threshold_worst,
            options.threshold_set_aside,
        ],
        "device": "cpu" if device.is_cpu else device.name,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    } | ({"date": options.date} if options.date else {})


def entry(found: Accuracy, steep: int, failures: list[str], settings: dict) -> dict:
    """One case as it is kept, numbers of two digits."""

    def short(value):
        return float(f"{value:.1e}")

    trusted = found.trusted
    errors = {}
    for name in INPUTS:
        values = found.quantiles(name)
        errors[name] = [short(x) for x in values] if isinstance(values, tuple) else values
    return {
        "errors": errors,
        "step": short(found.step_error[trusted].max(initial=0.0)),
        "compared": int(trusted.sum()),
        "kinks": int(found.kink.sum()),
        "doubtful": int((~trusted & ~found.kink).sum()),
        "steep": steep,
        "contacts": [round(float(found.ncon.mean()), 1), int(found.ncon.max())],
        "rows": [round(float(found.nrow.mean()), 1), int(found.nrow.max())],
        "failures": failures,
        "settings": settings,
    }


def heading(path: pathlib.Path, mjm: mujoco.MjModel, options: argparse.Namespace) -> str:
    """What a table of the terminal begins with."""
    sizes = ", ".join(f"{name} {getattr(mjm, name)}" for name in ("nq", "nv", "na", "nu"))
    run = f"{options.states} states, {options.nstep} step{'s'[: options.nstep > 1]}"
    first = f"{path}: {sizes}; {run}, seed {options.seed}, {options.device}"
    second = "relative error of the gradient, median / worst; contacts and rows, mean / max"
    names = ("integrator", "cone", "q", "v", "act", "u", "step", "contacts", "rows", "set aside")
    return "\n".join([first, second, _columns(names)])


def line(integrator: str, cone: str, entry: dict) -> str:
    """One case in a table of the terminal."""

    def pair(values):
        return " / ".join(f"{x:g}" for x in values)

    def error(values):
        if isinstance(values, list):
            return " / ".join(f"{x:.1e}" for x in values)
        return "-" if values is None else values

    left = [f"{entry[k]} {k if entry[k] > 1 else k.rstrip('s')}" for k in ("kinks", "doubtful")]
    left += [f"{entry['steep']} steep"]
    left = [text for text in left if not text.startswith("0 ")]
    cells = (
        integrator,
        cone,
        *(error(entry["errors"][name]) for name in INPUTS),
        f"{entry['step']:.0e}",
        pair(entry["contacts"]),
        pair(entry["rows"]),
        ", ".join(left) or "0",
    )
    verdict = "FAILS: " + ", ".join(entry["failures"]) if entry["failures"] else "ok"
    rollouts = "\n" + rollout_lines(entry["rollout"]) if "rollout" in entry else ""
    return f"{_columns(cells)}  {verdict}{rollouts}"


def rollout_lines(summary: dict[str, dict]) -> str:
    """The rollouts of one case in a table of the terminal."""
    lines = []
    for oracle, found in summary.items():
        head = f"    rollouts, {oracle:8}: {found['compared']} of {found['of']} compare"
        head += f", {found['steep']} are steep" if found["steep"] else ""
        for which in ("those", "all"):
            if which in found:
                *marks, cosine = found[which]
                error = " / ".join(f"{x:.0e}" for x in marks)
                head += f"; {which}: {error} (median / 90% / worst), 1 - cosine {cosine:.0e}"
        lines.append(head)
    return "\n".join(lines)


def _columns(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True))


def read(path: pathlib.Path, must_exist: bool = False) -> dict:
    """Results of a file, by model, integrator and cone; none if there is no file."""
    if not must_exist and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no results")
    return found


def find(results: dict, path: pathlib.Path, integrator: str, cone: str) -> dict | None:
    """The entry of a case, if there is one."""
    return results.get(path.stem, {}).get(integrator, {}).get(cone)


def merge(
    file: pathlib.Path, results: dict, path: pathlib.Path, integrator: str, cone: str, entry: dict
) -> None:
    """Put one entry among the results, and write them all in one stroke."""
    results.setdefault(path.stem, {}).setdefault(integrator, {})[cone] = entry
    partial = file.with_name(file.name + ".part")
    partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    os.replace(partial, file)


def markdown(results: dict) -> str:
    """A table of all results: a row per model and cone, a column per integrator.

    A cell holds the largest median and the largest error of all inputs of the step.
    """
    order = ("euler", "implicitfast", "rk4", "discrete")
    found = {integrator for cases in results.values() for integrator in cases}
    integrators = [name for name in order if name in found] + sorted(found - set(order))
    header = ["model", "contacts", *integrators, "set aside"]
    lines = [header, ["---"] * len(header)]
    for model, cases in sorted(results.items()):
        for cone in sorted({cone for by_cone in cases.values() for cone in by_cone}, reverse=True):
            entries = {k: by_cone[cone] for k, by_cone in cases.items() if cone in by_cone}
            counts = [sum(e[k] for e in entries.values()) for k in ("kinks", "doubtful")]
            total = sum(e["settings"]["states"] for e in entries.values())
            mean = np.mean([e["contacts"][0] for e in entries.values()])
            most = max(e["contacts"][1] for e in entries.values())
            cells = [f"{model} ({cone})", f"{mean:.1f} / {most}"]
            cells += [_worst(entries[k]) if k in entries else "" for k in integrators]
            lines.append([*cells, f"{sum(counts)} of {total}"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _worst(entry: dict) -> str:
    pairs = [values for values in entry["errors"].values() if isinstance(values, list)]
    if not pairs:
        return "no influence"
    median, worst = (max(values) for values in zip(*pairs, strict=True))
    return f"{median:.0e} / {worst:.0e}".replace("e-0", "e-").replace("e+0", "e+")


def state_to_save(
    path: pathlib.Path,
    integrator: str,
    cone: str,
    options: argparse.Namespace,
    found: Accuracy,
    index: int,
    name: str,
) -> dict[str, np.ndarray]:
    """One state with its cotangent and both gradients, for `numpy.savez`."""
    kept = {field: getattr(found.states, field)[index] for field in found.states._fields}
    kept |= {"cotangent": found.cotangents[index], "input": name, "index": index}
    for source in ("ours", "oracle"):
        kept |= {f"{source}_{k}": x[index] for k, x in getattr(found, source).items()}
    kept |= {"model": str(path.resolve()), "integrator": integrator, "cone": cone}
    kept |= {"nstep": options.nstep, "seed": options.seed}
    return {k: np.asarray(v) for k, v in kept.items()}


def how_to_load(file: pathlib.Path, error: float) -> str:
    """What to type to look at a saved state."""
    file = file if file.suffix == ".npz" else file.with_name(file.name + ".npz")
    return (
        f"worst state, relative error {error:.1e}, in {file}:\n"
        f"    worst = numpy.load({str(file)!r})\n"
        "    worst['model'], worst['input'], worst['qpos'], worst['cotangent'],"
        " worst['ours_qpos'], worst['oracle_qpos'], ..."
    )
