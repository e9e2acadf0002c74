"""MuJoCo's page in the browser as a window of `diffenvs.play`.

`mujoco.studio` runs the page in a thread of its own. What this file adds to it are plugins: the
lines of text, and that pausing, speed and reset act on our world.
"""

from __future__ import annotations

import copy
from typing import Any

import mujoco

try:
    from mujoco.studio import app, launch_web, messages, plugin, viewer_protocol
    from mujoco.studio.dear_imgui import dear_imgui as imgui
except ImportError as error:
    raise ImportError(
        f"MuJoCo's page in the browser (mujoco.studio) is not to be had here: {error}"
    ) from error

from diffenvs.play import Controls, Rows, set_state
from diffenvs.rendering import set_camera

_COLUMN = 110  # where values begin, in pixels


class Overlay(plugin.ViewerPlugin):
    """Draws lines of text, and sets the camera once the model is there.

    Args:
        title: Of the box with the text.
        camera: As `Task.camera` has it.
    """

    def __init__(self, title: str, camera: dict[str, Any]) -> None:
        self.title = title
        self.camera = camera
        self.rows: Rows = []
        self.drawn: Rows = []

    @messages.handler(priority=messages.Priority.INTERNAL - 1)  # after `App` has set its camera
    def on_post_model(self, event: messages.PostModelEvent) -> None:
        """Look at the world as the task has it."""
        set_camera(self.viewer.camera, self.camera)

    @messages.handler
    def on_build_gui(self, event: messages.BuildGuiEvent) -> None:
        """Draw the text; called for every picture, by the thread of the page."""
        rows = self.rows
        imgui.SetNextWindowPos(imgui.Vec2(20, 50), imgui.Cond.FirstUseEver)
        flags = (imgui.WindowFlags.AlwaysAutoResize, imgui.WindowFlags.NoDecoration)
        imgui.Begin(self.title, flags=sum(map(int, flags)))
        imgui.Text(self.title)
        for name, value in rows:
            imgui.Text(name)
            imgui.SameLine(_COLUMN)
            imgui.Text(value)
        imgui.End()
        self.drawn = rows


class Listener(plugin.SimPlugin):
    """Notes what the user asks for by the buttons and keys of the page."""

    def __init__(self, controls: Controls) -> None:
        self.controls = controls

    @messages.handler
    def on_step_control(self, event: messages.StepControlSnapshot) -> None:
        """Pause, go on, or change the speed, which comes in percent."""
        self.controls.paused = event.pause_state.name != "UNPAUSED"
        self.controls.speed = event.speed / 100.0

    @messages.handler
    def on_reset(self, event: messages.ResetEvent) -> None:
        """Begin a new episode."""
        self.controls.restart = True


class WebWindow:
    """The page; its address is printed, and opened where there is a display.

    Args:
        name: Title of the page and of the text on it.
        mjm: Model; the page gets a copy.
        camera: Attributes of its camera, as `Task.camera` has them.
        port: Of the page; 0 is the first free one from 8080.

    Raises:
        RuntimeError: By `is_running`, if the port is taken or the page has failed.
    """

    def __init__(
        self, name: str, mjm: mujoco.MjModel, camera: dict[str, Any], port: int = 0
    ) -> None:
        self._mjm = copy.copy(mjm)
        self._mjd = mujoco.MjData(self._mjm)
        self.controls = Controls()
        self.overlay = Overlay(name, camera)
        bare = app.Config(show_options=False, show_inspector=False)
        self._handle = launch_web.launch(
            viewer_protocol.ViewerConfig(title=name, gfx="web", http_port=port, open_browser=True),
            plugins=[app.App(bare), self.overlay, Listener(self.controls)],
        )
        self._handle.set_model(self._mjm, data=self._mjd)

    def is_running(self) -> bool:
        """Say whether the page is served; raise what has ended it."""
        return self._handle.is_running()

    def show(self, state: Any, rows: Rows) -> None:
        """Show a state and lines of text."""
        self.overlay.rows = rows
        set_state(self._mjm, self._mjd, state)
        self._handle.sync()

    def close(self) -> None:
        """Close the page, and wait for its thread."""
        self._handle.close()
