"""NumPy in and out: outputs are copies, and a window is differentiated on request.

A bridge is how the arrays of a `Rollout` reach the user and how a user's cotangents reach its
adjoint. The three bridges (NumPy, Warp, torch) have the same methods: `step`, `read`, `state`,
`set_state`, `begin` (after a reset of all worlds, or `detach`) and `reset` (after a reset of some).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import warp as wp

from diffenvs import env_kernels as kernels
from diffenvs.env_state import EnvState
from diffenvs.packed import StepOutputs
from diffenvs.physics.tape import accumulate
from diffenvs.rollout import Rollout


class NumpyBridge:
    """See the module docstring."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.name = rollout.task.name
        self.adj_initial_state: EnvState | None = None
        shape = (rollout.num_envs, rollout.physics.nu)
        self._action = wp.zeros(shape, float, device="cpu", pinned=rollout.device.is_cuda)
        self._action_host = self._action.numpy()
        self._outputs = [name for name in StepOutputs._fields if name in rollout.packed.host]
        self._fetched = False  # whether the host has `packed` as it is now

    def stream(self) -> Any:
        """Context in which Warp uses the user's stream: its own current one."""
        return nullcontext()

    def read(self, array: wp.array) -> np.ndarray:
        """Copy an array to the host."""
        return array.numpy().copy()  # on the CPU numpy() is a view

    def pending(self) -> np.ndarray:
        """Worlds that are done and wait for their reset; a view."""
        if self._fetched or self.rollout.device.is_cpu:
            return self.rollout.packed.host["pending"]
        return self.rollout.pending.numpy()

    def step(self, actions: Any, record: bool) -> StepOutputs:
        """Step, with one copy to the device and one back."""
        rollout = self.rollout
        if rollout.mode == kernels.DISABLED and self.pending().any():
            worlds = np.flatnonzero(self.pending()).tolist()
            raise AssertionError(
                f"{self.name}: worlds {worlds} are done. With autoreset_mode=DISABLED reset them "
                "before the next step: reset(options={'reset_mask': terminated | truncated})"
            )
        self._action_host[...] = self._check(actions)
        if record:
            rollout.grad_step(self._action)
        else:
            rollout.step(self._action)
        rollout.settle()
        self._fetched = True
        out = StepOutputs(**{name: rollout.packed.host[name].copy() for name in self._outputs})
        if rollout.mode == kernels.SAME_STEP:
            out = out._replace(done=out.terminated | out.truncated)
        return out

    def _check(self, actions: Any) -> np.ndarray:
        """Return the actions as float32, or say what is wrong with them."""
        array = real_array(self.name, "actions", actions)
        shape = (self.rollout.num_envs, self.rollout.physics.nu)
        if array.shape != shape:
            raise ValueError(f"{self.name}: actions have the shape {shape}, not {array.shape}")
        return finite(self.name, "actions", array)

    def state(self) -> EnvState:
        """Copies of the present state."""
        state = self.rollout.state
        return EnvState(self.read(state.qpos), self.read(state.qvel), self.read(state.act))

    def set_state(self, qpos: Any, qvel: Any, act: Any) -> None:
        """Put the worlds into a state."""
        given = {"qpos": qpos, "qvel": qvel, "act": act}
        self.rollout.set_state(
            **{
                what: finite(self.name, what, real_array(self.name, what, value))
                for what, value in given.items()
            }
        )

    def begin(self) -> None:
        """There is no history outside the window."""
        self._fetched = False

    def reset(self, mask: wp.array) -> np.ndarray:
        """Some worlds are fresh; return the observations."""
        self._fetched = False
        return self.read(self.rollout.obs)

    def recorded(self) -> int:
        """Return the number of grad_steps in the window; raise if there is none."""
        if self.rollout.recorded == 0:
            raise RuntimeError(
                f"{self.name}: there is nothing to differentiate, no grad_step was made since the "
                "window began (at reset(), step(), set_state() or detach())"
            )
        return self.rollout.recorded

    def backward(
        self, adj_obs: Any, adj_reward: Any, adj_final_obs: Any = None, adj_state: Any = None
    ) -> np.ndarray:
        """Differentiate the window, see `DiffVectorEnv.backward`.

        Cotangents go to the device once, and come back once, for all steps.
        """
        rollout, adj = self.rollout, self.rollout.adj
        steps = self.recorded()
        after, before = adj.next_state.differentiable(), adj.state.differentiable()
        outputs, actions = (adj.obs, adj.reward, adj.final_obs), adj.action
        given = {"adj_obs": adj_obs, "adj_reward": adj_reward, "adj_final_obs": adj_final_obs}
        states = state_cotangents(self.name, adj_state)
        given |= {f"adj_state.{field}": value for field, value in states.items()}
        cotangents = [
            self._cotangent(what, value, (steps, *target.shape))
            for (what, value), target in zip(given.items(), (*outputs, *after), strict=True)
        ]
        adj_actions = wp.zeros((steps, *actions.shape), dtype=float, device=rollout.device)
        for target in (*outputs, *after):
            target.zero_()
        for t in reversed(range(steps)):
            for target, values in zip(outputs, cotangents[:3], strict=True):
                if values is not None:
                    wp.copy(target, values[t])
            for target, values, carry in zip(after, cotangents[3:], before, strict=True):
                if t + 1 < steps:
                    wp.copy(target, carry)
                if values is not None:
                    wp.launch(
                        accumulate,
                        dim=target.shape,
                        inputs=[values[t]],
                        outputs=[target],
                        device=rollout.device,
                        record_tape=False,
                    )
            rollout.backward(rollout.ticket(t))
            if actions.size:
                wp.copy(adj_actions[t], actions)
        self.adj_initial_state = EnvState(*map(self.read, before))
        return self.read(adj_actions)

    def _cotangent(self, name: str, value: Any, shape: tuple[int, ...]) -> wp.array | None:
        """Return a cotangent on the device, in the shape of its primal; None is zero."""
        if value is None:
            return None
        window = f"{shape[0]} grad_steps of {shape[1]} worlds"
        values = cotangent(self.name, name, value, shape, window)
        return wp.array(values, dtype=float, device=self.rollout.device) if values.size else None


def real_array(name: str, what: str, value: Any) -> np.ndarray:
    """Return an input as an array of real numbers, or say that it is none."""
    try:
        array = np.asarray(value)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # ragged, or a tensor that is not NumPy's
        raise TypeError(
            f"{name}: {what} must be a NumPy array of real numbers, or what converts to one, not "
            f"{type(value)}: {error}"
        ) from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: {what} must be real numbers, not of dtype {array.dtype}")
    return array


def finite(name: str, what: str, array: np.ndarray) -> np.ndarray:
    """Return an array of real numbers as float32, or say where it is not finite."""
    with np.errstate(over="ignore"):  # what does not fit becomes inf, and is refused
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        index = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        raise ValueError(
            f"{name}: {what} must be finite, but {what}{list(index)} is {array[index]}"
        )
    return array


def cotangent(name: str, what: str, value: Any, shape: tuple[int, ...], window: str) -> np.ndarray:
    """Return a cotangent as float32, or say which shape the `window` asks for."""
    array = real_array(name, what, value)
    if array.shape != shape:
        raise ValueError(f"{name}: {what} has the shape {array.shape}; {window} ask for {shape}")
    return array.astype(np.float32)


def state_cotangents(name: str, adj_state: Any) -> dict[str, Any]:
    """Return the cotangents of qpos, qvel and act by name."""
    fields = EnvState._fields
    if adj_state is None:
        return dict.fromkeys(fields)
    if not isinstance(adj_state, tuple | list) or len(adj_state) != len(fields):
        many = isinstance(adj_state, tuple | list)
        found = f"{len(adj_state)} of them" if many else type(adj_state)
        raise TypeError(
            f"{name}: adj_state is a tuple ({', '.join(fields)}) of arrays, each of which may be "
            f"None, not {found}"
        )
    return dict(zip(fields, adj_state, strict=True))
