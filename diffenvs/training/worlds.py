"""Worlds that have diverged, and episodes that do not begin all at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGE = 1e6
"""A world with a larger number in its observation has diverged, as one with a NaN has."""


def sound(x: Tensor) -> Tensor:
    """Say of each world whether its numbers (..., n) are those of one that has not diverged."""
    return (x.abs() < LARGE).all(dim=-1)  # NaN is not


def renew(envs: Any, obs: Tensor) -> tuple[Tensor, int]:
    """Begin new episodes in the worlds that have diverged; this waits for the device.

    Returns:
        The observations, without history, and the number of these worlds.
    """
    lost = ~sound(obs).cpu()
    count = int(lost.sum())
    if count:
        obs, _ = envs.reset(options={"reset_mask": lost})
    return obs.detach(), count


def ends(done: Tensor, diverged: Tensor) -> Tensor:
    """Say of steps (steps, num_envs) whether what follows them is told by a value alone.

    It is where an episode ends, and before a step in which the world diverges, of which nothing
    is known.

    Args:
        done: Whether an episode ended.
        diverged: Whether the world had diverged.
    """
    followed = torch.zeros_like(diverged[:1])
    return done | torch.cat([diverged[1:], followed])


def spread_episodes(envs: Any) -> None:
    """Let the first episodes end at different times, as if they had begun before.

    Otherwise all worlds of a task without falls would be in the same phase for ever.
    """
    snapshot = envs.get_state()
    elapsed = torch.randint(envs.rollout.max_episode_steps, (envs.num_envs,))
    snapshot.arrays["elapsed"][:] = elapsed.numpy()
    envs.set_state(snapshot)
