"""A half cheetah turns a somersault: open-loop actions by gradient descent through the contacts.

24 worlds start from the same state, each with its own 30 random actions (1.5 s). Adam follows the
gradient of a cost of the states: turned once over, back on its feet, at rest. There is no policy,
no value and no feedback. Most worlds would never find out how to turn over, so every 20 iterations
all go on from the best quarter of them.

    python examples/trajectory_optimization.py

One sees the cost of every world fall (PNG: cost, pitch and height of the torso, actions of the
best world), and is told whether the cheetah came down on its feet.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import diffenvs  # noqa: F401  (registers the environments)

STEPS = 30
LANDED = 4  # the last steps, 0.2 s, in which the cheetah is to stand
TURN = 2 * math.pi  # rad, forwards


def clip_worlds(grad: Tensor) -> Tensor:
    """Limit what a state hands back to the step before it, world by world.

    The gradient is exact, and of no use where it is huge: a foot that hits the floor a little
    earlier changes everything after it. Clipped, it keeps its direction at each such moment.
    """
    scale = 10.0 / grad.norm(dim=1, keepdim=True).clamp(min=10.0)
    return torch.nan_to_num(grad * scale)


def play(envs: Any, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities after every step, (STEPS, num_envs, 9); actions (STEPS, .., 6)."""
    start = torch.as_tensor(envs.task.init_qpos).repeat(envs.num_envs, 1)
    envs.set_state(start, torch.zeros(envs.num_envs, envs.model.nv))
    qpos, qvel = [], []
    for action in actions:
        envs.grad_step(action)
        for part, seen in ((envs.state.qpos, qpos), (envs.state.qvel, qvel)):
            part.register_hook(clip_worlds)
            seen.append(part)
    return torch.stack(qpos), torch.stack(qvel)


def cost_of(qpos: Tensor, qvel: Tensor, actions: Tensor) -> Tensor:
    """Cost of every world, (num_envs,). A cheetah that stands has z = -0.1 m and all else zero."""
    q, v = qpos[-LANDED:], qvel[-LANDED:]
    turned = (q[..., 2] - TURN).square()
    standing = 10.0 * (q[..., 1] + 0.1).square() + 0.2 * q[..., 3:].square().sum(-1)
    resting = 0.05 * v[..., :2].square().sum(-1) + 0.02 * v[..., 2].square()
    effort = 0.02 * actions.square().sum(-1)
    return (turned + standing + resting).mean(0) + effort.mean(0)


def plot(costs: Tensor, qpos: Tensor, actions: Tensor, dt: float, path: Path) -> None:
    """Draw the costs of all worlds, and state and actions of the best one."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    time = [dt * (step + 1) for step in range(STEPS)]
    axes[0].semilogy(costs.numpy(), color="0.8", linewidth=0.8)
    axes[0].semilogy(costs.amin(1).numpy(), color="C0", linewidth=2, label="the best")
    axes[0].set(title="cost of every world", xlabel="iteration")
    axes[0].legend(frameon=False)
    axes[1].plot(time, (qpos[:, 2] / TURN).numpy(), color="C0", label="turns of the torso")
    axes[1].plot(time, (0.7 + qpos[:, 1]).numpy(), color="C1", label="height of the torso (m)")
    axes[1].axhline(1.0, color="0.6", linewidth=0.8, linestyle="--")
    axes[1].set(title="state of the best world", xlabel="time (s)")
    axes[1].legend(frameon=False)
    image = axes[2].imshow(
        actions.T.numpy(),
        aspect="auto",
        cmap="RdBu",
        vmin=-1,
        vmax=1,
        extent=(0, STEPS * dt, 5.5, -0.5),
    )
    names = ["hind thigh", "hind shin", "hind foot", "fore thigh", "fore shin", "fore foot"]
    axes[2].set_yticks(range(6), names)
    axes[2].set(title="actions of the best world", xlabel="time (s)")
    figure.colorbar(image, ax=axes[2])
    for axis in axes[:2]:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def verdict(qpos: Tensor) -> str:
    """Say plainly how the best world ended; qpos (STEPS, 9)."""
    turns, height = qpos[-LANDED:, 2] / TURN, 0.7 + qpos[-LANDED:, 1]
    landed = bool(((turns - 1.0).abs() < 0.1).all() and ((height - 0.6).abs() < 0.2).all())
    how = "A somersault" if landed else "NO somersault"
    return (
        f"{how}: {turns[-1]:.2f} turns at the end, and in the last 0.2 s a torso "
        f"{height.min():.2f} to {height.max():.2f} m high, {turns.min():.2f} to "
        f"{turns.max():.2f} turns."
    )


def main(iterations: int, num_envs: int, lr: float, seed: int, out: Path) -> None:
    """Optimise, plot, and say what was reached."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    print("Compiling the physics; the first time this takes a minute or two.", flush=True)
    envs: Any = gym.make_vec(
        "DiffHalfCheetah-v0", num_envs=num_envs, arrays="torch", device="cpu", window=STEPS
    )
    envs.reset(seed=seed)
    logits = torch.nn.Parameter(0.3 * torch.randn(STEPS, num_envs, 6))
    adam = torch.optim.Adam([logits], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min(1.0, 2 * (1 - i / iterations)))
    costs, best = [], (math.inf, torch.empty(0), torch.empty(0))
    for iteration in range(iterations):
        actions = torch.tanh(logits)  # within the limits of the motors
        qpos, qvel = play(envs, actions)
        cost = cost_of(qpos, qvel, actions)
        adam.zero_grad()
        cost.sum().backward()  # worlds do not touch: each gets the gradient of its own cost
        assert logits.grad is not None
        logits.grad /= logits.grad.norm(dim=(0, 2), keepdim=True).clamp(min=1.0)
        adam.step()
        schedule.step()
        if (iteration + 1) % 20 == 0 and iteration < 0.7 * iterations:
            winners = cost.argsort()[: max(1, num_envs // 4)]
            copies = winners[torch.arange(num_envs) % len(winners)]
            logits.data = logits.data[:, copies] + 0.1 * torch.randn_like(logits)
        costs.append(cost.detach())
        lowest, world = cost.detach().min(0)
        if lowest < best[0]:
            best = (float(lowest), qpos[:, world].detach(), actions[:, world].detach())
        if iteration % 10 == 0 or iteration + 1 == iterations:
            print(f"iteration {iteration:3d}: cost {lowest:7.3f}, median {cost.median():7.3f}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "trajectory_optimization.png"
    plot(torch.stack(costs), best[1], best[2], envs.dt, path)
    print(verdict(best[1]))
    print(f"The picture is {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--iterations", type=int, default=80, help="steps of Adam")
    parser.add_argument("--num-envs", type=int, default=24, help="worlds, each with own actions")
    parser.add_argument(
        "--lr", type=float, default=0.1, help="rate of Adam; falls in the second half"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/trajectory_optimization"))
    main(**vars(parser.parse_args()))
