"""The script runs as a user runs it, for two iterations, and its parts do what they say."""

import copy
import sys

import first_order
import gymnasium as gym
import numpy as np
import pytest
import torch
from first_order import ENV

from diffenvs import TASKS, command_line, training
from diffenvs.policy import load_policy
from diffenvs.training.processes import Processes

SCRIPT = first_order.EXAMPLES / "ppo.py"
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def ppo():
    """The script as a module."""
    yield first_order.load("ppo")
    del sys.modules["ppo"]


@pytest.fixture
def learner(ppo):
    """A policy, a value and their update, for 5 observations and 2 actions."""
    return make_learner(ppo)


def make_learner(ppo, device="cpu", **settings):
    """See `learner`."""
    torch.manual_seed(0)
    cfg = ppo.Config(**{"num_envs": 6, "horizon": 8, "hidden": (16, 16)} | settings)
    policy = ppo.Policy(5, torch.tensor([1.0, 0.4]), cfg).to(device)
    value = ppo.Value(5, cfg).to(device)
    return policy, value, ppo.Update(policy, value, cfg, torch.device(device))


def make_batch(policy, rows=64, device="cpu"):
    """A minibatch of the policy's own making, in the order of `Update._gradient`."""
    draw = torch.Generator().manual_seed(1)
    x, noise = torch.randn(rows, 5, generator=draw), torch.randn(rows, 2, generator=draw)
    advantage, target = torch.randn(rows, generator=draw), torch.randn(rows, generator=draw)
    x, noise, advantage, target = (y.to(device) for y in (x, noise, advantage, target))
    mean, log_std = policy.net(x).detach(), policy.log_std.detach().clone()
    raw = mean + log_std.exp() * noise
    weight = torch.ones(rows, dtype=torch.bool, device=device)
    return [x, raw, mean, weight, advantage, target, log_std]


class Walk:
    """Worlds that count their steps: one ends, one is cut, one is lost, one goes on."""

    num_envs = 4

    def __init__(self):
        self.time = torch.zeros(4)
        self.renewed = None

    def observe(self):
        return torch.stack([self.time, torch.arange(4.0)], dim=1)

    def step(self, actions):
        assert actions.isfinite().all()
        self.time = self.time + 1.0
        last = self.observe()
        terminated = (self.time == 3.0) & (torch.arange(4) == 0)
        truncated = (self.time == 3.0) & (torch.arange(4) == 1)
        lost = (self.time >= 3.0) & (torch.arange(4) == 2)
        last[lost] = torch.nan
        reward = torch.where(lost, torch.nan, 1.0)
        self.time = torch.where(terminated | truncated, 0.0, self.time)
        obs = torch.where((terminated | truncated)[:, None], self.observe(), last)
        return obs, reward, terminated, truncated, {"final_obs": last}

    def reset(self, options):
        self.renewed = options["reset_mask"]
        self.time = torch.where(torch.as_tensor(self.renewed), 0.0, self.time)
        return self.observe(), {}


def test_processes_of_torchrun_train_one_policy(tmp_path):
    """Two iterations of two processes, with worlds of their own, leave one policy and its curve."""
    small = "--num-envs 4 --iterations 2 --horizon 8 --eval-envs 2 --gymnasium-episodes 0"
    options = ["--env", ENV, *small.split(), "--no-video", "--device", "cpu", "--out", tmp_path]
    out = first_order.torchrun(tmp_path, SCRIPT, *options)
    assert "before training" in out
    (folder,) = (tmp_path / ENV).iterdir()
    for name in ("curve.csv", "curve.json", "curve.png", "policy.pt2"):
        assert (folder / name).stat().st_size > 100
    assert list(folder.glob("events.out.tfevents.*"))
    task = command_line.make_task(gym.spec(ENV), {})
    action = load_policy(folder / "policy.pt2", task)(np.ones((5, task.obs_size)))
    assert np.abs(action).max() < 3.0
    first, second = torch.load(folder / "checkpoint.pt", weights_only=False)["parts"]
    assert not torch.equal(first["obs"], second["obs"])
    for name in ("policy", "value"):
        for key, array in first["learner"][name].items():
            assert torch.equal(array, second["learner"][name][key]), (name, key)
    states = first["learner"]["update"]["state"]
    assert all(state["step"] == 2 * 5 * 4 for state in states.values())  # epochs, minibatches


def test_settings_of_tasks(ppo):
    """The table names all tasks, settings that there are, and whole minibatches."""
    assert ppo.TASKS.keys() == TASKS.keys()
    for cfg in first_order.settings_of_tasks(ppo):
        assert cfg.num_envs * cfg.horizon % cfg.minibatches == 0, cfg.env


def test_unequal_minibatches_are_refused(ppo):
    """Worlds and horizon that cannot be divided into the minibatches end the script at once."""
    with pytest.raises(SystemExit, match="3 worlds times a horizon of 5 do not make 4 minibatches"):
        ppo.main(ppo.Config(num_envs=3, horizon=5, minibatches=4))


def test_density_vs_torch(ppo):
    """The ratio is that of the squashed actions' densities, the entropy that of their spread."""
    torch.manual_seed(0)
    mean, log_std = torch.randn(200_000, 2), torch.tensor([-0.5, 0.1])
    mean[:] = mean[0]
    squash = torch.distributions.transforms.TanhTransform(cache_size=1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    other = torch.distributions.Normal(mean + 0.1, 1.1 * log_std.exp())
    squashed, other_squashed = (
        torch.distributions.TransformedDistribution(x, [squash]) for x in (normal, other)
    )
    action = squashed.sample()
    raw = squash.inv(action)
    expected = (other_squashed.log_prob(action) - squashed.log_prob(action)).sum(1)
    found = ppo.log_density(raw, mean + 0.1, log_std + np.log(1.1)) - ppo.log_density(
        raw, mean, log_std
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    entropy = -squashed.log_prob(action).sum(1).mean()
    assert ppo.squashed_entropy(mean, log_std).mean() == pytest.approx(entropy.item(), abs=0.02)


def test_first_step_climbs_the_plain_objective(ppo, learner):
    """At the policy that acted the ratio is 1, nothing is clipped, and the gradient is plain."""
    policy, _, update = learner
    batch = make_batch(policy)
    update.cfg.entropy = 0.0
    means = update._gradient(*batch)
    figures = dict(zip(update.figures, means.tolist(), strict=False))
    assert figures["kl"] == pytest.approx(0.0, abs=1e-6) and figures["clipped"] == 0.0
    assert figures["policy_loss"] == pytest.approx(-batch[4].mean().item(), abs=1e-6)
    x, raw, _, _, advantage, _, _ = batch
    found = [parameter.grad.clone() for parameter in policy.parameters()]
    normal = torch.distributions.Normal(policy.net(x), policy.log_std.exp())
    loss = -(advantage * normal.log_prob(raw).sum(1)).mean()
    expected = torch.autograd.grad(loss, list(policy.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_ratios_beyond_the_clip_earn_nothing(ppo, learner):
    """A policy that has moved far towards the advantages gets no gradient, but on the way back."""
    policy, _, update = learner
    x, raw, mean, weight, _, target, log_std = make_batch(policy)
    update.cfg.entropy = 0.0
    with torch.no_grad():
        policy.net[-1].bias += 0.2
        before = ppo.log_density(raw, mean, log_std)
        likelier = ppo.log_density(raw, policy.net(x), log_std) - before > np.log(1.2)
    means = update._gradient(x, raw, mean, weight, likelier.float(), target, log_std)
    assert likelier.sum() > 5 and means[4] >= likelier.float().mean()
    assert all((parameter.grad == 0.0).all() for parameter in policy.parameters())
    update._gradient(x, raw, mean, weight, -likelier.float(), target, log_std)  # the way back
    assert all((parameter.grad != 0.0).any() for parameter in policy.parameters())


def test_learning_rate_follows_the_divergence(learner):
    """It falls by a third beyond twice the wanted divergence, rises by half below half of it."""
    policy, _, update = learner
    update._gradient(*make_batch(policy))
    for kl, factor in ((0.03, 1 / 1.5), (0.01, 1.0), (0.001, 1.5), (float("nan"), 1.0)):
        before = update.lr.item()
        update._apply(torch.tensor([0.0, 0.0, 0.0, kl, 0.0]))
        assert update.lr.item() == pytest.approx(factor * before)
    for _ in range(30):
        update._apply(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]))
    assert update.lr.item() == pytest.approx(update.cfg.lr_range[0])


def test_gradient_that_is_not_finite_is_not_applied(learner):
    """It is counted, and the networks are what they were."""
    policy, _, update = learner
    before = [parameter.clone() for parameter in update.parameters]
    batch = make_batch(policy)
    batch[4][3] = torch.nan
    figures = dict(zip(update.figures, update(batch, ALONE).tolist(), strict=True))
    assert figures["skipped"] == 1.0
    for one, other in zip(before, update.parameters, strict=True):
        assert torch.equal(one, other)
    batch[4][3] = 0.0
    figures = dict(zip(update.figures, update(batch, ALONE).tolist(), strict=True))
    assert figures["skipped"] == 0.0 and figures["gradient_norm"] > 0.0
    assert all(parameter.isfinite().all() for parameter in update.parameters)


def test_update_goes_on_from_its_state(ppo):
    """The state that a checkpoint keeps holds moments and learning rate: the next step is equal."""
    learners = [make_learner(ppo, entropy=0.0) for _ in range(2)]
    batch = make_batch(learners[0][0])
    (policy, value, update), (other_policy, other_value, other) = learners
    for _ in range(3):
        update(batch, ALONE)
    other_policy.load_state_dict(policy.state_dict())
    other_value.load_state_dict(value.state_dict())
    other.load_state_dict(copy.deepcopy(update.state_dict()))
    assert other.lr == update.lr != update.cfg.lr
    for _ in range(2):
        update(batch, ALONE), other(batch, ALONE)
    for one, two in zip(update.parameters, other.parameters, strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_update_vs_eager(ppo):
    """Steps that are replayed from a graph are those of Python."""
    learners = [make_learner(ppo, "cuda", entropy=0.0) for _ in range(2)]
    eager = learners[1][2]
    eager.gradient, eager.apply = eager._gradient, eager._apply
    batch = make_batch(learners[0][0], device="cuda")
    for step in range(10):
        given = [batch[0] + 0.1 * step, *batch[1:]]
        one, two = (update(given, ALONE).tolist() for _, _, update in learners)
        del one[2], two[2]  # the entropies, by samples of their own
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)
    for one, two in zip(learners[0][2].parameters, learners[1][2].parameters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.fixture
def walk(ppo):
    """A window of `Walk`."""
    cfg = ppo.Config(num_envs=4, horizon=5, hidden=(8, 8), gamma=0.9, lam=0.8)
    torch.manual_seed(0)
    policy, value = ppo.Policy(2, torch.ones(1), cfg), ppo.Value(2, cfg)
    envs = Walk()
    window, obs = ppo.rollout(envs, envs.observe(), policy, value, cfg)
    return envs, window, obs, cfg, value


def test_advantages_vs_loop(ppo, walk):
    """Those of worlds that end, are cut and go on are sums that are written out here."""
    _, window, _, cfg, value = walk
    found = ppo.advantages(window, cfg)
    with torch.no_grad():
        for world in (0, 1, 3):
            time, advantage = 0, []
            for _ in range(cfg.horizon):
                here, after = (
                    value(torch.tensor([[t, world]], dtype=torch.float) / 1.001)[0]
                    for t in (time, time + 1)
                )
                time += 1
                ends = time == 3 and world in (0, 1)
                future = 0.0 if ends and world == 0 else after  # a cut episode has a future
                advantage.append((1.0 + cfg.gamma * future - here, ends))
                time = 0 if ends else time
            total = torch.zeros(())
            for t in reversed(range(cfg.horizon)):
                surprise, ends = advantage[t]
                total = surprise + (0.0 if ends else cfg.gamma * cfg.lam * total)
                torch.testing.assert_close(found[t, world], total, rtol=1e-4, atol=1e-5)


def test_diverged_world_is_masked_and_renewed(ppo, walk):
    """Its steps weigh nothing from where it is lost, the step before keeps its future."""
    envs, window, obs, cfg, _ = walk
    assert window["weight"][:, 2].tolist() == [True, True, False, False, False]
    assert window["weight"][:, [0, 1, 3]].all()
    assert all(array.isfinite().all() for array in window.values())
    found = ppo.advantages(window, cfg)
    assert (found[2:, 2] == 0.0).all()
    before = window["reward"][1, 2] + cfg.gamma * window["next_value"][1, 2]
    torch.testing.assert_close(found[1, 2], before - window["value"][1, 2])
    obs, lost = training.renew(envs, obs)
    assert lost == 1 and obs.isfinite().all()
    assert envs.renewed.tolist() == [False, False, True, False]
