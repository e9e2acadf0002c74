"""The tool that scores and draws runs, on runs that are made up, and what is committed of it."""

import hashlib
import json
import pathlib
import re
import sys
import zipfile

import pytest
import readme_tables
from test_examples import EXAMPLES, load

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs.policy import save_policy
from diffenvs.training.curve import HEADER

torch = pytest.importorskip("torch")
PENDULUM, CARTPOLE = "DiffInvertedPendulum-v0", "DiffCartPoleSwingUp-v0"
SIZES = {PENDULUM: (4, 1), CARTPOLE: (5, 1)}


@pytest.fixture(scope="module")
def tool():
    """The example as a module."""
    return load("learning")


@pytest.fixture
def make_run(tmp_path):
    """Make the folder of a run that has ended; `curve=[(seconds, return, on Gymnasium's)]`."""

    def make(script="shac", env=PENDULUM, seed=0, gain=0.0, curve=None, device="cpu", **settings):
        folder = tmp_path / "runs" / device / script / env / f"seed{seed}"
        folder.mkdir(parents=True)
        rows = curve or [(10.04, 5.0, 4.0), (20.0, 30.123456, 29.0), (30.0, 20.0, 19.0)]
        table = [(i, 64 * i, t, ours, theirs, 0.5) for i, (t, ours, theirs) in enumerate(rows)]
        about = {
            "command": f"python examples/{script}.py --env {env} --out /home/somebody/runs/x",
            "settings": {"env": env, "seed": seed, "out": "/home/somebody/x", "lr": 1e-3}
            | settings,
            "commit": "0123456789ab",
            "machine": {"device": device, "processes": 1, "cpu": "a processor", "cores": 2}
            | {"system": "Linux-1.2-of-somebody", "python": "3.11"},
            "versions": {"torch": "2.7"},
            "resumed": [],
            "curve": [dict(zip(HEADER, row, strict=True)) for row in table],
        }
        (folder / "curve.json").write_text(json.dumps(about))
        policy = torch.nn.Linear(*SIZES.get(env, SIZES[CARTPOLE]))
        for parameter in policy.parameters():
            torch.nn.init.constant_(parameter, gain)
        save_policy(folder / "policy.pt2", policy, policy.in_features)
        return folder

    return make


def run_tool(tool, tmp_path, *folders, episodes=3, policies=None, **options):
    """Run it and return what it wrote."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    tool.main(list(folders) or [tmp_path / "runs"], episodes, policies, out, **options)
    for picture in ("learning.png", "learning_steps.png"):
        assert (out / picture).stat().st_size > 10_000
    return json.loads((out / "learning.json").read_text())["runs"]


def test_what_is_kept_of_runs(tool, make_run, tmp_path):
    """Score, best and last row are there; of the machine and its folders nothing else is."""
    folder = make_run()
    make_run("ppo", seed=3)
    run, other = run_tool(tool, tmp_path)
    assert [run[x] for x in ("script", "env", "seed")] == ["shac", PENDULUM, 0]
    assert [other[x] for x in ("script", "env", "seed")] == ["ppo", PENDULUM, 3]
    assert run["command"] == f"python examples/shac.py --env {PENDULUM} --out x"
    assert run["settings"] == {"lr": 1e-3}
    assert run["best"] == {"steps": 64, "seconds": 20.0}
    assert (run["steps"], run["seconds"]) == (128, 30.0)
    assert run["curve"][:2] == [HEADER, [0, 0, 10.04, 5.0, 4.0, 0.5]]
    assert run["curve"][2][3] == 30.123
    score = run["score"]
    assert (score["on"], score["env"], score["episodes"]) == ("gymnasium", "InvertedPendulum-v5", 3)
    assert 1.0 < score["lowest"] <= score["return"] <= score["highest"] < 200.0
    text = (tmp_path / "out" / "learning.json").read_text()
    assert "somebody" not in text and str(folder.parent) not in text


def test_task_of_our_own_is_scored_on_ours(tool, make_run, tmp_path):
    """A cart without a hand on it leaves the pole hanging."""
    make_run(env=CARTPOLE, curve=[(1.0, 5.0, None), (2.0, 6.0, None)])
    (run,) = run_tool(tool, tmp_path, episodes=2)
    assert (run["score"]["on"], run["score"]["env"]) == ("diffenvs", CARTPOLE)
    assert run["score"]["upright"] == 0.0 and abs(run["score"]["return"]) < 10.0


def test_task_of_a_module_is_imported(tool, make_run, tmp_path, monkeypatch, capsys):
    """The module that a run names registers its task; what is not there is named."""
    make_run(env="another_cartpole:AnotherCartPole-v0")
    make_run(env="nowhere:Nothing-v0")
    make_run(env="another_cartpole:OneMore-v0")
    monkeypatch.syspath_prepend(tmp_path)
    task = "diffenvs.tasks.cartpole_swingup:CartPoleSwingUp"
    text = f"import diffenvs\n\ndiffenvs.register('AnotherCartPole-v0', '{task}', 20)\n"
    (tmp_path / "another_cartpole.py").write_text(text)
    try:
        (run,) = run_tool(tool, tmp_path, episodes=2)
    finally:
        tool.gym.registry.pop("AnotherCartPole-v0", None)
        sys.modules.pop("another_cartpole", None)
    assert run["env"] == run["score"]["env"] == "AnotherCartPole-v0"
    out = capsys.readouterr().out
    assert "its environment cannot be imported (No module named 'nowhere')" in out
    assert "its environment is not registered (Environment `OneMore` doesn't exist" in out


def test_a_policy_is_played_once(tool, make_run, tmp_path, monkeypatch):
    """Its content decides, and the number of episodes; a run that is not given goes, or is kept."""
    first, second = make_run(seed=0), make_run(seed=1, gain=0.1)
    played = []
    play = tool.score
    monkeypatch.setattr(tool, "score", lambda run, *a: played.append(run["seed"]) or play(run, *a))
    before = run_tool(tool, tmp_path)
    assert played == [0, 1]
    assert run_tool(tool, tmp_path) == before and played == [0, 1]
    save_policy(second / "policy.pt2", torch.nn.Linear(4, 1), 4)
    run_tool(tool, tmp_path)
    assert played == [0, 1, 1]
    assert len(run_tool(tool, tmp_path, first, keep=True)) == 2
    assert len(run_tool(tool, tmp_path, first)) == 1 and played == [0, 1, 1]
    run_tool(tool, tmp_path, first, episodes=2)
    assert played == [0, 1, 1, 0]


def test_scores_outlive_an_interrupt(tool, make_run, tmp_path, monkeypatch):
    """What was played before Ctrl-C is not played again."""
    make_run(seed=0), make_run(seed=1, gain=0.1)
    play = tool.score
    played = []

    def stop_at_second(run, *arguments):
        played.append(run["seed"])
        if len(played) == 2:
            raise KeyboardInterrupt
        return play(run, *arguments)

    monkeypatch.setattr(tool, "score", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run_tool(tool, tmp_path)
    assert len(run_tool(tool, tmp_path)) == 2 and played == [0, 1, 1]


def test_runs_that_failed_are_named_and_left_out(tool, make_run, tmp_path, capsys):
    """One row, no policy, no curve of this kind, a policy for something else: said, no crash."""
    make_run(seed=0)
    make_run(seed=1, curve=[(1.0, 5.0, 4.0)])
    (make_run(seed=2) / "policy.pt2").unlink()
    (make_run(seed=3) / "curve.json").write_text('{"curve": []}')
    save_policy(make_run(seed=4) / "policy.pt2", torch.nn.Linear(5, 1), 5)
    make_run(seed=5, curve=[(1.0, None, None), (2.0, None, None)])
    assert [run["seed"] for run in run_tool(tool, tmp_path)] == [0]
    lines = [line for line in capsys.readouterr().out.splitlines() if "LEFT OUT" in line]
    reasons = "begins", "no policy.pt2", "KeyError: 'settings'", "finite", "(1, 4)"
    assert len(lines) == 5
    for reason in reasons:
        assert sum(reason in line for line in lines) == 1, reason


def test_runs_on_a_cpu_and_on_a_gpu_are_apart(tool, make_run, tmp_path, capsys):
    """Of the same seed, with other settings: both are kept, and neither is averaged with the other.

    The curve of a CPU looks otherwise.
    """
    gpu, cpu = make_run(device="NVIDIA H200"), make_run(gain=0.1, lr=2e-3)
    run_tool(tool, tmp_path, cpu)
    runs = run_tool(tool, tmp_path, gpu, keep=True)
    assert [run["machine"]["device"] for run in runs] == ["NVIDIA H200", "cpu"]
    assert "differ" not in capsys.readouterr().out
    groups = tool.algorithms(runs)
    assert [len(group) for group in groups.values()] == [1, 1]
    _, axes = tool.plt.subplots()
    tool.draw_task(axes, PENDULUM, tool.load(tmp_path / "out" / "learning.json"), tool.TIME)
    styles = [line.get_linestyle() for line in axes.lines if line.get_linewidth() == 2.0]
    assert styles == ["-", "--"]  # Matplotlib's word for any pattern of dots


def test_what_cannot_be_told_apart_is_refused(tool, make_run, tmp_path, capsys):
    """Two runs of one seed are an error, seeds with other settings a note."""
    first = make_run()
    first.rename(tmp_path / "elsewhere")
    make_run()
    with pytest.raises(ValueError, match="both shac, DiffInvertedPendulum-v0, seed 0"):
        run_tool(tool, tmp_path, tmp_path / "runs", tmp_path / "elsewhere")
    make_run(seed=1, lr=2e-3)
    run_tool(tool, tmp_path)
    assert "seeds 0 and 1 differ in lr" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no curve\.json"):
        run_tool(tool, tmp_path, tmp_path / "nothing")


def test_band_is_mean_and_range_of_seeds(tool):
    """Seeds are compared at the same time or step; one that ended stays where it was."""
    curves = [[(60, 0.0), (180, 4.0)], [(120, 4.0), (240, 8.0)], [(60, None)]]
    runs = [
        {"curve": [[0, 50_000 * t, t, None, value, 0.0] for t, value in rows]} for rows in curves
    ]
    for against, places in ((tool.TIME, [2.0, 3.0, 4.0]), (tool.STEPS, [6.0, 9.0, 12.0])):
        found, mean, low, high = tool.band(runs, "gymnasium_return", against)
        assert found.tolist() == places
        assert mean.tolist() == [3.0, 5.0, 6.0]
        assert (low.tolist(), high.tolist()) == ([2.0, 4.0, 4.0], [4.0, 6.0, 8.0])
        assert not tool.band(runs, "return", against)[0].size


def test_policies_are_copied(tool, make_run, tmp_path):
    """The best seed's, not PPO's; without folders of a machine."""
    worse, better = make_run(seed=0, gain=-5.0), make_run(seed=1, gain=0.0)
    make_run("ppo", gain=0.1)
    folder = tmp_path / "policies"
    runs = run_tool(tool, tmp_path, policies=folder)
    scores = [run["score"]["return"] for run in runs]
    assert scores[0] < scores[1]
    copy = folder / f"{PENDULUM}.pt2"
    assert [path.name for path in folder.iterdir()] == [copy.name]
    assert copy.read_bytes() == better.joinpath("policy.pt2").read_bytes()
    with zipfile.ZipFile(copy) as archive:
        for entry in map(archive.read, archive.namelist()):
            assert (
                b"stack_trace" not in entry
                and str(pathlib.Path(__file__).parent).encode() not in entry
            )
    assert worse.exists()


def test_table(tmp_path, monkeypatch):
    """A row is of the method with the most seeds, the best of these; PPO stands beside it.

    A CPU has a row of its own, and where PPO ran on another machine that is said.
    """

    def run(script, seed, value, error=1.0, device="NVIDIA H200", **more):
        score = {"on": "gymnasium", "env": "Ant-v5", "return": value, "error": error} | more
        machine = {"device": device, "processes": 1, "cpu": "EPYC", "cores": 8}
        seconds = {"seconds": 300.0 + 6 * seed, "best": {"seconds": 240.0}, "steps": 12_345_678}
        about = {"script": script, "env": "DiffAnt-v0", "seed": seed, "machine": machine}
        return about | seconds | {"score": score}

    runs = [run("sapo", 0, 9999.0), *(run("shac", i, 5800.25 + 50 * i, 12.3) for i in range(2))]
    runs += [run("apg", i, 90.5) for i in range(2)]
    path = tmp_path / "learning.json"
    monkeypatch.setattr(readme_tables, "LEARNING", path)

    def table():
        path.write_text(json.dumps({"to_beat": {"DiffAnt-v0": 5813.0}, "runs": runs}))
        return [line.strip("| ").split(" | ") for line in readme_tables.learning().splitlines()[2:]]

    def row():
        (only,) = table()
        return only

    assert row() == [
        *("Ant-v5", "5,813", "`shac.py`", "5,800 ± 12; **5,850 ± 12**", "5.0; 5.1", "4.0"),
        *("12.3 M", "NVIDIA H200", "–", "–"),
    ]
    runs += [run("ppo", 0, -3.456, 0.1234)]
    assert row()[-2:] == ["-3.46 ± 0.12", "5.0"]
    runs += [run("apg", 0, 5900.0, device="cpu")]
    first, second = table()
    assert first[2] == "`shac.py`" and first[-1] == "5.0"
    assert second[2:4] == ["`apg.py`", "**5,900 ± 1**"]
    assert second[-3:] == ["8 cores of EPYC", "-3.46 ± 0.12", "5.0 on NVIDIA H200"]
    del runs[:-2], runs[-1]
    assert row() == ["Ant-v5", "5,813", *6 * "–", "-3.46 ± 0.12", "5.0"]
    runs[0]["score"] |= {"on": "diffenvs", "upright": 0.97, "error": None}
    assert row()[0] == "`DiffAnt-v0` (ours)" and row()[-2] == "-3.46 (97% upright)"


def test_what_is_committed(tool):
    """Runs of known tasks with what is behind them, without folders or names of machines."""
    text = (EXAMPLES / "learning.json").read_text()
    content = json.loads(text)
    assert content["to_beat"] == tool.TO_BEAT
    assert not re.search(r"/(home|root|tmp|work|Users)/|Linux-", text)
    for run in content["runs"]:
        assert run["env"] in tool.TO_BEAT and run["script"] in tool.COLOURS
        assert run["command"].split()[0] in ("python", "torchrun")
        assert run["machine"].keys() == set(tool.MACHINE)
        assert run["best"]["seconds"] <= run["seconds"] and len(run["curve"]) > 2
        assert run["score"]["episodes"] >= 100
    best = {env: run["policy"] for env, run in tool.best_runs(content["runs"]).items()}
    for path in pathlib.Path(EXAMPLES / "policies").glob("*.pt2"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == best.pop(path.stem)
        assert path.stat().st_size < 500_000
        with zipfile.ZipFile(path) as archive:
            assert all(b"/work/" not in archive.read(entry) for entry in archive.namelist())
    assert not best
