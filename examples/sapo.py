"""SAPO, soft analytic policy optimisation: gradients of the simulation, and entropy.

    python examples/sapo.py --env DiffHalfCheetah-v0
    torchrun --nproc-per-node=2 examples/sapo.py --env DiffHalfCheetah-v0
    python examples/sapo.py --help                                       what can be set

As in `shac.py`, an iteration steps all worlds through a short window and differentiates what it
earned, and the value of its end, by the policy's parameters. Four things are different, the first
three after Xing et al. 2025, "Stabilizing Reinforcement Learning in Differentiable Multiphysics
Simulation" (arXiv:2412.12089):

* The policy is paid for its entropy, with a weight that is steered so that the entropy stays at a
  target. The noise depends on the state. Squashed actions at their bounds have no entropy, so this
  also keeps the policy where tanh has a gradient.
* There are two critics. The policy sees their mean, the targets the lower one.
* No slow copies of the critics: what is fitted is used.
* The critics may be fitted to some earlier windows as well (`critic_windows`), whose targets are
  those of the policies of then, without correction.

It leaves what `shac.py` leaves.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.func import functional_call

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs import training
from diffenvs.training import GradientHealth, Normalize, Settings, mlp, sound

HEALTH_EVERY = 10
"""Iterations between looks at worlds that diverged, and at the cosine of half batches."""


@dataclass
class Config(Settings):
    """Soft analytic policy optimisation. "Found here" is what was best in runs with these tasks."""

    num_envs: int = 512
    """Worlds that a process steps together. Xing et al.: 64; Heiden 2026: 512."""
    horizon: int = 16
    """Steps of a window, through which is differentiated. Xing et al.: 32. Found here: 1 for
    HalfCheetah, whose steps are long and contacts hard, to 16."""
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
    """Discount per step. Xing et al."""
    lam: float = 0.95
    """Of TD(lambda), the critics' targets: 0 trusts the critics, 1 the rewards. Xing et al."""
    actor_lr: float = 1e-3
    """Learning rate of the policy. Xing et al.: 2e-3; it falls linearly."""
    critic_lr: float = 2e-3
    """Learning rate of the critics, falls as well. Xing et al.: 5e-4."""
    final_lr: float = 0.05
    """The learning rates' lowest part, reached at the end."""
    betas: tuple[float, float] = (0.7, 0.95)
    """Of Adam: short memories, for gradients change with the contacts. Xing et al."""
    critic_windows: int = 1
    """Windows that the critics are fitted to, the last ones. Found here: 16 of one step each."""
    critic_epochs: int = 8
    """Passes over them when the critics are fitted. Xing et al.: 16."""
    critic_batches: int = 4
    """Updates of a pass. Xing et al."""
    value_rate: float = 0.02
    """How far the units of values, mean and spread of the targets, follow those of an iteration
    (van Hasselt et al. 2016, arXiv:1602.07714). Found here: units of all targets so far are too
    coarse for a policy that runs well, whose targets are all alike."""
    entropy_weight: float = 1.0
    """Weight of the entropy, a mean over the actions, at the start, in rewards. Xing et al."""
    entropy_lr: float = 5e-3
    """Learning rate of its logarithm. Xing et al."""
    target_entropy: float = -0.5
    """Entropy that the weight is steered to, per action. Xing et al."""
    noise: float = 0.4
    """Standard deviation of the exploration at the start, before the squashing."""
    log_std: tuple[float, float] = (-4.0, 1.0)
    """Bounds of its logarithm. Xing et al.: -5 and 2."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of policy and critics."""
    average: float = 0.98
    """Memory, per iteration, of the average policy, which is evaluated and saved: single steps of
    the policy are noisy. Found here."""
    clip_worlds: float = 3.0
    """Limit of the gradient that passes back through a world's action or state, in medians over the
    worlds. Found here: Ant learns faster with 30 to 100, HalfCheetah ends higher with 30, Humanoid
    is as good with 3."""
    kl: float = 0.01
    """Divergence between the policies before and after a step that the step's length is steered
    to, with `actor_lr` as its upper limit; it falls with the square of the learning rate. 0: no
    steering. Found here: without, policies that run well lose it again; small ones keep to the
    first gait that pays."""
    clip_norm: float = 1.0
    """Limit of the norm of the policy's gradient, and of the critics'. Xing et al.: 0.5."""
    out: Path = Path("runs/sapo")
    """Folder of the results; a folder ENV/seedN of the run is made inside."""


# What a task wants otherwise than `Config` has it; the command line goes before both.
TASKS: dict[str, dict[str, Any]] = {
    "DiffPusher-v0": {
        "num_envs": 2048,
        "iterations": 450,
        "actor_lr": 2e-3,
        "target_entropy": -1.0,
        "clip_worlds": 30.0,
        "kl": 0.05,
    },
    "DiffWalker2d-v0": {
        "num_envs": 2048,
        "iterations": 900,
        "gamma": 0.995,
        "noise": 1.0,
        "clip_worlds": 30.0,
        "kl": 0.2,
    },
    "DiffHalfCheetah-v0": {
        "num_envs": 8192,
        "horizon": 1,
        "iterations": 4300,
        "eval_every": 400,
        "episode": 250,
        "actor_lr": 2e-3,
        "critic_windows": 16,
        "critic_epochs": 2,
        "critic_batches": 16,
        "noise": 0.8,
        "hidden": (256, 256),
        "clip_worlds": 30.0,
        "kl": 0.3,
    },
    "DiffAnt-v0": {
        # Gymnasium's integrator: with implicitfast's steps of 10 ms another gait pays.
        "num_envs": 2048,
        "horizon": 8,
        "iterations": 1000,
        "eval_every": 200,
        "episode": 500,
        "integrator": "rk4",
        "actor_lr": 5e-3,
        "clip_worlds": 30.0,
        "kl": 0.2,
    },
    "DiffHumanoid-v0": {
        "num_envs": 2048,
        "iterations": 560,
        "eval_every": 140,
        "integrator": "rk4",
        "actor_lr": 2e-3,
        "critic_lr": 5e-4,
        "noise": 0.8,
        "hidden": (256, 256),
        "clip_worlds": 30.0,
        "kl": 0.3,
    },
}

# What a run on a CPU wants otherwise: there a step takes as long as all worlds together.
ON_CPU: dict[str, Any] = {"num_envs": 64}


class Policy(nn.Module):
    """Squashed Gaussian policy whose noise depends on the state; called, it acts by its mean."""

    high: Tensor

    def __init__(self, nobs: int, high: Tensor, cfg: Config) -> None:
        super().__init__()
        self.bounds = cfg.log_std
        self.normalize = Normalize(nobs)
        self.register_buffer("high", high)
        self.net = mlp(nobs, *cfg.hidden, 2 * len(high))
        last: Any = self.net[-1]
        for parameter in last.parameters():
            parameter.data.mul_(0.1)  # begins near zero, where tanh is not saturated
        last.bias.data[len(high) :] = math.log(cfg.noise)

    def forward(self, obs: Tensor) -> Tensor:
        """Act without noise, within the bounds of the actions."""
        return self.high * torch.tanh(self.net(self.normalize(obs)).chunk(2, dim=-1)[0])

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Act with standard normal `noise`; return also the entropy, by this sample.

        The entropy is that of actions in units of `high`, a mean over the actions of a world.
        """
        mean, log_std = self._gaussian(obs)
        raw = mean + log_std.exp() * noise
        # log(1 - tanh(raw)^2), which does not underflow
        squeezed = 2.0 * (math.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
        entropy = log_std + 0.5 * (noise.square() + math.log(2.0 * math.pi)) + squeezed
        return self.high * torch.tanh(raw), entropy.mean(dim=-1)

    @torch.no_grad()
    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, and logarithm of the standard deviation, of the Gaussian before the squashing."""
        return self._gaussian(obs)

    def _gaussian(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(self.normalize(obs)).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.bounds)


class EntropyWeight:
    """Weight of the entropy in the reward, steered by how far the entropy is above its target."""

    def __init__(self, cfg: Config, device: torch.device) -> None:
        self.target = cfg.target_entropy
        self.log = nn.Parameter(torch.tensor(math.log(cfg.entropy_weight), device=device))
        self.optimizer = torch.optim.Adam([self.log], cfg.entropy_lr, cfg.betas)

    def __call__(self) -> Tensor:
        """The weight."""
        return self.log.detach().exp()

    def steer(self, entropy: Tensor, processes: Any) -> None:
        """Lower the weight where the mean entropy is above its target, raise it below."""
        self.log.grad = (entropy.detach().mean() - self.target).reshape(())
        processes.mean_([self.log.grad])
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """What a run goes on with."""
        return {"log": self.log.detach(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.log.data.copy_(state["log"])
        self.optimizer.load_state_dict(state["optimizer"])


class Critics:
    """What is still to come. The networks give it in units of the spread of the targets of late.

    Steps of Adam are as long for small values as for large ones; in these units they are small.

    Attributes:
        nets: Two networks.
        scale: Mean and spread of the targets.
    """

    def __init__(self, nobs: int, cfg: Config, device: torch.device) -> None:
        self.cfg = cfg
        self.scale = Normalize(1, cfg.value_rate).to(device)
        nets = [mlp(nobs, *cfg.hidden, 1) for _ in range(2)]
        for net in nets:
            for parameter in net[-1].parameters():
                parameter.data.zero_()  # a guess at random would be a promise that nobody keeps
        self.nets = nn.ModuleList(nets).to(device)
        self.lr = torch.tensor(cfg.critic_lr, device=device)  # a tensor: captured graphs read it
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.nets.parameters(),
            self.lr,
            cfg.betas,
            capturable=cuda,
            fused=None if cuda else True,
        )
        self.gradient = training.captured(self._gradient, device)
        self.apply = training.captured(self._apply, device)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values of normalised observations (..., nobs), by each.

        Gradients pass through to the observations, and not into the networks.
        """
        fixed = ({name: p.detach() for name, p in net.named_parameters()} for net in self.nets)
        first, second = (
            self.scale.inverse(functional_call(net, parameters, x))[..., 0]
            for net, parameters in zip(self.nets, fixed, strict=True)
        )
        return first, second

    def fit(self, x: Tensor, target: Tensor, weight: Tensor, lr: float, processes: Any) -> Tensor:
        """Regress on targets; return their mean loss in the last pass, in squared spreads."""
        self.lr.fill_(lr)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr  # a resumed optimiser has its own
        target = torch.where(weight[:, None] > 0.0, target[:, None], self.scale.mean)
        nets: list[Any] = list(self.nets)
        self.scale.update_under(target, [net[-1] for net in nets], processes)
        target, loss = self.scale(target)[:, 0], torch.zeros((), device=x.device)
        for _ in range(self.cfg.critic_epochs):
            loss = torch.zeros_like(loss)
            for index in torch.randperm(len(x), device=x.device).chunk(self.cfg.critic_batches):
                loss += self.gradient(x[index], target[index], weight[index])
                processes.mean_(p.grad for p in self.nets.parameters() if p.grad is not None)
                self.apply()
        return loss / (len(self.nets) * self.cfg.critic_batches)

    def _gradient(self, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Differentiate the loss of a minibatch."""
        self.optimizer.zero_grad(set_to_none=False)
        losses = [(weight * (net(x)[:, 0] - target).square()).mean() for net in self.nets]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach()

    def _apply(self) -> Tensor:
        """Take a step of the optimiser; return the gradient's norm."""
        norm = nn.utils.clip_grad_norm_(self.nets.parameters(), self.cfg.clip_norm)
        for parameter in self.nets.parameters():
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
        reward: Rewards and what the entropy is paid, with their gradient; zero in worlds that
            diverged.
        paid: The rewards alone.
        entropy: The policy's entropy.
        next_value: Mean value of what each step led to, with its gradient; zero after a
            termination.
        done: Whether an episode ended, by termination or time limit.
        diverged: Worlds whose numbers were not finite, or too large; nothing is learned of them.
        next_obs: Observations that the steps led to; their mean in worlds that diverged.
        over: Where nothing follows: after terminations, and in worlds that diverged.
    """

    obs: Tensor
    noise: Tensor
    reward: Tensor
    paid: Tensor
    entropy: Tensor
    next_value: Tensor
    done: Tensor
    diverged: Tensor
    next_obs: Tensor
    over: Tensor


class Recent:
    """The last windows, to which the critics are fitted; the first stands for those before it.

    Rewards of earlier windows stay what the policy and the entropy's weight of then made them.
    """

    names = ("obs", "reward", "done", "diverged", "next_obs", "over")

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = count, device
        self.earlier: list[dict[str, Tensor]] = []

    def push(self, window: Window) -> dict[str, Tensor]:
        """Take a window and forget the oldest; return all, one behind the other."""
        new = {name: getattr(window, name).detach() for name in self.names}
        if not self.earlier:
            done = new["done"].clone()
            done[-1] = True  # it is not its own beginning that follows
            self.earlier = [new | {"done": done}] * (self.count - 1)
        windows = [*self.earlier, new]
        self.earlier = windows[1:]
        return {name: torch.cat([x[name] for x in windows]) for name in self.names}

    def state_dict(self) -> dict[str, Any]:
        """What a run goes on with."""
        return {"earlier": self.earlier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.earlier = [
            {name: x.to(self.device) for name, x in window.items()} for window in state["earlier"]
        ]


def rollout(
    envs: Any,
    obs: Tensor,
    policy: Policy,
    critics: Critics,
    weight: Tensor,
    health: GradientHealth,
    cfg: Config,
) -> tuple[Window, Tensor]:
    """Step a window with noise and record its gradient; return what was seen, and `obs`."""
    noise = torch.randn(cfg.horizon, *envs.action_space.shape, device=obs.device)
    seen: dict[str, list[Tensor]] = {}
    for t in range(cfg.horizon):
        good = sound(obs)
        here = torch.where(good[:, None], obs, policy.normalize.mean)
        action, entropy = policy.sample(here, noise[t])
        health.watch_action(action)
        obs, reward, terminated, truncated, info = envs.grad_step(action)
        for part in envs.state:
            health.watch(part)
        # final_obs is what the step led to, also where a new episode has begun since.
        found = {
            "obs": here.detach(),
            "entropy": entropy,
            "good": good,
            "reward": reward,
            "next_obs": info["final_obs"],
            "terminated": terminated,
            "done": terminated | truncated,
        }
        for name, x in found.items():
            seen.setdefault(name, []).append(x)
    stack = {name: torch.stack(tensors) for name, tensors in seen.items()}
    good = stack["good"] & sound(stack["next_obs"].detach())
    good = good & sound(stack["reward"].detach()[..., None])
    next_obs = torch.where(good[..., None], stack["next_obs"], policy.normalize.mean)
    first, second = critics(policy.normalize(next_obs))
    over = stack["terminated"] | ~good
    bonus = weight * (stack["entropy"] - cfg.target_entropy)
    window = Window(
        stack["obs"],
        noise,
        torch.where(good, stack["reward"] + bonus, 0.0),
        torch.where(good, stack["reward"], 0.0).detach(),
        torch.where(good, stack["entropy"], cfg.target_entropy),
        torch.where(over, 0.0, (first + second) / 2.0),
        stack["done"] | ~good,
        ~good,
        next_obs.detach(),
        over,
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
def lower_value(seen: dict[str, Tensor], policy: Policy, critics: Critics) -> Tensor:
    """The lower of the two values of what each step led to; zero where nothing follows."""
    lower = torch.minimum(*critics(policy.normalize(seen["next_obs"])))
    return torch.where(seen["over"], 0.0, lower)


@torch.no_grad()
def critic_targets(seen: dict[str, Tensor], next_value: Tensor, gamma: float, lam: float) -> Tensor:
    """Returns of TD(lambda), (steps, num_envs)."""
    ends = training.ends(seen["done"], seen["diverged"])
    target, targets = next_value[-1], []
    for t in reversed(range(len(next_value))):
        value = next_value[t]
        follows = torch.where(ends[t], value, (1.0 - lam) * value + lam * target)
        target = seen["reward"][t] + gamma * follows
        targets.append(target)
    return torch.stack(targets[::-1])


def main(cfg: Config) -> None:
    """Train, evaluate, and write the results."""
    torch.set_num_threads(1)  # the networks are small
    if cfg.critic_windows < 1:
        raise SystemExit("sapo: critic_windows must be 1 or more")
    if cfg.critic_batches < 1:
        raise SystemExit("sapo: critic_batches must be 1 or more")
    if cfg.num_envs * cfg.horizon * cfg.critic_windows % cfg.critic_batches:
        raise SystemExit(
            f"sapo: {cfg.num_envs} worlds times a horizon of {cfg.horizon} times "
            f"{cfg.critic_windows} windows do not make {cfg.critic_batches} batches of the same "
            "size; change one of the four"
        )
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
    critics = Critics(nobs, cfg, device)
    weight = EntropyWeight(cfg, device)
    parameters = list(policy.net.parameters())
    optimizer = torch.optim.Adam(parameters, cfg.actor_lr, cfg.betas, fused=True)
    lr = torch.tensor(cfg.actor_lr, device=device)  # a tensor: no host waits for it
    step_size, recent = training.StepSize().to(device), Recent(cfg.critic_windows, device)
    health = GradientHealth(cfg.clip_worlds)

    learner = {
        "policy": policy,
        "average": average,
        "step_size": step_size,
        "recent": recent,
        "critics": critics.nets,
        "critic_scale": critics.scale,
        "entropy_weight": weight,
        "optimizer": optimizer,
        "critic_optimizer": critics.optimizer,
    }
    run = training.Run(cfg, processes, envs, learner)
    for iteration in run.iterations(average):
        if iteration == 0:
            training.spread_episodes(envs)
        left = max(cfg.final_lr, 1.0 - iteration / cfg.iterations)
        envs.detach()  # the window begins here, without history
        window, obs = rollout(envs, run.obs, policy, critics, weight(), health, cfg)
        loss = -score(window, cfg.gamma)
        optimizer.zero_grad()
        loss.backward()
        figures: dict[str, Tensor | float] = {}
        if iteration % HEALTH_EVERY == 0:
            actions, _ = policy.sample(window.obs, window.noise)
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
        optimizer.step()
        kl = training.divergence(*before, *policy.distribution(batch))
        if cfg.kl:
            step_size.steer(kl, left**2 * cfg.kl, processes)
        weight.steer(window.entropy, processes)

        seen = recent.push(window)
        next_value = lower_value(seen, policy, critics)
        target = critic_targets(seen, next_value, cfg.gamma, cfg.lam).flatten()
        policy.normalize.update(batch, processes)
        value_loss = critics.fit(
            policy.normalize(seen["obs"].flatten(0, 1)),
            target,
            (~seen["diverged"]).float().flatten(),
            left * cfg.critic_lr,
            processes,
        )
        with torch.no_grad():
            rate = max(1.0 - cfg.average, 1.0 / (1.0 + iteration))
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
                "train/entropy": window.entropy.mean(),
                "train/entropy_weight": weight(),
                "train/diverged_worlds": window.diverged.any(dim=0).sum(),
            }
        )
    run.finish(average)


if __name__ == "__main__":
    main(training.parse(Config, TASKS, ON_CPU))
