"""Gradients of worlds are masked, clipped and counted; worlds that diverged begin anew."""

import dataclasses
import sys

import gymnasium as gym
import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("matplotlib", "tensorboard", "tqdm", "tyro"):
    pytest.importorskip(name)

import first_order  # noqa: E402

from diffenvs import training  # noqa: E402
from diffenvs.training.evaluation import Evaluation  # noqa: E402

ENV = "DiffCartPoleSwingUp-v0"  # no episode of it terminates


def pull(health, grad, watch="watch"):
    """Return the gradient that arrives behind a watched tensor when `grad` comes in."""
    leaf = torch.zeros_like(grad, requires_grad=True)
    x = leaf * 1.0
    getattr(health, watch)(x)
    x.backward(grad)
    return leaf.grad


@pytest.mark.parametrize("watch", ["watch", "watch_action"])
def test_rows_that_are_not_finite_are_masked_and_counted(watch):
    """They become zero, and the rows of other worlds stay as they are, bit for bit."""
    health = training.GradientHealth(limit=1e3)
    torch.manual_seed(0)
    grad = torch.randn(6, 3)
    bad = grad.clone()
    bad[1, 0], bad[3, 2], bad[4] = torch.nan, torch.inf, -torch.inf
    found = pull(health, bad, watch)
    assert (found[[1, 3, 4]] == 0.0).all() and torch.equal(found[[0, 2, 5]], grad[[0, 2, 5]])
    other = grad.clone()
    other[3] = torch.nan  # the same world once more, in another step
    pull(health, other, watch)
    assert {name: x.item() for name, x in health.take().items()} == {
        "nonfinite_worlds": 3,
        "clipped_worlds": 0.0,
    }
    pull(health, grad, watch)
    assert health.take()["nonfinite_worlds"] == 0  # what was taken is forgotten


def test_long_rows_are_cut_to_the_limit():
    """The limit is in medians of the worlds that have a gradient; the direction stays."""
    health = training.GradientHealth(limit=3.0)
    length = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 7.0, 600.0, torch.nan])
    direction = torch.nn.functional.normalize(torch.randn(11, 2), dim=1)
    found = pull(health, length[:, None] * direction)
    # Of the five lengths that are there the median is 4; zeros and NaN are none.
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 7.0, 12.0, 0.0])
    torch.testing.assert_close(found, expected[:, None] * direction)
    counts = health.take()
    assert counts["clipped_worlds"].item() == pytest.approx(1 / 11)
    assert counts["nonfinite_worlds"] == 1


def test_gradients_that_nobody_has():
    """Zero in all worlds, NaN in all worlds, no gradient asked for, no columns."""
    health = training.GradientHealth(limit=3.0)
    assert (pull(health, torch.zeros(4, 2)) == 0.0).all()
    assert (pull(health, torch.full((4, 2), torch.nan)) == 0.0).all()
    health.watch(torch.ones(4, 2))
    health.watch(torch.ones(4, 0, requires_grad=True))
    counts = health.take()
    assert counts["nonfinite_worlds"] == 4 and counts["clipped_worlds"] == 0.0


def test_cosine_vs_two_passes():
    """It is that of the gradients of both halves of the worlds, each differentiated alone."""
    torch.manual_seed(0)
    policy, start = training.mlp(2, 8, 1), torch.randn(10, 2)
    mix, pull_back = torch.randn(2, 2) / 2.0, torch.randn(10, 1)

    def play(health, worlds):
        obs, total, seen = start, 0.0, []
        for _ in range(4):
            seen.append(obs)
            action = policy(obs)
            health.watch_action(action)
            obs = torch.tanh(obs @ mix + action)
            total = total + (pull_back * obs)[worlds].sum() - action[worlds].square().sum()
        return total, torch.stack(seen).detach()

    halves = []
    for half in (0, 1):
        policy.zero_grad()
        play(training.GradientHealth(1e9), slice(half, None, 2))[0].backward()
        halves.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]))
    expected = torch.nn.functional.cosine_similarity(*halves, dim=0)
    health = training.GradientHealth(1e9)
    total, seen = play(health, slice(None))
    total.backward()
    before = [parameter.grad.clone() for parameter in policy.parameters()]
    found = health.cosine(policy(seen), policy.parameters())
    assert found.item() == pytest.approx(expected.item(), abs=1e-5) and abs(expected) < 0.99
    for parameter, grad in zip(policy.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, grad)


# In an environment


@pytest.fixture(scope="module")
def shac():
    """The script as a module."""
    torch.set_num_threads(1)  # as it does
    yield first_order.load("shac")
    del sys.modules["shac"]


@pytest.fixture
def learner(shac, make):
    """Eight worlds, policy and critic."""
    cfg = shac.Config(env=ENV, num_envs=8, horizon=4, hidden=(8, 8), noise=0.5)
    envs = make(ENV, 8, arrays="torch", device="cpu", window=4)
    obs, _ = envs.reset(seed=0)
    torch.manual_seed(0)
    policy = shac.Policy(obs.shape[1], torch.as_tensor(envs.single_action_space.high), cfg)
    critic = shac.Critic(obs.shape[1], cfg, obs.device)
    for parameter in critic.slow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return envs, obs, policy, critic, cfg


@pytest.mark.parametrize("speed", [1e30, 1e12, 1e7, "nan"])
def test_diverged_world_harms_no_other(shac, learner, speed):
    """The policy's gradient is that of the other worlds; it is counted, and begins anew."""
    envs, obs, policy, critic, cfg = learner
    lost, kept = 3, [0, 1, 2, 4, 5, 6, 7]
    parameters = [*policy.net.parameters(), policy.log_std]
    start = envs.get_state()

    def differentiate(obs, worlds):
        """Gradient of the mean over these worlds, and what was counted."""
        envs.detach()
        health = training.GradientHealth(3.0)
        torch.manual_seed(1)
        window, obs = shac.rollout(envs, obs, policy, critic, shac.MeanReward(cfg), health, cfg)
        some = {f.name: getattr(window, f.name)[:, worlds] for f in dataclasses.fields(window)}
        loss = -shac.score(shac.Window(**some), cfg.gamma)
        found = torch.autograd.grad(loss, parameters)
        return found, window, health.take(), obs

    expected, window, counts, _ = differentiate(obs, kept)
    assert not window.diverged.any() and counts["nonfinite_worlds"] == 0
    envs.set_state(start)
    mask = torch.arange(8) == lost
    qpos, qvel = (x.detach().clone() for x in envs.state[:2])
    if speed == "nan":
        envs.set_state(start)
        qvel[lost] = torch.nan
        envs.set_state(qpos, qvel)
        obs = torch.where(mask[:, None], torch.nan, obs)
    else:
        qvel[lost] = speed
        obs, _ = envs.reset(options={"reset_mask": mask, "state": (qpos, qvel)})
    found, window, counts, obs = differentiate(obs, slice(None))
    assert window.diverged.any(dim=0).tolist() == mask.tolist()
    for grad, reference in zip(found, expected, strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(8 * grad, 7 * reference, rtol=1e-4, atol=1e-5)
    for x in (window.obs, window.reward, window.next_value):
        assert x.isfinite().all()
    targets = shac.critic_targets(window, cfg.gamma, cfg.lam)
    assert targets.isfinite().all() and (targets[:, lost] == 0.0).all()
    obs, count = training.renew(envs, obs)
    assert count == 1 and training.sound(obs).all()
    assert envs.get_state().arrays["elapsed"].tolist() == [0 if m else 4 for m in mask]
    again, count = training.renew(envs, obs)
    assert torch.equal(again, obs) and count == 0
    # The next window begins without the history of this one.
    found, window, _, _ = differentiate(obs, slice(None))
    assert not window.diverged.any() and all(grad.isfinite().all() for grad in found)


def test_what_was_before_a_divergence(shac):
    """Steps before it are told by the critic what followed, not that nothing did."""
    steps, gamma, lam = 4, 0.9, 0.5
    bad = torch.tensor([False, False, True, False])[:, None].expand(steps, 2).clone()
    bad[:, 1] = False
    value = torch.where(bad, 0.0, 50.0).requires_grad_()
    reward, done = torch.where(bad, 0.0, 1.0), bad.clone()
    blank = torch.zeros(steps, 2)
    window = shac.Window(blank, blank, reward, reward, value, done, bad)
    targets = shac.critic_targets(window, gamma, lam)
    last = 1.0 + gamma * 50.0
    assert targets[1, 0].item() == pytest.approx(last)
    assert targets[0, 0].item() == pytest.approx(1.0 + gamma * (0.5 * 50.0 + 0.5 * last))
    for t in range(steps):  # without a divergence all targets are returns of one kind
        last = 1.0 + gamma * (50.0 if t == 0 else 0.5 * 50.0 + 0.5 * last)
        assert targets[steps - 1 - t, 1].item() == pytest.approx(last)
    shac.score(window, gamma).backward()
    assert value.grad[:, 0].tolist() == pytest.approx([0.0, gamma**2 / 8, gamma / 8, gamma / 8])
    assert value.grad[:, 1].tolist() == pytest.approx([0.0, 0.0, 0.0, gamma**4 / 8])
    assert torch.equal(training.ends(done, bad)[:, 0], torch.tensor([False, True, True, False]))


def test_world_that_diverges_in_an_evaluation():
    """Its return is NaN, those of the others stay what they are."""
    device, options = torch.device("cpu"), {"max_episode_steps": 20}
    evaluation = Evaluation(ENV, options, 4, 0, device)
    policy = torch.nn.Linear(5, 1)
    expected = evaluation.returns(policy)
    assert expected.isfinite().all()
    envs = evaluation._envs
    reset = envs.reset

    def spoiled(**keywords):
        reset(**keywords)
        qpos, qvel = (x.clone() for x in envs.state[:2])
        qvel[2] = 1e30
        return reset(options={"state": (qpos, qvel)})

    envs.reset = spoiled
    found = evaluation.returns(policy)
    assert found[2].isnan()
    torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]])


def test_sound_numbers():
    """NaN, infinity and large numbers are those of a world that has diverged."""
    x = torch.zeros(2, 5, 3)
    x[0, 1, 2], x[1, 2, 0], x[1, 3, 1], x[0, 4, 0] = torch.nan, -torch.inf, -1e6, 9e5
    bad = torch.zeros(2, 5, dtype=torch.bool)
    bad[0, 1] = bad[1, 2] = bad[1, 3] = True
    assert torch.equal(training.sound(x), ~bad)


def test_first_episodes_are_spread(make):
    """Worlds begin at different times before their limit, and go on from where they were."""
    envs = make(ENV, 64, arrays="torch", device="cpu")
    limit = envs.spec.max_episode_steps
    envs.reset(seed=0)
    qpos = envs.state.qpos.clone()
    torch.manual_seed(0)
    training.spread_episodes(envs)
    elapsed = envs.get_state().arrays["elapsed"]
    assert elapsed.min() >= 0 and elapsed.max() < limit and len(set(elapsed.tolist())) > 40
    assert torch.equal(envs.state.qpos, qpos)
    short = gym.make_vec(ENV, num_envs=64, arrays="torch", device="cpu", max_episode_steps=7)
    short.reset(seed=0)
    training.spread_episodes(short)
    assert set(np.unique(short.get_state().arrays["elapsed"])) == set(range(7))
