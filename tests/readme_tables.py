"""Writes the tables of the README between their markers, from the code and from measurements.

    python tests/readme_tables.py            writes them
    python tests/readme_tables.py --check    fails where they stand otherwise, with the difference

A table NAME stands between `<!-- NAME -->` and `<!-- /NAME -->`. Tasks come from the tasks
themselves, accuracies from `accuracy.json` (`python -m diffenvs.physics.accuracy ... --table`),
speeds from `speed.json`.
"""

import argparse
import difflib
import json
import pathlib
import sys

import gymnasium as gym
import mujoco
import numpy as np

import diffenvs
from diffenvs import command_line
from diffenvs.physics import accuracy_report
from diffenvs.task import INTEGRATORS

FOLDER = pathlib.Path(__file__).parent
README = FOLDER.parent / "README.md"


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
    """Return the table of speeds, in microseconds, under a line that says of what."""
    measured = json.loads((FOLDER / "speed.json").read_text())
    rows = []
    for row in measured["rows"]:
        stock, recorded, backward = (row[name] for name in ("stock", "recorded", "backward"))
        what = ", ".join([f"{row['worlds']:,}", *row["options"]])
        cells = [f"{value} us" for value in (stock, recorded, backward)]
        rows.append([what, *cells, f"{(recorded + backward) / stock:.2f}"])
    heading = ["worlds", "stock `mujoco_warp.step`", "recorded step", "backward"]
    table = markdown([*heading, "recorded + backward / stock"], rows)
    return f"{', '.join(measured[name] for name in ('what', 'how', 'machine'))}:\n\n{table}"


TABLES = {"tasks": tasks, "accuracy": accuracy, "speed": speed}


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
