"""Short-horizon actor-critic (SHAC): trains a policy by the gradients of the simulation.

    python examples/shac.py --env DiffAnt-v0
    torchrun --nproc-per-node=2 examples/shac.py --env DiffAnt-v0
    python examples/shac.py --env DiffHopper-v0                          hops in minutes on a CPU
    python examples/shac.py --help                                       what can be set

An iteration steps all worlds through a short window with noise, and differentiates what the window
earned, and what the critic says its last observation is worth, by the parameters of the policy: one
gradient through physics, rewards, critic and policy. Then the critic is fitted to what was seen.
The method is that of Xu et al. 2022, "Accelerated Policy Learning with Parallel Differentiable
Simulation" (arXiv:2204.07137).

The critic bootstraps on `info["final_obs"]`, which is what a step led to, also in worlds that begin
a new episode in that step: a time limit does not end what is to come, a fall does, and the gradient
passes into the episode that ended and not into the next.

It leaves the curve (CSV, JSON, PNG), TensorBoard logs, a video and the best policy in `out`; what
the policy is worth in Gymnasium's own environment says `python -m diffenvs.evaluate`.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs import training
from diffenvs.training import GradientHealth, Normalize, Settings, mlp, sound

HEALTH_EVERY = 10
"""Iterations between looks at worlds that diverged, and at the cosine of half batches."""
MEAN_RATE = 0.05
"""How far the mean of the rewards follows those of an iteration."""
BEST = 16
"""Policies near which others are tried. Found here, with 64 worlds."""
RESIDUAL = 0.1
"""Factor on what hidden layers add to a linear policy, whose high learning rate is too much for
them. Found here."""


@dataclass
class Config(Settings):
    """Short-horizon actor-critic. "Found here" is what was measured best with these tasks."""

    num_envs: int = 512
    """Worlds that a process steps together. Xu et al. have 64 to 256, Heiden 2026 256."""
    horizon: int = 16
    """Steps of a window, through which is differentiated. Xu et al.: 32. Found here: 8 to 16
    where there are contacts."""
    iterations: int = 2000
    """Windows, each of which ends in one step of the policy."""
    eval_every: int = 100
    """Iterations between evaluations; 0: only before the first and after the last."""
    episode: int = 0
    """Steps after which training cuts episodes; 0: those of the task. The critic knows what would
    have followed. Short ones show beginnings more often."""
    reward: str | None = None
    """Reward to train on, "v5" or "smooth", of tasks that have both; evaluations pay that of v5."""
    integrator: str | None = None
    """Integrator of the worlds, also in evaluations on ours; None: that of the task. Most of
    Gymnasium's tasks have "rk4", which is slower."""
    gamma: float = 0.99
    """Discount per step. Xu et al."""
    lam: float = 0.95
    """Of TD(lambda), the critic's targets: 0 trusts the critic, 1 the rewards. Xu et al."""
    actor_lr: float = 1e-3
    """Learning rate of the policy. Xu et al.: 2e-3; it falls linearly."""
    critic_lr: float = 2e-3
    """Learning rate of the critic, falls as well. Xu et al."""
    final_lr: float = 0.05
    """The learning rates' lowest part, reached at the end."""
    betas: tuple[float, float] = (0.7, 0.95)
    """Of Adam: short memories, for gradients change with the contacts. Xu et al."""
    critic_first: int = 0
    """Iterations at the start in which only the critic learns; fewer than there are."""
    critic_epochs: int = 8
    """Passes over a window when the critic is fitted. Xu et al.: 16."""
    critic_batches: int = 4
    """Updates of a pass. Xu et al."""
    value_rate: float = 0.02
    """How far the units of values, mean and spread of the targets, follow those of an iteration
    (van Hasselt et al. 2016, arXiv:1602.07714). Found here: units of all targets so far are too
    coarse for a policy that runs well, whose targets are all alike."""
    target_rate: float = 0.5
    """How far the slow critic, which the policy sees, follows the other in an iteration. Xu et al.:
    0.005 to 0.8 by task; Heiden 2026: 0.2, humanoids 0.9."""
    center: bool = False
    """Count rewards from their mean (Naik et al. 2024, arXiv:2405.09999). Then the critic need not
    find small differences in large values. Found here: a swimmer needs it. Not for tasks in which
    robots fall: what an end is worth moves with the mean at once, and the critic slowly."""
    tries: int = 0
    """Policies, of which training begins with the one that earns most: the first half random
    (Mania et al. 2018, arXiv:1803.07055), the others near the best so far. They play in rounds of
    one a world, so their number is rounded up, to two rounds at least; an odd round is random. With
    several processes those of the first count. For tasks in which a policy that does next to
    nothing has nothing to climb. Observations are scaled then once and for all. A run that is
    killed before the search has ended begins anew."""
    try_spread: float = 0.25
    """How far the second half is from the best: this part of a random policy is added. Found here:
    it finds a swimmer's faster strokes, which gradients do not reach from most starts."""
    try_steps: int = 500
    """Steps in which they earn, or until their episode ends."""
    start: float = 0.1
    """Scale of the policy's last weights at the start, with `residual` of the linear map's. Small,
    tanh is not saturated; large, random policies differ."""
    noise: float = 0.4
    """Standard deviation of the exploration at the start, before the squashing; it is learned. Xu
    et al.: 0.37. Found here: robots that fall find their gait sooner with 0.8 to 1.5."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of policy and critic. Xu et al.: 128-64-32 to 256-128."""
    policy_hidden: tuple[int, ...] | None = None
    """Those of the policy; None: the same. Without any it is linear."""
    residual: bool = False
    """The policy is linear, and hidden layers that begin at nothing add to it. Found here: a
    swimmer that has a linear stroke learns a faster one."""
    average: float = 0.98
    """Memory, per iteration, of the average policy, which is evaluated and saved: single steps of
    the policy are noisy. Found here."""
    clip_worlds: float = 3.0
    """Limit of the gradient that passes back through a world's action or state, in medians over the
    worlds. Found here: Hopper ends higher with 30 than with 3, and Ant needs 10, for what they
    learn from are the few worlds with a foot on the ground; without any limit a Hopper fell back
    for a while."""
    kl: float = 0.01
    """Divergence between the policies before and after a step that the step's length is steered
    to, with `actor_lr` as its upper limit; it falls with the square of the learning rate. 0: no
    steering. Found here: without, policies that run well lose it again; small ones keep to the
    first gait that pays."""
    clip_norm: float = 1.0
    """Limit of the norm of the policy's gradient, and of the critic's. Xu et al."""
    out: Path = Path("runs/shac")
    """Folder of the results; a folder ENV/seedN of the run is made inside."""


# What a task wants otherwise than `Config` has it; the command line goes before both.
TASKS: dict[str, dict[str, Any]] = {
    "DiffCartPoleSwingUp-v0": {
        "num_envs": 64,
        "horizon": 32,
        "iterations": 500,
        "eval_every": 25,
        "actor_lr": 2e-3,
        "noise": 0.3,
        "kl": 0.0,
    },
    "DiffInvertedPendulum-v0": {
        "num_envs": 64,
        "iterations": 100,
        "eval_every": 25,
        "actor_lr": 2e-3,
        "reward": "smooth",
    },
    "DiffInvertedDoublePendulum-v0": {
        "num_envs": 256,
        "horizon": 8,
        "iterations": 600,
        "eval_every": 300,
        "actor_lr": 2e-3,
    },
    "DiffReacher-v0": {
        "num_envs": 64,
        "horizon": 50,
        "iterations": 400,
        "eval_every": 50,
        "actor_lr": 2e-3,
        "noise": 0.1,
    },
    "DiffSwimmer-v0": {
        # At rest no stroke pays: it begins with the best of many linear policies.
        "num_envs": 64,
        "horizon": 32,
        "iterations": 400,
        "eval_every": 25,
        "integrator": "rk4",
        "gamma": 0.998,
        "lam": 0.98,
        "actor_lr": 2e-2,
        "critic_first": 30,
        "center": True,
        "tries": 1024,
        "start": 4.0,
        "policy_hidden": (64,),
        "residual": True,
        "kl": 0.0,
    },
    "DiffHopper-v0": {
        "num_envs": 2048,
        "iterations": 1000,
        "eval_every": 50,
        "gamma": 0.995,
        "noise": 1.5,
        "clip_worlds": 30.0,
        "kl": 0.3,
    },
    "DiffWalker2d-v0": {
        "num_envs": 2048,
        "iterations": 1000,
        "gamma": 0.995,
        "actor_lr": 2e-3,
        "noise": 1.0,
        "clip_worlds": 30.0,
        "kl": 0.05,
    },
    "DiffAnt-v0": {
        # Gymnasium's integrator: with implicitfast's steps of 10 ms another gait pays.
        "horizon": 8,
        "iterations": 1400,
        "episode": 500,
        "integrator": "rk4",
        "actor_lr": 5e-3,
        "noise": 0.2,
        "clip_worlds": 10.0,
        "kl": 0.0,
    },
    "DiffHumanoid-v0": {
        "num_envs": 1024,
        "iterations": 1200,
        "actor_lr": 2e-3,
        "critic_lr": 5e-4,
        "noise": 0.8,
        "hidden": (256, 256),
        "kl": 0.5,
    },
}

# What a run on a CPU wants otherwise: there a step takes as long as all worlds together.
ON_CPU: dict[str, Any] = {"num_envs": 64}


class Residual(nn.Module):
    """A linear map, and a network with hidden layers that begins at nothing and adds to it."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.linear = nn.Linear(widths[0], widths[-1])
        self.deep = mlp(*widths)
        for parameter in self.deep[-1].parameters():
            parameter.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., widths[0]) to (..., widths[-1])."""
        return self.linear(x) + RESIDUAL * self.deep(x)


class Policy(nn.Module):
    """Squashed Gaussian policy; without noise it acts by its mean."""

    high: Tensor

    def __init__(self, nobs: int, high: Tensor, cfg: Config) -> None:
        super().__init__()
        self.normalize = Normalize(nobs)
        self.register_buffer("high", high)
        hidden = cfg.hidden if cfg.policy_hidden is None else cfg.policy_hidden
        net = Residual if cfg.residual else mlp
        self.net: Any = net(nobs, *hidden, len(high))
        last = self.net.linear if cfg.residual else self.net[-1]
        last.weight.data.mul_(cfg.start)
        last.bias.data.zero_()
        self.log_std = nn.Parameter(torch.full((len(high),), cfg.noise).log())

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Act, within the bounds of the actions; `noise` is standard normal, (..., nu)."""
        raw = self.net(self.normalize(obs))
        if noise is not None:
            raw = raw + self.log_std.exp() * noise
        return self.high * torch.tanh(raw)

    @torch.no_grad()
    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, and logarithm of the standard deviation, of the Gaussian before the squashing."""
        return self.net(self.normalize(obs)), self.log_std.clone()


class MeanReward(nn.Module):
    """Running mean of the rewards; zero if they are not to be counted from it.

    Counted from it, an end is not worth nothing: the mean is missed for ever.
    """

    value: Tensor
    count: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.on, self.gamma = cfg.center, cfg.gamma
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    @property
    def end(self) -> Tensor:
        """Value of what follows a termination."""
        return -self.value / (1.0 - self.gamma) if self.on else self.value

    def update(self, reward: Tensor, weight: Tensor, processes: Any) -> None:
        """Follow the rewards of a window, where their weight is one and not zero."""
        if not self.on:
            return
        total, number = (weight * reward).mean(), weight.mean()
        processes.mean_([total, number])
        self.count += 1.0
        mean = torch.where(number > 0.0, total / number, self.value)
        self.value += (mean - self.value) * self.count.reciprocal().clamp(min=MEAN_RATE)


class Critic:
    """What is still to come. The networks give it in units of the spread of the targets of late.

    Steps of Adam are as long for small values as for large ones; in these units they are small.

    Attributes:
        net: The network that is fitted.
        slow: The one that follows it, which policy and targets see.
        scale: Mean and spread of the targets.
    """

    def __init__(self, nobs: int, cfg: Config, device: torch.device) -> None:
        self.cfg = cfg
        self.scale = Normalize(1, cfg.value_rate).to(device)
        self.net = mlp(nobs, *cfg.hidden, 1).to(device)
        for parameter in self.net[-1].parameters():
            parameter.data.zero_()  # a guess at random would be a promise that nobody keeps
        self.slow = copy.deepcopy(self.net).requires_grad_(False)
        self.lr = torch.tensor(cfg.critic_lr, device=device)  # a tensor: captured graphs read it
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), self.lr, cfg.betas, capturable=cuda, fused=None if cuda else True
        )
        self.gradient = training.captured(self._gradient, device)
        self.apply = training.captured(self._apply, device)

    def __call__(self, x: Tensor) -> Tensor:
        """Value of normalised observations (..., nobs)."""
        return self.scale.inverse(self.slow(x))[..., 0]

    def fit(self, x: Tensor, target: Tensor, weight: Tensor, lr: float, processes: Any) -> Tensor:
        """Regress on targets; return the mean loss of the last pass, in squared spreads."""
        self.lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr  # a resumed optimiser has its own
        target = torch.where(weight[:, None] > 0.0, target[:, None], self.scale.mean)
        heads: list[Any] = [self.net[-1], self.slow[-1]]
        self.scale.update_under(target, heads, processes)
        target, loss = self.scale(target)[:, 0], torch.zeros((), device=x.device)
        for _ in range(self.cfg.critic_epochs):
            loss = torch.zeros_like(loss)
            for index in torch.randperm(len(x), device=x.device).chunk(self.cfg.critic_batches):
                loss += self.gradient(x[index], target[index], weight[index])
                processes.mean_(p.grad for p in self.net.parameters() if p.grad is not None)
                self.apply()
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, self.cfg.target_rate)
        return loss / self.cfg.critic_batches

    def _gradient(self, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Differentiate the loss of a minibatch."""
        self.optimizer.zero_grad(set_to_none=False)
        loss = (weight * (self.net(x)[:, 0] - target).square()).mean()
        loss.backward()
        return loss.detach()

    def _apply(self) -> Tensor:
        """Take a step of the optimiser; return the gradient's norm."""
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.cfg.clip_norm)
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~norm.isfinite(), 0.0)
        self.optimizer.step()
        return norm


@dataclass
class Window:
    """What a window of steps saw, each (horizon, num_envs, ...).

    Attributes:
        obs: Observations that the policy acted on; their mean in worlds that diverged.
        noise: Its noise.
        reward: Rewards, counted from their mean, with their gradient; zero in worlds that diverged.
        paid: The rewards themselves; zero in worlds that diverged.
        next_value: Value of what each step led to, with its gradient; that of an end after a
            termination; zero in worlds that diverged.
        done: Whether an episode ended, by termination or time limit.
        diverged: Worlds whose numbers were not finite, or too large; nothing is learned of them.
    """

    obs: Tensor
    noise: Tensor
    reward: Tensor
    paid: Tensor
    next_value: Tensor
    done: Tensor
    diverged: Tensor


@torch.no_grad()
def search(envs: Any, policy: Policy, cfg: Config) -> tuple[Tensor, int]:
    """Give the policy the weights of the best of many that are tried.

    Every world plays a policy of its own, until its episode ends. In a first round, of which
    nothing else is kept, the observations show how they spread. From the middle on each policy is
    one of the best so far plus a part of a random one. If none earns a number, that is said, and
    the policy stays what it was.

    Returns:
        The last observations, and the number of steps of all worlds.
    """
    nobs, high = envs.single_observation_space.shape[0], policy.high
    obs, rounds = high, max(2, math.ceil(cfg.tries / cfg.num_envs))
    best: dict[str, Tensor] = {}
    earned = torch.zeros(0, device=high.device)
    for number in range(1 + rounds):
        nets = [Policy(nobs, high, cfg).net.to(high.device) for _ in range(cfg.num_envs)]
        weights, _ = stack_module_state(nets)
        if 2 * number > rounds + 1 and len(earned):
            near = torch.arange(cfg.num_envs, device=high.device) % len(earned)
            weights = {name: best[name][near] + cfg.try_spread * x for name, x in weights.items()}
        act = vmap(functools.partial(functional_call, nets[0]))
        obs, _ = envs.reset()
        total = torch.zeros(cfg.num_envs, device=obs.device)
        plays = torch.ones_like(total, dtype=torch.bool)
        for _ in range(cfg.try_steps):
            x = torch.where(sound(obs)[:, None], obs, policy.normalize.mean)
            if number == 0:
                policy.normalize.update(x)
            action = high * torch.tanh(act(weights, policy.normalize(x)))
            obs, reward, terminated, truncated, _ = envs.step(action)
            good = sound(obs) & sound(reward[:, None])
            total = torch.where(plays, torch.where(good, total + reward, -math.inf), total)
            plays &= good & ~(terminated | truncated)
        if number > 0:
            earned = torch.cat([earned, total])
            best = {name: torch.cat([best[name], x]) if best else x for name, x in weights.items()}
            order = earned.argsort(descending=True, stable=True)[:BEST]
            order = order[earned[order] > -math.inf]
            earned, best = earned[order], {name: x[order] for name, x in best.items()}
    if len(earned):
        policy.net.load_state_dict({name: x[0] for name, x in best.items()})
    else:
        print("shac: no policy that was tried earned a finite return; beginning with a random one")
    return obs, (1 + rounds) * cfg.try_steps * cfg.num_envs


def rollout(
    envs: Any,
    obs: Tensor,
    policy: Policy,
    critic: Critic,
    mean_reward: MeanReward,
    health: GradientHealth,
    cfg: Config,
) -> tuple[Window, Tensor]:
    """Step a window with noise and record its gradient; return what was seen, and `obs`."""
    noise = torch.randn(cfg.horizon, *envs.action_space.shape, device=obs.device)
    seen: dict[str, list[Tensor]] = {}
    for t in range(cfg.horizon):
        good = sound(obs)
        here = torch.where(good[:, None], obs, policy.normalize.mean)
        action = policy(here, noise[t])
        health.watch_action(action)
        obs, reward, terminated, truncated, info = envs.grad_step(action)
        for part in envs.state:
            health.watch(part)
        # final_obs is what the step led to, also where a new episode has begun since.
        found = {
            "obs": here.detach(),
            "good": good,
            "reward": reward,
            "next_obs": info["final_obs"],
            "terminated": terminated,
            "done": terminated | truncated,
        }
        for name, x in found.items():
            seen.setdefault(name, []).append(x)
    stack = {name: torch.stack(tensors) for name, tensors in seen.items()}
    next_obs = stack["next_obs"]
    good = stack["good"] & sound(next_obs.detach())
    good = good & sound(stack["reward"].detach()[..., None])
    next_value = critic(
        policy.normalize(torch.where(good[..., None], next_obs, policy.normalize.mean))
    )
    window = Window(
        stack["obs"],
        noise,
        torch.where(good, stack["reward"] - mean_reward.value, 0.0),
        torch.where(good, stack["reward"], 0.0).detach(),
        torch.where(good, torch.where(stack["terminated"], mean_reward.end, next_value), 0.0),
        stack["done"] | ~good,
        ~good,
    )
    return window, obs.detach()


def score(window: Window, gamma: float) -> Tensor:
    """What all worlds earn in a window and what follows it, discounted, per step and world."""
    ends = training.ends(window.done, window.diverged)
    ends[-1] = True
    discount, discounts = torch.ones_like(window.reward[0]), []
    for end in ends:
        discounts.append(discount)
        discount = torch.where(end, 1.0, gamma * discount)
    earned = window.reward + gamma * torch.where(ends, window.next_value, 0.0)
    return (torch.stack(discounts) * earned).mean()


@torch.no_grad()
def critic_targets(window: Window, gamma: float, lam: float) -> Tensor:
    """Returns of TD(lambda), (horizon, num_envs)."""
    ends = training.ends(window.done, window.diverged)
    target, targets = window.next_value[-1], []
    for t in reversed(range(len(window.reward))):
        value = window.next_value[t]
        follows = torch.where(ends[t], value, (1.0 - lam) * value + lam * target)
        target = window.reward[t] + gamma * follows
        targets.append(target)
    return torch.stack(targets[::-1])


def main(cfg: Config) -> None:
    """Train, evaluate, and write the results."""
    torch.set_num_threads(1)  # the networks are small
    if cfg.critic_batches < 1:
        raise SystemExit("shac: critic_batches must be 1 or more")
    if cfg.num_envs * cfg.horizon % cfg.critic_batches:
        raise SystemExit(
            f"shac: {cfg.num_envs} worlds times a horizon of {cfg.horizon} do not make "
            f"{cfg.critic_batches} batches of the same size; change one of the three"
        )
    if cfg.center and cfg.gamma >= 1.0:
        raise SystemExit(f"shac: center asks for gamma below 1, not {cfg.gamma}")
    if cfg.tries < 0 or cfg.try_steps < 1:
        raise SystemExit("shac: tries must be 0 or more, and try_steps 1 or more")
    if not 0.0 < cfg.try_spread < math.inf:
        raise SystemExit(f"shac: try_spread must be a number above 0, not {cfg.try_spread}")
    if cfg.residual and not (cfg.hidden if cfg.policy_hidden is None else cfg.policy_hidden):
        raise SystemExit("shac: residual asks for hidden layers; policy_hidden has none")
    if not 0 <= cfg.critic_first < cfg.iterations:
        raise SystemExit(f"shac: critic_first must be in 0 to {cfg.iterations - 1}, see iterations")
    processes = training.start_processes(cfg)
    device = processes.device
    options: dict[str, Any] = {"arrays": "torch", "device": str(device), "window": cfg.horizon}
    if cfg.episode:
        options["max_episode_steps"] = cfg.episode
    if cfg.reward is not None:
        options["reward"] = cfg.reward
    if cfg.integrator is not None:
        options["integrator"] = cfg.integrator
    envs: Any = gym.make_vec(cfg.env, num_envs=cfg.num_envs, **options)
    nobs = envs.single_observation_space.shape[0]
    policy = Policy(nobs, torch.as_tensor(envs.single_action_space.high), cfg).to(device)
    average = copy.deepcopy(policy)
    critic = Critic(nobs, cfg, device)
    mean_reward = MeanReward(cfg).to(device)
    parameters = [*policy.net.parameters(), policy.log_std]
    optimizer = torch.optim.Adam(parameters, cfg.actor_lr, cfg.betas, fused=True)
    lr = torch.tensor(cfg.actor_lr, device=device)  # a tensor: no host waits for it
    step_size = training.StepSize().to(device)
    health = GradientHealth(cfg.clip_worlds)

    learner = {
        "policy": policy,
        "average": average,
        "step_size": step_size,
        "critic": critic.net,
        "slow_critic": critic.slow,
        "critic_scale": critic.scale,
        "mean_reward": mean_reward,
        "optimizer": optimizer,
        "critic_optimizer": critic.optimizer,
    }
    run = training.Run(cfg, processes, envs, learner)
    for iteration in run.iterations(average):
        if iteration == 0:
            if cfg.tries:
                if run.records is not None:
                    print(f"Trying {cfg.tries} policies, of which training begins with the best.")
                run.obs, run.more_steps = search(envs, policy, cfg)
                processes.share_([*policy.parameters(), *policy.buffers()])
                average.load_state_dict(policy.state_dict())
            training.spread_episodes(envs)
        left = max(cfg.final_lr, 1.0 - iteration / cfg.iterations)
        envs.detach()  # the window begins here, without history
        window, obs = rollout(envs, run.obs, policy, critic, mean_reward, health, cfg)
        loss = -score(window, cfg.gamma)
        optimizer.zero_grad()
        loss.backward()
        figures: dict[str, Tensor | float] = {}
        if iteration % HEALTH_EVERY == 0:
            actions = policy(window.obs, window.noise)
            figures["gradient/half_batch_cosine"] = health.cosine(actions, parameters)
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        processes.mean_(grads)
        norm = nn.utils.clip_grad_norm_(parameters, cfg.clip_norm)
        for grad in grads:  # a norm that is not finite: the batch counts as nothing
            grad.masked_fill_(~norm.isfinite(), 0.0)
        lr.copy_(left * cfg.actor_lr * step_size.part)
        for group in optimizer.param_groups:
            group["lr"] = lr  # a resumed optimiser has its own
        batch = window.obs.flatten(0, 1)
        before = policy.distribution(batch)
        if iteration >= cfg.critic_first:
            optimizer.step()
        kl = training.divergence(*before, *policy.distribution(batch))
        if cfg.kl and iteration >= cfg.critic_first:
            step_size.steer(kl, left**2 * cfg.kl, processes)

        target = critic_targets(window, cfg.gamma, cfg.lam).flatten()
        if not cfg.tries:
            policy.normalize.update(batch, processes)
        weight = (~window.diverged).float()
        mean_reward.update(window.paid, weight, processes)
        x, critic_lr = policy.normalize(batch), left * cfg.critic_lr
        value_loss = critic.fit(x, target, weight.flatten(), critic_lr, processes)
        with torch.no_grad():
            learned = max(0, iteration - cfg.critic_first)
            rate = max(1.0 - cfg.average, 1.0 / (1.0 + learned))
            for slow, fast in zip(average.parameters(), policy.parameters(), strict=True):
                slow.lerp_(fast, rate)
            for slow, fast in zip(average.buffers(), policy.buffers(), strict=True):
                slow.copy_(fast)

        if iteration % HEALTH_EVERY == 0:
            obs, _ = training.renew(envs, obs)
        run.obs = obs
        run.log(
            figures
            | {f"gradient/{name}": x for name, x in health.take().items()}
            | {
                "gradient/norm": norm.nan_to_num(0.0, 0.0),
                "train/kl": kl.mean(),
                "train/step_size": step_size.part,
                "gradient/left_out": (~norm.isfinite()).float(),
                "train/reward": window.paid.mean(),
                "train/value": window.next_value.mean(),
                "train/value_loss": value_loss,
                "train/noise": policy.log_std.exp().mean(),
                "train/diverged_worlds": window.diverged.any(dim=0).sum(),
            }
        )
    run.finish(average)


if __name__ == "__main__":
    main(training.parse(Config, TASKS, ON_CPU))
