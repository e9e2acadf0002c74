"""Warp arrays in and out: a recorded step puts its adjoint on the active `wp.Tape`.

Every step returns fresh arrays; those of a recorded step, and the state after it, require
gradients. `tape.backward()` reads their `.grad`, adds to the `.grad` of the action and of the state
before the step, and so goes back through any mix of steps and of the user's own kernels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import warp as wp

from diffenvs import env_kernels as kernels
from diffenvs.env_state import EnvState
from diffenvs.packed import StepOutputs
from diffenvs.physics.tape import accumulate, active_tape, paused_tape
from diffenvs.rollout import Rollout, Ticket


class WarpBridge:
    """See `diffenvs.numpy_bridge` for what a bridge is."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.name = rollout.task.name
        self._state: EnvState | None = None
        self._obs: wp.array | None = None

    def stream(self) -> Any:
        """Context in which Warp uses the user's stream: its own current one."""
        return nullcontext()

    def read(self, array: wp.array, requires_grad: bool = False) -> wp.array:
        """Copy an array."""
        with paused_tape():
            return wp.clone(array, requires_grad=requires_grad)

    def step(self, actions: Any, record: bool) -> StepOutputs:
        """Step."""
        self._check(actions)
        rollout = self.rollout
        before = self.state() if record else None
        tape = active_tape()
        with paused_tape():
            ticket = rollout.grad_step(actions) if record else rollout.step(actions)
        out = StepOutputs(
            **{
                name: self.read(array, record and name in ("obs", "reward", "final_obs"))
                for name, array in rollout.packed.arrays.items()
                if name in StepOutputs._fields
            }
        )
        if rollout.mode == kernels.SAME_STEP:
            out = out._replace(done=self.read(rollout.last.reset))
        self.begin()
        if not record:
            return out
        after, self._obs = self.state(), out.obs
        if tape is not None and ticket is not None and before is not None:
            outputs = (out.obs, out.reward, out.final_obs, *after)
            arrays = [a for a in (actions, *before, *outputs) if a is not None]
            tape.record_func(
                lambda: self._backward(ticket, (actions, *before), outputs),
                [a for a in arrays if a.requires_grad and a.size],
            )
        return out

    def _check(self, actions: Any) -> None:
        """Refuse what is not a batch of actions on the device of the worlds."""
        shape = (self.rollout.num_envs, self.rollout.physics.nu)
        wanted = f"a wp.array of float32 with the shape {shape} on {self.rollout.device}"
        if not isinstance(actions, wp.array):
            raise TypeError(f"{self.name}: actions are {wanted}, not {type(actions)}")
        if actions.dtype is not wp.float32:
            raise TypeError(f"{self.name}: actions are {wanted}, not of dtype {actions.dtype}")
        if actions.shape != shape:
            raise ValueError(f"{self.name}: actions are {wanted}, not of shape {actions.shape}")
        if actions.device != self.rollout.device:
            raise ValueError(f"{self.name}: actions are {wanted}, not on {actions.device}")

    def _backward(self, ticket: Ticket, inputs: Any, outputs: Any) -> None:
        """Run the adjoint of one step between `.grad` arrays."""
        adj = self.rollout.adj
        targets = (adj.obs, adj.reward, adj.final_obs, *_state_fields(adj.next_state))
        for array, target in zip(outputs, targets, strict=True):
            if array is None:
                target.zero_()
            elif target.size:
                wp.copy(target, array.grad)
        self.rollout.backward(ticket)
        sources = (adj.action, *_state_fields(adj.state))
        for array, source in zip(inputs, sources, strict=True):
            if array.requires_grad and source.size:
                wp.launch(
                    accumulate,
                    dim=source.shape,
                    inputs=[source],
                    outputs=[array.grad],
                    device=source.device,
                    record_tape=False,
                )

    def state(self) -> EnvState:
        """The present state, as arrays that require gradients."""
        if self._state is None:
            fields = _state_fields(self.rollout.state)
            self._state = EnvState(*(self.read(array, requires_grad=True) for array in fields))
        return self._state

    def set_state(self, qpos: Any, qvel: Any, act: Any) -> None:
        """Put the worlds into a state."""
        with paused_tape():
            self.rollout.set_state(qpos, qvel, act)
        self.begin()

    def begin(self) -> None:
        """All worlds are fresh, or their history is to be forgotten."""
        self._state = None
        self._obs = None

    def reset(self, mask: wp.array) -> wp.array:
        """Some worlds are fresh; the others keep their history. Return the observations."""
        before, obs_before = self._state, self._obs
        self.begin()
        obs = self.read(self.rollout.obs, requires_grad=before is not None)
        if before is None:
            return obs
        pairs = list(zip(before, self.state(), strict=True))
        if obs_before is not None:
            pairs.append((obs_before, obs))
            self._obs = obs
        pairs = [pair for pair in pairs if pair[0].size]
        tape = active_tape()
        if tape is not None:
            fresh = self.read(mask)  # the user may change theirs before the gradient is taken
            tape.record_func(
                lambda: self._reset_backward(fresh, pairs),
                [array for pair in pairs for array in pair],
            )
        return obs

    @staticmethod
    def _reset_backward(fresh: wp.array, pairs: list[Any]) -> None:
        """Hand cotangents on to the arrays before a reset, but for the worlds that it wrote."""
        for before, after in pairs:
            wp.launch(
                kernels.accumulate_kept,
                dim=after.shape,
                inputs=[fresh, after.grad],
                outputs=[before.grad],
                device=after.device,
                record_tape=False,
            )


def _state_fields(state: Any) -> tuple[wp.array, wp.array, wp.array]:
    return state.qpos, state.qvel, state.act
