"""Runs shac.py so that worlds, episodes and noise do not depend on the number of processes.

torchrun --nproc-per-node=2 tests/shac_processes.py FOLDER
"""

import os
import sys
from pathlib import Path
from unittest import mock

import torch
from first_order import ENV, load
from torch.optim.optimizer import register_optimizer_step_pre_hook

from diffenvs import training

WORLDS = 8  # of all processes
SHARED = 3  # iterations with the same noise; behind them it is that of torch
ITERATIONS = 6


def train(out, rank, count):
    """Train, and leave what the optimisers were given in the first iterations.

    Args:
        out: Folder.
        rank: Number of this process.
        count: Number of processes.

    Returns:
        Gradients of the steps of policy and critic, flat.
    """
    shac = load("shac")
    cfg = shac.Config(
        env=ENV,
        num_envs=WORLDS // count,
        horizon=6,
        iterations=ITERATIONS,
        eval_every=0,
        eval_envs=1,
        gymnasium_episodes=0,
        device="cpu",
        video=False,
        reward="smooth",
        critic_epochs=2,
        critic_batches=1,  # all that was seen, in whatever order
        target_rate=1.0,
        hidden=(16, 16),
        clip_worlds=1e9,  # medians are those of a process
        clip_norm=1e9,
        center=True,
        out=out,
    )
    mine = slice(rank * cfg.num_envs, (rank + 1) * cfg.num_envs)
    true_randn, rollout, windows, ends = torch.randn, shac.rollout, [], []
    gradients = []

    def randn(steps, worlds, nu, device):
        draw = torch.Generator().manual_seed(len(windows))
        return true_randn(steps, WORLDS, nu, generator=draw)[:, mine]

    def shared_rollout(*given):
        with mock.patch.object(torch, "randn", randn if len(windows) < SHARED else true_randn):
            found = rollout(*given)
        windows.append(found[0])
        ends.append(given[4].end.clone())  # MeanReward's
        return found

    def shared_start(envs):
        """Some worlds are about to fall, and some to be cut."""
        snapshot = envs.get_state()
        snapshot.arrays["qpos"][:, 1] = torch.linspace(-0.19, 0.15, WORLDS)[mine].numpy()
        snapshot.arrays["elapsed"][:] = torch.linspace(990, 1000 - 2, WORLDS).int()[mine].numpy()
        envs.set_state(snapshot)

    def take(optimizer, *_):
        grads = [x.grad.flatten() for group in optimizer.param_groups for x in group["params"]]
        gradients.append(torch.cat(grads).clone())

    handle = register_optimizer_step_pre_hook(take)
    try:
        with (
            mock.patch.object(training, "spread_episodes", shared_start),
            mock.patch.object(shac, "rollout", shared_rollout),
        ):
            shac.main(cfg)
    finally:
        handle.remove()
    ended = torch.stack([window.done for window in windows[:SHARED]])
    fallen = [w.done & (w.next_value == end) for w, end in zip(windows, ends, strict=True)]
    assert ended.any() and not ended.all()
    assert torch.stack(fallen[1:SHARED]).any() and ends[1] < 0.0
    return gradients[: 3 * SHARED]


if __name__ == "__main__":
    rank, count, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1])
    torch.save(train(folder, rank, count), folder / f"gradients{rank}.pt")
