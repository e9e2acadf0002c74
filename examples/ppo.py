"""Proximal policy optimisation: the yardstick that the scripts beside this one are measured with.

It learns from the rewards alone, by likelihood ratios (Schulman et al. 2017, arXiv:1707.06347), and
never asks for a gradient of the physics. Environments, networks, evaluation and clock are those of
the first-order scripts; batches are as large as a GPU likes them.

    python examples/ppo.py --env DiffAnt-v0                   on a GPU
    torchrun --nproc-per-node=2 examples/ppo.py --env DiffAnt-v0
    python examples/ppo.py --help                             what can be set

Each iteration steps all worlds `horizon` times with noise, and then climbs the clipped objective
for a few passes over what was seen, in minibatches. An episode that the time limit ends has a
future, which the value of its last state stands for; one that ends by a fall has none.

Actions are `high * tanh(raw)` with a Gaussian `raw`: they stay within the bounds, so that the costs
that Gymnasium puts on actions are those of what the motors do. The probabilities are those of the
squashed actions: in their ratio and in the divergence the squashing cancels, in their entropy it
does not. The policy that is saved acts by `high * tanh(mean)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs import training
from diffenvs.training import Normalize, Settings, mlp, sound


@dataclass
class Config(Settings):
    """Proximal policy optimisation.

    What differs between published settings is said with each; the tasks' own are in `TASKS`.
    """

    num_envs: int = 4096
    """Worlds of this process that are stepped together. IsaacGymEnvs' Ant and Humanoid have 4096,
    MuJoCo Playground 2048."""
    horizon: int = 16
    """Steps of all worlds between updates. IsaacGymEnvs: Ant 16, Humanoid 32; Isaac Lab: 32;
    MuJoCo Playground: 30."""
    eval_every: int = 200
    """Iterations between evaluations; 0: only before the first and after the last. An episode takes
    as long as many iterations."""
    integrator: str | None = None
    """Integrator of the worlds, also in evaluations on ours; None: that of the task. Most of
    Gymnasium's tasks have "rk4", which is slower."""
    gamma: float = 0.99
    """Discount per step. Schulman et al. 2017, IsaacGymEnvs, Isaac Lab."""
    lam: float = 0.95
    """Discount of the advantage beyond that: 0 trusts the value, 1 the rewards. Schulman et al.
    2017, IsaacGymEnvs, Isaac Lab."""
    clip: float = 0.2
    """A ratio of probabilities beyond 1 -+ clip earns nothing. Schulman et al. 2017 and all after
    it."""
    epochs: int = 5
    """Passes over what was seen. IsaacGymEnvs: Ant 4, Humanoid 5; Isaac Lab: 5."""
    minibatches: int = 4
    """Updates of a pass. Isaac Lab: 4; IsaacGymEnvs: Ant 2, Humanoid 4."""
    lr: float = 3e-4
    """Learning rate (Adam) of the first update. Schulman et al. 2017, IsaacGymEnvs' Ant."""
    lr_range: tuple[float, float] = (1e-5, 1e-2)
    """Bounds of the learning rate. rsl_rl."""
    kl: float = 0.01
    """Divergence between the policy that acted and the one that learns that the learning rate is
    steered to: beyond twice of it the rate falls to two thirds, below half of it it rises by half.
    Isaac Lab 0.01, IsaacGymEnvs 0.008. 0 leaves the learning rate alone."""
    entropy: float = 1e-3
    """Weight of the entropy of the actions. Zoo of Stable-Baselines3: between 0 (pendulums) and
    2.4e-3 (Humanoid); IsaacGymEnvs and Isaac Lab's Ant have 0, MuJoCo Playground 1e-2."""
    value_weight: float = 0.5
    """Weight of the value's loss. Stable-Baselines3 and CleanRL; Isaac Lab has 1. With two networks
    and Adam it matters through `clip_norm` alone. The loss is not clipped as the policy's is:
    Andrychowicz et al. 2021 find that this helps nobody."""
    clip_norm: float = 1.0
    """Limit of the gradient's norm over all parameters. Isaac Lab, IsaacGymEnvs' Humanoid."""
    noise: float = 0.5
    """Standard deviation of the exploration at the start, before the squashing; it is learned.
    Andrychowicz et al. 2021 (arXiv:2006.05990) find 0.5 best, with tanh as here."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of policy and value: those of the first-order scripts."""

    out: Path = Path("runs/ppo")
    """Folder of the results; a folder ENV/seedN of the run is made inside."""


# What a task wants otherwise than `Config` has it; the command line goes before both.
TASKS: dict[str, dict[str, Any]] = {
    # The entropies of the zoo of Stable-Baselines3 are below 1e-6 for pendulums and Reacher.
    "DiffCartPoleSwingUp-v0": {"num_envs": 2048, "iterations": 300, "eval_every": 50},
    "DiffInvertedPendulum-v0": {
        "num_envs": 2048,
        "iterations": 100,
        "eval_every": 25,
        "entropy": 0.0,
    },
    "DiffInvertedDoublePendulum-v0": {
        "num_envs": 2048,
        "iterations": 300,
        "eval_every": 50,
        "entropy": 0.0,
    },
    "DiffReacher-v0": {"num_envs": 2048, "iterations": 1000, "entropy": 0.0},
    "DiffPusher-v0": {"iterations": 1500, "entropy": 0.0},
    # Strokes pay off late: the zoo has a gamma of 0.9999. With 0.999 it stays at a return of 40.
    "DiffSwimmer-v0": {
        "num_envs": 2048,
        "horizon": 64,
        "gamma": 0.9999,
        "lam": 0.99,
        "iterations": 1000,
        "integrator": "rk4",
    },
    # Control steps are 8 ms: the zoo has a gamma of 0.999 for Hopper.
    "DiffHopper-v0": {"horizon": 32, "gamma": 0.995, "iterations": 1500, "integrator": "rk4"},
    "DiffWalker2d-v0": {"horizon": 32, "gamma": 0.995, "iterations": 2000},
    "DiffHalfCheetah-v0": {"iterations": 3000, "hidden": (256, 256)},
    # Gymnasium's integrator, as with shac.py and sapo.py: what is learned of Ant with implicitfast
    # earns less there. So it is with Hopper, with PPO.
    "DiffAnt-v0": {"iterations": 3000, "integrator": "rk4"},
    "DiffHumanoid-v0": {"horizon": 32, "iterations": 2500, "hidden": (256, 256)},
    "DiffHumanoidStandup-v0": {"horizon": 32, "iterations": 1500, "hidden": (256, 256)},
}

# What a run on a CPU wants otherwise: there a step takes as long as all worlds together.
ON_CPU: dict[str, Any] = {"num_envs": 64, "horizon": 64}


class Policy(nn.Module):
    """Squashed Gaussian policy. Called, it acts by the mean."""

    high: Tensor

    def __init__(self, nobs: int, high: Tensor, cfg: Config) -> None:
        super().__init__()
        self.normalize = Normalize(nobs)
        self.register_buffer("high", high)
        self.net = mlp(nobs, *cfg.hidden, len(high))
        for parameter in self.net[-1].parameters():
            parameter.data.mul_(0.1)  # begins near zero, where tanh is not saturated
        self.log_std = nn.Parameter(torch.full((len(high),), cfg.noise).log())

    def forward(self, obs: Tensor) -> Tensor:
        """Act without noise, within the bounds of the actions."""
        return self.squash(self.net(self.normalize(obs)))

    def squash(self, raw: Tensor) -> Tensor:
        """The action of a number of the Gaussian."""
        return self.high * torch.tanh(raw)


class Value(nn.Module):
    """What is still to come. The network gives it in units of the spread of all that was seen.

    This takes the place of scaling the rewards: nothing else feels their size, for the advantages
    are normalised. rl_games calls it normalize_value.
    """

    def __init__(self, nobs: int, cfg: Config) -> None:
        super().__init__()
        self.scale = Normalize(1)
        self.net = mlp(nobs, *cfg.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The value of normalised observations, in units of rewards."""
        return self.scale.inverse(self.net(x))[..., 0]


@torch.no_grad()
def rollout(
    envs: Any, obs: Tensor, policy: Policy, value: Value, cfg: Config
) -> tuple[dict[str, Tensor], Tensor]:
    """Step a window with noise; return what was seen, each (horizon, num_envs, ...), and `obs`.

    Steps of worlds that have diverged have the weight 0, and finite numbers in place of theirs.
    """
    seen: dict[str, list[Tensor]] = {}
    for _ in range(cfg.horizon):
        weight = sound(obs)
        here = torch.where(weight[:, None], obs, policy.normalize.mean)
        x = policy.normalize(here)
        mean = policy.net(x)
        raw = mean + policy.log_std.exp() * torch.randn_like(mean)
        obs, reward, terminated, truncated, info = envs.step(policy.squash(raw))
        # final_obs is what the step led to, also where a new episode has begun since.
        last = info["final_obs"]
        weight &= sound(last) & sound(reward[:, None])
        found = {
            "obs": here,
            "x": x,
            "mean": mean,
            "raw": raw,
            "weight": weight,
            "next_obs": torch.where(weight[:, None], last, policy.normalize.mean),
            "reward": torch.where(weight, reward, 0.0),
            "terminated": terminated,
            "done": terminated | truncated,
        }
        for name, array in found.items():
            seen.setdefault(name, []).append(array)
    window = {name: torch.stack(arrays) for name, arrays in seen.items()}
    window["value"] = value(window["x"])
    next_value = value(policy.normalize(window["next_obs"]))
    window["next_value"] = torch.where(window["terminated"], 0.0, next_value)
    return window, obs


def advantages(window: dict[str, Tensor], cfg: Config) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438)."""
    surprise = window["reward"] + cfg.gamma * window["next_value"] - window["value"]
    advantage, found = torch.zeros_like(surprise[0]), []
    for t in reversed(range(cfg.horizon)):
        advantage = torch.where(window["done"][t], 0.0, advantage)
        advantage = surprise[t] + cfg.gamma * cfg.lam * advantage
        advantage = torch.where(window["weight"][t], advantage, 0.0)
        found.append(advantage)
    return torch.stack(found[::-1])


class Update:
    """A step of the optimiser on a minibatch, in two parts: processes average in between."""

    # What a step returns: means over the minibatch, then whether its gradient was not finite (and
    # not applied), and the gradient's norm.
    figures = ("policy_loss", "value_loss", "entropy", "kl", "clipped", "skipped", "gradient_norm")

    def __init__(self, policy: Policy, value: Value, cfg: Config, device: torch.device) -> None:
        self.policy, self.value, self.cfg = policy, value, cfg
        self.parameters = [*policy.parameters(), *value.parameters()]
        cuda = device.type == "cuda"
        self.lr = torch.tensor(cfg.lr, device=device)  # a tensor: it changes where no host looks
        self.optimizer = torch.optim.Adam(
            self.parameters, self.lr, eps=1e-5, capturable=cuda, fused=None if cuda else True
        )
        self.gradient = training.captured(self._gradient, device)
        self.apply = training.captured(self._apply, device)

    def state_dict(self) -> dict[str, Any]:
        """What a run goes on with: the state of the optimiser, learning rate included."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.optimizer.load_state_dict(state)
        group = self.optimizer.param_groups[0]
        self.lr.copy_(group["lr"])
        group["lr"] = self.lr  # on the device, which the checkpoint is not

    def __call__(self, batch: list[Tensor], processes: Any) -> Tensor:
        """Take a step on a minibatch: what `_gradient` takes."""
        means = self.gradient(*batch)
        processes.mean_([*(parameter.grad for parameter in self.parameters), means])
        return self.apply(means)

    def _gradient(
        self,
        x: Tensor,
        raw: Tensor,
        mean: Tensor,
        weight: Tensor,
        advantage: Tensor,
        target: Tensor,
        log_std: Tensor,
    ) -> Tensor:
        """Differentiate the losses. `mean` and `log_std` are those of the policy that acted."""
        cfg = self.cfg
        self.optimizer.zero_grad(set_to_none=False)  # captured graphs read them where they are
        new_mean, new_log_std = self.policy.net(x), self.policy.log_std
        # The squashing is the same for both, and cancels.
        ratio = (log_density(raw, new_mean, new_log_std) - log_density(raw, mean, log_std)).exp()
        kept = ratio.clamp(1.0 - cfg.clip, 1.0 + cfg.clip)
        gain = torch.minimum(ratio * advantage, kept * advantage)
        policy_loss = -(weight * gain).mean()
        value_loss = (weight * (self.value.net(x)[:, 0] - target).square()).mean()
        entropy = squashed_entropy(new_mean, new_log_std).mean()
        (policy_loss + cfg.value_weight * value_loss - cfg.entropy * entropy).backward()
        with torch.no_grad():
            kl = training.divergence(mean, log_std, new_mean, new_log_std).mean()
            clipped = (ratio != kept).float().mean()
            return torch.stack([policy_loss, value_loss, entropy, kl, clipped])

    @torch.no_grad()
    def _apply(self, means: Tensor) -> Tensor:
        """Steer the learning rate, and step. A gradient that is not finite becomes zero."""
        cfg, kl = self.cfg, means[3]
        norm = nn.utils.clip_grad_norm_(self.parameters, cfg.clip_norm)
        finite = norm.isfinite()
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.masked_fill_(~finite, 0.0)
        if cfg.kl > 0.0:
            slower, faster = (kl > 2.0 * cfg.kl).float(), (kl < 0.5 * cfg.kl).float()
            self.lr.mul_(1.5 ** (faster - slower)).clamp_(*cfg.lr_range)
        self.optimizer.step()
        return torch.cat([means, torch.stack([(~finite).float(), norm.nan_to_num(0.0, 0.0)])])


def log_density(raw: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Logarithm of the Gaussian density, less a constant."""
    return -(0.5 * ((raw - mean) / log_std.exp()).square() + log_std).sum(dim=1)


def squashed_entropy(mean: Tensor, log_std: Tensor) -> Tensor:
    """Entropy of tanh of a Gaussian, by one sample of each: it has no closed form."""
    raw = mean + log_std.exp() * torch.randn_like(mean)
    # log(1 - tanh(raw)^2), which does not underflow
    squeezed = 2.0 * (math.log(2.0) - raw - nn.functional.softplus(-2.0 * raw))
    return (log_std + 0.5 * math.log(2.0 * math.pi * math.e) + squeezed).sum(dim=1)


def learn(
    window: dict[str, Tensor], policy: Policy, value: Value, update: Update, processes: Any
) -> Tensor:
    """Climb the objective on a window for a few passes; return the means of `Update.figures`."""
    cfg = update.cfg
    advantage = advantages(window, cfg)
    target = (advantage + window["value"]).reshape(-1, 1)
    value.scale.update(target, processes)
    moments = torch.stack([advantage.mean(), advantage.square().mean()])
    processes.mean_([moments])
    spread = (moments[1] - moments[0].square()).clamp(min=0.0).sqrt()
    advantage = (advantage - moments[0]) / (spread + 1e-8)
    log_std = policy.log_std.detach().clone()
    columns = [window[name].flatten(0, 1) for name in ("x", "raw", "mean", "weight")]
    columns += [advantage.flatten(), value.scale(target)[:, 0]]
    total = torch.zeros(len(Update.figures), device=target.device)
    for _ in range(cfg.epochs):
        order = torch.randperm(len(target), device=target.device)
        for index in order.chunk(cfg.minibatches):
            total += update([*(column[index] for column in columns), log_std], processes)
    return total / (cfg.epochs * cfg.minibatches)


def main(cfg: Config) -> None:
    """Train, evaluate, and write the results."""
    if cfg.minibatches < 1:
        raise SystemExit("ppo: minibatches must be 1 or more")
    if cfg.num_envs * cfg.horizon % cfg.minibatches:
        raise SystemExit(
            f"ppo: {cfg.num_envs} worlds times a horizon of {cfg.horizon} do not make "
            f"{cfg.minibatches} minibatches of the same size; change one of the three"
        )
    torch.set_num_threads(1)  # the networks are small
    processes = training.start_processes(cfg)
    device = processes.device
    options: dict[str, Any] = {"arrays": "torch", "device": str(device), "window": 1}
    if cfg.integrator is not None:
        options["integrator"] = cfg.integrator
    envs: Any = gym.make_vec(cfg.env, num_envs=cfg.num_envs, **options)
    nobs = envs.single_observation_space.shape[0]
    policy = Policy(nobs, torch.as_tensor(envs.single_action_space.high), cfg).to(device)
    value = Value(nobs, cfg).to(device)
    update = Update(policy, value, cfg, device)

    learner = {"policy": policy, "value": value, "update": update}
    run = training.Run(cfg, processes, envs, learner)
    for iteration in run.iterations(policy):
        if iteration == 0:
            training.spread_episodes(envs)
        window, obs = rollout(envs, run.obs, policy, value, cfg)
        figures = learn(window, policy, value, update, processes)
        # Not before: what is learned from the window is normalised as it was seen.
        policy.normalize.update(window["obs"].flatten(0, 1), processes)
        run.obs, lost = training.renew(envs, obs)
        run.log(
            {
                "train/reward": window["reward"].mean(),
                "train/diverged": lost,  # worlds, of this process
                "train/noise": policy.log_std.detach().exp().mean(),
                "train/lr": update.lr.clone(),
                **{f"train/{name}": x for name, x in zip(Update.figures, figures, strict=True)},
            }
        )
    run.finish(policy)


if __name__ == "__main__":
    main(training.parse(Config, TASKS, ON_CPU))
