"""The script runs as a user runs it, survives a kill, and its parts do what they say."""

import copy
import csv
import dataclasses
import json
import sys

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("matplotlib", "tensorboard", "tqdm", "tyro"):
    pytest.importorskip(name)

import first_order  # noqa: E402
from first_order import ENV, Worlds  # noqa: E402

from diffenvs import command_line, training  # noqa: E402
from diffenvs.policy import load_policy  # noqa: E402

SMALL = "--num-envs 4 --horizon 4 --eval-every 0 --eval-envs 2 --hidden 16 16 --critic-epochs 2"
SMALL = SMALL.split()
ALONE = training.Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def sapo():
    """The script as a module."""
    torch.set_num_threads(1)  # as it does
    yield first_order.load("sapo")
    del sys.modules["sapo"]


@pytest.fixture
def walk(sapo):
    """A window of `Worlds`, with policy and critics."""
    torch.manual_seed(0)
    cfg = sapo.Config(horizon=Worlds.horizon, hidden=(8, 8), gamma=0.9, lam=0.8)
    policy = sapo.Policy(Worlds.nobs, torch.tensor([1.0, 0.4]), cfg)
    critics = sapo.Critics(Worlds.nobs, cfg, ALONE.device)
    for parameter in critics.nets.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for net in critics.nets:
        values = net(torch.randn(100, Worlds.nobs))
        net[-1].bias.data -= values.mean().detach()  # now the one is lower, now the other
    envs = Worlds()
    health, weight = training.GradientHealth(1e9), torch.tensor(0.7)
    window, _ = sapo.rollout(envs, envs.obs, policy, critics, weight, health, cfg)
    return envs, policy, critics, window, cfg


@pytest.mark.slow
def test_killed_run_ends_as_one_that_was_not(tmp_path, capfd):
    """Killed (SIGKILL) and resumed, all that the run goes on from is the same bit for bit."""
    whole, killed = first_order.kill_and_resume(
        "sapo", tmp_path, *SMALL, "--critic-windows", 3, "--gymnasium-episodes", 0, "--no-video"
    )
    a, b = (torch.load(f / "checkpoint.pt", weights_only=False) for f in (whole, killed))
    first_order.assert_equal(a["parts"], b["parts"])
    assert capfd.readouterr().out.count("24 iterations, 384 steps") == 2


def test_script_leaves_what_it_promises(tmp_path, capfd):
    """Two iterations leave log, curve, policy, checkpoint, and a video or the reason why none."""
    first_order.run(
        "sapo", "--env", ENV, "--iterations", 2, *SMALL, "--gymnasium-episodes", 0, "--out",
        tmp_path, "--device", "cpu", "--kl", 0,
    )  # fmt: skip
    out, folder = capfd.readouterr().out, tmp_path / ENV / "seed0"
    for name in ("curve.csv", "curve.json", "curve.png", "policy.pt2", "checkpoint.pt"):
        assert (folder / name).stat().st_size > 100, name
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("*.mp4")) or "No video" in out
    assert json.loads((folder / "curve.json").read_text())["settings"]["horizon"] == 4
    first_order.assert_last_step(folder, 1e-3 / 2.0, 1.0)
    rows = list(csv.DictReader((folder / "curve.csv").open()))
    assert [row["iteration"] for row in rows] == ["0", "2"]
    task = command_line.make_task(gym.spec(ENV), {})
    action = load_policy(folder / "policy.pt2", task)(np.ones((5, task.obs_size)))
    assert action.shape == (5, 1) and np.abs(action).max() < 3.0


def test_help_lists_every_setting(sapo, capfd):
    """And says where the numbers come from."""
    with pytest.raises(SystemExit) as end:
        first_order.run("sapo", "--help")
    out = capfd.readouterr().out
    assert end.value.code == 0 and "Xing et al." in out
    for field in dataclasses.fields(sapo.Config):
        assert f"--{field.name.replace('_', '-')}" in out


def test_settings_of_tasks(sapo):
    """The table names tasks that there are, settings that there are, and whole minibatches."""
    for cfg in first_order.settings_of_tasks(sapo):
        rows = cfg.num_envs * cfg.horizon * cfg.critic_windows
        assert rows % cfg.critic_batches == 0, cfg.env


def test_entropy_vs_torch(sapo):
    """The entropy of a sample is minus its log density in units of `high`, gradient included."""
    torch.manual_seed(0)
    cfg = sapo.Config(hidden=(8, 8), noise=0.7)
    high = torch.tensor([1.0, 0.4], dtype=torch.float64)
    policy = sapo.Policy(3, high, cfg).double()
    policy.net[-1].weight.data.mul_(10.0)  # noise that depends on the state
    obs, noise = torch.randn(500, 3).double(), torch.randn(500, 2).double()
    action, entropy = policy.sample(obs, noise)
    mean, log_std = policy.net(policy.normalize(obs)).chunk(2, dim=-1)
    assert log_std.std() > 0.1
    squash = torch.distributions.TanhTransform(cache_size=1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    units = squash(mean + log_std.exp() * noise)
    squashed = torch.distributions.TransformedDistribution(normal, [squash])
    expected = -squashed.log_prob(units).mean(dim=-1)
    torch.testing.assert_close(action, high * units)
    torch.testing.assert_close(entropy, expected)
    parameters = list(policy.net.parameters())
    found = torch.autograd.grad(entropy.mean(), parameters)
    for grad, other in zip(found, torch.autograd.grad(expected.mean(), parameters), strict=True):
        torch.testing.assert_close(grad, other)
    torch.testing.assert_close(policy(obs), high * torch.tanh(mean))


def test_noise_stays_within_its_bounds(sapo):
    """However wide or narrow the network wants it, and the entropy of far actions is finite."""
    cfg = sapo.Config(hidden=(8, 8))
    policy = sapo.Policy(3, torch.ones(1), cfg)
    last = policy.net[-1]
    for log_std, bound in ((50.0, cfg.log_std[1]), (-50.0, cfg.log_std[0])):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([0.0, log_std]))
        action, entropy = policy.sample(torch.zeros(1, 3), torch.full((1, 1), 0.1))
        assert action.item() == pytest.approx(np.tanh(0.1 * np.exp(bound)))
        with torch.no_grad():
            last.bias[0] = 60.0  # there tanh is 1, and its slope underflows
        _, entropy = policy.sample(torch.zeros(1, 3), torch.zeros(1, 1))
        assert entropy.item() == pytest.approx(
            bound + 0.5 * np.log(2.0 * np.pi) + 2.0 * (np.log(2.0) - 60.0), rel=1e-5
        )


def test_entropy_weight_is_steered(sapo):
    """It falls where the entropy is above its target, rises below, and goes on from its state."""
    cfg = sapo.Config()
    weight = sapo.EntropyWeight(cfg, ALONE.device)
    assert weight().item() == pytest.approx(cfg.entropy_weight)
    weight.steer(torch.full((2, 3), cfg.target_entropy + 0.1), ALONE)
    lower = weight().item()
    assert lower < cfg.entropy_weight
    other = sapo.EntropyWeight(cfg, ALONE.device)
    other.load_state_dict(copy.deepcopy(weight.state_dict()))
    for one in (weight, other):
        for _ in range(3):
            one.steer(torch.full((2, 3), cfg.target_entropy - 1.0), ALONE)
    assert weight().item() > lower and torch.equal(weight(), other())


def test_score_vs_plain_sum(sapo, walk):
    """Rewards, entropies and values, discounted from the beginning of each episode."""
    _, _, _, window, cfg = walk
    fallen, done = first_order.timetable()
    assert torch.equal(window.done, done) and (window.next_value[fallen] == 0.0).all()
    bonus = 0.7 * (window.entropy - cfg.target_entropy)
    torch.testing.assert_close(window.reward, window.paid + bonus)
    assert not window.paid.requires_grad and window.entropy.requires_grad
    plain = first_order.plain_score(window.reward, window.next_value, done, cfg.gamma)
    assert sapo.score(window, cfg.gamma).item() == pytest.approx(plain, rel=1e-5)


def test_values_are_those_of_what_the_steps_led_to(sapo, walk):
    """The policy sees the mean of two critics, the targets the lower; both zero behind a fall."""
    envs, policy, critics, window, _ = walk
    fallen, _ = first_order.timetable()
    x = policy.normalize(torch.stack(envs.finals))
    spread, mean = critics.scale.var.sqrt() + 1e-3, critics.scale.mean
    first, second = (net(x)[..., 0] * spread + mean for net in critics.nets)
    assert (first < second).any() and (first > second).any()
    mean, lower = (first + second) / 2.0, torch.minimum(first, second)
    torch.testing.assert_close(window.next_value, torch.where(fallen, 0.0, mean))
    found = sapo.lower_value(sapo.Recent(1, ALONE.device).push(window), policy, critics)
    torch.testing.assert_close(found, torch.where(fallen, 0.0, lower))


def test_gradient_passes_into_the_episode_that_ended(sapo, walk):
    """Into final_obs at a time limit and at the end of the window, and not behind a fall."""
    envs, policy, critics, window, cfg = walk
    sapo.score(window, cfg.gamma).backward()
    reached = torch.stack([(final.grad != 0.0).all(dim=1) for final in envs.finals])
    untouched = torch.stack([(final.grad == 0.0).all(dim=1) for final in envs.finals])
    fallen, ends = first_order.timetable()
    ends[-1] = True
    assert torch.equal(reached, ends & ~fallen) and torch.equal(untouched, ~reached)
    # The policy's loss is none of the critics'.
    assert all(parameter.grad is None for parameter in critics.nets.parameters())
    assert all((parameter.grad != 0.0).any() for parameter in policy.net.parameters())


def test_recent_windows_follow_each_other(sapo, walk):
    """The last ones in their order; the first one stands for those that are not there yet."""
    _, _, _, window, _ = walk
    recent, again = (sapo.Recent(3, ALONE.device) for _ in range(2))
    steps = [dataclasses.replace(window, reward=window.reward + 10.0 * t) for t in range(4)]
    seen = recent.push(steps[0])
    assert seen["obs"].shape == (3 * len(window.obs), *window.obs.shape[1:])
    reward, done = (seen[name].unflatten(0, (3, -1)) for name in ("reward", "done"))
    assert all(torch.equal(x, window.reward) for x in reward) and not reward.requires_grad
    assert done[:2, -1].all() and torch.equal(done[2], window.done) and not window.done[-1].all()
    again.load_state_dict(recent.state_dict())
    for step in steps[1:]:
        seen = recent.push(step)
        first_order.assert_equal(again.push(step), seen)
    assert torch.equal(seen["reward"], torch.cat([x.reward for x in steps[1:]]))
    assert torch.equal(seen["done"], window.done.repeat(3, 1))
    alone = sapo.Recent(1, ALONE.device)
    for step in steps:
        assert torch.equal(alone.push(step)["reward"], step.reward) and not alone.earlier


@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_critic_targets_vs_plain_returns(sapo, walk, lam):
    """The critics learn means of all n-step returns of an episode, by the lower value."""
    *_, window, cfg = walk
    next_value = torch.randn_like(window.paid)
    seen = sapo.Recent(1, ALONE.device).push(window)
    found = sapo.critic_targets(seen, next_value, cfg.gamma, lam)
    assert not found.requires_grad
    plain = first_order.plain_targets(window.reward, next_value, window.done, cfg.gamma, lam)
    np.testing.assert_allclose(found.numpy(), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_fit_vs_eager(sapo):
    """Steps that are replayed from graphs are those of Python."""
    cfg = sapo.Config(hidden=(8, 8), critic_epochs=2, critic_batches=2)
    first_order.assert_captured_critic_is_eager(lambda device: sapo.Critics(3, cfg, device))


def test_critics_are_fitted_in_their_units(sapo):
    """Both learn values of any size."""
    torch.manual_seed(0)
    cfg = sapo.Config(hidden=(8, 8), critic_epochs=20, critic_batches=2)
    critics = sapo.Critics(3, cfg, ALONE.device)
    x = torch.randn(64, 3)
    target = 150.0 + 20.0 * x[:, 0]
    first = critics.fit(x, target, torch.ones(64), 2e-3, ALONE)
    for _ in range(10):
        last = critics.fit(x, target, torch.ones(64), 2e-2, ALONE)
    assert last < 0.05 * first
    for values in critics(x):
        torch.testing.assert_close(values, target, rtol=0.0, atol=10.0)
    before = torch.stack(critics(x)).detach()
    critics.fit(x, 3.0 * target, torch.ones(64), 0.0, ALONE)  # in other units, the same
    torch.testing.assert_close(torch.stack(critics(x)), before, rtol=1e-4, atol=1e-2)
    assert critics.scale.mean > 151.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_windows": 0}, "critic_windows must be 1 or more"),
        ({"critic_batches": 0}, "critic_batches must be 1 or more"),
        ({"num_envs": 3, "horizon": 5, "critic_windows": 2}, "of 5 times 2 windows do not make 4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sapo, settings, message):
    """Before anything is made."""
    with pytest.raises(SystemExit, match=message):
        sapo.main(sapo.Config(env=ENV, **settings))
