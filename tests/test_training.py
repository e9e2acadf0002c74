"""What training scripts leave to `diffenvs.training`, tried with a miniature of one."""

import copy
import csv
import dataclasses
import importlib.util
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest

torch = pytest.importorskip("torch")
for name in ("matplotlib", "tensorboard", "tqdm"):
    pytest.importorskip(name)

from first_order import ENV, assert_equal, environment, torchrun  # noqa: E402

from diffenvs import command_line, training  # noqa: E402
from diffenvs.policy import load_policy  # noqa: E402
from diffenvs.training import checkpoint, evaluation, records  # noqa: E402
from diffenvs.training.scores import Game, GymnasiumScores, Score  # noqa: E402

SCRIPT = """
import os, signal, sys
from dataclasses import dataclass
import gymnasium as gym
import numpy as np
import torch
from torch import nn
import diffenvs
from diffenvs import training


@dataclass
class Config(training.Settings):
    env: str = "DiffInvertedPendulum-v0"
    num_envs: int = 3
    horizon: int = 2
    iterations: int = 6
    eval_every: int = 3
    eval_envs: int = 2
    gymnasium_episodes: int = 0
    checkpoint_seconds: float = 0.0
    device: str | None = "cpu"
    video: bool = False
    lr: float = 1e-2


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.normalize = training.Normalize(4)
        self.net = training.mlp(4, 8, 1)
        self.log_std = nn.Parameter(torch.full((1,), -1.0))

    def forward(self, obs, noise=False):
        mean = self.net(self.normalize(obs))
        if noise:
            mean = mean + self.log_std.exp() * torch.randn_like(mean)
        return 3.0 * torch.tanh(mean)


def main(cfg, interrupt=lambda iteration, processes: None):
    torch.set_num_threads(1)
    processes = training.start_processes(cfg)
    envs = gym.make_vec(
        cfg.env, num_envs=cfg.num_envs, arrays="torch", window=cfg.horizon, reward="smooth",
        device=str(processes.device),
    )
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, cfg.iterations)
    learner = {"policy": policy, "optimizer": optimizer, "schedule": schedule}
    run = training.Run(cfg, processes, envs, learner)
    for iteration in run.iterations(policy):
        obs, total, seen = run.obs, 0.0, []
        fresh = torch.rand(cfg.num_envs) < 0.2
        if fresh.any():
            obs, _ = envs.reset(options={"reset_mask": fresh})
        for _ in range(cfg.horizon):
            seen.append(obs.detach())
            action = policy(obs, noise=True) + np.random.normal()
            obs, reward, *_ = envs.grad_step(action)
            total = total + reward.mean() / cfg.horizon
        optimizer.zero_grad()
        (-total).backward()
        processes.mean_(parameter.grad for parameter in policy.parameters())
        optimizer.step()
        schedule.step()
        policy.normalize.update(torch.cat(seen), processes)
        envs.detach()
        run.log({"train/reward": total, "train/iteration": iteration})
        run.obs = obs.detach()
        interrupt(iteration, processes)
    run.finish(policy)
    # of every process what it ends with
    torch.save({"weights": policy.state_dict(), "obs": run.obs}, f"end{processes.rank}.pt")
    return run
"""

RUNS = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.environ["MINIATURE"])
import miniature


def stop(iteration, processes):
    if (processes.rank, iteration) == (1, 2):
        os.kill(os.getpid(), signal.SIGINT)


sizes = {"iterations": 8, "eval_every": 4}
for name, *given in [
    ("whole", miniature.Config(**sizes)),
    ("parted", miniature.Config(**sizes), stop),
    ("parted", miniature.Config(**sizes, resume=True)),
]:
    folder = Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    miniature.main(*given)
"""


@pytest.fixture(autouse=True)
def interrupts():
    """Ctrl-C is heard, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The miniature, as a file."""
    path = tmp_path_factory.mktemp("script") / "miniature.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def mini(script, tmp_path, monkeypatch):
    """The miniature, as a module, in a folder of the test's own."""
    spec = importlib.util.spec_from_file_location("miniature", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "miniature", module)  # a dataclass looks for its module
    monkeypatch.chdir(tmp_path)
    spec.loader.exec_module(module)
    return module


def at(*moments):
    """An `interrupt` that sends Ctrl-C in these iterations, as often as they are named."""

    def interrupt(iteration, processes):
        for _ in range(moments.count(iteration)):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    return interrupt


def end(folder, rank=0):
    """What a process of the miniature ended with."""
    found = torch.load(folder / f"end{rank}.pt")
    return found["weights"] | {"obs": found["obs"]}


# Checkpoints


def test_interrupted_run_leaves_results_and_goes_on(mini, tmp_path, capfd):
    """Ctrl-C ends the present iteration, and all there would be at the end is there."""
    whole = mini.main(mini.Config(out=Path("whole")))
    reference = end(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    run = mini.main(mini.Config(), interrupt=at(1))
    assert signal.getsignal(signal.SIGINT) is handler
    assert run.iteration == 2 and [row.iteration for row in run.records.curve] == [0, 2]
    for name in ("checkpoint.pt", "policy.pt2", "curve.csv", "curve.json", "curve.png"):
        assert (run.folder / name).stat().st_size > 80
    assert not list(run.folder.glob(".*"))  # no parts of files
    out, err = capfd.readouterr()
    assert "2 iterations, 12 steps" in out and "once more stops at once" in err
    resumed = mini.main(mini.Config(resume=True))
    assert_equal(end(tmp_path), reference)
    for a, b in zip(whole.records.curve, resumed.records.curve, strict=True):
        assert dataclasses.replace(a, seconds=0.0) == dataclasses.replace(b, seconds=0.0)
    assert resumed.records.curve[-1].seconds > run.records.curve[-1].seconds
    about = json.loads((run.folder / "curve.json").read_text())
    assert ["settings" in part for part in about["resumed"]] == [True]
    again = mini.main(mini.Config(resume=True))  # it is over: nothing but the results
    assert again.iteration == 6
    assert_equal(end(tmp_path), reference)


def test_second_interrupt_stops_at_once(mini, capfd):
    """The second Ctrl-C leaves the last checkpoint as it is."""
    with pytest.raises(KeyboardInterrupt):
        mini.main(mini.Config(), interrupt=at(2, 2))
    assert checkpoint.read(mini.Config())["records"]["iteration"] == 2
    assert mini.main(mini.Config(resume=True)).iteration == 6


def test_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    """What fails in the middle of a file leaves the old one, and nothing else."""
    cfg = training.Settings(env=ENV, out=tmp_path)
    cfg.folder.mkdir(parents=True)
    checkpoint.write(cfg, [{}], {"iteration": 1})

    class Unwritable:
        def __reduce__(self):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        checkpoint.write(cfg, [{"big": torch.zeros(100_000), "no": Unwritable()}], {})
    assert checkpoint.read(cfg)["records"] == {"iteration": 1}
    assert [path.name for path in cfg.folder.iterdir()] == ["checkpoint.pt"]
    seen = []
    monkeypatch.setattr(os, "replace", lambda part, path: seen.append((part, path)))
    checkpoint.write(cfg, [{}], {"iteration": 2})  # the power fails before it takes its place
    assert checkpoint.read(cfg)["records"] == {"iteration": 1}
    ((part, path),) = seen
    assert torch.load(part, weights_only=False)["records"] == {"iteration": 2}
    assert part.parent == path.parent == cfg.folder


def test_resume_refuses_other_settings(mini):
    """What cannot be gone on with is refused before anything compiles, and by its name."""

    def refused(message, **changes):
        with pytest.raises(SystemExit, match=message):
            training.start_processes(mini.Config(**changes))

    refused(
        r"--resume finds no checkpoint runs/DiffInvertedPendulum-v0/seed0/checkpoint\.pt",
        resume=True,
    )
    mini.main(mini.Config(iterations=1))
    refused("seed0 holds a run: --resume goes on with it", iterations=1)
    refused("iterations is 2, and was 1 when the run began", resume=True, iterations=2)
    refused(
        r"lr is 0\.1, and was 0\.01 when .*; horizon|horizon is 3.*lr is 0\.1",
        resume=True,
        iterations=1,
        lr=0.1,
        horizon=3,
    )
    training.start_processes(mini.Config(iterations=1, resume=True, checkpoint_seconds=9.0))
    before = dataclasses.asdict(mini.Config()) | {"tau": 0.1}
    del before["lr"]
    assert training.settings.differences(mini.Config(), before) == [
        "lr is 0.01, and was not there when the run began",
        "tau is not there, and was 0.1 when the run began",
    ]


def test_resume_refuses_other_processes(tmp_path, monkeypatch):
    """The number of processes is part of the run."""
    cfg = training.Settings(env=ENV, out=tmp_path, resume=True)
    cfg.folder.mkdir(parents=True)
    checkpoint.write(cfg, [{}, {}], {})
    with pytest.raises(SystemExit, match="the number of processes is 1, and was 2"):
        training.start_processes(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, r"iterations must be an integer >= 1, not 0"),
        ({"num_envs": 1.5}, r"num_envs must be an integer >= 1, not 1\.5"),
        ({"seed": -1}, r"seed must be an integer >= 0, not -1"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds must be a number >= 0, not nan"),
        ({"env": "DiffAntt-v0"}, "env: Environment `DiffAntt` doesn't exist"),
        ({"env": "Ant-v5"}, "env: Ant-v5 is not an environment of diffenvs"),
        ({"device": "gpu"}, "device must be"),
        ({"device": "mps"}, "device must be"),
    ],
)
def test_settings_are_refused_by_name(tmp_path, changes, message):
    """A setting that cannot be is refused before anything compiles."""
    cfg = dataclasses.replace(training.Settings(env=ENV, out=tmp_path), **changes)
    with pytest.raises(SystemExit, match=message):
        training.start_processes(cfg)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="out: the folder of the run cannot be made"):
        training.start_processes(training.Settings(env=ENV, out=tmp_path / "file"))
    with pytest.raises(TypeError, match="the settings are a Settings, not 'cpu'"):
        training.start_processes("cpu")


def test_learner_has_to_have_the_policy(mini, make):
    """A policy that no checkpoint would hold is refused at the start."""
    envs = make(ENV, 3, arrays="torch", device="cpu")
    cfg, policy = mini.Config(), mini.Policy()
    run = training.Run(cfg, training.start_processes(cfg), envs, {"net": policy.net})
    with pytest.raises(
        ValueError, match=r"'log_std', 'normalize\.mean', .* in no module of the lear"
    ):
        next(run.iterations(policy))


# Evaluations, curve, log


def test_evaluations_are_on_gymnasiums_terms():
    """What training changes of reward, start and end is not what the policy is scored on."""
    training_keywords = {
        "task": "module:Hopper",
        "num_envs": 8,
        "arrays": "torch",
        "window": 4,
        "ctrl_cost_weight": 1.0,
        "healthy_z_range": (0.1, 9.0),
        "terminate_when_unhealthy": False,
        "reset_noise_scale": 0.3,
        "exclude_current_positions_from_observation": False,
        "integrator": "rk4",
    }
    sides = evaluation.keywords("DiffHopper-v0", training_keywords)
    assert sides["diffenvs"] == {
        "reward": "v5",
        "exclude_current_positions_from_observation": False,
        "integrator": "rk4",
    }
    assert sides["gymnasium"]["terminate_when_unhealthy"] is True
    assert sides["gymnasium"]["reset_noise_scale"] == 0.005
    assert sides["gymnasium"]["exclude_current_positions_from_observation"] is False
    sides = evaluation.keywords("DiffCartPoleSwingUp-v0", {"upright_weight": 2.0, "window": 3})
    assert sides == {"diffenvs": {"upright_weight": 2.0}}


def test_curve_has_every_evaluation(mini, capfd):
    """Rows at the start, every few iterations and at the end, with Gymnasium's scores."""
    run = mini.main(mini.Config(iterations=7, gymnasium_episodes=2))
    rows = list(csv.DictReader((run.folder / "curve.csv").open()))
    assert [int(row["iteration"]) for row in rows] == [0, 3, 6, 7]
    assert [int(row["steps"]) for row in rows] == [0, 18, 36, 42]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds) and 0.0 < seconds[0] and seconds[-1] < run.seconds
    for row in rows:  # both play the same policy, of the reward 1 for every step on the pole
        ours, theirs = float(row["return"]), float(row["gymnasium_return"])
        assert 1.0 <= ours <= 1000.0 and abs(ours - theirs) < 0.3 * ours
        assert float(row["gymnasium_error"]) >= 0.0
    about = json.loads((run.folder / "curve.json").read_text())
    assert [str(row["return"]) for row in about["curve"]] == [row["return"] for row in rows]
    assert about["settings"]["lr"] == 0.01 and about["machine"]["device"] == "cpu"
    assert {"torch", "mujoco"} <= about["versions"].keys() and "commit" in about
    assert (run.folder / "curve.png").stat().st_size > 10_000
    # The best policy is what is kept.
    task = command_line.make_task(gym.spec(ENV), {})
    action = load_policy(run.folder / "policy.pt2", task)(torch.ones(5, 4).numpy())
    best = mini.Policy()
    best.load_state_dict(run.records.best)
    assert torch.allclose(torch.tensor(action), best(torch.ones(5, 4)), atol=1e-5)
    lower = [min(row.returns, row.gymnasium) for row in run.records.curve]
    assert run.records.best_score == max(lower) > 1.0
    out = capfd.readouterr().out
    assert out.startswith("Compiling the physics") and "On InvertedPendulum-v5" in out


class Told:
    """Gymnasium's scores of the policies of a run, as they are told here; None is a failure."""

    def __init__(self, scores):
        self.scores, self.asked = list(scores), []

    @property
    def waiting(self):
        return len(self.asked)

    def request(self, number, weights):
        self.asked.append(number)

    def arrived(self, wait=False):
        while self.asked and wait:
            if not self.scores:
                raise KeyboardInterrupt
            mean = self.scores.pop(0)
            number = self.asked.pop(0)
            yield Score(number, failure="no luck") if mean is None else Score(number, mean, 0.5)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("told", "best"),
    [
        (None, 2),  # nobody else is asked
        ([5.0, 4.0, 2.0, 9.0, 3.0], 3),  # scores 1, 4, 2, 8, 3
        ([5.0, 9.0, 2.0, 6.0, 6.0], 1),  # 1, 7, 2, 6, 4
        ([5.0, 4.0, None, 9.0, 3.0], 2),  # 9 on ours is all that is known
        ([5.0, 4.0, 2.0], 3),  # and of the last two, which a Ctrl-C leaves out: 8
        ([math.nan] * 5, 0),  # none is better than the first
    ],
)
def test_best_is_good_on_both_sides(mini, monkeypatch, told, best):
    """The policy with the highest of the lower of both returns is kept and written."""
    returns, states = iter([1.0, 7.0, 9.0, 8.0, 4.0]), []

    def play(self, policy):
        states.append(copy.deepcopy(policy.state_dict()))
        return torch.full((2,), next(returns))

    monkeypatch.setattr(evaluation.Evaluation, "returns", play)
    monkeypatch.setattr(records, "GymnasiumScores", lambda game, log: Told(told))
    episodes = 0 if told is None else 2
    sizes = {"iterations": 4, "eval_every": 1, "gymnasium_episodes": episodes}
    run = mini.main(mini.Config(**sizes))
    assert len(states) == 5
    kept = mini.Policy()
    kept.load_state_dict(states[best])
    obs = torch.linspace(-1.0, 1.0, 20).reshape(5, 4)
    task = command_line.make_task(gym.spec(ENV), {})
    written = load_policy(run.folder / "policy.pt2", task)(obs.numpy())
    torch.testing.assert_close(torch.tensor(written), kept(obs).detach())
    assert_equal(run.records.best, dict(states[best]))


def test_evaluating_changes_no_training(mini, tmp_path):
    """Weights are the same however often a run is evaluated."""
    mini.main(mini.Config(out=Path("often"), eval_every=1))
    often = end(tmp_path)
    run = mini.main(mini.Config(out=Path("seldom"), eval_every=0, checkpoint_seconds=100.0))
    assert_equal(often, end(tmp_path))
    assert [row.iteration for row in run.records.curve] == [0, 6]


def test_scores_not_there_yet_are_asked_for_again(mini):
    """A resumed run has Gymnasium's scores of the policies that had none at the checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        mini.main(mini.Config(gymnasium_episodes=2), interrupt=at(1, 1))
    records = checkpoint.read(mini.Config())["records"]
    assert list(records["unscored"]) == [0] and records["curve"][0].gymnasium is None
    run = mini.main(mini.Config(gymnasium_episodes=2, resume=True))
    assert all(row.gymnasium is not None for row in run.records.curve)


def test_log_holds_the_means_of_what_was_given(mini):
    """TensorBoard has the mean of some iterations, and after a resume no step twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"iterations": 14, "checkpoint_seconds": 100.0}
    mini.main(mini.Config(**sizes), interrupt=at(11))
    run = mini.main(mini.Config(**sizes, resume=True))
    events = EventAccumulator(str(run.folder))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/iteration")]
    assert found == [(60, 4.5), (72, 10.5), (84, 12.5)]
    assert {"train/reward", "eval/return", "time/env_steps_per_second"} <= set(
        events.Tags()["scalars"]
    )


def test_failed_scores_are_told_and_harm_nothing(tmp_path):
    """A policy that cannot be played, or a process that ends, leaves a score with the reason."""
    policy = torch.nn.Linear(4, 1)
    program = evaluation.export(policy, 4)
    game = Game("InvertedPendulum-v5", {}, 5, 2, 0, program)
    scores = GymnasiumScores(game, tmp_path / "log")
    for number, weights in enumerate((policy.state_dict(), {"other": torch.zeros(1)})):
        file = io.BytesIO()
        torch.save(weights, file)
        scores.request(number, file.getvalue())
    good, bad = list(scores.arrived(wait=True))
    assert (good.request, bad.request) == (0, 1)
    assert good.failure is None and good.mean == 5.0 and good.error == 0.0
    assert bad.failure is not None and "the policy has lost" in bad.failure
    scores.close()
    scores.request(2, b"")
    (gone,) = scores.arrived(wait=True)
    assert gone.request == 2 and gone.failure is not None and "its process ended" in gone.failure


def test_scores_end_with_the_training(tmp_path):
    """The process that plays is gone when the training was killed."""
    code = f"""
import time, torch, diffenvs
from pathlib import Path
from diffenvs.training import evaluation
from diffenvs.training.scores import Game, GymnasiumScores
game = Game("InvertedPendulum-v5", {{}}, 5, 1, 0, b"")
scores = GymnasiumScores(game, Path({str(tmp_path / "log")!r}))
print(scores._process.pid, flush=True)
time.sleep(100)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, 0)  # it is there
    process.kill()
    process.communicate()
    for _ in range(300):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("it is still there after 30 s")


# Networks


def test_normalize_has_the_moments_of_all_batches():
    """Mean and variance are those of everything seen, and change in place."""
    x = torch.randn(3, 50, 4) * torch.tensor([1.0, 2.0, 0.1, 5.0]) + 3.0
    normalize = training.Normalize(4)
    mean = normalize.mean
    for batch in x:
        normalize.update(batch)
    whole = x.reshape(-1, 4)
    assert normalize.mean is mean
    assert torch.allclose(mean, whole.mean(0), atol=1e-4)
    assert torch.allclose(normalize.var, whole.var(0, unbiased=False), rtol=1e-3)
    assert torch.allclose(normalize(whole).std(0), torch.ones(4), atol=0.02)


def test_normalize_with_a_rate_follows_the_last_batches():
    """Each batch counts for at least so much; heads give what they gave, from the second on."""
    torch.manual_seed(0)
    normalize, head = training.Normalize(2, rate=0.25), torch.nn.Linear(3, 2)
    bias = head.bias.detach().clone()
    x, y = torch.randn(50, 2), 40.0 + 5.0 * torch.randn(50, 2)
    normalize.update_under(x, [head])
    assert torch.equal(head.bias, bias)
    torch.testing.assert_close(normalize.mean, x.mean(0))
    h = torch.randn(7, 3)
    before = normalize.inverse(head(h)).detach()
    mean, square = x.mean(0), x.square().mean(0)
    for _ in range(4):
        normalize.update_under(y, [head])
        weight = 0.5 if normalize.count < 101 else 1 / 3 if normalize.count < 151 else 0.25
        mean = mean + weight * (y.mean(0) - mean)
        square = square + weight * (y.square().mean(0) - square)
    torch.testing.assert_close(normalize.mean, mean)
    torch.testing.assert_close(normalize.var, square - mean.square(), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(normalize.inverse(head(h)), before, rtol=1e-4, atol=1e-4)
    assert (head.bias - bias).norm() > 0.1


def test_divergence_vs_torch():
    """That of the squashed Gaussians is that of the plain ones."""
    torch.manual_seed(0)
    mean, log_std, new_mean, new_log_std = torch.randn(4, 5, 3)
    normal = torch.distributions.Normal(mean, log_std.exp())
    other = torch.distributions.Normal(new_mean, new_log_std.exp())
    expected = torch.distributions.kl_divergence(normal, other).sum(1)
    found = training.divergence(mean, log_std, new_mean, new_log_std)
    torch.testing.assert_close(found, expected)
    assert (training.divergence(mean, log_std, mean, log_std) == 0.0).all()


def test_step_size_follows_the_divergence():
    """Shorter beyond twice what is wanted, longer below half of it, never above one."""
    step_size, alone = training.StepSize(), training.Processes(0, 1, torch.device("cpu"))
    nan = float("nan")
    for kl, factor in ((0.03, 1 / 1.2), (0.015, 1.0), (0.006, 1.0), (nan, 1.0), (0.001, 1.2)):
        before = step_size.part.item()
        step_size.steer(torch.tensor([0.0, 2.0 * kl]), 0.01, alone)
        assert step_size.part.item() == pytest.approx(factor * before)
    for kl, end in ((0.0, 1.0), (1.0, 0.01)):
        for _ in range(40):
            step_size.steer(torch.tensor([kl]), 0.01, alone)
        assert step_size.part.item() == pytest.approx(end)


def test_mlp_has_the_layers_that_were_asked_for():
    """Hidden layers are normalised, the last is linear."""
    kinds = [type(layer).__name__ for layer in training.mlp(3, 8, 9, 2)]
    assert kinds == ["Linear", "LayerNorm", "SiLU"] * 2 + ["Linear"]
    assert training.mlp(3, 8, 9, 2)(torch.zeros(5, 3)).shape == (5, 2)


# Several processes


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(script, tmp_path):
    """Ctrl-C in one of two processes ends both; resumed, both end as if it had not happened."""
    runs = tmp_path / "runs.py"
    runs.write_text(RUNS)
    out = torchrun(tmp_path, runs, MINIATURE=str(script.parent))
    first, second, third = out.split("Compiling the physics")[1:]  # it is said once
    assert "8 iterations, 96 steps" in first
    assert "3 iterations, 36 steps" in second
    assert "8 iterations, 96 steps" in third
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for rank in range(2):
        assert_equal(end(whole, rank), end(parted, rank))
    # One learner, with the mean of both gradients and moments; worlds of their own.
    one, other = end(whole, 0), end(whole, 1)
    assert not torch.equal(one.pop("obs"), other.pop("obs"))
    assert_equal(one, other)
    assert one["normalize.count"] == pytest.approx(8 * 2 * 3 * 2, abs=1e-3)
    (csv_file,) = whole.glob("runs/*/*/curve.csv")
    assert [row["steps"] for row in csv.DictReader(csv_file.open())] == ["0", "48", "96"]
    (file,) = parted.glob("runs/*/*/checkpoint.pt")
    assert len(torch.load(file, weights_only=False)["parts"]) == 2
