"""torch tensors in and out: a recorded step is a node of torch's autograd graph.

This is the one file that imports torch. A step takes the actions and the state before it, and
gives the outputs and the state after it, so that gradients chain through time by themselves and a
loss may be written on the state. Tensors and Warp arrays share memory at the edge; what is
returned is a copy, which later steps do not change. On CUDA all work is put on torch's current
stream.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import warp as wp

from diffenvs.env_state import EnvState
from diffenvs.rollout import Rollout


class TorchBridge:
    """See `diffenvs.numpy_bridge` for what a bridge is."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.name = rollout.task.name
        self.device = torch.device(wp.device_to_torch(rollout.device))
        self._state: EnvState | None = None
        self._obs: tuple[torch.Tensor, int] | None = None  # of grad_step, and when it was made

    def stream(self) -> Any:
        """Context in which Warp uses torch's current stream."""
        if self.device.type != "cuda":
            return nullcontext()
        stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
        return wp.ScopedStream(stream, sync_enter=False)

    def read(self, array: wp.array) -> torch.Tensor:
        """Copy an array into a tensor."""
        if array.size == 0:
            return torch.zeros(array.shape, device=self.device)
        return wp.to_torch(array, requires_grad=False).clone()

    def step(self, actions: Any, record: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Step; return obs, reward and final_obs."""
        self._check(actions)
        if record:
            obs, reward, final_obs, *state = _GradStep.apply(self, actions, *self.state())
            self._state = EnvState(*state)
        else:
            rollout = self.rollout
            with self.stream():
                rollout.step(wp.from_torch(actions.detach().contiguous()))
                out = rollout.step_out
                obs, reward, final_obs = map(self.read, (rollout.obs, out.reward, out.obs))
            self._state = None
        self._obs = (obs, obs._version) if record else None
        return obs, reward, final_obs

    def _check(self, actions: Any) -> None:
        """Refuse what is not a batch of actions on the device of the worlds."""
        shape = (self.rollout.num_envs, self.rollout.physics.nu)
        wanted = f"a torch.Tensor of float32 with the shape {shape} on {self.device}"
        if not isinstance(actions, torch.Tensor):
            raise TypeError(f"{self.name}: actions are {wanted}, not {type(actions)}")
        if actions.dtype != torch.float32:
            raise TypeError(f"{self.name}: actions are {wanted}, not of dtype {actions.dtype}")
        if tuple(actions.shape) != shape:
            given = tuple(actions.shape)
            raise ValueError(f"{self.name}: actions are {wanted}, not of shape {given}")
        if actions.device != self.device:
            raise ValueError(f"{self.name}: actions are {wanted}, not on {actions.device}")
        if self.device.type == "cpu" and not actions.isfinite().all():  # on CUDA looking would wait
            raise ValueError(f"{self.name}: actions must be finite")

    def state(self) -> EnvState:
        """The present state: the tensors from which the next step starts."""
        if self._state is None:
            with self.stream():
                state = self.rollout.state
                self._state = EnvState(*map(self.read, (state.qpos, state.qvel, state.act)))
        return self._state

    def set_state(self, qpos: Any, qvel: Any, act: Any) -> None:
        """Put the worlds into a state; gradients flow back into the tensors that were given."""
        given = [
            torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in (qpos, qvel, act)
        ]
        with self.stream():
            # An empty tensor has no memory to share.
            arrays = [wp.from_torch(x.detach().contiguous()) if x.numel() else None for x in given]
            self.rollout.set_state(arrays[0], arrays[1], arrays[2])
        self.begin()
        self._state = EnvState(*given)

    def begin(self) -> None:
        """All worlds are fresh, or their history is to be forgotten."""
        self._state = None
        self._obs = None

    def reset(self, mask: wp.array) -> torch.Tensor:
        """Some worlds are fresh; the others keep their history. Return the observations."""
        with self.stream():
            fresh = wp.to_torch(mask).clone()[:, None]
            obs = self.read(self.rollout.obs)
            if self._obs is not None:
                before, version = self._obs
                if before._version != version:
                    raise RuntimeError(
                        f"{self.name}: the observations of the last grad_step were changed in "
                        "place, and reset(options={'reset_mask': ...}) has to return them for the "
                        "worlds that go on; write obs = 2 * obs in place of obs.mul_(2)"
                    )
                obs = torch.where(fresh, obs, before)
            if self._state is not None:
                last, self._state = self._state, None
                now = self.state()
                self._state = EnvState(
                    *(torch.where(fresh, new, old) for new, old in zip(now, last, strict=True))
                )
        self._obs = None if self._obs is None else (obs, obs._version)
        return obs


class _GradStep(torch.autograd.Function):
    """One recorded step, with what it depends on as inputs and what depends on it as outputs."""

    @staticmethod
    def forward(
        ctx: Any, bridge: TorchBridge, actions: Any, qpos: Any, qvel: Any, act: Any
    ) -> tuple[torch.Tensor, ...]:
        rollout, out, state = bridge.rollout, bridge.rollout.step_out, bridge.rollout.state
        with bridge.stream():
            ctx.ticket = rollout.grad_step(wp.from_torch(actions.detach().contiguous()))
            arrays = (rollout.obs, out.reward, out.obs, state.qpos, state.qvel, state.act)
            outputs = tuple(map(bridge.read, arrays))
        ctx.bridge = bridge
        ctx.save_for_backward(torch.empty(0))  # freed with the graph, so that torch sees a reuse
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # raises where the graph was freed by an earlier backward
        bridge, rollout = ctx.bridge, ctx.bridge.rollout
        adj = rollout.adj
        nxt, start = adj.next_state, adj.state
        with bridge.stream():
            rollout.check(ctx.ticket)
            targets = (adj.obs, adj.reward, adj.final_obs, nxt.qpos, nxt.qvel, nxt.act)
            for target, cotangent in zip(targets, cotangents, strict=True):
                if target.size:
                    target.assign(wp.from_torch(cotangent.detach().contiguous()))
            rollout.backward(ctx.ticket)
            sources = (adj.action, start.qpos, start.qvel, start.act)
            return (None, *map(bridge.read, sources))
