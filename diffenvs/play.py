"""Watch an environment: in MuJoCo's viewer, or with --web in MuJoCo's page in the browser.

    python -m diffenvs.play --env DiffAnt-v0 --policy policy.pt2

runs one world in real time, with its reward and return on the picture, and begins anew when an
episode ends. Space pauses and Backspace begins a new episode, in the window and on the page; the
page has speeds as well. Forces that are pulled with the mouse are not applied.

The page comes with MuJoCo (`mujoco.studio`). It is open to everybody who can reach its port.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import mujoco
import numpy as np

from diffenvs import command_line
from diffenvs.policy import Policy, load_policy
from diffenvs.rendering import _check_display, set_camera

Rows = list[tuple[str, str]]
FRAME = 1.0 / 60.0  # s between pictures, at least
SPACE, BACKSPACE = 32, 259  # as GLFW numbers keys


@dataclass
class Controls:
    """What the user asked for.

    Attributes:
        paused: Whether the world is to stand still.
        restart: Whether a new episode is to begin; whoever begins it sets it to False.
        speed: In units of real time.
    """

    paused: bool = False
    restart: bool = False
    speed: float = 1.0


class Window(Protocol):
    """What shows the world."""

    controls: Controls

    def is_running(self) -> bool:
        """Say whether the user still looks on."""
        ...

    def show(self, state: Any, rows: Rows) -> None:
        """Show the state (qpos, qvel, act) of a world, and lines of text, each a name and value."""
        ...

    def close(self) -> None:
        """Close the window."""
        ...


class DesktopWindow:
    """MuJoCo's viewer in a window of its own.

    Args:
        mjm: Model; the viewer gets a copy.
        camera: Attributes of its camera, as `Task.camera` has them.

    Raises:
        RuntimeError: There is no display.
    """

    def __init__(self, mjm: mujoco.MjModel, camera: dict[str, Any]) -> None:
        import mujoco.viewer

        try:
            _check_display()
        except RuntimeError as error:
            raise RuntimeError(
                f"no window can be opened here ({error}); --web shows the same in a browser"
            ) from error
        self.controls = Controls()
        self._mjm = copy.copy(mjm)
        self._mjd = mujoco.MjData(self._mjm)
        self._viewer = mujoco.viewer.launch_passive(
            self._mjm, self._mjd, key_callback=self._key, show_left_ui=False, show_right_ui=False
        )
        with self._viewer.lock():
            set_camera(self._viewer.cam, camera)

    def _key(self, key: int) -> None:
        if key == SPACE:
            self.controls.paused = not self.controls.paused
        elif key == BACKSPACE:
            self.controls.restart = True

    def is_running(self) -> bool:
        """Say whether the window is open."""
        return self._viewer.is_running()

    def show(self, state: Any, rows: Rows) -> None:
        """Show a state and lines of text."""
        with self._viewer.lock():
            set_state(self._mjm, self._mjd, state)
        names, values = ("\n".join(column) for column in zip(*rows, strict=True))
        self._viewer.set_texts((None, None, names, values))
        self._viewer.sync()

    def close(self) -> None:
        """Close the window."""
        self._viewer.close()


def set_state(mjm: mujoco.MjModel, mjd: mujoco.MjData, state: Any) -> None:
    """Put qpos, qvel and act into MuJoCo's data, and compute all that is drawn."""
    mjd.qpos[:], mjd.qvel[:], mjd.act[:] = state
    mujoco.mj_forward(mjm, mjd)


def play(
    env: gym.Env, policy: Policy, window: Window, seed: int = 0, steps: int | None = None
) -> list[tuple[float, int]]:
    """Run a world in real time until the window is closed.

    Args:
        env: One of our environments of one world, with its wrappers.
        policy: Maps observations (1, obs_dim) to actions (1, nu).
        window: What shows it.
        seed: Of the first episode.
        steps: Number of steps after which to stop; None is never.

    Returns:
        The return and the number of steps of each episode that ended.
    """
    world: Any = env.unwrapped
    controls = window.controls
    episodes: list[tuple[float, int]] = []
    obs, _ = env.reset(seed=seed)
    total, length, last = 0.0, 0, ""
    reward, ended, done = 0.0, "", 0
    due = frame = time.perf_counter()
    while window.is_running() and (steps is None or done < steps):
        if controls.restart or ended:
            controls.restart = False
            obs, _ = env.reset()
            total, length, reward = 0.0, 0, 0.0
        ended = ""
        if not controls.paused:
            obs, reward, terminated, truncated, _ = env.step(policy(obs[None])[0])
            total, length, done = total + float(reward), length + 1, done + 1
            ended = "terminated" if terminated else "truncated" if truncated else ""
        if ended:
            episodes.append((total, length))
            last = f"{total:.1f} in {length} steps"
            print(f"episode {len(episodes)}: return {last}, {ended}", flush=True)
        if time.perf_counter() >= frame:
            rows = [
                ("episode", str(len(episodes) + (not ended))),
                ("time", f"{length * world.dt:.2f} s"),
                ("reward", f"{float(reward):.3f}"),
                ("return", f"{total:.1f}"),
                ("last return", last or "-"),
            ]
            window.show(world.state, rows)
            frame = time.perf_counter() + FRAME
        due = max(due + world.dt / controls.speed, time.perf_counter() - world.dt)
        time.sleep(max(due - time.perf_counter(), 0.0))
    return episodes


def _plain_policy(name: str, space: gym.spaces.Box, seed: int) -> Policy:
    """Return the policy of that name that needs no file."""
    space.seed(seed)
    if name == "random":
        return lambda obs: space.sample()[None]
    return lambda obs: np.zeros((1, *space.shape), dtype=np.float32)


def main(arguments: list[str] | None = None) -> None:
    """Watch an environment from the command line."""
    parser = command_line.make_parser(
        "diffenvs.play", "Watch an environment, in MuJoCo's viewer or in the browser."
    )
    parser.add_argument("--policy", default="random", help="a .pt2 or .py file, random or zero")
    parser.add_argument("--steps", type=command_line.integer(1), help="stop after this many")
    parser.add_argument("--web", action="store_true", help="in the browser instead of a window")
    port = command_line.integer(0, 65535)
    parser.add_argument("--port", type=port, default=0, help="of the page; 0 is the next free one")
    parser.set_defaults(device="cpu")  # one world
    options = parser.parse_args(arguments)
    command_line.quiet()
    given = command_line.keywords(options)
    window = env = None
    try:
        spec = command_line.find_spec(options.env)
        task = command_line.make_task(spec, given)
        plain = options.policy in ("random", "zero")
        policy = None if plain else load_policy(Path(options.policy), task)
        command_line.announce()
        if options.web:
            from diffenvs.play_web import WebWindow

            window = WebWindow(spec.id, task.mjm, task.camera, options.port)
        else:
            window = DesktopWindow(task.mjm, task.camera)
        env = gym.make(spec, **given)
        assert isinstance(env.action_space, gym.spaces.Box)
        policy = policy or _plain_policy(options.policy, env.action_space, options.seed)
        play(env, policy, window, options.seed, options.steps)
    except KeyboardInterrupt:
        print()
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, gym.error.Error) as error:
        raise SystemExit(f"diffenvs.play: {error}") from error
    finally:
        if window is not None:
            window.close()
        if env is not None:
            env.close()


if __name__ == "__main__":
    main()
