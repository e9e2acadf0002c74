"""The single environment, `DiffEnv`: one world of a `DiffVectorEnv`.

Gymnasium's `pprint_registry` lists an id under the name of the module of its entry point. That is
why this one bears the name of the package: the suite stands under one heading, "diffenvs".
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode

from diffenvs.env_state import EnvState, Snapshot
from diffenvs.numpy_bridge import cotangent, real_array, state_cotangents
from diffenvs.rendering import RENDER_MODES
from diffenvs.task import Task
from diffenvs.vector_env import DiffVectorEnv, load_task
from diffenvs.window import WindowMemory


class DiffEnv(gym.Env, EzPickle):
    """One world of a task, with NumPy outputs, as Gymnasium's own MuJoCo environments.

    It has no time limit of its own (`gym.make` wraps one around it, which counts calls of its
    `step`) and no autoreset. Behind a wrapper, `grad_step`, `backward` and the rest are reached
    as `env.unwrapped.grad_step`.

    Args:
        task: "module:Class" of a `diffenvs.task.Task`, or the class.
        **kwargs: Keywords of `DiffVectorEnv`, but num_envs, arrays, autoreset_mode and
            max_episode_steps.
    """

    metadata = {"render_modes": RENDER_MODES}

    def __init__(self, task: str | type[Task], **kwargs: Any) -> None:
        EzPickle.__init__(self, task, **kwargs)
        fixed = {"num_envs", "arrays", "autoreset_mode", "max_episode_steps"} & set(kwargs)
        if fixed:
            raise TypeError(
                f"{load_task(task).__name__}: {sorted(fixed)} are keywords of gym.make_vec, not "
                "of gym.make"
            )
        self.worlds = DiffVectorEnv(task, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.metadata = {
            key: value for key, value in self.worlds.metadata.items() if key != "autoreset_mode"
        }
        self.render_mode = self.worlds.render_mode
        self.observation_space = self.worlds.single_observation_space
        self.action_space = self.worlds.single_action_space
        self.model = self.worlds.model
        self.dt = self.worlds.dt
        self.init_qpos = self.worlds.task.init_qpos.copy()
        self.init_qvel = self.worlds.task.init_qvel.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: the first of the seed, or the next one.

        options["state"], a tuple (qpos, qvel) or (qpos, qvel, act), is where it begins instead of
        in a random state.
        """
        options = options or {}
        if set(options) - {"state"}:
            raise ValueError(
                f"{self.worlds.task.name}: reset knows no options "
                f"{sorted(set(options) - {'state'})}; it has 'state'"
            )
        start = options.get("state")
        if isinstance(start, tuple | list) and len(start) in (2, 3):
            options = {"state": self._batch_state("options['state']: ", *start)}
        super().reset(seed=seed)
        if seed is None and not self.worlds._seeded and self.worlds._first_seed is None:
            seed = int(self.np_random.integers(2**31))
        obs, info = self.worlds.reset(seed=seed, options=options)
        return obs[0], _first(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step, without keeping what a gradient would need."""
        return self._single(self.worlds.step(self._batch(action)))

    def grad_step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step, and keep what the gradient of the step needs in the window."""
        return self._single(self.worlds.grad_step(self._batch(action)))

    def backward(self, adj_obs: Any, adj_reward: Any, adj_state: Any = None) -> np.ndarray:
        """Differentiate the window of T grad_steps made so far.

        Args:
            adj_obs: Cotangent of the observations, (T, obs_dim); None is zero.
            adj_reward: Cotangent of the rewards, (T,); None is zero.
            adj_state: Cotangent of `state` after each step, a tuple (qpos, qvel, act) of arrays
                (T, ...), each of which may be None.

        Returns:
            The cotangent of the actions, (T, nu); `adj_initial_state` has that of the start.

        Raises:
            TypeError, ValueError: A cotangent is no array of real numbers, or of another shape.
            RuntimeError: No grad_step was made since the window began.
        """
        name, steps = self.worlds.task.name, self.worlds._bridge.recorded()

        def batch(what: str, value: Any, *shape: int) -> np.ndarray | None:
            if value is None:
                return None
            value = cotangent(name, what, value, (steps, *shape), f"{steps} grad_steps")
            return value[:, None]

        adj_states = [
            batch(f"adj_state.{field}", value, self._shapes()[field][0])
            for field, value in state_cotangents(name, adj_state).items()
        ]
        adjoint = self.worlds.backward(
            batch("adj_obs", adj_obs, self.worlds.task.obs_size),
            batch("adj_reward", adj_reward),
            None,
            adj_states,
        )
        return adjoint[:, 0]

    @property
    def adj_initial_state(self) -> EnvState:
        """Cotangent of the state at which the window began, by the last `backward`."""
        return EnvState(*(value[0] for value in self.worlds.adj_initial_state))

    @property
    def window_memory(self) -> WindowMemory:
        """Bytes on the device that recorded steps keep, see `DiffVectorEnv.window_memory`."""
        return self.worlds.window_memory

    def detach(self) -> None:
        """Forget the history: the next window begins at the present state."""
        self.worlds.detach()

    @property
    def state(self) -> EnvState:
        """Copies of qpos (nq,), qvel (nv,) and act (na,)."""
        return EnvState(*(value[0] for value in self.worlds.state))

    def set_state(self, qpos: Any, qvel: Any = None, act: Any = None) -> None:
        """Put the world into a state (qpos, qvel[, act]), or go on from a snapshot of `get_state`.

        `act` None is zero. Gymnasium's `TimeLimit` keeps its count of steps to itself.
        """
        if isinstance(qpos, Snapshot) or qvel is None:
            self.worlds.set_state(qpos)
            return
        self.worlds.set_state(*self._batch_state("", qpos, qvel, act))

    def get_state(self) -> Snapshot:
        """Return all that decides how the world goes on, for `set_state`: NumPy, to be kept."""
        return self.worlds.get_state()

    def state_vector(self) -> np.ndarray:
        """Return qpos and qvel in one array."""
        return np.concatenate(self.state[:2])

    def render(self) -> Any:
        """Return a picture in the render mode, or show it (mode "human")."""
        frames = self.worlds.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Free the renderer."""
        self.worlds.close()

    def _batch(self, action: Any) -> np.ndarray:
        action = _batch(self.worlds.task.name, "action", action, (self.model.nu,))
        if self.worlds.rollout.pending.numpy()[0]:
            raise AssertionError(
                f"{self.worlds.task.name}: the episode has terminated; call reset() before the "
                "next step"
            )
        return action

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of qpos, qvel and act of the one world."""
        return {field: shape[1:] for field, shape in self.worlds._shapes().items()}

    def _batch_state(self, prefix: str, *state: Any) -> tuple[np.ndarray | None, ...]:
        """Return qpos, qvel and, if given, act as those of a batch of one world."""
        name = self.worlds.task.name
        return tuple(
            None if value is None and field == "act" else _batch(name, prefix + field, value, shape)
            for value, (field, shape) in zip(state, self._shapes().items(), strict=False)
        )

    def _single(self, outputs: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = outputs
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)


def _first(info: dict[str, Any]) -> dict[str, float]:
    """Info of world 0."""
    return {name: float(values[0]) for name, values in info.items()}


def _batch(name: str, what: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an input as that of a batch of one world; what is wrong is said of the one world."""
    array = real_array(name, what, value)
    if array.shape != shape:
        raise ValueError(f"{name}: {what} has the shape {shape}, not {array.shape}")
    with np.errstate(over="ignore"):  # what does not fit becomes inf, and is refused
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{name}: {what} must be finite, but {what}{index} is {array[*index]}")
    return array[None]
