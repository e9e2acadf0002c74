"""What training has come to: scores and curves of many runs, in one table and two pictures.

    python examples/shac.py --env DiffAnt-v0 --seed 0    as often as you like, with other scripts,
    python examples/ppo.py --env DiffAnt-v0 --seed 0     environments and seeds
    python examples/learning.py runs/shac runs/ppo       scores and draws all that is in there

A run is a folder with `curve.json` and `policy.pt2`, as `diffenvs.training` leaves it. Its policy,
which is the best by the evaluations of its curve, plays whole episodes of Gymnasium's own
environment, and of ours where Gymnasium has no such task; the seeds of these episodes are none of
those that chose it. A policy that `learning.json` has a score of, by its content, is not played
again.

It writes `learning.json`, of which `tests/readme_tables.py` makes the README's table, and the
curves, against wall clock in `learning.png` and against environment steps in `learning_steps.png`;
`--policies FOLDER` copies the best seed's policy of each task, and `--keep` leaves runs in the file
that are not given. Runs that have no policy are named and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from gymnasium.vector import AutoresetMode
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter

from diffenvs import command_line, evaluate
from diffenvs.policy import load_policy
from diffenvs.training.checkpoint import replacing
from diffenvs.training.curve import HEADER, Row
from diffenvs.training.settings import FREE

# What model-free methods have reached: the best entry of rl-baselines3-zoo, after 1 to 3 M steps;
# None has no such entry.
TO_BEAT: dict[str, float | None] = {
    "DiffAnt-v0": 5813.0,  # TD3
    "DiffHalfCheetah-v0": 12090.0,  # TQC
    "DiffHopper-v0": 3754.0,  # TQC
    "DiffWalker2d-v0": 4933.0,  # TRPO
    "DiffHumanoid-v0": 7239.0,  # TQC
    "DiffSwimmer-v0": 360.0,
    "DiffReacher-v0": -3.75,
    "DiffPusher-v0": -20.0,
    "StiffPusher-v0": None,
    "DiffInvertedPendulum-v0": 1000.0,  # the most that there is
    "DiffInvertedDoublePendulum-v0": 9300.0,
    "DiffCartPoleSwingUp-v0": None,  # its poles are to stand
    "DiffHumanoidStandup-v0": None,
}
YARDSTICK = "ppo"
COLOURS = {"shac": "#e07b1f", "sapo": "#24405e", "apg": "#2a9d8f", YARDSTICK: "#9b5fa5"}
FAINT, INK = "#dfe5ea", "#24405e"
CPU_STYLE = (0, (1.0, 0.6))  # dots close together; curves of a GPU are lines
MACHINE = ("device", "processes", "cpu", "cores")  # not more of it than figures depend on
STANDING, LAST = 0.95, 50  # cosine of a pole's angle, through so many steps at the end: 2 s
Run = dict[str, Any]


# Reading


def find(folders: list[Path]) -> list[Path]:
    """Folders of runs: those given, or what is below them.

    Raises:
        ValueError: There is none.
    """
    found = []
    for folder in folders:
        below = sorted(path.parent for path in folder.rglob("curve.json"))
        if not below:
            raise ValueError(f"{folder} has no curve.json, and no folder in it has")
        found += below
    return list(dict.fromkeys(path.resolve() for path in found))


def read(folder: Path) -> Run:
    """Read what a run was and how it went.

    Raises:
        ValueError: It is not one that can be scored; the message says why.
    """
    try:
        about = json.loads((folder / "curve.json").read_text())
        settings, rows = dict(about["settings"]), about["curve"]
        words = shlex.split(about["command"])
        script = next(Path(word).stem for word in words if word.endswith(".py"))
        trained_on, seed = settings.pop("env"), settings.pop("seed")
        env = trained_on.rpartition(":")[2]
        table = [[row[name] for name in HEADER] for row in rows]
        machine = {name: about["machine"][name] for name in MACHINE}
        commit, versions = about["commit"], about["versions"]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        kind = type(error).__name__
        raise ValueError(f"its curve.json is not that of a run ({kind}: {error})") from None
    try:
        command_line.find_spec(trained_on)  # imports the module that registers it
    except ImportError as error:
        raise ValueError(f"its environment cannot be imported ({error})") from None
    except gym.error.Error as error:
        raise ValueError(f"its environment is not registered ({error})") from None
    if len(table) < 2:
        raise ValueError("its curve ends where it begins")
    if not (folder / "policy.pt2").is_file():
        raise ValueError("it has no policy.pt2: it has not come to its end")
    scored = [Row(*row) for row in table if row[HEADER.index("return")] is not None]
    if not scored:
        raise ValueError("none of its returns is finite")
    best = max(reversed(scored), key=lambda row: row.score)
    run = {
        "script": script,
        "env": env,
        "seed": seed,
        "command": shlex.join(map(_without_folder, words)),
        "settings": {name: value for name, value in settings.items() if name not in FREE},
        "machine": machine,
        "commit": commit,
        "versions": versions,
        "steps": rows[-1]["steps"],
        "seconds": round(rows[-1]["seconds"], 1),
        "best": {"steps": best.steps, "seconds": round(best.seconds, 1)},
        "policy": hashlib.sha256((folder / "policy.pt2").read_bytes()).hexdigest(),
        "curve": [[_rounded(x) for x in row] for row in table],
    }
    if about.get("resumed"):
        run["resumed"] = len(about["resumed"])
    return run


def _without_folder(word: str) -> str:
    """A word of a command, without folders of somebody's machine."""
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def _rounded(value: float | None) -> float | None:
    """A number with as many digits as mean something."""
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def on_cpu(run: Run) -> bool:
    """Whether a run computed on a CPU, where time is another and settings are."""
    return run["machine"]["device"] == "cpu"


def name(run: Run) -> tuple[str, str, int, bool]:
    """What tells runs apart."""
    return run["script"], run["env"], run["seed"], on_cpu(run)


def check(runs: list[Run]) -> None:
    """Say which seeds have been trained otherwise than others of the same script and task."""
    for group in algorithms(runs).values():
        for run in group[1:]:
            here, there = run["settings"], group[0]["settings"]
            names = sorted(x for x in here.keys() | there if here.get(x) != there.get(x))
            if names:
                print(
                    f"NOTE: {run['script']}, {run['env']}: seeds {group[0]['seed']} and "
                    f"{run['seed']} differ in {', '.join(names)}"
                )


def algorithms(runs: list[Run]) -> dict[tuple[str, str, bool], list[Run]]:
    """The seeds of each task and script, on GPUs and on a CPU."""
    found: dict[tuple[str, str, bool], list[Run]] = {}
    for run in runs:
        found.setdefault((run["env"], run["script"], on_cpu(run)), []).append(run)
    return found


# Scoring


def score(run: Run, policy: Path, episodes: int) -> dict[str, Any]:
    """Play whole episodes with a policy."""
    gymnasium = command_line.find_task(command_line.find_spec(run["env"])).gymnasium
    side = "diffenvs" if gymnasium is None else "gymnasium"
    found = evaluate.evaluate(run["env"], policy, on=side, episodes=episodes)["results"][side]
    result = {
        "on": side,
        "env": found["env"],
        "episodes": episodes,
        "return": round(found["return"], 3),
        "error": None if found["return_error"] is None else round(found["return_error"], 3),
        "lowest": round(found["return_lowest"], 3),
        "highest": round(found["return_highest"], 3),
        "length": round(found["length"], 1),
        "versions": {x: metadata.version(x) for x in ("gymnasium", "mujoco")},
    }
    if "CartPole" in run["env"]:
        result["upright"] = upright(run["env"], policy, episodes)
    return result


def upright(env: str, path: Path, episodes: int) -> float:
    """Share of the poles that stand through the last 2 s of an episode, within 18 degrees."""
    envs: Any = gym.make_vec(env, num_envs=episodes, autoreset_mode=AutoresetMode.SAME_STEP)
    act, cosines = load_policy(path, envs.unwrapped.task), []

    def watched(obs: np.ndarray) -> np.ndarray:
        cosines.append(obs[:, 1])
        return act(obs)

    try:
        evaluate.run_episodes(envs, watched, episodes)
    finally:
        envs.close()
    return float((np.stack(cosines[-LAST:]) > STANDING).all(axis=0).mean())


def gather(folders: list[Path], known: list[Run], episodes: int, save: Any) -> dict[Any, Run]:
    """Read and score all runs.

    Args:
        folders: Those of the runs.
        known: Runs whose scores may be taken over.
        episodes: Episodes of a score.
        save: Called with what is there after every score, which took its time.

    Returns:
        The runs by name; each has its "folder".

    Raises:
        ValueError: Two folders have the same script, environment and seed.
    """
    runs: dict[Any, Run] = {}
    for folder in folders:
        try:
            run = read(folder)
        except ValueError as error:
            print(f"LEFT OUT: {folder}: {error}")
            continue
        if name(run) in runs:
            script, env, seed, _ = name(run)
            raise ValueError(
                f"{runs[name(run)]['folder']} and {folder} are both {script}, {env}, seed {seed}: "
                "give one of them"
            )
        runs[name(run)] = run | {"folder": folder}
    scores = {(run["policy"], run["env"]): run["score"] for run in known}
    for key, run in list(runs.items()):
        folder = run["folder"]
        found = scores.get((run["policy"], run["env"]))
        if found is not None and found["episodes"] == episodes:
            run["score"] = found
            continue
        try:
            run["score"] = score(run, folder / "policy.pt2", episodes)
        except (ValueError, gym.error.Error) as error:
            print(f"LEFT OUT: {folder}: {error}")
            del runs[key]
            continue
        save([run for run in runs.values() if "score" in run])
        error = "" if run["score"]["error"] is None else f" ± {run['score']['error']:.1f}"
        which = f"{run['script']}, {run['env']}, seed {run['seed']}"
        print(f"{which}: {run['score']['return']:.1f}{error}", flush=True)
    return runs


# Writing


def ordered(runs: list[Run]) -> list[Run]:
    """Runs in the order of the tasks, scripts and seeds."""
    tasks, scripts = list(TO_BEAT), list(COLOURS)

    def place(run: Run) -> tuple:
        env, script = run["env"], run["script"]
        return (
            tasks.index(env) if env in tasks else len(tasks),
            env,
            scripts.index(script) if script in scripts else len(scripts),
            script,
            on_cpu(run),
            run["seed"],
        )

    return sorted(runs, key=place)


def write(runs: list[Run], path: Path) -> None:
    """Write the runs: a line for each thing that is known of one, and for each row of its curve."""
    parts = []
    for run in ordered(runs):
        lines = [
            f'   "{name}": {json.dumps(value)}'
            for name, value in run.items()
            if name not in ("folder", "curve")
        ]
        rows = ",\n".join(f"    {json.dumps(row)}" for row in [HEADER, *run["curve"]])
        lines.append(f'   "curve": [\n{rows}\n   ]')
        parts.append("  {\n" + ",\n".join(lines) + "\n  }")
    text = f'{{\n "to_beat": {json.dumps(TO_BEAT)},\n "runs": [\n' + ",\n".join(parts) + "\n ]\n}\n"
    with replacing(path) as part:
        part.write_text(text)


def load(path: Path) -> list[Run]:
    """Read what `write` wrote; nothing if there is nothing."""
    if not path.exists():
        return []
    runs = json.loads(path.read_text())["runs"]
    return [run | {"curve": run["curve"][1:]} for run in runs]


def best_runs(runs: list[Run]) -> dict[str, Run]:
    """The seed with the best score of each task, of those that learned by gradients, if any did."""
    found: dict[str, Run] = {}
    for run in runs:
        before = found.get(run["env"])
        if before is None or _rank(run) > _rank(before):
            found[run["env"]] = run
    return found


def _rank(run: Run) -> tuple[bool, float]:
    return run["script"] != YARDSTICK, run["score"]["return"]


def copy_policies(runs: list[Run], folder: Path) -> None:
    """Copy the best policy of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    for env, run in best_runs(runs).items():
        if "folder" not in run:
            print(f"{env}: the best policy is that of a run that was not given, and not copied")
            continue
        target = folder / f"{env}.pt2"
        shutil.copyfile(run["folder"] / "policy.pt2", target)
        what = f"{run['script']}, seed {run['seed']}"
        print(f"{target}: {what}, {target.stat().st_size / 1024:.0f} KiB")


# Drawing


@dataclass(frozen=True)
class Against:
    """What curves are drawn against.

    Attributes:
        column: Name in the curve, "seconds" or "steps".
        unit: What one of the axis is.
        label: Of the axis.
    """

    column: str
    unit: float
    label: str

    def of_best(self, run: Run) -> float:
        """Where the best policy of a run was found."""
        return run["best"][self.column] / self.unit


TIME = Against("seconds", 60.0, "wall clock, minutes")
STEPS = Against("steps", 1e6, "environment steps, millions")


def band(runs: list[Run], column: str, against: Against) -> tuple[np.ndarray, ...]:
    """Places on the axis, and mean, lowest and highest of the seeds there; a run that ended stays.

    Returns:
        Four arrays, empty where nothing is known.
    """
    index, place = HEADER.index(column), HEADER.index(against.column)
    curves = []
    for run in runs:
        rows = [(row[place], row[index]) for row in run["curve"] if row[index] is not None]
        if rows:
            curves.append(np.array(rows).T)
    if not curves:
        return (np.zeros(0),) * 4
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[places >= max(x[0] for x, _ in curves)]
    values = np.stack([np.interp(places, *curve) for curve in curves])
    return places / against.unit, values.mean(0), values.min(0), values.max(0)


def draw_task(axes: Any, env: str, runs: list[Run], against: Against) -> None:
    """Draw the curves of a task."""
    first = runs[0]["score"]
    title = first["env"] if first["on"] == "gymnasium" else f"{env} (ours)"
    axes.set_title(title, color=INK, fontsize=12)
    notes = []
    for (_, script, cpu), seeds in algorithms(runs).items():
        colour, style = COLOURS.get(script, INK), CPU_STYLE if cpu else "-"
        places, mean, *_ = band(seeds, "return", against)
        gymnasium = band(seeds, "gymnasium_return", against)
        main = first["on"] == "diffenvs" or not gymnasium[0].size
        if not main:
            axes.plot(places, mean, linestyle=style, color=colour, linewidth=0.8, alpha=0.6)
        places, mean, low, high = band(seeds, "return", against) if main else gymnasium
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(places, mean, linestyle=style, color=colour, linewidth=2.0)
        axes.plot(
            [against.of_best(run) for run in seeds],
            [run["score"]["return"] for run in seeds],
            "o",
            color=colour,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3,
        )
        shares = [run["score"]["upright"] for run in seeds if "upright" in run["score"]]
        if shares:
            notes.append(f"{script}: {np.mean(shares):.0%} upright")
    figure = TO_BEAT.get(env)
    if figure is not None:
        axes.axhline(figure, color=INK, linestyle="--", linewidth=1.0)
        axes.annotate(
            f"{figure:,g}",
            (0.0, figure),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=INK,
            fontsize=8,
            bbox={"color": "white", "alpha": 0.7, "pad": 0.5},
        )
    if notes:
        axes.text(0.97, 0.05, "\n".join(notes), transform=axes.transAxes, ha="right", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.margins(x=0.03, y=0.08)
    axes.set_xlim(left=0.0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.locator_params(nbins=6)


def draw(runs: list[Run], path: Path, against: Against) -> None:
    """Draw a panel per task."""
    runs = ordered(runs)
    tasks = list(dict.fromkeys(run["env"] for run in runs))
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(3.6 * columns, 7.2), 2.9 * rows + 0.7),
        layout="constrained",
        squeeze=False,
    )
    for axes, env in zip(grid.flat, tasks, strict=False):
        draw_task(axes, env, [run for run in runs if run["env"] == env], against)
    for axes in list(grid.flat)[len(tasks) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel("return of an episode", color=INK, fontsize=10)
    for column in range(columns):
        lowest = max(r for r in range(rows) if r * columns + column < len(tasks))
        grid[lowest, column].set_xlabel(against.label, color=INK, fontsize=10)
    scripts = [x for x in COLOURS if any(run["script"] == x for run in runs)]
    handles = [Line2D([], [], color=COLOURS[x], linewidth=2.0, label=x.upper()) for x in scripts]
    episodes = sorted({run["score"]["episodes"] for run in runs})
    if any(map(on_cpu, runs)):
        handles += [Line2D([], [], color=INK, linestyle=CPU_STYLE, linewidth=2.0, label="on a CPU")]
    handles += [
        Line2D([], [], color=INK, linewidth=0.8, alpha=0.6, label="the same on our environment"),
        Line2D([], [], color=INK, linestyle="--", linewidth=1.0, label="to beat"),
        Line2D(
            [],
            [],
            color=INK,
            linestyle="",
            marker="o",
            markersize=5,
            label=f"best policy of a seed, {', '.join(map(str, episodes))} episodes",
        ),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
    )
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def main(
    folders: list[Path], episodes: int, policies: Path | None, out: Path, keep: bool = False
) -> None:
    """Score, write and draw."""
    command_line.quiet()
    data = out / "learning.json"
    pictures = {out / "learning.png": TIME, out / "learning_steps.png": STEPS}
    before = load(data)
    given = find(folders)

    def save(done: list[Run]) -> None:
        mine = {name(run): run for run in done}
        write([*mine.values(), *(run for run in before if name(run) not in mine)], data)

    runs = list(gather(given, before, episodes, save).values())
    if keep:
        mine = {name(run) for run in runs}
        runs += [run for run in before if name(run) not in mine]
    if not runs:
        raise ValueError("there is no run to show")
    runs = ordered(runs)
    check(runs)
    write(runs, data)
    for picture, against in pictures.items():
        draw(runs, picture, against)
    if policies is not None:
        copy_policies(runs, policies)
    print(f"{len(runs)} runs are in {data}, {' and '.join(map(str, pictures))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Score and draw what was trained.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "folders", type=Path, nargs="*", metavar="RUN_FOLDER", help="of a run, or with runs in it"
    )
    parser.add_argument("--episodes", type=int, default=100, help="episodes of a score")
    parser.add_argument("--policies", type=Path, help="folder for the best policies")
    parser.add_argument("--out", type=Path, default=Path("examples"), help="folder of the results")
    parser.add_argument(
        "--keep", action="store_true", help="keep the runs in learning.json that are not given"
    )
    with warnings.catch_warnings():  # a policy's file is read into a buffer that is not writable
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        try:
            main(**vars(parser.parse_args()))
        except ValueError as error:
            sys.exit(f"error: {error}")
