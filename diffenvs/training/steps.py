"""Steps of a policy of a wanted length, measured in what it does and not in its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffenvs.training.processes import Processes

CHANGE = 1.2
"""Factor by which a step changes the learning rate of the next."""
SMALLEST = 0.01
"""The least part of the learning rate."""


def divergence(mean: Tensor, log_std: Tensor, new_mean: Tensor, new_log_std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of Gaussians, from the first to the second, a sum over the last.

    Squashed ones have the same.
    """
    spread = (2.0 * log_std).exp() + (mean - new_mean).square()
    return (new_log_std - log_std + 0.5 * spread / (2.0 * new_log_std).exp() - 0.5).sum(dim=-1)


class StepSize(nn.Module):
    """The part of a learning rate with which a policy moves as far as wanted in a step.

    After rsl_rl's adaptive learning rate; the rate itself is the upper limit.
    """

    part: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("part", torch.ones(()))

    @torch.no_grad()
    def steer(self, kl: Tensor, wanted: float, processes: Processes) -> None:
        """Shorten steps after one with more than twice the wanted divergence, or lengthen them.

        They are longer after one with less than half of it.
        """
        kl = kl.mean()
        processes.mean_([kl])
        shorter, longer = (kl > 2.0 * wanted).float(), (kl < 0.5 * wanted).float()
        self.part.mul_(CHANGE ** (longer - shorter)).clamp_(SMALLEST, 1.0)
