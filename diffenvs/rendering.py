"""Pictures of worlds, drawn by Gymnasium's `MujocoRenderer` from an `mujoco.MjData`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
from gymnasium.error import DependencyNotInstalled

from diffenvs.make_options import count

RENDER_MODES = ["human", "rgb_array", "depth_array", "rgbd_tuple"]


class WorldRenderer:
    """Draws one state at a time; the GL context is made when the first picture is asked for.

    What MuJoCo would end the process for, or draw otherwise, is refused here.

    Args:
        name: Who asks, for messages.
        mjm: Model.
        mode: One of `RENDER_MODES`.
        camera: Attributes of the free camera; arrays and tuples are copied element by element.
        options: Keywords of `MujocoRenderer`: width, height, max_geom, camera_id, camera_name,
            visual_options.

    Raises:
        ValueError: A size, a camera of the model, an attribute of the free camera or a flag is
            none.
    """

    def __init__(
        self,
        name: str,
        mjm: mujoco.MjModel,
        mode: str,
        camera: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

        for what in ("width", "height", "max_geom"):
            count(name, what, options[what])
        _check_camera(name, mjm, options["camera_id"], options["camera_name"])
        _check_free_camera(name, mjm, camera)
        _check_flags(name, options["visual_options"])
        self.name = name
        self.mode = mode
        self.mjm = mjm
        self.mjd = mujoco.MjData(mjm)
        framebuffer = mjm.vis.global_
        framebuffer.offwidth = max(framebuffer.offwidth, options["width"])
        framebuffer.offheight = max(framebuffer.offheight, options["height"])
        camera = {
            key: np.asarray(value) if isinstance(value, tuple | list) else value
            for key, value in camera.items()
        }
        self._renderer = MujocoRenderer(mjm, self.mjd, camera, **options)

    def draw(self, qpos: np.ndarray, qvel: np.ndarray) -> Any:
        """Return the picture of a state, or show it in the window (mode "human")."""
        self.mjd.qpos[:], self.mjd.qvel[:] = qpos, qvel
        mujoco.mj_forward(self.mjm, self.mjd)
        try:
            if self.mode == "human" and not self._renderer._viewers:
                _check_display()
            for viewer in self._renderer._viewers.values():
                viewer.make_context_current()  # another environment may have drawn since
            with _headless_backend(self.mode):
                return self._renderer.render(self.mode)
        except Exception as error:
            if self._renderer._viewers:
                raise
            raise DependencyNotInstalled(
                f"{self.name} cannot render: OpenGL is not usable here ({error}). On Linux "
                "install a GL library, `apt-get install libegl1` (with a GPU or Mesa; then "
                "MUJOCO_GL=egl) or `apt-get install libosmesa6` (software; then "
                'MUJOCO_GL=osmesa); render_mode="human" needs a display and '
                "`apt-get install libgl1`"
            ) from error

    def close(self) -> None:
        """Free the GL context and what is in it."""
        if self.mode != "human":
            for viewer in self._renderer._viewers.values():
                # Left to the garbage collector, this would free the buffers of that name in the
                # context that is current then: those of another environment.
                viewer.make_context_current()
                viewer.con.free()
        self._renderer.close()
        self._renderer._viewers.clear()


def _check_camera(name: str, mjm: mujoco.MjModel, number: Any, camera_name: Any) -> None:
    """Refuse cameras that the model does not have: MuJoCo ends the process at such a number."""
    names = [mjm.camera(camera).name for camera in range(mjm.ncam)]
    if number is not None and camera_name is not None:
        raise ValueError(f"{name}: give camera_id or camera_name, not both")
    if number is not None:
        integer = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not integer or not -1 <= number < mjm.ncam:
            known = "; ".join(f"{i} is {camera!r}" for i, camera in enumerate(names)) or "no other"
            raise ValueError(
                f"{name}: camera_id={number!r} is no camera of the model; -1 (or None) is the free "
                f"camera; {known}"
            )
    if camera_name is not None and (not camera_name or camera_name not in names):
        raise ValueError(
            f"{name}: camera_name={camera_name!r} is not one of the model's cameras {names}; "
            "without a camera_name the free camera is used"
        )


def set_camera(camera: mujoco.MjvCamera, attributes: dict[str, Any]) -> None:
    """Set the attributes of a camera that `Task.camera` has."""
    for name, value in attributes.items():
        if isinstance(value, tuple | list | np.ndarray):
            getattr(camera, name)[:] = value
        else:
            setattr(camera, name, value)


def _check_free_camera(name: str, mjm: mujoco.MjModel, attributes: Any) -> None:
    """Refuse attributes that a camera does not have, and numbers of bodies and cameras."""
    what = f"{name}: default_camera_config"
    if not isinstance(attributes, dict):
        raise TypeError(f"{what} is a dict of attributes of a camera, not {attributes!r}")
    camera = mujoco.MjvCamera()
    known = [key for key in dir(camera) if not key.startswith("_")]
    ends = {
        "type": len(mujoco.mjtCamera.__members__),
        "trackbodyid": mjm.nbody,
        "fixedcamid": mjm.ncam,
    }
    for key, value in attributes.items():
        if key not in known:
            raise ValueError(f"{what} has no {key!r}; a camera has {known}")
        try:
            set_camera(camera, {key: value})
        except (TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{what}: {key} is like {getattr(mujoco.MjvCamera(), key)!r}, not {value!r}"
            ) from None
        low = 0 if key == "type" else -1
        if key in ends and not low <= value < ends[key]:
            raise ValueError(f"{what}: {key} is from {low} to {ends[key] - 1}, not {value!r}")


def _check_flags(name: str, flags: Any) -> None:
    """Refuse flags of `mujoco.MjvOption` that there are not."""
    count = len(mujoco.MjvOption().flags)
    accepted = f"visual_options is a dict of mujoco.mjtVisFlag (0 to {count - 1}) to True or False"
    if flags is not None and not isinstance(flags, dict):
        raise TypeError(f"{name}: {accepted}, not {flags!r}")
    for flag, value in (flags or {}).items():
        number = isinstance(flag, int | np.integer | mujoco.mjtVisFlag)
        if not number or not 0 <= int(flag) < count or value not in (0, 1):
            raise ValueError(f"{name}: {accepted}; {{{flag!r}: {value!r}}} is not")


def _check_display() -> None:
    """Raise where no window can be opened: GLFW would go on and end the whole process."""
    import glfw

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ready = glfw.init() and glfw.get_primary_monitor() is not None
    if not ready:
        raise RuntimeError("; ".join(str(w.message) for w in caught) or "there is no monitor")


class _headless_backend:
    """Make MujocoRenderer use EGL where there is no display and the user chose no backend.

    Left alone it tries GLFW first and takes a failed window for a success.
    """

    def __init__(self, mode: str) -> None:
        display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
        self.active = (
            mode != "human"
            and sys.platform == "linux"
            and not display
            and "MUJOCO_GL" not in os.environ
        )

    def __enter__(self) -> None:
        if self.active:
            os.environ["MUJOCO_GL"] = "egl"

    def __exit__(self, *exception: object) -> None:
        if self.active:
            del os.environ["MUJOCO_GL"]


class Frames(Sequence[Any]):
    """One picture per world, drawn when it is looked at.

    `RecordVideo` wants all pictures of a vector environment and, by default, uses the first.
    """

    def __init__(self, count: int, draw: Callable[[int], Any]) -> None:
        self._count = count
        self._draw = draw

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._draw(world) for world in range(*index.indices(self._count))]
        world = range(self._count)[index]
        return self._draw(world)
