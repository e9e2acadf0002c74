"""The networks that all scripts build on."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffenvs.training.processes import Processes


class Normalize(nn.Module):
    """Observations in units of their running mean and standard deviation.

    Its buffers are changed in place, so that a captured CUDA graph sees it.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
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
        new = (rows / total).to(mean.dtype)
        delta = mean - self.mean
        self.var.add_(new * (var - self.var) + new * (1.0 - new) * delta.square())
        self.mean.add_(new * delta)
        self.count.copy_(total)

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
