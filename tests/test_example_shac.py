"""The script runs as a user runs it, survives a kill, and its parts do what they say."""

import copy
import csv
import dataclasses
import json
import math
import sys
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("matplotlib", "tensorboard", "tqdm", "tyro"):
    pytest.importorskip(name)

import first_order  # noqa: E402
import shac_processes  # noqa: E402
from first_order import ENV, Worlds  # noqa: E402

from diffenvs import command_line, training  # noqa: E402
from diffenvs.policy import load_policy  # noqa: E402
from diffenvs.training import Processes  # noqa: E402

SMALL = "--num-envs 4 --horizon 4 --eval-every 0 --eval-envs 2 --hidden 16 16 --critic-epochs 2"
SMALL = SMALL.split()
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def shac():
    """The script as a module."""
    torch.set_num_threads(1)  # as it does
    yield first_order.load("shac")
    del sys.modules["shac"]


@pytest.fixture
def walk(shac):
    """A window of `Worlds`, with policy and critic."""
    torch.manual_seed(0)
    cfg = shac.Config(horizon=Worlds.horizon, hidden=(8, 8), gamma=0.9, lam=0.8)
    device = torch.device("cpu")
    policy = shac.Policy(Worlds.nobs, torch.tensor([1.0, 0.4]), cfg)
    critic = shac.Critic(Worlds.nobs, cfg, device)
    for parameter in critic.slow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    envs = Worlds()
    health = training.GradientHealth(1e9)
    window, _ = shac.rollout(envs, envs.obs, policy, critic, shac.MeanReward(cfg), health, cfg)
    return envs, policy, critic, window, cfg


@pytest.mark.slow
def test_killed_run_ends_as_one_that_was_not(tmp_path, capfd):
    """Killed (SIGKILL) and resumed, all that the run goes on from is the same bit for bit."""
    more = "--gymnasium-episodes 0 --no-video --center --tries 8 --try-steps 5 --residual".split()
    whole, killed = first_order.kill_and_resume("shac", tmp_path, *SMALL, *more)
    a, b = (torch.load(f / "checkpoint.pt", weights_only=False) for f in (whole, killed))
    first_order.assert_equal(a["parts"], b["parts"])
    assert_rows_equal(whole, killed)
    assert capfd.readouterr().out.count("24 iterations, 444 steps") == 2  # 60 of the search


def assert_rows_equal(whole, killed):
    """Two curves are equal but for the clock."""
    tables = [list(csv.DictReader((f / "curve.csv").open())) for f in (whole, killed)]
    for row, other in zip(*tables, strict=True):
        assert row.pop("seconds") and other.pop("seconds")
        assert row == other


def test_script_leaves_what_it_promises(tmp_path, capfd):
    """Two iterations leave log, curve, policy, checkpoint, and a video or the reason why none."""
    first_order.run(
        "shac", "--env", ENV, "--iterations", 2, *SMALL, "--gymnasium-episodes", 1, "--out",
        tmp_path, "--device", "cpu", "--kl", 1e-9,
    )  # fmt: skip
    out, folder = capfd.readouterr().out, tmp_path / ENV / "seed0"
    for name in ("curve.csv", "curve.json", "curve.png", "policy.pt2", "checkpoint.pt"):
        assert (folder / name).stat().st_size > 100, name
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("*.mp4")) or "No video" in out
    settings = json.loads((folder / "curve.json").read_text())["settings"]
    assert settings["reward"] == "smooth" and settings["actor_lr"] == 2e-3  # of its row in TASKS
    first_order.assert_last_step(folder, 2e-3 / 2.0, 1.0 / 1.2)
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert [row["iteration"] for row in rows] == ["0", "2"]
    assert all(float(row["gymnasium_return"]) >= 1.0 for row in rows)
    task = command_line.make_task(gym.spec(ENV), {})
    action = load_policy(folder / "policy.pt2", task)(np.ones((5, task.obs_size)))
    assert np.abs(action).max() < 3.0


def test_help_lists_every_setting(shac, capfd):
    """And says where the numbers come from."""
    with pytest.raises(SystemExit) as end:
        first_order.run("shac", "--help")
    out = capfd.readouterr().out
    assert end.value.code == 0 and "Found here" in out
    for field in dataclasses.fields(shac.Config):
        assert f"--{field.name.replace('_', '-')}" in out


def test_settings_of_tasks(shac):
    """The table names tasks that there are, settings that there are, and whole minibatches."""
    for cfg in first_order.settings_of_tasks(shac):
        rows = cfg.num_envs * cfg.horizon
        assert rows % cfg.critic_batches == 0, cfg.env


def test_score_vs_plain_sum(shac, walk):
    """Rewards and the values behind them, discounted from the beginning of each episode."""
    _, _, _, window, cfg = walk
    fallen, done = first_order.timetable()
    assert torch.equal(window.done, done) and (window.next_value[fallen] == 0.0).all()
    plain = first_order.plain_score(window.reward, window.next_value, done, cfg.gamma)
    assert shac.score(window, cfg.gamma).item() == pytest.approx(plain, rel=1e-5)


def test_values_are_those_of_what_the_steps_led_to(walk):
    """Of final_obs, in the units of the targets; zero behind a fall."""
    envs, policy, critic, window, _ = walk
    fallen, _ = first_order.timetable()
    final = torch.stack(envs.finals)
    expected = (
        critic.slow(policy.normalize(final))[..., 0] * (critic.scale.var.sqrt() + 1e-3)
        + critic.scale.mean
    )
    torch.testing.assert_close(window.next_value, torch.where(fallen, 0.0, expected))


def test_rewards_counted_from_their_mean_change_no_gradient(shac, walk):
    """What policies are worth is less by the mean for ever, from every beginning on."""
    _, policy, critic, _, cfg = walk
    cfg = dataclasses.replace(cfg, center=True)
    mean_reward, windows, lost = shac.MeanReward(cfg), [], 0.7 / (1.0 - cfg.gamma)
    for value in (0.0, 0.7):
        # the mean of 0 and twice it; what diverged does not count
        paid = torch.tensor([[2.0 * value], [100.0]]).expand(2, 6)
        mean_reward.update(paid, torch.tensor([[1.0], [0.0]]).expand(2, 6), ALONE)
        torch.manual_seed(5)
        envs, health = Worlds(), training.GradientHealth(1e9)
        windows.append(shac.rollout(envs, envs.obs, policy, critic, mean_reward, health, cfg)[0])
        critic.scale.mean -= lost
    plain, window = windows
    assert mean_reward.value == pytest.approx(0.7)
    torch.testing.assert_close(window.paid, plain.reward.detach())
    ends = plain.done.clone()
    ends[-1] = True
    scores = [shac.score(x, cfg.gamma) for x in (plain, window)]
    expected = scores[0] - lost * ends.sum() / ends.numel()
    torch.testing.assert_close(scores[1], expected)
    parameters = list(policy.net.parameters())
    first, second = (torch.autograd.grad(x, parameters, retain_graph=True) for x in scores)
    for a, b in zip(first, second, strict=True):
        assert a.norm() > 0.0
        torch.testing.assert_close(a, b)
    # later windows are followed slowly, and without centering nothing changes
    for _ in range(30):
        mean_reward.update(torch.full((4, 6), 1.7), torch.ones(4, 6), ALONE)
    before = mean_reward.value.item()
    mean_reward.update(torch.full((4, 6), 11.7), torch.ones(4, 6), ALONE)
    assert 1.5 < before < 1.7
    assert mean_reward.value.item() == pytest.approx(before + 0.05 * (11.7 - before), rel=1e-5)
    off = shac.MeanReward(shac.Config())
    off.update(torch.ones(4, 6), torch.ones(4, 6), ALONE)
    assert off.value == 0.0 and off.end == 0.0


class Contest:
    """Worlds that pay what action 0 is worth, but nothing after the first step in world 1.

    World 2 diverges, and pays a lot; world 3 has rewards that are not numbers. The others are like
    world 0.
    """

    single_observation_space = SimpleNamespace(shape=(3,))

    def __init__(self, num_envs):
        self.num_envs = num_envs

    def _worlds(self, *first):
        return torch.cat([torch.tensor(first), torch.zeros(self.num_envs - 4, dtype=torch.float)])

    def reset(self):
        self.obs = torch.tensor([0.5, -1.0, 2.0]).repeat(self.num_envs, 1)
        return self.obs, {}

    def step(self, action):
        over, cut = self._worlds(0.0, 1.0, 0.0, 0.0) > 0.0, torch.zeros(self.num_envs) > 0.0
        self.obs = self.obs * torch.tensor([1.0, -1.0, 1.0])
        return self.obs, action[:, 0] + self._worlds(0.0, 0.0, 1e9, torch.nan), over, cut, {}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rounds", [2, 3, 6])
@pytest.mark.parametrize("kept", [1, 3])
def test_search_finds_the_policy_that_earns_most(shac, monkeypatch, kept, rounds, residual):
    """It is the best of all that were tried, at observations in their units; the seed gives it.

    Half of the rounds, rounded down, are near the few best of all before them.
    """
    monkeypatch.setattr(shac, "BEST", kept)
    worlds, seed = 16, 20 + 4 * rounds + kept
    tries = worlds * rounds - 3 if rounds > 2 else 1  # there are two rounds at least
    sizes = {"num_envs": worlds, "tries": tries, "try_steps": 6, "try_spread": 0.5}
    cfg = shac.Config(**sizes, hidden=(8,), start=2.0, residual=residual)
    found = []
    for _ in range(2):
        torch.manual_seed(seed)
        policy = shac.Policy(3, torch.ones(2), cfg)
        obs, steps = shac.search(Contest(worlds), policy, cfg)
        found.append(policy.state_dict())
    first_order.assert_equal(*found)
    assert obs.shape == (worlds, 3) and steps == worlds * (1 + rounds) * 6
    torch.testing.assert_close(policy.normalize.mean, torch.tensor([0.5, 0.0, 2.0]))

    seen = torch.tensor([[0.5, -1.0, 2.0], [0.5, 1.0, 2.0]]).repeat(3, 1)

    def draw():
        return [shac.Policy(3, torch.ones(2), cfg) for _ in range(worlds)]

    def earns(world, one):
        one.normalize = policy.normalize
        paid = one(seen)[:, 0]
        return (paid[0] if world == 1 else paid.sum()).item()

    torch.manual_seed(seed)
    shac.Policy(3, torch.ones(2), cfg)
    draw()  # the first round
    every = []  # returns, weights and rounds, of the worlds that pay numbers
    for number in range(rounds):
        drawn = draw()
        if number >= rounds - rounds // 2:
            best = sorted(every, key=lambda one: -one[0])[:kept]
            for i, one in enumerate(drawn):
                parent = best[i % kept][1]
                for name, x in one.net.state_dict().items():
                    x.copy_(parent[name] + 0.5 * x)
        every += [
            (earns(world, one), one.net.state_dict(), number)
            for world, one in enumerate(drawn)
            if world not in (2, 3)
        ]
    earned, weights, number = max(every, key=lambda one: one[0])
    assert earned > 0.0 and number >= rounds - rounds // 2  # near the best there is a better one
    first_order.assert_equal(dict(weights), dict(policy.net.state_dict()))


@pytest.mark.parametrize("residual", [False, True])
def test_start_is_the_scale_of_the_last_weights(shac, residual):
    """And its biases are zero."""
    lasts = []
    for start in (1.0, 3.0):
        torch.manual_seed(0)
        net = shac.Policy(3, torch.ones(2), shac.Config(start=start, residual=residual)).net
        lasts.append(net.linear if residual else net[-1])
    one, three = lasts
    assert one.weight.norm() > 0.1
    torch.testing.assert_close(3.0 * one.weight, three.weight)
    assert (three.bias == 0.0).all()


class Lost(Contest):
    """Worlds without a single number."""

    def step(self, action):
        *_, cut, info = super().step(action)
        return self.obs * torch.nan, action[:, 0] * torch.nan, cut, cut, info


def test_search_in_which_all_diverge_changes_nothing(shac, capsys):
    """There is no best one, and none near it; that is said."""
    cfg = shac.Config(num_envs=4, tries=16, try_steps=2, hidden=(8,))
    policy = shac.Policy(3, torch.ones(2), cfg)
    before = copy.deepcopy(policy.net.state_dict())
    shac.search(Lost(4), policy, cfg)
    first_order.assert_equal(dict(before), dict(policy.net.state_dict()))
    assert "no policy that was tried earned" in capsys.readouterr().out


def test_residual_policy_begins_linear(shac):
    """Hidden layers add nothing at first, then a tenth of what they give; both parts learn."""
    torch.manual_seed(0)
    cfg = shac.Config(policy_hidden=(8,), residual=True)
    policy = shac.Policy(3, torch.tensor([1.0, 0.4]), cfg)
    obs = torch.randn(5, 3)
    linear, deep = policy.net.linear, policy.net.deep
    x = policy.normalize(obs)
    expected = policy.high * torch.tanh(x @ linear.weight.T + linear.bias)
    torch.testing.assert_close(policy(obs), expected)
    assert policy(obs).abs().mean() > 0.001
    policy(obs).square().sum().backward()
    assert linear.weight.grad.norm() > 0.0 and deep[-1].weight.grad.norm() > 0.0
    torch.nn.init.normal_(deep[-1].weight)
    torch.testing.assert_close(policy.net(obs), linear(obs) + 0.1 * deep(obs))
    assert (policy(obs) - expected).norm() > 0.01
    policy.zero_grad()
    policy(obs).square().sum().backward()
    assert all(parameter.grad.norm() > 0.0 for parameter in policy.net.parameters())


def test_critic_learns_first(shac, tmp_path):
    """The policy that was found stays as it is for a while; the steps of the search are counted."""
    more = {"tries": 4, "try_steps": 3, "critic_first": 3, "center": True, "hidden": (8,)}
    cfg = shac.Config(
        env=ENV, num_envs=4, horizon=4, iterations=5, eval_every=0, eval_envs=1,
        gymnasium_episodes=0, device="cpu", video=False, out=tmp_path, **more,
    )  # fmt: skip
    searched, seen, runs = [], [], []

    def search(envs, policy, cfg):
        found = true_search(envs, policy, cfg)
        searched.append(copy.deepcopy(policy.state_dict()))
        return found

    def rollout(envs, obs, policy, *rest):
        seen.append(copy.deepcopy(policy.state_dict()))
        return true_rollout(envs, obs, policy, *rest)

    def run(*given):
        runs.append((true_run(*given), given[3]["average"], given[3]["mean_reward"]))
        return runs[-1][0]

    true_search, true_rollout, true_run = shac.search, shac.rollout, training.Run
    with (
        mock.patch.object(shac, "search", search),
        mock.patch.object(shac, "rollout", rollout),
        mock.patch.object(training, "Run", run),
        mock.patch.object(Processes, "share_", autospec=True) as share,
    ):
        shac.main(cfg)
    for policy in seen[:4]:
        first_order.assert_equal(dict(searched[0]), dict(policy))
    assert not torch.equal(seen[4]["net.0.weight"], searched[0]["net.0.weight"])
    assert torch.equal(seen[4]["normalize.mean"], searched[0]["normalize.mean"])
    assert len(share.mock_calls[-1].args[1]) == len(searched[0])  # of the search, the last
    ((run, average, mean_reward),) = runs
    assert not torch.equal(average.net[0].weight, searched[0]["net.0.weight"])
    assert run.steps == 5 * 4 * 4 + 3 * 4 * 3  # of the search, two rounds and one before them
    assert 0.4 < mean_reward.value <= 1.0  # an upright pendulum is paid 1, a fallen one 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"center": True, "gamma": 1.0}, "gamma below 1"),
        ({"tries": -1}, "tries must be"),
        ({"tries": 4, "try_steps": 0}, "try_steps 1 or more"),
        ({"tries": 4, "try_spread": 0.0}, "try_spread must be a number above 0, not 0.0"),
        ({"tries": 4, "try_spread": math.nan}, "try_spread must be a number above 0, not nan"),
        ({"residual": True, "policy_hidden": ()}, "residual asks for hidden layers"),
        ({"critic_first": 2000}, "critic_first must be in 0 to 1999"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(shac, settings, message):
    """Before anything is made."""
    with pytest.raises(SystemExit, match=message):
        shac.main(shac.Config(env=ENV, **settings))


def test_gradient_passes_into_the_episode_that_ended(shac, walk):
    """Into final_obs at a time limit and at the end of the window, and not behind a fall."""
    envs, policy, critic, window, cfg = walk
    shac.score(window, cfg.gamma).backward()
    reached = torch.stack([(final.grad != 0.0).all(dim=1) for final in envs.finals])
    untouched = torch.stack([(final.grad == 0.0).all(dim=1) for final in envs.finals])
    fallen, ends = first_order.timetable()
    ends[-1] = True
    assert torch.equal(reached, ends & ~fallen) and torch.equal(untouched, ~reached)
    for net in (critic.net, critic.slow):  # the policy's loss is none of theirs
        assert all(parameter.grad is None for parameter in net.parameters())
    for parameter in (*policy.net.parameters(), policy.log_std):
        assert (parameter.grad != 0.0).any()


@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_critic_targets_vs_plain_returns(shac, walk, lam):
    """The critic learns means of all n-step returns of an episode."""
    *_, window, cfg = walk
    found = shac.critic_targets(window, cfg.gamma, lam)
    assert not found.requires_grad
    plain = first_order.plain_targets(window.reward, window.next_value, window.done, cfg.gamma, lam)
    np.testing.assert_allclose(found.numpy(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_fit_vs_eager(shac):
    """Steps that are replayed from graphs are those of Python."""
    cfg = shac.Config(hidden=(8, 8), critic_epochs=2, critic_batches=2)
    first_order.assert_captured_critic_is_eager(lambda device: shac.Critic(3, cfg, device))


def test_critic_is_fitted_in_its_units(shac):
    """It learns values of any size, and the slow one follows by the rate that was given."""
    torch.manual_seed(0)
    cfg = shac.Config(hidden=(8, 8), critic_epochs=20, critic_batches=2, target_rate=0.5)
    critic = shac.Critic(3, cfg, ALONE.device)
    x = torch.randn(64, 3)
    target = 150.0 + 20.0 * x[:, 0]
    before = [parameter.clone() for parameter in critic.slow.parameters()]
    first = critic.fit(x, target, torch.ones(64), 2e-3, ALONE)
    for slow, old, fast in zip(
        critic.slow.parameters(), before, critic.net.parameters(), strict=True
    ):
        torch.testing.assert_close(slow, (old + fast) / 2.0)
    for _ in range(10):
        last = critic.fit(x, target, torch.ones(64), 2e-2, ALONE)
    assert last < 0.05 * first and critic.optimizer.param_groups[0]["lr"] == pytest.approx(2e-2)
    torch.testing.assert_close(critic(x), target, rtol=0.0, atol=10.0)
    critic.cfg.target_rate = 0.0
    before = critic(x).detach()
    critic.fit(x, 3.0 * target, torch.ones(64), 0.0, ALONE)  # in other units, the same
    torch.testing.assert_close(critic(x), before, rtol=1e-4, atol=1e-2)
    with torch.no_grad():
        values = critic.scale.inverse(critic.net(x))[:, 0]
    torch.testing.assert_close(values, target, rtol=0.0, atol=10.0)
    assert critic.scale.mean > 151.0


@pytest.mark.slow
def test_two_processes_are_one_with_all_worlds(tmp_path):
    """Their mean gradients are those of one process; their networks are equal bit for bit."""
    first_order.torchrun(tmp_path, shac_processes.__file__, tmp_path)
    first, second = (torch.load(tmp_path / f"gradients{rank}.pt") for rank in (0, 1))
    first_order.assert_equal(first, second)
    one = shac_processes.train(tmp_path / "one", 0, 1)
    assert len(one) == len(first) == 9
    for step, (grad, reference) in enumerate(zip(first, one, strict=True)):
        error = ((grad - reference).norm() / reference.norm()).item()
        assert error < (1e-5 if step < 2 else 1e-3), (step, error)
    content = torch.load(tmp_path / ENV / "seed0" / "checkpoint.pt", weights_only=False)
    one, other = content["parts"]
    first_order.assert_equal(one["learner"], other["learner"])
    assert not torch.equal(one["obs"], other["obs"])  # worlds and noise of their own
    assert not torch.equal(one["random"]["torch"], other["random"]["torch"])
