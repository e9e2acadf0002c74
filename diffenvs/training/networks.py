"""The networks that all scripts build on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffenvs.training.processes import Processes


class Normalize(nn.Module):
    """Observations in units of their running mean and standard deviation.

    Its buffers are changed in place, so that a captured CUDA graph sees it.

    Args:
        size: Of an observation.
        rate: How much a batch counts at least; 0: as much as any other row so far.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, processes: Processes | None = None) -> None:
        """Take a batch (n, size) into account, and those of as many rows of other processes."""
        x = x.detach()
        mean, rows = x.mean(0), len(x)
        if processes is None or processes.count == 1:
            var = x.var(0, unbiased=False)
        else:
            processes.mean_([mean])
            var = (x - mean).square().mean(0)
            processes.mean_([var])
            rows *= processes.count
        total = self.count + rows
        new = (rows / total).clamp(min=self.rate).to(mean.dtype)
        delta = mean - self.mean
        self.var.add_(new * (var - self.var) + new * (1.0 - new) * delta.square())
        self.mean.add_(new * delta)
        self.count.copy_(total)

    @torch.no_grad()
    def update_under(
        self, x: Tensor, heads: Iterable[nn.Linear], processes: Processes | None = None
    ) -> None:
        """Take a batch into account, and keep what is given in these units as it is.

        So that networks need not learn again what they knew: van Hasselt et al. 2016,
        arXiv:1602.07714. Before the first batch they know nothing, and nothing is kept.

        Args:
            x: The batch, (n, size).
            heads: Last layers of networks whose `inverse` is read.
            processes: See `update`.
        """
        known, mean, unit = self.count >= 1.0, self.mean.clone(), self._unit()
        self.update(x, processes)
        shrink = torch.where(known, unit / self._unit(), 1.0)
        shift = torch.where(known, (mean - self.mean) / self._unit(), 0.0)
        for head in heads:
            head.weight.mul_(shrink[:, None])
            head.bias.mul_(shrink).add_(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return (x - self.mean) / self._unit()

    def inverse(self, x: Tensor) -> Tensor:
        """Undo it."""
        return x * self._unit() + self.mean

    def _unit(self) -> Tensor:
        return self.var.sqrt() + 1e-3


def mlp(*sizes: int) -> nn.Sequential:
    """Layers of the given sizes, input first; hidden ones with LayerNorm and SiLU."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(size_in, size_out), nn.LayerNorm(size_out), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
