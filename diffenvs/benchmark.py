"""How fast are steps and gradients here, and are they right? One command, rows of figures.

    python -m diffenvs.benchmark --task Ant Humanoid --nworld 4096 16384

times, for every task and number of worlds, one physics step (stock mujoco_warp, ours, ours
recorded, its gradient: see `benchmark_physics`), one step of the environment (`benchmark_env`),
and with `--peers` what else is installed (`benchmark_peers`). It prints rows of `task.metric
value`, among them the error of the very gradients that were timed against float64 central
differences. Times are in microseconds per step of all worlds, the median of several replays.

    python -m diffenvs.benchmark --scaling --json gpu.json
    python -m diffenvs.benchmark --scaling --json cpu.json --device cpu --max-nworld 4096
    python -m diffenvs.benchmark --plot scaling.png --from gpu.json cpu.json

times the physics step for 1, 4, 16, ... worlds, and draws runs of several machines in one picture.

The exit code is

    0   all figures are there, and the gradients are right
    1   a gradient is not: its error is past the limits of `python -m diffenvs.physics.accuracy`, or
        it is zero or not finite in some world
    2   an argument makes no sense
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import sys
from pathlib import Path

import gymnasium as gym
import warp as wp

import diffenvs
from diffenvs import benchmark_report as report
from diffenvs import command_line
from diffenvs.benchmark_env import first_gradient, measure_env
from diffenvs.benchmark_peers import measure_peers
from diffenvs.benchmark_physics import STATES, Case, measure_step
from diffenvs.physics import UnsupportedFeature, check_model
from diffenvs.physics.accuracy_tool import CONES, INTEGRATORS, load
from diffenvs.task import INTEGRATORS as OF_ENVS

LEVELS = ("physics", "env")
SCALING = [4**i for i in range(8)] + [32768]
_GPU_WORLDS, _CPU_WORLDS = 4096, 256


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffenvs.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--task",
        nargs="+",
        default=["Ant"],
        metavar="TASK",
        help="names of our tasks (Ant), ids of environments, or .xml and .mjb files, of which "
        "the physics is timed (Ant)",
    )
    positive = command_line.integer(1)
    add(
        "--nworld",
        nargs="+",
        type=positive,
        metavar="N",
        help=f"numbers of worlds ({_GPU_WORLDS:,} on a GPU, {_CPU_WORLDS} on a CPU)",
    )
    add("--device", help='"cpu", "cuda:0", ...; the first GPU if there is one')
    add("--integrator", choices=INTEGRATORS, help="instead of the model's own")
    add("--cone", choices=CONES, help="instead of the model's own; leaves the environment out")
    add("--timestep", type=float, metavar="S", help="likewise, in seconds")
    add(
        "--state",
        nargs="+",
        choices=STATES,
        default=["random"],
        help="of the worlds: where random play left each of them, or one state for all with at "
        "least four constraint rows (random)",
    )
    add("--level", nargs="+", choices=LEVELS, default=LEVELS, help="what to time (both)")
    add("--peers", action="store_true", help="also time mjd_transitionFD, Gymnasium and MJX")
    add(
        "--first-gradient",
        choices=("none", "warm", "cold"),
        default="warm",
        help="also time a fresh process up to its first gradient, with kernels compiled (warm), "
        "or first without any (cold) (warm)",
    )
    add("--profile", action="store_true", help="also time every kernel (CUDA)")
    add("--scaling", action="store_true", help="the physics step for 1, 4, 16, ... worlds")
    add("--max-nworld", type=positive, default=SCALING[-1], metavar="N", help="of --scaling")
    add("--replays", type=positive, default=30, metavar="N", help="of each graph (30)")
    add(
        "--seconds",
        type=positive,
        default=60,
        metavar="S",
        help="limit of a case's replays, of which there are at least five (60)",
    )
    add(
        "--check",
        type=positive,
        default=16,
        metavar="N",
        help="worlds in which the gradient is compared with differences (16)",
    )
    add("--seed", type=command_line.integer(0), default=0, help="of play and cotangents (0)")
    add("--json", type=Path, metavar="FILE", help="write the run to this file")
    add("--plot", type=Path, metavar="FILE.png", help="draw the scaling")
    add(
        "--from",
        dest="runs",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="with --plot: draw the runs of these JSON files, and time nothing",
    )
    return parser


def names() -> list[str]:
    """Short names of our tasks, as `--task` takes them."""
    return [_short(id) for id in diffenvs.TASKS]


def _short(id: str) -> str:
    """The name of an environment without what all have: Ant of DiffAnt-v0."""
    return id.rpartition(":")[2].removeprefix("Diff").partition("-v")[0]


def make_cases(options: argparse.Namespace) -> list[Case]:
    """Return what is to be timed, by the command line.

    Raises:
        ValueError: A task, a file or the device is not there, or an option does not fit.
        UnsupportedFeature: A model has no gradient.
    """
    try:
        device = wp.get_device(options.device)
    except Exception as error:  # Warp raises more than one kind
        known = [known.alias for known in wp.get_devices()]
        raise ValueError(f"--device {options.device} is not one of {known}") from error
    if options.timestep is not None and not 0 < options.timestep < math.inf:
        raise ValueError(f"--timestep {options.timestep} is not a time in seconds > 0")
    if options.profile and device.is_cpu:
        raise ValueError("--profile needs a CUDA device: Warp times kernels there alone")
    if options.scaling:
        worlds = [n for n in SCALING if n <= options.max_nworld]
    else:
        worlds = options.nworld or [_CPU_WORLDS if device.is_cpu else _GPU_WORLDS]
    cases = []
    for text in options.task:
        model = _find_model(text, options)
        check_model(model.mjm)
        for state in options.state:
            for nworld in worlds:
                case = copy.copy(model)
                case.nworld, case.device, case.state = nworld, device, state
                case.seed = options.seed
                cases.append(case)
    return cases


def _find_model(text: str, options: argparse.Namespace) -> Case:
    """Return a case of one world of what `--task` names, with the options that were given."""
    keywords = {}
    if Path(text).suffix.lower() in (".xml", ".mjb"):
        env, name, mjm = None, Path(text).stem, load(Path(text))
    else:
        ids = {_short(id).lower(): id for id in diffenvs.TASKS}
        try:
            spec = command_line.find_spec(ids.get(text.lower(), text))
        except (gym.error.Error, ImportError, ValueError):
            raise ValueError(
                f"--task {text} is neither an .xml or .mjb file, nor the id of an environment of "
                f"diffenvs, nor one of {', '.join(names())}"
            ) from None
        env, name = spec.id, _short(spec.id)
        mjm = command_line.make_task(spec, {}).mjm
    if options.integrator is not None:
        mjm.opt.integrator = INTEGRATORS[options.integrator]
        keywords["integrator"] = options.integrator
    if options.cone is not None:
        mjm.opt.cone = CONES[options.cone]
    if options.timestep is not None:
        mjm.opt.timestep = options.timestep
    takes = options.cone is None and options.timestep is None
    if not (takes and keywords.get("integrator", "euler") in OF_ENVS):
        env = None  # it has no keyword for that
    return Case(name, mjm, 1, wp.get_device("cpu"), env=env, keywords=keywords)


def measure(case: Case, options: argparse.Namespace, cases: list[dict]) -> None:
    """Time one case and print its rows as they come; they are kept in the last of `cases`."""
    kept = report.describe(case) | {"metrics": {}, "failures": []}
    cases.append(kept)
    if options.scaling:
        kept["scaling"] = True
    print(f"\n{report.heading(kept)}", flush=True)
    try:
        _measure_levels(case, options, kept)
    except (ValueError, RuntimeError) as error:  # what was timed before it is kept
        _add(kept, {}, [str(error)])
    except KeyboardInterrupt:
        _add(kept, {}, ["interrupted"])
        raise


def _add(kept: dict, metrics: dict, failures: list[str]) -> None:
    """Print metrics and what is wrong, and keep both."""
    kept["metrics"] |= metrics
    kept["failures"] += failures
    lines = report.rows(kept["task"], metrics) + [f"WRONG: {text}" for text in failures]
    print("\n".join(lines), flush=True)


def _measure_levels(case: Case, options: argparse.Namespace, kept: dict) -> None:
    alone = not options.scaling and case.state == "random"
    if "physics" in options.level or options.scaling:
        metrics, failures, profile = measure_step(
            case, options.replays, options.seconds, options.check, options.profile
        )
        _add(kept, metrics, failures)
        if profile:
            kept["profile"] = profile
            print(report.profile_table(profile), flush=True)
    if alone and "env" in options.level and case.env is not None:
        _add(kept, *measure_env(case, options.replays, options.seconds))
    if alone and options.first_gradient != "none":
        _add(kept, first_gradient(case, cold=options.first_gradient == "cold"), [])
    if alone and options.peers:
        metrics, left_out = measure_peers(case, options.replays)
        _add(kept, metrics, [])
        for text in left_out:
            print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command_line.quiet()
    for path in (options.json, options.plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"{path} cannot be written: it is a folder, or its folder is not there")
    try:
        if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
            raise ValueError('--plot needs matplotlib: pip install "diffenvs[train]"')
        if options.runs is not None:
            if options.plot is None:
                raise ValueError("--from needs --plot, which draws it")
            report.plot(
                [run for path in options.runs for run in report.read_runs(path)], options.plot
            )
            return 0
        if options.plot is not None and not options.scaling:
            raise ValueError("--plot draws what --scaling times, or runs of files: --from FILE")
        cases = make_cases(options)
    except (ValueError, OSError, ImportError, UnsupportedFeature) as error:
        parser.error(str(error))
    run = report.begin_run(sys.argv[1:] if arguments is None else arguments)
    print(f"{run['machine']['cpu']}, {run['machine']['cores']} cores; {run['versions']}")
    command_line.announce()
    for case in cases:
        try:
            measure(case, options, run["cases"])
        except KeyboardInterrupt:
            break
        finally:  # after every case: what is there is kept
            if options.json is not None:
                options.json.write_text(json.dumps(run, indent=1) + "\n")
    if options.plot is not None:
        try:
            report.plot([run], options.plot)
        except ValueError as error:
            print(f"\n{options.plot} is not drawn: {error}")
    wrong = [case for case in run["cases"] if case["failures"]]
    if wrong:
        print(f"\n{len(wrong)} of {len(run['cases'])} cases have something wrong:")
        for case in wrong:
            print(f"{report.heading(case)}: {'; '.join(case['failures'])}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
