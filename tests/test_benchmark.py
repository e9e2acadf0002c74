"""The benchmark: its rows are there and agree, and a wrong gradient does not pass as a fast one."""

import importlib.util
import json
import re
from importlib.resources import files

import numpy as np
import pytest
import warp as wp

from diffenvs import benchmark, benchmark_env, benchmark_physics
from diffenvs import benchmark_report as report
from diffenvs.physics import Physics

HOPPER = ["--task", "Hopper", "--device", "cpu", "--replays", "5"]
STEP = [*HOPPER, "--level", "physics", "--first-gradient", "none", "--check", "2"]
WORLDS = 4


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of everything, as it was printed and as it was kept."""
    file = tmp_path_factory.mktemp("benchmark") / "run.json"
    arguments = [*HOPPER, "--nworld", str(WORLDS), "--check", "3", "--json", str(file)]
    arguments += [] if importlib.util.find_spec("jax") else ["--peers"]  # MJX compiles for minutes
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *x, **_: lines.append(" ".join(map(str, x))))
        code = benchmark.main(arguments)
    return code, "\n".join(lines), json.loads(file.read_text())


def test_rows(kept):
    """Every figure is there, positive, and agrees with those that it follows from."""
    code, _, run = kept
    (case,) = run["cases"]
    found = case["metrics"]
    assert code == 0 and case["failures"] == []
    assert (case["task"], case["nworld"], case["device"]) == ("Hopper", WORLDS, "cpu")
    assert (case["integrator"], case["cone"], case["timestep"]) == (
        "implicitfast",
        "pyramidal",
        0.002,
    )
    times = [
        *(f"{name}_us" for name in ("stock", "step", "recorded", "backward")),
        *(f"env_{name}_us" for name in ("step", "grad_step", "backward")),
        *(f"{name}_launches" for name in ("stock", "step", "recorded", "backward")),
        "first_gradient_warm_seconds",
        "bytes_per_world_and_substep",
        "window_32_substeps_mib",
        "window_32_steps_mib",
    ]
    assert all(found[name] > 0 for name in times)
    both = found["recorded_us"] + found["backward_us"]
    assert found["ratio"] == pytest.approx(both / found["stock_us"])
    assert found["gradients_per_second"] == pytest.approx(1e6 * WORLDS / both)
    assert found["steps_per_second"] == pytest.approx(1e6 * WORLDS / found["step_us"])
    env_both = found["env_grad_step_us"] + found["env_backward_us"]
    assert found["env_ratio"] == pytest.approx(env_both / found["env_step_us"])
    assert found["env_step_us"] > 2 * found["step_us"]  # it makes four of them
    assert 0 <= found["worlds_in_contact"] <= WORLDS
    assert found["worlds_compared"] + found["worlds_set_aside"] == 3
    assert found["difference_from_stock"] < 1e-3  # of velocities of some m/s or rad/s
    assert 0 < found["gradient_error_median"] <= found["gradient_error_worst"] < 3e-3


def test_peers(kept):
    """Differences, `linearize` and Gymnasium are timed beside ours; what is missing is said."""
    _, printed, run = kept
    found = run["cases"][0]["metrics"]
    if "vjp_us_per_state" not in found:
        pytest.skip("mujoco-mjx is installed")
    for ours in ("vjp", "step_and_vjp", "linearize"):
        for kind in ("one_sided", "centred"):
            differences = found[f"transition_fd_{kind}_us_per_state"]
            assert differences > 0
            speedup = found[f"{ours}_speedup_{kind}"]
            assert speedup == pytest.approx(differences / found[f"{ours}_us_per_state"])
    rates = found["single_steps_per_second"], found["gymnasium_steps_per_second"]
    assert found["single_by_gymnasium"] == pytest.approx(rates[0] / rates[1])
    assert "mjx: not installed (pip install mujoco-mjx)" in printed


def test_printed_and_kept(kept):
    """A line says of what, each metric has its row, and the file says where and when."""
    _, printed, run = kept
    (case,) = run["cases"]
    assert "# Hopper, 4 worlds, implicitfast, pyramidal, 2 ms, random play, cpu" in printed
    for name, value in case["metrics"].items():
        assert f"Hopper.{name} {report.number(value)}\n" in printed + "\n"
    assert run["machine"]["cores"] >= 1 and run["machine"]["cpu"]
    assert run["versions"]["mujoco-warp"].startswith("4.0")
    assert run["command"].startswith("python -m diffenvs.benchmark --task Hopper --device cpu")
    assert ".json" in run["command"] and "/" not in run["command"]  # no folder of this machine
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])


def test_window_is_what_its_records_hold(make):
    """Of 32 steps it is 32 times that of a record and a little more; with "steps", of one."""
    case = benchmark.make_cases(benchmark._parser().parse_args([*HOPPER, "--nworld", "64"]))[0]
    envs = make("DiffHopper-v0", 3, device="cpu")
    envs.reset(seed=0)
    envs.grad_step(np.zeros((3, 3), dtype=np.float32))
    record = envs.rollout.last.record
    expected = 32 * record.nbytes() / 3 * 64 / 2**20
    found = benchmark_env.window_memory(case)
    assert expected < found["window_32_substeps_mib"] < 1.1 * expected
    assert expected / 32 < found["window_32_steps_mib"] < expected / 16


def test_contact_state(tmp_path):
    """With the state "contact" all worlds are in one state with at least four rows."""
    file = tmp_path / "run.json"
    assert benchmark.main([*STEP, "--nworld", "8", "--state", "contact", "--json", str(file)]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    found = case["metrics"]
    assert case["state"] == "contact"
    assert found["rows_mean"] == found["rows_max"] >= 4
    assert found["worlds_in_contact"] == 8


def test_no_contact_state(capsys):
    """A model that never has so many rows is an error that says so, and not a figure."""
    arguments = [*STEP, "--state", "contact", "--nworld", "2"]
    arguments[1] = "InvertedPendulum"
    assert benchmark.main(arguments) == 1
    assert "have no state with at least 4 constraint rows" in capsys.readouterr().out


@wp.kernel(enable_backward=False)
def _scale(factor: float, array: wp.array2d[float]):
    i, j = wp.tid()
    array[i, j] = factor * array[i, j]


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1.01, "WRONG: gradient: median of qpos 1e-02"),
        (0.0, "WRONG: gradient: zero or not finite in 2 of 2 worlds"),
    ],
)
def test_wrong_gradient_is_reported(factor, message, monkeypatch, capsys):
    """A gradient that is off by 1%, or zero, is told in words and by the exit code."""
    original = Physics.launch_step_vjp

    def wrong(self, record, adj_state_out, adj_state, adj_ctrl, adj_forces=None):
        original(self, record, adj_state_out, adj_state, adj_ctrl, adj_forces)
        for array in (adj_state.qpos, adj_state.qvel, adj_ctrl):
            wp.launch(_scale, array.shape, [factor, array], device=self.device)

    monkeypatch.setattr(Physics, "launch_step_vjp", wrong)
    assert benchmark.main([*STEP, "--nworld", "2"]) == 1
    printed = capsys.readouterr().out
    assert message in printed
    assert "1 of 1 cases have something wrong:" in printed


def test_scaling_plot(tmp_path):
    """Sizes grow by four up to the limit; runs of several files go into one picture."""
    kept = [tmp_path / name for name in ("a.json", "b.json")]
    arguments = [*STEP, "--check", "1", "--scaling", "--max-nworld", "4"]
    assert benchmark.main([*arguments, "--json", str(kept[0])]) == 0
    run = json.loads(kept[0].read_text())
    assert [case["nworld"] for case in run["cases"]] == [1, 4]
    other = run | {"machine": run["machine"] | {"cpu": "another"}}
    kept[1].write_text(json.dumps([other]))
    picture = tmp_path / "scaling.png"
    assert benchmark.main(["--plot", str(picture), "--from", *map(str, kept)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_curves_of_the_plot(tmp_path, monkeypatch):
    """Three lines per device, named by it, with time over worlds."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    metrics = {"stock_us": 3.0, "recorded_us": 4.0, "backward_us": 1.0}
    cases = [
        {"task": "Ant", "device": "Fast GPU", "nworld": n, "scaling": True, "metrics": metrics}
        for n in (16, 1)
    ]
    cases.append(cases[0] | {"nworld": 99, "scaling": False})
    cases.append(cases[0] | {"nworld": 64, "metrics": {}})  # ran out of memory
    report.plot([{"machine": {"cpu": "x"}, "cases": cases}], tmp_path / "plot.png")
    lines = figures[0].axes[0].lines
    assert [line.get_label() for line in lines] == [
        f"Ant, Fast GPU: {what}" for what in ("forward, stock", "recorded", "backward")
    ]
    assert list(lines[2].get_xdata()) == [1, 16]
    assert list(lines[0].get_ydata()) == [3.0, 3.0]
    both = [case | {"state": state} for case in cases[:2] for state in ("random", "contact")]
    report.plot([{"machine": {"cpu": "x"}, "cases": both}], tmp_path / "plot.png")
    names = {line.get_label().partition(":")[0] for line in figures[1].axes[0].lines}
    assert names == {"Ant, Fast GPU, random", "Ant, Fast GPU, contact"}
    with pytest.raises(ValueError, match="no case of --scaling"):
        report.plot([{"machine": {"cpu": "x"}, "cases": cases[-1:]}], tmp_path / "plot.png")


def test_an_interrupted_run_keeps_what_it_has(monkeypatch, tmp_path, capsys):
    """Ctrl-C ends it without a traceback; the case is in the file, with a word on it."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure_step", interrupted)
    kept = tmp_path / "run.json"
    plot = ["--scaling", "--max-nworld", "4", "--plot", str(tmp_path / "x.png")]
    assert benchmark.main([*STEP, *plot, "--json", str(kept)]) == 1
    (case,) = json.loads(kept.read_text())["cases"]
    assert case["failures"] == ["interrupted"]
    assert "x.png is not drawn: there is no case of --scaling to plot" in capsys.readouterr().out


def test_medians():
    """Variants run in turn, each after its preparation; the limit of time leaves five of them."""
    calls = []
    variants = {
        name: (lambda name=name: calls.append(f"{name}?"), lambda name=name: calls.append(name))
        for name in "ab"
    }
    found = benchmark_physics.medians(wp.get_device("cpu"), variants, 7, 60.0)
    assert calls == ["a?", "a", "b?", "b"] * (1 + 7)
    assert set(found) == {"a", "b"} and all(value > 0 for value in found.values())
    calls.clear()
    benchmark_physics.medians(wp.get_device("cpu"), variants, 7, 0.0)
    assert calls == ["a?", "a", "b?", "b"] * (1 + 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "Ants"], "--task Ants is neither an .xml or .mjb file, nor the id of an"),
        (["--task", "Ants"], "nor one of CartPoleSwingUp, InvertedPendulum, "),
        (["--task", "Hopper-v5"], "--task Hopper-v5 is neither an .xml"),
        (["--task", "gone.xml"], "gone.xml: there is no such file"),
        (["--device", "cuda:77"], "--device cuda:77 is not one of ['cpu'"),
        (["--nworld", "0"], "argument --nworld: '0' is not an integer >= 1"),
        (["--timestep", "-1"], "--timestep -1.0 is not a time in seconds > 0"),
        (["--timestep", "inf"], "--timestep inf is not a time in seconds > 0"),
        (["--integrator", "implicit"], "invalid choice: 'implicit'"),
        (["--device", "cpu", "--profile"], "--profile needs a CUDA device"),
        (["--json", "/gone/x.json"], "/gone/x.json cannot be written"),
        (["--plot", "x.png"], "--plot draws what --scaling times, or runs of files: --from FILE"),
        (["--from", "x.json"], "--from needs --plot, which draws it"),
        (["--plot", "x.png", "--from", "gone.json"], "No such file or directory: 'gone.json'"),
        (["--plot", "x.png", "--from", "{list}"], "holds no run of the benchmark"),
        (["--plot", "x.png", "--from", "{foreign}"], "holds no run of the benchmark"),
        (["--plot", "x.png", "--from", "{text}"], "is not JSON"),
        (["--plot", "x.png", "--from", "{run}"], "there is no case of --scaling to plot"),
        (["--task", "{pgs}"], "option solver = mjSOL_PGS"),
    ],
)
def test_messages(arguments, message, tmp_path, capsys):
    """What makes no sense is said before anything is compiled, with exit code 2."""
    contents = {
        "list": ("list.json", "[]"),
        "foreign": ("foreign.json", '{"machine": {}, "cases": [{"scaling": true}]}'),
        "text": ("text.json", "seven"),
        "run": ("run.json", '{"machine": {"cpu": "x"}, "cases": []}'),
        "pgs": (
            "pgs.xml",
            '<mujoco><option solver="PGS"/><worldbody><body><joint/><geom size="1"/></body>'
            "</worldbody></mujoco>",
        ),
    }
    paths = {}
    for key, (name, text) in contents.items():
        paths[key] = tmp_path / name
        paths[key].write_text(text)
    with pytest.raises(SystemExit) as stop:
        benchmark.main([text.format(**paths) for text in arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in re.sub(r"\s+", " ", captured.err)
    assert "Compiling" not in captured.err


def test_plot_without_matplotlib(monkeypatch, capsys):
    """Where it is not installed that is said before anything is timed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        benchmark.main(["--scaling", "--plot", "x.png"])
    assert '--plot needs matplotlib: pip install "diffenvs[train]"' in capsys.readouterr().err


def test_cases():
    """Tasks by name or id, files, and overrides; what no environment can be told has none."""

    def cases(*arguments):
        return benchmark.make_cases(benchmark._parser().parse_args([*arguments, "--device", "cpu"]))

    both = cases("--task", "ant", "DiffHopper-v0", "--nworld", "2", "3", "--integrator", "euler")
    assert [(c.name, c.nworld) for c in both] == [
        ("Ant", 2),
        ("Ant", 3),
        ("Hopper", 2),
        ("Hopper", 3),
    ]
    assert both[0].env == "DiffAnt-v0" and both[0].keywords == {"integrator": "euler"}
    assert both[0].mjm.opt.integrator == 0
    assert cases("--cone", "elliptic")[0].env is None
    assert cases("--cone", "elliptic")[0].mjm.opt.cone == 1
    assert cases("--timestep", "0.004")[0].mjm.opt.timestep == 0.004
    assert cases("--integrator", "discrete")[0].env is None
    assert [c.nworld for c in cases("--scaling", "--max-nworld", "20")] == [1, 4, 16]
    assert cases("--scaling")[-1].nworld == 32768


def test_model_file(capsys):
    """A file is timed by its physics, and its first gradient is that of the physics."""
    file = str(files("envs_assets").joinpath("hopper.xml"))
    arguments = ["--task", file, "--device", "cpu", "--nworld", "2", "--replays", "5"]
    assert benchmark.main([*arguments, "--check", "2"]) == 0
    printed = capsys.readouterr().out
    assert "# hopper, 2 worlds, implicitfast, pyramidal, 2 ms, random play, cpu" in printed
    assert "hopper.first_gradient_warm_seconds" in printed
    assert "hopper.env_step_us" not in printed
