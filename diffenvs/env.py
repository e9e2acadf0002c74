"""The Gymnasium environments: `DiffVectorEnv`, and `DiffEnv`, its view of one world.

Both follow Gymnasium's interface and add to it

* `grad_step(actions)`: returns what `step` returns, bit for bit, and keeps what its gradient needs;
* `backward(...)` (NumPy), `loss.backward()` (torch) or `tape.backward()` (Warp): the gradient;
* `detach()`: forget the history, the next window of grad_steps begins at the present state;
* `state`: qpos, qvel, act; differentiable in torch and Warp;
* `set_state(qpos, qvel)`.

`reset()` of all worlds, `step` and `set_state` begin a new window as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
import warp as wp
from gymnasium.utils import EzPickle, seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from diffenvs import env_kernels as kernels
from diffenvs.numpy_bridge import EnvState, NumpyBridge
from diffenvs.physics.tape import paused_tape
from diffenvs.rendering import RENDER_MODES, Frames, WorldRenderer
from diffenvs.rollout import Rollout
from diffenvs.task import Task
from diffenvs.warp_bridge import WarpBridge

ARRAYS = ("numpy", "torch", "warp")
MODES = {
    AutoresetMode.NEXT_STEP: kernels.NEXT_STEP,
    AutoresetMode.SAME_STEP: kernels.SAME_STEP,
    AutoresetMode.DISABLED: kernels.DISABLED,
}


class DiffVectorEnv(gym.vector.VectorEnv):
    """A batch of worlds of one task, stepped and differentiated together on one device.

    Args:
        task: "module:Class" of a `diffenvs.task.Task`, or the class.
        num_envs: Number of worlds.
        max_episode_steps: Time limit; None or -1 is none. `gym.make_vec` passes that of the id.
        arrays: What is returned: "numpy", "torch" or "warp". A `wp.array` of actions gives Warp
            arrays in any case.
        device: "cpu", "cuda:0", ...; None is Warp's default, the first GPU if there is one.
        autoreset_mode: `AutoresetMode` or its name. SAME_STEP (the default) returns the new
            episode's observation and, always, the dense info["final_obs"]; NEXT_STEP is for `step`
            only, because it spends a step without physics on every reset; DISABLED leaves done
            worlds to `reset(options={"reset_mask": ...})`.
        window: Number of successive grad_steps that can be differentiated together.
        frame_skip: Physics steps per step; None is the task's own.
        integrator: "euler", "implicitfast" or "rk4"; None is what the model file says.
        nconmax: Contacts per world for which memory is set aside; None is an estimate.
        njmax: Constraint rows per world for which memory is set aside; None is an estimate.
        seed: Seed of the first reset, if `reset` gives none.
        render_mode: None, "rgb_array", "depth_array", "rgbd_tuple" or "human" (world 0).
        width: Width of pictures, in pixels.
        height: Height of pictures, in pixels.
        camera_id: Camera of the model by number.
        camera_name: Camera of the model by name.
        default_camera_config: Attributes of the free camera; None is the task's own.
        max_geom: Number of geoms that can be drawn.
        visual_options: Flags of `mujoco.MjvOption`.
        xml_file: MJCF file to use instead of the task's own.
        **parameters: Weights and limits of the task.
    """

    metadata = {
        "render_modes": RENDER_MODES,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        task: str | type[Task],
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        arrays: str = "numpy",
        device: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        window: int = 32,
        frame_skip: int | None = None,
        integrator: str | None = None,
        nconmax: int | None = None,
        njmax: int | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
        width: int = 480,
        height: int = 480,
        camera_id: int | None = None,
        camera_name: str | None = None,
        default_camera_config: dict[str, Any] | None = None,
        max_geom: int = 1000,
        visual_options: dict[int, bool] | None = None,
        xml_file: str | None = None,
        **parameters: Any,
    ) -> None:
        task_class = _load_task(task)
        self.task = task_class(xml_file, frame_skip, integrator, **parameters)
        self._name = self.task.name
        self.num_envs = self._count("num_envs", num_envs)
        self._count("window", window)
        if arrays not in ARRAYS:
            raise ValueError(f"{self._name}: arrays={arrays!r} is not one of {list(ARRAYS)}")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"{self._name}: render_mode={render_mode!r} is not None or one of {RENDER_MODES}"
            )
        mode = self._mode(autoreset_mode)
        limit = -1 if max_episode_steps is None else max_episode_steps
        if limit != -1:
            self._count("max_episode_steps", limit)
        self.autoreset_mode = mode
        self.arrays = arrays
        self.device = self._device(device)
        self.render_mode = render_mode
        self.model = self.task.mjm
        self.dt = self.task.dt
        self.metadata = {
            **type(self).metadata,
            "autoreset_mode": mode,
            "render_fps": round(1.0 / self.dt),
        }
        self.single_observation_space = gym.spaces.Box(
            -np.inf, np.inf, (self.task.obs_size,), np.float32
        )
        limited = self.model.actuator_ctrllimited.astype(bool)[:, None]
        unlimited = np.array([-np.inf, np.inf])
        ctrlrange = np.where(limited, self.model.actuator_ctrlrange, unlimited)
        low, high = ctrlrange.astype(np.float32).T
        self.single_action_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._first_seed = seed
        self._seeded = False
        with paused_tape():
            self.rollout = Rollout(
                self.task,
                self.num_envs,
                self.device,
                MODES[mode],
                max(limit, 0),
                window,
                nconmax,
                njmax,
            )
        self._warp = WarpBridge(self.rollout)
        self._bridge = self._recording = self._make_bridge(arrays)
        self._renderer: WorldRenderer | None = None
        camera = self.task.camera if default_camera_config is None else default_camera_config
        options = {
            "width": width,
            "height": height,
            "max_geom": max_geom,
            "camera_id": camera_id,
            "camera_name": camera_name,
            "visual_options": visual_options,
        }
        if render_mode is not None:
            self._renderer = WorldRenderer(self._name, self.model, render_mode, camera, options)

    # Construction

    def _count(self, what: str, value: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{self._name}: {what} must be an integer >= 1, not {value!r}")
        return int(value)

    def _mode(self, mode: AutoresetMode | str) -> AutoresetMode:
        for known in MODES:
            if mode is known or mode in (known.name, known.value):
                return known
        names = [known.name for known in MODES]
        raise ValueError(f"{self._name}: autoreset_mode={mode!r} is not one of {names}")

    def _device(self, device: str | None) -> wp.Device:
        try:
            return wp.get_device(device)
        except (ValueError, RuntimeError) as error:
            known = [known.alias for known in wp.get_devices()]
            raise ValueError(f"{self._name}: device={device!r} is not one of {known}") from error

    def _make_bridge(self, arrays: str) -> Any:
        if arrays == "torch":
            try:
                from diffenvs.torch_bridge import TorchBridge
            except ImportError as error:
                raise gym.error.DependencyNotInstalled(
                    f'{self._name}: arrays="torch" needs torch; pip install "diffenvs[torch]"'
                ) from error
            return TorchBridge(self.rollout)
        return self._warp if arrays == "warp" else NumpyBridge(self.rollout)

    # Gymnasium

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes, in all worlds or in those of options["reset_mask"].

        What a world draws depends on its seed and on the number of its episode alone: world i has
        the seed `seed + i`, or `seed[i]`; without a seed the next episode of the old seed begins.

        Returns:
            The observations of all worlds, and the state columns of info.
        """
        unknown = set(options or ()) - {"reset_mask"}
        if unknown:
            raise ValueError(
                f"{self._name}: reset knows no options {sorted(unknown)}; it has 'reset_mask'"
            )
        given = options.get("reset_mask") if options else None
        mask, everywhere = self._reset_mask(given)
        reseed, seeds = self._seeds(seed, everywhere)
        with paused_tape(), self._stream():
            self.rollout.reset(mask, reseed, seeds)
            if everywhere:
                self.rollout.misused.zero_()  # this is what was asked for
                self.rollout.detach()
                self._forget()
        with self._stream():  # not paused: what the other worlds hand on belongs on the tape
            obs = self._bridge.read(self.rollout.obs) if everywhere else self._bridge.reset(mask)
        with paused_tape(), self._stream():
            self.rollout.check_health()
            columns = self._bridge.read(self.rollout.info)
            info: dict[str, Any] = {}
            for column, name in enumerate(self.task.state_info):
                info[name] = columns[:, column]
                if not everywhere:
                    info[f"_{name}"] = self._bridge.read(mask)
        if self.render_mode == "human":
            self.render()
        return obs, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all worlds, without keeping what a gradient would need."""
        return self._advance(actions, record=False)

    def grad_step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all worlds, and keep what the gradient of the step needs in the window."""
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            raise RuntimeError(
                f"{self._name}: grad_step works with autoreset_mode SAME_STEP or DISABLED. In "
                "NEXT_STEP a world that is reset ignores its action, so that step has no gradient"
            )
        return self._advance(actions, record=True)

    def _advance(self, actions: Any, record: bool) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        if not self._seeded:
            raise gym.error.ResetNeeded(f"{self._name}: call reset() before the first step")
        rollout = self.rollout
        bridge = self._bridge
        if isinstance(actions, wp.array) and bridge is not self._warp:
            bridge = self._warp
        if record and rollout.recorded and bridge is not self._recording:
            raise RuntimeError(
                f"{self._name}: this window has grad_steps on arrays of another kind, and a "
                "gradient cannot pass from one kind to the other; call detach() in between"
            )
        self._recording = bridge
        obs, reward, final_obs = bridge.step(actions, record)
        self._forget(keep=bridge)
        with self._stream():
            terminated = bridge.read(rollout.step_out.terminated)
            truncated = bridge.read(rollout.truncated)
            info = self._columns(bridge.read(rollout.info))
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                done = bridge.read(rollout.last.reset)
                final_info = self._columns(bridge.read(rollout.step_out.info))
                final_info |= {f"_{name}": done for name in final_info}
                info |= {
                    "final_obs": final_obs,
                    "_final_obs": done,
                    "final_info": final_info,
                    "_final_info": done,
                }
        if self.render_mode == "human":
            self.render()
        return obs, reward, terminated, truncated, info

    def _columns(self, matrix: Any) -> dict[str, Any]:
        names = (*self.task.state_info, *self.task.step_info)
        return {name: matrix[:, column] for column, name in enumerate(names)}

    def render(self) -> Frames | None:
        """Return one picture per world, each drawn when it is looked at; None if "human"."""
        if self._renderer is None:
            raise RuntimeError(
                f"{self._name}: render() needs a render_mode, given when the environment is made: "
                f"one of {RENDER_MODES}"
            )
        renderer = self._renderer
        state = self.rollout.state
        qpos, qvel = state.qpos.numpy().copy(), state.qvel.numpy().copy()
        if self.render_mode == "human":
            renderer.draw(qpos[0], qvel[0])
            return None
        return Frames(self.num_envs, lambda world: renderer.draw(qpos[world], qvel[world]))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()

    # Gradients

    def backward(
        self, adj_obs: Any, adj_reward: Any, adj_final_obs: Any = None, adj_state: Any = None
    ) -> np.ndarray:
        """Differentiate the window of T grad_steps made so far (NumPy only).

        The record is only read: call it as often as you like, with any cotangents.

        Args:
            adj_obs: Cotangent of the observations that the grad_steps returned,
                (T, num_envs, obs_dim); None is zero, here and below.
            adj_reward: Cotangent of the rewards, (T, num_envs).
            adj_final_obs: Cotangent of info["final_obs"], (T, num_envs, obs_dim).
            adj_state: Cotangent of `state` after each grad_step: a tuple (qpos, qvel, act) of
                arrays (T, num_envs, ...), each of which may be None.

        Returns:
            The cotangent of the actions, (T, num_envs, nu). That of the state at which the window
            began is in `adj_initial_state` afterwards.
        """
        if self.arrays != "numpy":
            instead = "loss.backward()" if self.arrays == "torch" else "tape.backward()"
            raise TypeError(
                f"{self._name}: backward() is for arrays='numpy'; with arrays={self.arrays!r} call "
                f"{instead}"
            )
        return self._bridge.backward(adj_obs, adj_reward, adj_final_obs, adj_state)

    @property
    def adj_initial_state(self) -> EnvState:
        """Cotangent of the state at which the window began, by the last `backward` (NumPy)."""
        adjoint = getattr(self._bridge, "adj_initial_state", None)
        if adjoint is None:
            raise RuntimeError(f"{self._name}: adj_initial_state is there after backward()")
        return adjoint

    def detach(self) -> None:
        """Forget the history: the next window begins at the present state."""
        with paused_tape(), self._stream():
            self.rollout.check_health()
            self.rollout.detach()
            self._forget()

    @property
    def state(self) -> EnvState:
        """The state: qpos (num_envs, nq), qvel (num_envs, nv) and act (num_envs, na).

        NumPy: copies. torch and Warp: the arrays from which the next grad_step starts, so a loss
        may use them, and gradients with respect to the start of a window arrive in their `.grad`.
        """
        return self._bridge.state()

    def set_state(self, qpos: Any, qvel: Any, act: Any = None) -> None:
        """Put the worlds into a state; `act` None is zero.

        No world is done after it, and the time limit counts anew.
        """
        physics = self.rollout.physics
        if act is None:
            act = np.zeros((self.num_envs, physics.na), dtype=np.float32)
        widths = {"qpos": physics.nq, "qvel": physics.nv, "act": physics.na}
        for (name, width), value in zip(widths.items(), (qpos, qvel, act), strict=True):
            wanted = (self.num_envs, width)
            if tuple(np.shape(value)) != wanted:
                given = tuple(np.shape(value))
                raise ValueError(f"{self._name}: {name} has the shape {wanted}, not {given}")
        if not self._seeded:
            raise gym.error.ResetNeeded(f"{self._name}: call reset() before set_state()")
        self.rollout.detach()
        self._forget()
        self._bridge.set_state(qpos, qvel, act)

    # Helpers

    def _stream(self) -> Any:
        return self._bridge.stream()

    def _forget(self, keep: Any = None) -> None:
        """Drop the arrays in which the bridges track the state."""
        for bridge in (self._bridge, self._warp):
            if bridge is not keep:
                bridge.begin()

    def _reset_mask(self, given: Any) -> tuple[wp.array, bool]:
        """Return the mask on the device, and whether it is that of all worlds by default."""
        if given is None:
            return wp.array(np.ones(self.num_envs, dtype=bool), device=self.device), True
        what = f"{self._name}: options['reset_mask']"
        if isinstance(given, np.ndarray):
            mask = given
        elif isinstance(given, wp.array):
            mask = given.numpy()
        elif type(given).__module__.startswith("torch"):
            mask = given.detach().cpu().numpy()
        else:
            raise TypeError(f"{what} must be an array of bool, not {type(given)}")
        if mask.shape != (self.num_envs,):
            raise ValueError(f"{what} must have the shape ({self.num_envs},), not {mask.shape}")
        if mask.dtype != np.bool_:
            raise TypeError(f"{what} must be of dtype bool, not {mask.dtype}")
        if not mask.any():
            raise ValueError(f"{what} must have at least one True")
        return wp.array(mask, dtype=wp.bool, device=self.device), False

    def _seeds(self, seed: Any, everywhere: bool) -> tuple[wp.array, wp.array]:
        """Return which worlds take a new seed, and the seeds."""
        if seed is None and not self._seeded:
            seed = self._first_seed
            if seed is None:
                seed = int(self.np_random.integers(2**31))
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seeds: list[int | None] = [int(seed) + world for world in range(self.num_envs)]
        elif seed is None:
            seeds = [None] * self.num_envs
        else:
            seeds = list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(
                    f"{self._name}: seed is a number or {self.num_envs} of them, not {len(seeds)}"
                )
            self._np_random, self._np_random_seed = seeding.np_random(seeds[0])
        if not everywhere and not self._seeded:
            raise gym.error.ResetNeeded(f"{self._name}: reset all worlds before some of them")
        self._seeded = True
        reseed = np.array([value is not None for value in seeds])
        # Seeds may be longer than 32 bits: fold them, keep the low ones as they are.
        folded = [0 if value is None else (value ^ (value >> 32)) & 0xFFFFFFFF for value in seeds]
        values = np.array(folded, dtype=np.uint32).view(np.int32)
        return (
            wp.array(reseed, dtype=wp.bool, device=self.device),
            wp.array(values, dtype=int, device=self.device),
        )


def _load_task(task: str | type[Task]) -> type[Task]:
    """Import "module:Class"."""
    if isinstance(task, str):
        module, _, name = task.partition(":")
        task = getattr(import_module(module), name)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"task is a subclass of diffenvs.Task or its 'module:Class', not {task!r}")
    return task


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
                f"{_load_task(task).__name__}: {sorted(fixed)} are keywords of gym.make_vec, not "
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
        self._terminated = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: the first of the seed, or the next one. There are no options."""
        if options:
            name = self.worlds.task.name
            raise ValueError(f"{name}: reset has no options, not {sorted(options)}")
        super().reset(seed=seed)
        if seed is None and not self.worlds._seeded and self.worlds._first_seed is None:
            seed = int(self.np_random.integers(2**31))
        obs, info = self.worlds.reset(seed=seed)
        self._terminated = False
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
        """
        if adj_state is not None:
            adj_state = tuple(_insert_world(value) for value in adj_state)
        adjoint = self.worlds.backward(
            _insert_world(adj_obs), _insert_world(adj_reward), None, adj_state
        )
        return adjoint[:, 0]

    @property
    def adj_initial_state(self) -> EnvState:
        """Cotangent of the state at which the window began, by the last `backward`."""
        return EnvState(*(value[0] for value in self.worlds.adj_initial_state))

    def detach(self) -> None:
        """Forget the history: the next window begins at the present state."""
        self.worlds.detach()

    @property
    def state(self) -> EnvState:
        """Copies of qpos (nq,), qvel (nv,) and act (na,)."""
        return EnvState(*(value[0] for value in self.worlds.state))

    def set_state(self, qpos: Any, qvel: Any, act: Any = None) -> None:
        """Put the world into a state; `act` None is zero."""
        act = None if act is None else np.asarray(act)[None]
        self.worlds.set_state(np.asarray(qpos)[None], np.asarray(qvel)[None], act)
        self._terminated = False

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
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"{self.worlds.task.name}: an action has the shape {self.action_space.shape}, not "
                f"{action.shape}"
            )
        if self._terminated:
            raise AssertionError(
                f"{self.worlds.task.name}: the episode has terminated; call reset() before the "
                "next step"
            )
        return action[None]

    def _single(self, outputs: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = outputs
        self._terminated = bool(terminated[0])
        return obs[0], float(reward[0]), self._terminated, bool(truncated[0]), _first(info)


def _first(info: dict[str, Any]) -> dict[str, float]:
    """Info of world 0."""
    return {name: float(values[0]) for name, values in info.items()}


def _insert_world(value: Any) -> Any:
    """Give a cotangent over time an axis of one world."""
    return None if value is None else np.asarray(value)[:, None]
