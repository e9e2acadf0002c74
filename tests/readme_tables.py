"""Writes the tables of the README between their markers, from the code and from measurements.

    python tests/readme_tables.py            writes them
    python tests/readme_tables.py --check    fails where they stand otherwise, with the difference

A table NAME stands between `<!-- NAME -->` and `<!-- /NAME -->`. Tasks come from the tasks
themselves, accuracies from `accuracy.json` (`python -m diffenvs.physics.accuracy ... --table`),
speeds from `speed.json`, a list of runs of `python -m diffenvs.benchmark ... --json`, and what was
learned from `examples/learning.json`, which `examples/learning.py` writes.
"""

import argparse
import difflib
import json
import pathlib
import sys
from collections.abc import Iterable

import gymnasium as gym
import mujoco
import numpy as np

import diffenvs
from diffenvs import benchmark_report, command_line
from diffenvs.physics import accuracy_report
from diffenvs.task import INTEGRATORS

FOLDER = pathlib.Path(__file__).parent
README = FOLDER.parent / "README.md"
LEARNING = FOLDER.parent / "examples" / "learning.json"


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    """Return a table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tasks() -> str:
    """Return the table of tasks, in the order of `diffenvs.TASKS`."""
    names = {int(value): name for name, value in INTEGRATORS.items()}
    rows = []
    for id in diffenvs.TASKS:
        spec = gym.spec(id)
        task = command_line.make_task(spec, {})
        mjm = task.mjm
        obs, v5 = task.obs_size, command_line.make_task(spec, task.v5).obs_size
        rows.append(
            [
                f"`{id}`",
                task.gymnasium or "ours",
                *(str(value) for value in (mjm.nq, mjm.nv, mjm.nu)),
                str(obs) if obs == v5 else f"{obs} (as v5: {v5})",
                _bounds(mjm),
                f"{1e3 * task.dt:g} ms",
                f"{1e3 * mjm.opt.timestep:g} ms",
                names[int(mjm.opt.integrator)],
                f"{spec.max_episode_steps:,}",
            ]
        )
    return markdown(
        [
            "id",
            "Gymnasium's task",
            "nq",
            "nv",
            "nu",
            "observation",
            "action",
            "control step",
            "physics step",
            "integrator",
            "episode",
        ],
        rows,
    )


def _bounds(mjm: mujoco.MjModel) -> str:
    """Return the bounds of the actions, "±1" where they are those of all."""
    if not mjm.actuator_ctrllimited.all():
        return "unbounded"
    low, high = np.unique(mjm.actuator_ctrlrange, axis=0).T
    if len(low) > 1:
        return f"{low.min():g} to {high.max():g}"
    return f"±{high[0]:g}" if low[0] == -high[0] else f"{low[0]:g} to {high[0]:g}"


def accuracy() -> str:
    """Return the table of accuracies."""
    results = accuracy_report.read(FOLDER / "accuracy.json", must_exist=True)
    return accuracy_report.markdown(results)


def speed() -> str:
    """Return the tables of speed: physics, environments, and what others take."""
    cases = []
    for run in benchmark_report.read_runs(FOLDER / "speed.json"):
        versions = [f"{name} {run['versions'][name]}" for name in ("mujoco-warp", "warp-lang")]
        for case in run["cases"]:
            if not case.get("scaling"):
                device = benchmark_report.device_name(run, case)
                cases.append((case, f"{device}; {', '.join(versions)}; {run['date']}"))
    parts = []
    for machine in dict.fromkeys(machine for _, machine in cases):
        here = [case for case, where in cases if where == machine]
        tables = (_physics_speed(here), _env_speed(here), _peers(here))
        parts += [f"**{machine}**", *(table for table in tables if table)]
    return "\n\n".join(parts)


def _physics_speed(cases: list[dict]) -> str:
    """Return the table of the physics step, in microseconds."""
    rows = []
    for case in cases:
        found = case["metrics"]
        if "stock_us" not in found:
            continue
        times = [f"{found[name]:,.0f}" for name in ("stock_us", "recorded_us", "backward_us")]
        errors = [found[f"gradient_error_{which}"] for which in ("median", "worst")]
        state = "" if case["state"] == "random" else ", one state"
        rows.append(
            [
                f"{case['task']}, {case['integrator']}, {case['cone']}{state}",
                f"{case['nworld']:,}",
                f"{found['rows_mean']:.1f}",
                *times,
                f"{found['ratio']:.2f}",
                " / ".join(f"{error:.0e}".replace("e-0", "e-") for error in errors),
            ]
        )
    heading = ["one physics step, µs", "worlds", "rows", "stock `mujoco_warp.step`"]
    heading += ["recorded", "backward", "recorded + backward / stock", "gradient error"]
    return markdown(heading, rows) if rows else ""


def _env_speed(cases: list[dict]) -> str:
    """Return the table of the environments."""
    rows = []
    for case in cases:
        found = case["metrics"]
        if "env_step_us" not in found:
            continue
        windows = [found.get(f"window_32_{retain}_mib") for retain in ("substeps", "steps")]
        windows = ["–" if mib is None else f"{mib / 1024:.2g} GiB" for mib in windows]
        first = [found.get(f"first_gradient_{kind}_seconds") for kind in ("warm", "cold")]
        first = ["–" if seconds is None else f"{seconds:.2g} s" for seconds in first]
        rows.append(
            [
                f"{case['task']}, {case['integrator']}",
                f"{case['nworld']:,}",
                f"{found['env_steps_per_second']:,.0f}",
                f"{found['env_gradients_per_second']:,.0f}",
                f"{found['env_ratio']:.2f}",
                " / ".join(windows),
                " / ".join(first),
            ]
        )
    heading = ["environment", "worlds", "steps/s", "steps with gradient/s", "ratio"]
    heading += ["window of 32, `substeps` / `steps`", "first gradient, warm / cold"]
    return markdown(heading, rows) if rows else ""


def _number(value: float) -> str:
    """Return a figure with three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_MJX = "mjx_step_and_gradient_us"


def _peers(cases: list[dict]) -> str:
    """Return the table of what one would take instead."""
    rows = []
    for case in cases:
        found = case["metrics"]
        if "vjp_speedup_centred" not in found:
            continue
        differences = [found[f"transition_fd_{k}_us_per_state"] for k in ("one_sided", "centred")]
        ours = []
        for name in ("vjp", "step_and_vjp", "linearize"):
            marks = found[f"{name}_us_per_state"], found[f"{name}_speedup_centred"]
            ours.append("{} ({}x)".format(*map(_number, marks)))
        single, mjx = (found.get(name) for name in ("single_by_gymnasium", _MJX))
        rows.append(
            [
                f"{case['task']}, {case['integrator']}, {case['nworld']:,} worlds",
                " / ".join(map(_number, differences)),
                *ours,
                "" if single is None else f"{single:.2f}",
                "" if mjx is None else _number(mjx / case["nworld"]),
            ]
        )
    heading = ["µs per state", "`mjd_transitionFD`, one-sided / centred"]
    heading += ["ours: VJP", "step and VJP", "`linearize`"]
    heading += ["rate of `gym.make`, ours / Gymnasium's", "MJX, step and `grad`"]
    used = [0, *(i for i in range(1, len(heading)) if any(row[i] for row in rows))]
    table = [[cells[i] for i in used] for cells in [heading, *rows]]
    return markdown(table[0], table[1:]) if rows else ""


YARDSTICK = "ppo"  # stands beside the methods that learn by gradients


def learning() -> str:
    """Return the table of what was learned."""
    content = json.loads(LEARNING.read_text())
    tasks: dict[str, list[dict]] = {}
    for run in content["runs"]:
        tasks.setdefault(run["env"], []).append(run)
    heading = ["task", "to beat", "algorithm", "return, seed by seed", "wall clock, min"]
    heading += ["until the best policy, min", "steps", "machine", "PPO", "PPO's wall clock, min"]
    rows = []
    for env, runs in tasks.items():
        kinds: dict[bool, dict[str, list[dict]]] = {}  # on a CPU or not: a row each
        for run in runs:
            if run["script"] != YARDSTICK:
                cpu = run["machine"]["device"] == "cpu"
                kinds.setdefault(cpu, {}).setdefault(run["script"], []).append(run)
        ppo = [run for run in runs if run["script"] == YARDSTICK]
        to_beat = content["to_beat"].get(env)
        rows += [_learned(to_beat, scripts, ppo) for scripts in kinds.values() or [{}]]
    return markdown(heading, rows)


def _learned(to_beat: float | None, scripts: dict[str, list[dict]], ppo: list[dict]) -> list[str]:
    """Return a row of a task: the best method by gradients, of those with the most seeds."""
    runs = max(
        scripts.values(),
        key=lambda runs: (len(runs), np.mean([run["score"]["return"] for run in runs])),
        default=[],
    )
    first = (runs or ppo)[0]
    theirs = first["score"]["on"] == "gymnasium"
    here, there = (_each(_machine(run["machine"]) for run in part) for part in (runs, ppo))
    clock = _each(f"{run['seconds'] / 60:.1f}" for run in ppo)
    row = [
        first["score"]["env"] if theirs else f"`{first['env']}` (ours)",
        "–" if to_beat is None else f"{to_beat:,g}",
        f"`{first['script']}.py`" if runs else "",
        _returns(runs, to_beat),
        _each(f"{run['seconds'] / 60:.1f}" for run in runs),
        _each(f"{run['best']['seconds'] / 60:.1f}" for run in runs),
        _each(_millions(run["steps"]) for run in runs),
        here,
        _returns(ppo, to_beat),
        f"{clock} on {there}" if runs and ppo and there != here else clock,
    ]
    return [cell or "–" for cell in row]


def _returns(runs: list[dict], to_beat: float | None) -> str:
    """Return the scores of the seeds with standard errors; bold where the figure is reached."""
    cells = []
    for score in (run["score"] for run in runs):
        value, error = score["return"], score["error"]
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
        if error is not None and error < 1:
            digits = max(digits, 1)
        text = f"{value:,.{digits}f}"
        if error is not None:
            text += f" ± {error:,.{digits}f}"
        if "upright" in score:
            text += f" ({score['upright']:.0%} upright)"
        beaten = to_beat is not None and score["return"] >= to_beat
        cells.append(f"**{text}**" if beaten else text)
    return "; ".join(cells)


def _each(cells: Iterable[str]) -> str:
    """Return what is of the seeds; once, where it is the same of all, and nothing of none."""
    found = list(cells)
    return "; ".join(found if len(set(found)) > 1 else found[:1])


def _millions(steps: int) -> str:
    """Return a number of steps."""
    return f"{steps / 1e6:.3g} M"


def _machine(machine: dict) -> str:
    """Return what a run computed on."""
    count = machine["processes"]
    where = machine["device"]
    if where == "cpu":
        return f"{machine['cores']} cores of {machine['cpu']}"
    return where if count == 1 else f"{count} x {where}"


TABLES = {"tasks": tasks, "accuracy": accuracy, "speed": speed, "learning": learning}


def fill(text: str) -> str:
    """Return the text with every table in its place."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the text must have one {begin} and one {end}")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{table()}\n\n{end}{rest.partition(end)[2]}"
    return text


def differences(text: str) -> str:
    """Return how the text differs from what it should be; empty if it does not."""
    lines = difflib.unified_diff(
        text.splitlines(), fill(text).splitlines(), "README.md", "what it should be", lineterm=""
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description="Write the tables of the README.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    options = parser.parse_args(arguments)
    text = README.read_text()
    if not options.check:
        README.write_text(fill(text))
    elif found := differences(text):
        sys.exit(f"{found}\n\nThe README is out of date: python tests/readme_tables.py writes it.")


if __name__ == "__main__":
    main()
