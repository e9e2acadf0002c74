"""Can the gradients of your model be trusted? Their error against float64 central differences.

    python -m diffenvs.physics.accuracy robot.xml --integrator all --cone all

plays the model at random in C MuJoCo, takes states from the play, pulls one random cotangent of the
next state back through `Physics` in each of them, and compares with the oracle, `finite_diff`. The
relative error |ours - oracle| / |oracle| is taken of the whole cotangent of qpos (in tangent
space), of qvel, act and ctrl. Set aside are states at a kink, where no derivative exists, and
states where differences of three widths disagree, so that the oracle proves nothing; there may be
few of both. States with a steep capsule are left out before, and not counted. The first run
of a model compiles kernels, which takes a minute.

The exit code is

    0   all errors are within the thresholds
    1   some are not, or too many states were set aside
    2   a model was refused (the message says what to change), or an argument makes no sense
"""

import argparse
import concurrent.futures as futures
import contextlib
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Iterator

import mujoco
import numpy as np
import warp as wp

from . import accuracy_report as report
from .accuracy import MEDIAN, SET_ASIDE, WORST, measure, play
from .check import UnsupportedFeature, check_model
from .rollout_accuracy import rollout_accuracy

_ROLLOUTS = 24  # of each case, at most

INTEGRATORS = {
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
    "discrete": mujoco.mjtIntegrator.mjINT_DISCRETE,
}
CONES = {
    "pyramidal": mujoco.mjtCone.mjCONE_PYRAMIDAL,
    "elliptic": mujoco.mjtCone.mjCONE_ELLIPTIC,
}


def load(path: pathlib.Path) -> mujoco.MjModel:
    """Compile an .xml or read an .mjb."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    binary = path.suffix.lower() == ".mjb"
    read = mujoco.MjModel.from_binary_path if binary else mujoco.MjModel.from_xml_path
    try:
        return read(str(path))
    except (ValueError, mujoco.FatalError) as error:
        raise ValueError(f"{path}: {error}") from None


def _number(kind: type, least: float):
    """Type of an argument of at least (floats: more than) `least`."""

    def parse(text: str):
        value = kind(text)
        if not (value >= least if kind is int else value > least):
            raise ValueError
        return value

    parse.__name__ = f"{kind.__name__} from {least}" if kind is int else "positive number"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffenvs.physics.accuracy",
        usage="%(prog)s MODEL [MODEL ...] [options]\n       %(prog)s --table FILE",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", type=pathlib.Path, help=".xml or .mjb files")
    what = parser.add_argument_group("what is measured")
    add = what.add_argument
    for name, known in (("integrator", INTEGRATORS), ("cone", CONES)):
        add(
            f"--{name}",
            nargs="+",
            choices=[*known, "all"],
            default=[],
            metavar="NAME",
            help=f"some of {', '.join(known)}, or all; by default that of the model",
        )
    add(
        "--keyframe", metavar="NAME", help="play from this keyframe, by name; by default from qpos0"
    )
    add(
        "--spread",
        type=_number(float, 0.0),
        default=0.1,
        metavar="X",
        help="how far from it play starts (0.1 rad or m)",
    )
    add(
        "--vigor",
        type=_number(float, 0.0),
        default=1.0,
        metavar="X",
        help="part of the range of the controls to play with, about the keyframe's (1)",
    )
    add("--newton", action="store_true", help="set the solver to Newton, the one differentiated")
    add("--states", type=_number(int, 1), default=100, metavar="N", help="states (100)")
    add("--nstep", type=_number(int, 1), default=1, metavar="K", help="steps per gradient (1)")
    add(
        "--rollout",
        type=_number(int, 1),
        default=0,
        metavar="T",
        help=f"also closed loops of T times K steps, from at most {_ROLLOUTS} of the states; what "
        "`followed` and `free` mean is said in rollout_accuracy.py",
    )
    add("--seed", type=_number(int, 0), default=0, metavar="S", help="of play and cotangents (0)")
    add("--device", default="cpu", help="where the gradients are computed: cpu, cuda:0, ... (cpu)")
    add("--nconmax", type=_number(int, 1), metavar="N", help="contacts to allocate per world")
    add("--njmax", type=_number(int, 1), metavar="N", help="constraint rows to allocate per world")
    add(
        "--jobs",
        type=_number(int, 1),
        default=min(os.cpu_count() or 1, 16),
        metavar="N",
        help="processes for the oracle (all cores, up to 16); results do not depend on it",
    )
    limits = parser.add_argument_group("what is expected")
    for name, default in (("median", MEDIAN), ("worst", WORST)):
        limits.add_argument(
            f"--threshold-{name}",
            type=_number(float, 0.0),
            default=default,
            metavar="X",
            help=f"largest {name} relative error ({default:g})",
        )
    limits.add_argument(
        "--threshold-set-aside",
        type=_number(float, 0.0),
        default=SET_ASIDE,
        metavar="X",
        help=f"largest part of the states to set aside, at kinks or doubtful ({SET_ASIDE:g})",
    )
    kept = parser.add_argument_group("what is kept")
    add = kept.add_argument
    add("--save", type=pathlib.Path, metavar="FILE.npz", help="write the worst state, to look at")
    add("--json", type=pathlib.Path, metavar="FILE", help="merge the results into this file")
    add("--date", help="a date to write into the JSON file")
    add("--resume", action="store_true", help="skip what the JSON file holds for the same settings")
    add(
        "--table",
        type=pathlib.Path,
        metavar="FILE",
        help="print a JSON file as Markdown; that's all",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    level, wp.config.log_level = wp.config.log_level, wp.LOG_ERROR
    try:
        return _run(parser, options)
    finally:
        wp.config.log_level = level


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.table:
        try:
            print(report.markdown(report.read(options.table, must_exist=True)))
        except (OSError, ValueError) as error:
            parser.error(f"--table: {error}")
        return 0
    if not options.models:
        parser.error("no MODEL given")
    if options.resume and not options.json:
        parser.error("--resume needs --json")
    try:
        wp.get_device(options.device)
    except Exception as error:  # Warp raises more than one kind
        parser.error(f"--device {options.device}: {error}")
    try:
        models = {path: load(path) for path in options.models}
        known = report.read(options.json) if options.json else {}
    except ValueError as error:
        parser.error(str(error))
    codes, worst = [0], (-1.0, {})
    with _pool(options.jobs) as executor:
        for path, mjm in models.items():
            print(report.heading(path, mjm, options))
            for integrator, cone in _cases(mjm, options):
                code, worst = _case(path, mjm, integrator, cone, options, executor, known, worst)
                codes.append(code)
            print()
    if options.save and worst[0] >= 0:
        np.savez(options.save, allow_pickle=False, **worst[1])
        print(report.how_to_load(options.save, worst[0]))
    return max(codes)


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[futures.Executor | None]:
    """Processes for the oracle; fresh ones, as a fork would share Warp's state."""
    if jobs == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(jobs, mp_context=context) as executor:
        yield executor


def _cases(mjm, options) -> list[tuple[str, str]]:
    """Integrators and cones to measure, by name; those of the model if none is given."""
    chosen = []
    for given, known, own in (
        (options.integrator, INTEGRATORS, mjm.opt.integrator),
        (options.cone, CONES, mjm.opt.cone),
    ):
        names = list(known) if "all" in given else list(dict.fromkeys(given))
        chosen.append(names or [next((k for k, v in known.items() if v == own), str(own))])
    return [(integrator, cone) for integrator in chosen[0] for cone in chosen[1]]


def _playing(mjm, options) -> dict:
    """How to play, for `play`."""
    key = None
    if options.keyframe is not None:
        key = mujoco.mj_name2id(mjm, mujoco.mjtObj.mjOBJ_KEY, options.keyframe)
        if key < 0:
            raise ValueError(f"the model has no keyframe '{options.keyframe}'")
    return {"key": key, "spread": options.spread, "vigor": options.vigor}


def _case(path, mjm, integrator, cone, options, executor, known, worst):
    """Measure one case, print and keep its results; its exit code and the worst state so far."""
    mjm.opt.integrator = INTEGRATORS.get(integrator, mjm.opt.integrator)
    mjm.opt.cone = CONES.get(cone, mjm.opt.cone)
    if options.newton:
        mjm.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    settings = report.settings(options)
    entry = report.find(known, path, integrator, cone)
    if options.resume and entry is not None and entry["settings"] == settings:
        print(report.line(integrator, cone, entry) + "  (known)")
        return (1 if entry["failures"] else 0), worst
    run = {"nstep": options.nstep, "seed": options.seed, "device": options.device}
    run |= {"executor": executor, "nconmax": options.nconmax, "njmax": options.njmax}
    loops = None
    try:
        check_model(mjm)
        states, steep = play(mjm, options.states, options.seed, **_playing(mjm, options))
        found = measure(mjm, states, chunks=4 * options.jobs, **run)
        if options.rollout:
            some = type(states)(*(x[:_ROLLOUTS] for x in states))
            loops = rollout_accuracy(mjm, some, options.rollout, **run)
    except UnsupportedFeature as error:
        print(f"{integrator}, {cone}: refused\n{error}", file=sys.stderr)
        return 2, worst
    except (RuntimeError, ValueError) as error:
        print(f"{integrator}, {cone}: {error}", file=sys.stderr)
        return 2, worst
    limits = (options.threshold_median, options.threshold_worst, options.threshold_set_aside)
    failures = found.failures(*limits)
    failures += loops.failures() if loops else []
    entry = report.entry(found, steep, failures, settings)
    entry |= {"rollout": loops.summary()} if loops else {}
    print(report.line(integrator, cone, entry), flush=True)
    if options.json:
        report.merge(options.json, known, path, integrator, cone, entry)
    error, index, name = found.worst_state()
    if error > worst[0]:
        worst = error, report.state_to_save(path, integrator, cone, options, found, index, name)
    return (1 if failures else 0), worst
