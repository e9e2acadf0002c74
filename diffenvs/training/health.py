"""Gradients of single worlds: masked where they are not finite, clipped, and counted.

The gradient of a batch is a mean over worlds, so that one world whose gradient explodes (a stiff
contact, a state that diverges) can drown or spoil all others. Hooks on the tensors through which
the gradient of a world passes on its way back, its actions and its states, look at its row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class GradientHealth:
    """Watches the gradients of the worlds of a window.

    Args:
        limit: A world's gradient longer than so many medians over the worlds is cut to that.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._actions: list[Tensor] = []

    def watch(self, x: Tensor) -> None:
        """Watch the gradient of a tensor with a row per world, (num_envs, n)."""
        if x.requires_grad and x.numel():
            # None where nothing depends on it
            x.register_hook(lambda grad: None if grad is None else self._treat(grad))

    def watch_action(self, action: Tensor) -> None:
        """Watch it, and keep it for `cosine`."""

        def keep(grad: Tensor) -> Tensor:
            grad = self._treat(grad)
            self._actions.append(grad)
            return grad

        action.register_hook(keep)

    def _treat(self, grad: Tensor) -> Tensor:
        """Mask and clip the rows."""
        norm = grad.norm(dim=1, keepdim=True)
        finite = norm.isfinite()
        # of the worlds that have one: where nothing depends on the most, the median would be zero
        allowed = self.limit * torch.where(finite & (norm > 0.0), norm, torch.nan).nanmedian()
        clipped = finite & (norm > allowed)
        self._seen.append((finite, clipped))
        return torch.where(finite, grad * torch.where(clipped, allowed / norm, 1.0), 0.0)

    def take(self) -> dict[str, Tensor]:
        """Return what was seen since the last call, and forget it.

        Returns:
            "nonfinite_worlds": worlds that had a gradient that was not finite, and was masked;
            "clipped_worlds": the share of worlds whose gradient was clipped, a mean over the places
            where it is.
        """
        finite = torch.stack([finite for finite, _ in self._seen]).all(dim=0)
        clipped = torch.stack([clipped for _, clipped in self._seen])
        self._seen.clear()
        self._actions.clear()
        return {"nonfinite_worlds": (~finite).sum(), "clipped_worlds": clipped.float().mean()}

    def cosine(self, actions: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the cosine between the gradients of the worlds of even and of odd number.

        It says how much of the gradient is common to all worlds: near 1 half of them would do,
        near 0 the batch is too small or the window too long. It costs two passes through the
        policy and none through the physics, for the gradients of the actions are known.

        Args:
            actions: The watched actions, made once more, (horizon, num_envs, nu).
            parameters: Those of the policy.
        """
        grads = torch.stack(self._actions[::-1])  # the last step's gradient came first
        even = torch.arange(grads.shape[1], device=grads.device) % 2 == 0
        parameters, halves = list(parameters), []
        for mask in (even, ~even):
            weight = grads * mask[:, None]
            found = torch.autograd.grad(actions, parameters, weight, retain_graph=True)
            halves.append(torch.cat([x.flatten() for x in found]))
        return torch.nn.functional.cosine_similarity(*halves, dim=0)
