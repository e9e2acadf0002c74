"""Analytic policy gradient: a policy climbs the exact gradient of its return.

The return of a short window of steps is differentiated through the physics; a value function
stands for what comes after the window, and is fitted to the rewards that the windows saw. So the
gradient sees contacts and joints exactly for `horizon` steps, and the end of an episode, which
has no gradient of its own, through the value of the state before it.

    python examples/apg.py                          swings up a cart-pole
    python examples/apg.py --env DiffHopper-v0      learns to stay on its foot
    python examples/apg.py --env DiffAnt-v0         runs
    python examples/apg.py --help                   what can be set

Ctrl-C ends the training early, and leaves what there would be at the end.

Ant has a shorter window (`TASKS`): its contacts are stiff and its steps long (0.05 s), and through
32 of them the gradient is too large to be of use.

It writes TensorBoard logs, the learning curve (CSV and PNG), a video (MP4, where pictures can be
drawn) and the policy to `out`. What the policy is worth in Gymnasium's own environment, and how it
looks:

    python -m diffenvs.evaluate --env DiffAnt-v0 --policy runs/apg/DiffAnt-v0/policy.pt2
    python -m diffenvs.play --env DiffAnt-v0 --policy runs/apg/DiffAnt-v0/policy.pt2
"""

from __future__ import annotations

import copy
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import trange

import diffenvs  # noqa: F401  (registers the environments)
from diffenvs.policy import save_policy


@dataclass
class Config:
    """Analytic policy gradient over short windows."""

    env: str = "DiffCartPoleSwingUp-v0"
    """Id of an environment."""
    num_envs: int = 64
    """Worlds that are stepped together."""
    horizon: int = 32
    """Steps of a window, through which the return is differentiated."""
    iterations: int = 200
    """Windows, each of which ends in one step of the policy."""
    gamma: float = 0.99
    """Discount per step."""
    lr: float = 5e-3
    """Learning rate of the policy; falls linearly to a tenth."""
    value_lr: float = 2e-3
    """Learning rate of the value."""
    value_epochs: int = 8
    """Passes over a window when the value is fitted."""
    noise: float = 0.2
    """Standard deviation of the exploration at the start; it is learned."""
    hidden: int = 128
    """Width of the two hidden layers of policy and value."""
    restart: float = 0.05
    """Part of the worlds that begin a new episode before each window, so that all its phases are
    seen at once."""
    clip_state: float = 3.0
    """Limit of the gradient that a state hands back to the step before, per world, in medians over
    the worlds: single stiff contacts otherwise drown all the rest."""
    clip_norm: float = 1.0
    """Limit of the gradient's norm over all parameters."""
    eval_every: int = 10
    """Iterations between evaluations; the best policy found is the result."""
    eval_envs: int = 8
    """Worlds of an evaluation, one whole episode each, without noise."""
    device: str | None = None
    """"cpu" or "cuda:0"; None is the first GPU if there is one."""
    seed: int = 0
    """Seed of everything."""
    out: Path = Path("runs/apg")
    """Folder of the results; a folder of the environment's name is made inside."""


# What a task wants otherwise than `Config` has it; the command line goes before both.
TASKS = {"DiffAnt-v0": {"horizon": 8, "iterations": 400, "restart": 0.02}}


class Normalize(nn.Module):
    """Observations in units of their running mean and standard deviation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.tensor(1e-4))

    def update(self, x: Tensor) -> None:
        """Take a batch into account."""
        delta, total = x.mean(0) - self.mean, self.count + len(x)
        spread = self.var * self.count + x.var(0, unbiased=False) * len(x)
        self.var = (spread + delta**2 * self.count * len(x) / total) / total
        self.mean = self.mean + delta * len(x) / total
        self.count = total

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return (x - self.mean) / (self.var.sqrt() + 1e-3)


class Policy(nn.Module):
    """Squashed Gaussian policy; without noise it acts by its mean."""

    high: Tensor

    def __init__(
        self, normalize: Normalize, nobs: int, high: Tensor, hidden: int, noise: float
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.register_buffer("high", high)
        nu = len(high)
        self.net = mlp(nobs, hidden, nu)
        for parameter in self.net[-1].parameters():
            parameter.data.mul_(0.1)  # begins near zero, where tanh is not saturated
        self.log_std = nn.Parameter(torch.full((nu,), noise).log())

    def forward(self, obs: Tensor, noise: bool = False) -> Tensor:
        """Act, within the bounds of the actions."""
        mean = self.net(self.normalize(obs))
        if noise:
            mean = mean + self.log_std.exp() * torch.randn_like(mean)
        return self.high * torch.tanh(mean)


def mlp(size_in: int, hidden: int, size_out: int) -> nn.Sequential:
    """Two hidden layers."""
    layers: list[nn.Module] = []
    for size in (size_in, hidden):
        layers += [nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, size_out))


def clip_worlds(limit: float):
    """A hook: no world hands back more than `limit` times the median over the worlds."""

    def hook(grad: Tensor | None) -> Tensor | None:
        if grad is None:
            return None
        norm = grad.norm(dim=1, keepdim=True)
        scale = limit * norm.nanmedian() / norm.clamp(min=1e-12)
        return torch.nan_to_num(grad * scale.clamp(max=1.0), posinf=0.0, neginf=0.0)

    return hook


def rollout(envs, obs: Tensor, policy: Policy, value, cfg: Config):
    """Step a window; return the discounted return (to be differentiated) and what was seen."""
    discount = torch.ones(cfg.num_envs, device=obs.device)
    total = torch.zeros((), device=obs.device)
    seen: dict[str, list[Tensor]] = {"obs": [], "reward": [], "done": [], "next_value": []}
    for t in range(cfg.horizon):
        seen["obs"].append(obs.detach())
        obs, reward, terminated, truncated, info = envs.grad_step(policy(obs, noise=True))
        for part in envs.state[:2]:
            part.register_hook(clip_worlds(cfg.clip_state))
        done = terminated | truncated
        # final_obs is what the step led to, also where a new episode has begun since.
        next_value = torch.where(terminated, 0.0, value(info["final_obs"]))
        ends = done | (t == cfg.horizon - 1)
        total = total + (discount * reward).sum()
        total = total + torch.where(ends, discount * cfg.gamma * next_value, 0.0).sum()
        discount = torch.where(done, 1.0, discount * cfg.gamma)
        for name, x in (("reward", reward), ("done", done), ("next_value", next_value)):
            seen[name].append(x.detach())
    return total / (cfg.num_envs * cfg.horizon), obs, seen


def value_targets(seen: dict[str, list[Tensor]], gamma: float) -> Tensor:
    """Discounted rewards up to the end of the window or episode, and the value of what follows."""
    target, targets = seen["next_value"][-1], []
    for t in reversed(range(len(seen["reward"]))):
        target = torch.where(seen["done"][t], seen["next_value"][t], target)
        target = seen["reward"][t] + gamma * target
        targets.append(target)
    return torch.cat(targets[::-1])


def fit_value(net: nn.Module, optimizer, inputs: Tensor, targets: Tensor, epochs: int) -> float:
    """Regress the value on the targets; return the last loss."""
    for _ in range(epochs):
        for index in torch.randperm(len(inputs), device=inputs.device).chunk(4):
            loss = (net(inputs[index])[:, 0] - targets[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(envs, policy: Policy, seed: int) -> tuple[Tensor, Tensor]:
    """Returns of one whole episode per world, and all its observations (steps, worlds, obs)."""
    obs, _ = envs.reset(seed=seed)
    returns = torch.zeros(envs.num_envs, device=obs.device)
    alive = torch.ones(envs.num_envs, dtype=torch.bool, device=obs.device)
    trace = []
    while alive.any():
        obs, reward, terminated, truncated, info = envs.step(policy(obs))
        returns += torch.where(alive, reward, 0.0)
        # not obs: at the end of an episode that is the start of the next
        trace.append(torch.where(alive[:, None], info["final_obs"], torch.nan))
        alive &= ~(terminated | truncated)
    return returns, torch.stack(trace)


@torch.no_grad()
def record_video(cfg: Config, policy: Policy, folder: Path) -> str:
    """Film one episode; return where it is, or why it could not be filmed."""
    try:
        env: Any = gym.make(cfg.env, render_mode="rgb_array", device="cpu")
        quality = env.unwrapped.model.vis.quality  # where there is no GPU to draw with
        quality.shadowsize, quality.offsamples = 1024, 0
        env = gym.wrappers.RecordVideo(env, str(folder), name_prefix="episode", disable_logger=True)
        obs, _ = env.reset(seed=cfg.seed + 1)
        done = False
        while not done:
            action = policy(torch.as_tensor(obs)[None])[0].numpy()
            obs, _, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
        env.close()
    except gym.error.DependencyNotInstalled as error:
        return f"no video: {error}"
    return f"video: {folder}/episode-episode-0.mp4"


def write_curve(curve: list[tuple[int, int, float, float]], title: str, folder: Path) -> None:
    """Write the learning curve down, and draw it."""
    with (folder / "curve.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("iteration", "steps", "seconds", "return"), *curve])
    iterations, _, _, returns = zip(*curve, strict=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(iterations, returns, marker=".")
    axes.set(xlabel="iteration", ylabel="return of an episode, without noise", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "learning_curve.png", dpi=120)
    plt.close(figure)


def verdict(env: str, trace: Tensor, before: float, after: float) -> str:
    """Say plainly what was reached."""
    if "CartPole" not in env:
        better = "better than" if after > before else "NOT better than"
        return f"The policy is {better} it was before training."
    upright = (trace[-50:, :, 1] > 0.95).all(dim=0)  # the last 2 s, within 18 degrees
    count, worlds = int(upright.sum()), len(upright)
    text = f"{count} of {worlds} poles stand upright (within 18 degrees) through the last 2 s"
    return f"Swung up: {text}." if count == worlds else f"NOT swung up: only {text}."


def main(cfg: Config) -> None:
    """Train, evaluate, and write the results."""
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(1)  # the networks are small
    folder = cfg.out / cfg.env
    folder.mkdir(parents=True, exist_ok=True)
    print("Compiling the physics; the first time this takes a minute or two.", flush=True)
    make = {"arrays": "torch", "device": cfg.device, "window": cfg.horizon}
    envs: Any = gym.make_vec(cfg.env, num_envs=cfg.num_envs, **make)
    eval_envs: Any = gym.make_vec(cfg.env, num_envs=cfg.eval_envs, **make)
    obs, _ = envs.reset(seed=cfg.seed)
    nobs, high = obs.shape[1], torch.as_tensor(envs.single_action_space.high)

    policy = Policy(Normalize(nobs), nobs, high, cfg.hidden, cfg.noise).to(obs.device)
    value_net = mlp(nobs, cfg.hidden, 1).to(obs.device)
    slow_value_net = copy.deepcopy(value_net)  # follows the other one; what the policy sees
    actor = torch.optim.Adam(
        [*policy.net.parameters(), policy.log_std], lr=cfg.lr, betas=(0.7, 0.95)
    )
    critic = torch.optim.Adam(value_net.parameters(), lr=cfg.value_lr, betas=(0.7, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(actor, 1.0, 0.1, cfg.iterations)
    writer = SummaryWriter(str(folder))

    test_seed = cfg.seed + 1_000_000  # starts that training has not been chosen by
    before = evaluate(eval_envs, policy, test_seed)[0].mean().item()
    best, best_policy, start = -float("inf"), copy.deepcopy(policy), time.perf_counter()
    curve = [(0, 0, 0.0, before)]
    progress = trange(cfg.iterations, desc=cfg.env)
    try:
        for iteration in progress:
            fresh = torch.rand(cfg.num_envs) < cfg.restart
            if fresh.any():
                obs, _ = envs.reset(options={"reset_mask": fresh})
            score, obs, seen = rollout(
                envs,
                obs.detach(),
                policy,
                lambda x: slow_value_net(policy.normalize(x))[:, 0],
                cfg,
            )
            actor.zero_grad()
            (-score).backward()
            norm = nn.utils.clip_grad_norm_(policy.parameters(), cfg.clip_norm)
            if norm.isfinite():
                actor.step()
            schedule.step()
            envs.detach()  # the next window begins here, without history

            batch = torch.cat(seen["obs"])
            policy.normalize.update(batch)
            targets = value_targets(seen, cfg.gamma)
            inputs = policy.normalize(batch)
            value_loss = fit_value(value_net, critic, inputs, targets, cfg.value_epochs)
            with torch.no_grad():
                for slow, fast in zip(
                    slow_value_net.parameters(), value_net.parameters(), strict=True
                ):
                    slow.lerp_(fast, 0.8)

            steps = (iteration + 1) * cfg.num_envs * cfg.horizon
            writer.add_scalar("train/reward", torch.stack(seen["reward"]).mean(), steps)
            writer.add_scalar("train/value_loss", value_loss, steps)
            writer.add_scalar("train/gradient_norm", norm, steps)
            if (iteration + 1) % cfg.eval_every == 0 or iteration + 1 == cfg.iterations:
                result = evaluate(eval_envs, policy, cfg.seed)[0].mean().item()
                curve.append((iteration + 1, steps, time.perf_counter() - start, result))
                writer.add_scalar("eval/return", result, steps)
                progress.set_postfix({"return": f"{result:.1f}"})
                if result > best:
                    best, best_policy = result, copy.deepcopy(policy)
    except KeyboardInterrupt:
        progress.close()
        print("Stopped; what follows is of the best policy so far.")
    writer.close()

    returns, trace = evaluate(eval_envs, best_policy, test_seed)
    after = returns.mean().item()
    write_curve(curve, cfg.env, folder)
    save_policy(folder / "policy.pt2", best_policy, nobs)
    print(f"Return of an episode: {before:.1f} before, {after:.1f} after training.")
    print(verdict(cfg.env, trace, before, after))
    print(f"Results are in {folder}; {record_video(cfg, best_policy.cpu(), folder)}")


if __name__ == "__main__":
    env = tyro.cli(Config).env
    main(tyro.cli(Config, default=Config(env=env, **TASKS.get(env, {}))))
