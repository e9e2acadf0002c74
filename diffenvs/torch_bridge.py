"""torch tensors in and out: a recorded step is a node of torch's autograd graph.

This is the one file that imports torch. A step takes the actions and the state before it, and
gives the outputs and the state after it, so that gradients chain through time by themselves and a
loss may be written on the state. On CUDA all work is put on torch's current stream, and the host
waits for none of it; only `Rollout` looks now and then whether contacts were lost.

Tensors and Warp arrays share memory at the edge. Two kinds of copies are needed: the action is kept
with the record, where nobody can change it before the gradient is taken, and what is returned is
the user's own. That is one tensor for each output: tensors cut out of one copy of all would share
its version, so that changing a reward in place would look like a change of the observations, and a
list of rewards would keep all else alive.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import warp as wp

from diffenvs import env_kernels as kernels
from diffenvs.env_state import EnvState
from diffenvs.packed import StepOutputs
from diffenvs.rollout import Rollout


class TorchBridge:
    """See `diffenvs.numpy_bridge` for what a bridge is."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.name = rollout.task.name
        self.device = torch.device(wp.device_to_torch(rollout.device))
        self._state: EnvState | None = None
        self._obs: tuple[torch.Tensor, int] | None = None  # of grad_step, and when it was made
        arrays = rollout.packed.arrays
        self._outputs = {
            name: self._view(arrays[name]) for name in StepOutputs._fields if name in arrays
        }
        self._state_views = [self._view(array) for array in rollout.state.differentiable()]
        self._adjoint: tuple[dict[str, torch.Tensor], list[torch.Tensor]] | None = None

    def stream(self) -> Any:
        """Context in which Warp uses torch's current stream."""
        if self.device.type != "cuda":
            return nullcontext()
        stream = wp.stream_from_torch(torch.cuda.current_stream(self.device))
        return wp.ScopedStream(stream, sync_enter=False)

    def read(self, array: wp.array) -> torch.Tensor:
        """Copy an array into a tensor."""
        return self._view(array).clone()

    def _view(self, array: wp.array) -> torch.Tensor:
        """The tensor that shares the memory of an array."""
        if array.size == 0:  # there is no memory
            return torch.zeros(array.shape, device=self.device)
        return wp.to_torch(array, requires_grad=False)

    def step(self, actions: Any, record: bool) -> StepOutputs:
        """Step."""
        self._check(actions)
        if record:
            self._refuse_inference("grad_step", "use step()")
            out, self._state = self._grad_step(actions)
        else:
            with self.stream():
                self.rollout.step(wp.from_torch(actions.detach().contiguous()))
                out = StepOutputs(**{name: view.clone() for name, view in self._outputs.items()})
            self._state = None
        self._obs = (out.obs, out.obs._version) if record else None
        if self.rollout.mode == kernels.SAME_STEP:
            out = out._replace(done=out.terminated | out.truncated)
        return out

    def _grad_step(self, actions: torch.Tensor) -> tuple[StepOutputs, EnvState]:
        """Make a step as a node of the graph; its outputs without a gradient do not pass by it."""
        names = [name for name in ("obs", "reward", "final_obs") if name in self._outputs]
        found = _GradStep.apply(self, names, actions, *self.state())
        out = dict(zip(names, found[: len(names)], strict=True))
        out |= {name: view.clone() for name, view in self._outputs.items() if name not in names}
        return StepOutputs(**out), EnvState(*found[len(names) :])

    def _refuse_inference(self, what: str, instead: str) -> None:
        """Say that a gradient is asked for where torch keeps none."""
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{self.name}: {what} has no gradient under torch.inference_mode; {instead}"
            )

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

    def adjoint(self) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Views of the buffers of cotangents: what comes in, by name, and what goes out."""
        if self._adjoint is None:
            adj = self.rollout.adj
            names = ("obs", "reward", "final_obs", *EnvState._fields)
            arrays = (adj.obs, adj.reward, adj.final_obs, *adj.next_state.differentiable())
            targets = {name: self._view(x) for name, x in zip(names, arrays, strict=True)}
            sources = [self._view(x) for x in (adj.action, *adj.state.differentiable())]
            self._adjoint = targets, sources
        return self._adjoint

    def state(self) -> EnvState:
        """The present state: the tensors from which the next step starts."""
        if self._state is None:
            self._state = EnvState(*(view.clone() for view in self._state_views))
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
                self._refuse_inference(
                    "a reset of some worlds after grad_step", "do it outside, or detach() first"
                )
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
        ctx: Any,
        bridge: TorchBridge,
        names: list[str],
        actions: Any,
        qpos: Any,
        qvel: Any,
        act: Any,
    ) -> tuple[torch.Tensor, ...]:
        rollout = bridge.rollout
        with bridge.stream():
            ctx.ticket = rollout.grad_step(wp.from_torch(actions.detach().contiguous()))
            views = [*(bridge._outputs[name] for name in names), *bridge._state_views]
            outputs = tuple(view.clone() for view in views)
        ctx.bridge, ctx.names = bridge, names
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(torch.empty(0))  # freed with the graph, so that torch sees a reuse
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # raises where the graph was freed by an earlier backward
        bridge, rollout, names = ctx.bridge, ctx.bridge.rollout, ctx.names
        targets, sources = bridge.adjoint()
        with bridge.stream():
            rollout.check(ctx.ticket)
            given = dict(zip((*names, *EnvState._fields), cotangents, strict=True))
            for name, target in targets.items():
                if given.get(name) is None:
                    target.zero_()
                else:
                    target.copy_(given[name])
            rollout.backward(ctx.ticket)
            needed = ctx.needs_input_grad[2:]
            found = [x.clone() if n else None for x, n in zip(sources, needed, strict=True)]
        return (None, None, *found)
