"""The vector environment, `DiffVectorEnv`; `DiffEnv` of `diffenvs.diffenvs` is one world of it.

Both follow Gymnasium's interface and add to it

* `grad_step(actions)`: returns what `step` returns, bit for bit, and keeps what its gradient needs;
* `backward(...)` (NumPy), `loss.backward()` (torch) or `tape.backward()` (Warp): the gradient;
* `detach()`: forget the history, the next window of grad_steps begins at the present state;
* `state`: qpos, qvel, act; differentiable in torch and Warp;
* `set_state(qpos, qvel)`;
* `get_state()` and `set_state(snapshot)`: go on from there later, bit for bit on the CPU.

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

from diffenvs import make_options, reset_options
from diffenvs.env_state import EnvState, Snapshot, check_state
from diffenvs.numpy_bridge import NumpyBridge
from diffenvs.physics.tape import paused_tape
from diffenvs.rendering import RENDER_MODES, Frames, WorldRenderer
from diffenvs.rollout import Rollout
from diffenvs.task import Task
from diffenvs.warp_bridge import WarpBridge
from diffenvs.window import RETAIN, WindowMemory

ARRAYS = ("numpy", "torch", "warp")


class DiffVectorEnv(gym.vector.VectorEnv, EzPickle):
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
        retain: "substeps": a recorded step keeps all that its gradient needs. "steps": it keeps the
            state and the action from which its gradient makes it again, in far less memory, for
            long windows; gradients are the same (on the CPU bit for bit).
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
        xml_file: MJCF to use instead of the task's own: a path, or its text.
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
        retain: str = "substeps",
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
        given = {name: value for name, value in locals().items() if name != "self"}
        EzPickle.__init__(self, **given | given.pop("parameters"))
        task_class = load_task(task)
        self.task = task_class(xml_file, frame_skip, integrator, **parameters)
        self._name = self.task.name
        self.num_envs = make_options.count(self._name, "num_envs", num_envs)
        make_options.count(self._name, "window", window)
        make_options.choice(self._name, "retain", retain, RETAIN)
        make_options.choice(self._name, "arrays", arrays, ARRAYS)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(
                f"{self._name}: render_mode={render_mode!r} is not None or one of {RENDER_MODES}"
            )
        mode = make_options.mode(self._name, autoreset_mode)
        limit = -1 if max_episode_steps is None else max_episode_steps
        if limit != -1:
            make_options.count(self._name, "max_episode_steps", limit)
        self.autoreset_mode = mode
        self.arrays = arrays
        self.device = make_options.device(self._name, device)
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
        reset_options.seeds(self._name, seed, self.num_envs)  # refuses what is none
        self._first_seed = seed
        self._seeded = False
        with paused_tape():
            self.rollout = Rollout(
                self.task,
                self.num_envs,
                self.device,
                make_options.MODES[mode],
                max(limit, 0),
                window,
                retain,
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

        Args:
            seed: A seed, or one per world.
            options: "reset_mask", (num_envs,) of bool: the worlds to reset. "state", a tuple
                (qpos, qvel) or (qpos, qvel, act) of arrays with a row per world: the worlds that
                are reset begin their episode there, and not in a random state; no gradient passes
                back into these arrays.

        Returns:
            The observations of all worlds, and the state columns of info.
        """
        options = options or {}
        unknown = set(options) - {"reset_mask", "state"}
        if unknown:
            raise ValueError(
                f"{self._name}: reset knows no options {sorted(unknown)}; it has 'reset_mask' and "
                "'state'"
            )
        given = reset_options.reset_mask(self._name, options.get("reset_mask"), self.num_envs)
        everywhere = options.get("reset_mask") is None
        start = options.get("state")
        if start is not None:
            start = reset_options.start_state(self._name, start, given, self._shapes())
        seeds = self._seeds(seed, everywhere)
        with paused_tape(), self._stream():
            mask = wp.array(given, dtype=wp.bool, device=self.device)
            if start is not None:
                start = tuple(wp.array(value, dtype=float, device=self.device) for value in start)
            reseed = wp.array([x is not None for x in seeds], dtype=wp.bool, device=self.device)
            values = wp.array(reset_options.fold_seeds(seeds), dtype=int, device=self.device)
            self.rollout.reset(mask, reseed, values, start)
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

    @property
    def window_memory(self) -> WindowMemory:
        """Bytes on the device that recorded steps keep: `per_step`, `shared` and `allocated`.

        `window_memory.of(steps)` is what a window of so many steps takes. Asking allocates the
        memory of one step, which the first grad_step uses.
        """
        with paused_tape(), self._stream():
            return self.rollout.window_memory()

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

        Raises:
            TypeError, ValueError: A cotangent is no array of real numbers, or of another shape.
            RuntimeError: No grad_step was made since the window began.
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
        They are to be read: what is written into them moves no world, `set_state` does.
        """
        return self._bridge.state()

    def set_state(self, qpos: Any, qvel: Any = None, act: Any = None) -> None:
        """Put the worlds into a state; the next window begins there.

        Args:
            qpos: Positions, (num_envs, nq), or a snapshot of `get_state`, from which the worlds go
                on as they did then.
            qvel: Velocities, (num_envs, nv). No world is done after it, and the time limit counts
                anew.
            act: Activations, (num_envs, na); None is zero. Forces that a task observes are zero
                until the next step.
        """
        if isinstance(qpos, Snapshot):
            self._restore(qpos)
            return
        if qvel is None:
            raise TypeError(
                f"{self._name}: set_state takes (qpos, qvel), (qpos, qvel, act) or a snapshot of "
                f"get_state(), not {type(qpos)} alone"
            )
        shapes = self._shapes()
        if act is None:
            act = np.zeros(shapes["act"], dtype=np.float32)
        check_state(self._name, (qpos, qvel, act), shapes)
        if not self._seeded:
            raise gym.error.ResetNeeded(f"{self._name}: call reset() before set_state()")
        self.rollout.detach()
        self._forget()
        with paused_tape():
            self._bridge.set_state(qpos, qvel, act)

    def get_state(self) -> Snapshot:
        """Return all that decides how the worlds go on, for `set_state`: NumPy, to be kept."""
        if not self._seeded:
            raise gym.error.ResetNeeded(f"{self._name}: call reset() before get_state()")
        with paused_tape(), self._stream():
            arrays = {name: array.numpy().copy() for name, array in self.rollout.carried().items()}
        return Snapshot(self._name, arrays)

    def _restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot."""
        with paused_tape(), self._stream():
            carried = self.rollout.carried()
            snapshot.check(self._name, {name: array.numpy() for name, array in carried.items()})
            done = np.flatnonzero(snapshot.arrays["pending"]).tolist()
            if done and self.autoreset_mode is AutoresetMode.SAME_STEP:
                raise ValueError(
                    f"{self._name}: worlds {done} of the snapshot are done and wait for their "
                    "reset, which with autoreset_mode=SAME_STEP no world does; take the snapshot "
                    "after the reset, or use the mode with which it was taken"
                )
            for name, array in carried.items():
                if array.size:
                    array.assign(snapshot.arrays[name])
            self.rollout.misused.zero_()
            self.rollout.detach()
            self._forget()
        self._seeded = True

    # Helpers

    def _stream(self) -> Any:
        return self._bridge.stream()

    def _forget(self, keep: Any = None) -> None:
        """Drop the arrays in which the bridges track the state."""
        for bridge in (self._bridge, self._warp):
            if bridge is not keep:
                bridge.begin()

    def _shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the arrays of a state."""
        physics, n = self.rollout.physics, self.num_envs
        return {"qpos": (n, physics.nq), "qvel": (n, physics.nv), "act": (n, physics.na)}

    def _seeds(self, given: Any, everywhere: bool) -> list[int | None]:
        """Return the seed that each world takes; None keeps the one that it has."""
        if not everywhere and not self._seeded:
            raise gym.error.ResetNeeded(f"{self._name}: reset all worlds before some of them")
        if given is None and not self._seeded:
            given = self._first_seed
            if given is None:
                given = int(self.np_random.integers(2**31))
        seeds = reset_options.seeds(self._name, given, self.num_envs)
        if not self._seeded:  # no world has a seed that it could keep
            drawn = self.np_random.integers(2**31, size=self.num_envs).tolist()
            seeds = [new if s is None else s for s, new in zip(seeds, drawn, strict=True)]
        if given is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seeds[0])
        self._seeded = True
        return seeds


def load_task(task: str | type[Task]) -> type[Task]:
    """Import "module:Class"."""
    if isinstance(task, str):
        module, _, name = task.partition(":")
        task = getattr(import_module(module), name)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"task is a subclass of diffenvs.Task or its 'module:Class', not {task!r}")
    return task
