"""Pictures: their content, videos by Gymnasium's wrappers, and what is said where none can be."""

import gc
import os
import subprocess
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from conftest import CARTPOLE, HOPPER
from gymnasium.error import DependencyNotInstalled

from diffenvs.rendering import Frames, WorldRenderer

SIZE = {"width": 160, "height": 120}

# Neither Warp nor our package: says whether MuJoCo can draw here at all.
CAN_DRAW = """
import os
if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco
mujoco.GLContext(64, 64).make_current()
"""

# In mode "human" either a window opens or an error is raised; the process must survive both.
HUMAN = """
import mujoco, numpy as np
from gymnasium.error import DependencyNotInstalled
from diffenvs.rendering import WorldRenderer
xml = "<mujoco><worldbody><body><joint/><geom size='.1'/></body></worldbody></mujoco>"
options = dict(width=64, height=64, max_geom=100, camera_id=None, camera_name=None,
               visual_options=None)
renderer = WorldRenderer("Ball", mujoco.MjModel.from_xml_string(xml), "human", {}, options)
try:
    renderer.draw(np.zeros(1), np.zeros(1))
    print("DRAWN")
except DependencyNotInstalled as error:
    print("REFUSED", error)
"""


@pytest.fixture(scope="module")
def gl():
    """Skip where OpenGL does not work, as MuJoCo alone sees it."""
    done = subprocess.run([sys.executable, "-c", CAN_DRAW], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no OpenGL here: {(done.stderr or 'no message').strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def env(gl):
    """A hopper that draws."""
    env = gym.make(HOPPER, render_mode="rgb_array", **SIZE)
    yield env
    env.close()


def _difference(a, b):
    """Mean absolute difference of two pictures, of 255."""
    return np.abs(a.astype(int) - b).mean()


def test_rgb_array_shows_the_robot(env):
    """A picture is uint8 of the size asked for, shows something, and follows the state."""
    env.reset(seed=0)
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((120, 160, 3), np.uint8)
    assert frame.std() > 5
    assert _difference(env.render(), frame) < 0.1  # a software renderer may round differently
    qpos, qvel, _ = env.unwrapped.state
    qpos[2:] = 0.5, -1.0, -1.0, 0.5
    env.unwrapped.set_state(qpos, qvel)
    assert _difference(env.render(), frame) > 0.5


def test_camera_follows_the_robot(env):
    """The camera tracks the torso: far down the track the robot is still in the middle."""
    env.reset(seed=0)
    near = env.render()
    qpos, qvel, _ = env.unwrapped.state
    qpos[0] += 6.0
    env.unwrapped.set_state(qpos, qvel)
    far = env.render()
    middle = np.s_[30:90, 60:100]
    assert _difference(far[middle], near[middle]) < 0.5 * near[middle].std()


def test_camera_options_are_used(env):
    """`default_camera_config` replaces the camera of the task."""
    env.reset(seed=0)
    closer = gym.make(
        HOPPER, render_mode="rgb_array", default_camera_config={"distance": 1.0}, **SIZE
    )
    closer.reset(seed=0)
    assert _difference(closer.render(), env.render()) > 5
    closer.close()


def test_depth_array_and_rgbd_tuple(gl):
    """The other modes of Gymnasium's MuJoCo tasks give depths, and both."""
    for mode in ("depth_array", "rgbd_tuple"):
        env = gym.make(CARTPOLE, render_mode=mode, **SIZE)
        env.reset(seed=0)
        frame = env.render()
        depth = frame if mode == "depth_array" else frame[1]
        assert depth.shape == (120, 160)
        assert 0 <= depth.min() < depth.max() <= 1
        if mode == "rgbd_tuple":
            assert frame[0].shape == (120, 160, 3) and frame[0].std() > 5
        env.close()


def test_vector_env_draws_every_world(gl):
    """render() gives one picture per world, those of different worlds differ."""
    envs = gym.make_vec(CARTPOLE, num_envs=3, render_mode="rgb_array", **SIZE)
    envs.reset(seed=0)
    envs.set_state(np.float32([[0.0, 0.0], [0.0, 1.5], [0.0, 3.1]]), np.zeros((3, 2), np.float32))
    frames = envs.render()
    assert len(frames) == 3
    assert all(frame.shape == (120, 160, 3) for frame in frames)
    assert _difference(frames[0], frames[1]) > 0.5
    assert _difference(frames[1], frames[2]) > 0.5
    # Pictures are of the state at the call of render(), also if they are looked at later.
    first = frames[0]
    for _ in range(10):
        envs.step(np.ones((3, 1), np.float32))
    assert _difference(frames[0], first) < 0.1
    assert _difference(envs.render()[0], first) > 0.5
    envs.close()


def test_two_environments_draw_in_turn(env):
    """Each environment draws in its own context, also after another one drew and was closed."""
    env.reset(seed=0)
    frame = env.render()
    other = gym.make(CARTPOLE, render_mode="rgb_array", **SIZE)
    other.reset(seed=0)
    pole = other.render()
    assert _difference(frame, pole) > 5
    assert _difference(env.render(), frame) < 0.1
    assert _difference(other.render(), pole) < 0.1
    other.close()
    assert _difference(env.render(), frame) < 0.1
    del other
    gc.collect()  # frees what close() left behind, in the context that drew last
    assert _difference(env.render(), frame) < 0.1


def test_frames_are_drawn_when_looked_at():
    """A batch of pictures is a sequence that draws one world per access."""
    drawn = []

    def draw(world):
        drawn.append(world)
        return world * 10

    frames = Frames(5, draw)
    assert len(frames) == 5 and drawn == []
    assert frames[3] == 30 and frames[-1] == 40
    assert frames[1:3] == [10, 20]
    assert drawn == [3, 4, 1, 2]
    with pytest.raises(IndexError):
        frames[5]
    assert list(frames) == [0, 10, 20, 30, 40]


def test_record_video_of_a_single_env(env, tmp_path):
    """RecordVideo writes a playable file of an episode."""
    pytest.importorskip("moviepy")
    recorded = gym.wrappers.RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: True)
    recorded.reset(seed=0)
    for _ in range(8):
        recorded.step(np.zeros(3, np.float32))
    recorded.stop_recording()
    _check_video(tmp_path, frames=9, size=[160, 120])


def test_record_video_of_a_vector_env(gl, tmp_path):
    """The vector RecordVideo draws world 0 alone and writes a playable file."""
    pytest.importorskip("moviepy")
    envs = gym.make_vec(CARTPOLE, num_envs=3, render_mode="rgb_array", **SIZE)
    recorded = gym.wrappers.vector.RecordVideo(
        envs, str(tmp_path), episode_trigger=lambda episode: True, record_first_only=True
    )
    worlds = []
    draw = envs._renderer.draw
    envs._renderer.draw = lambda *state: worlds.append(state) or draw(*state)
    recorded.reset(seed=0)
    for _ in range(8):
        recorded.step(np.zeros((3, 1), np.float32))
    recorded.stop_recording()
    recorded.close()
    assert len(worlds) == 9
    _check_video(tmp_path, frames=9, size=[160, 120])


def _check_video(folder, frames, size):
    """There is one video in the folder, of this many frames, and it is not blank."""
    from moviepy import VideoFileClip

    (path,) = folder.glob("*.mp4")
    with VideoFileClip(str(path)) as clip:
        assert list(clip.size) == size
        shown = list(clip.iter_frames())
    assert abs(len(shown) - frames) <= 1
    assert shown[0].std() > 5


def test_human_without_a_display_is_refused_or_shown():
    """Mode "human" never ends the process: it opens a window or raises, naming what is missing."""
    done = subprocess.run([sys.executable, "-c", HUMAN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ:
        assert "DRAWN" in done.stdout or "needs a display" in done.stdout
    else:
        assert "REFUSED Ball cannot render" in done.stdout
        assert "needs a display" in done.stdout


# Gymnasium's viewer, half made, complains when it is deleted.
half_made = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@half_made
@pytest.mark.parametrize(
    ("backend", "package"), [("egl", "libegl1"), ("osmesa", "libosmesa6"), ("glfw", "libgl1")]
)
def test_missing_gl_library_is_named(backend, package, monkeypatch):
    """Without a GL library the error names the system packages, whatever backend was asked for."""
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setitem(sys.modules, f"mujoco.{backend}", None)  # its import fails
    renderer = _ball("rgb_array")
    with pytest.raises(DependencyNotInstalled, match=rf"Ball cannot render.*apt-get.*{package}"):
        renderer.draw(np.zeros(1), np.zeros(1))


@half_made
def test_missing_gl_library_without_a_choice_of_backend(monkeypatch):
    """A headless machine is not left to GLFW: EGL is tried, and the environment is left as is."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    with pytest.raises(DependencyNotInstalled, match=r"mujoco\.egl.*libegl1"):
        _ball("rgb_array").draw(np.zeros(1), np.zeros(1))
    assert "MUJOCO_GL" not in os.environ


def _ball(mode="rgb_array", camera=None, **given):
    """A renderer of a model of one ball, which has two cameras."""
    xml = """<mujoco><worldbody><body><joint/><geom size=".1"/></body>
    <camera name="front"/><camera pos="0 0 3"/></worldbody></mujoco>"""
    options = {"width": 64, "height": 64, "max_geom": 100}
    options |= {"camera_id": None, "camera_name": None, "visual_options": None} | given
    return WorldRenderer("Ball", mujoco.MjModel.from_xml_string(xml), mode, camera or {}, options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"camera_id": 99}, r"camera_id=99 is no camera of the model; -1 \(or None\) is the free "),
        ({"camera_id": 2}, "camera_id=2 is no camera .* free camera; 0 is 'front'; 1 is ''"),
        ({"camera_id": -5}, "camera_id=-5 is no camera of the model"),
        ({"camera_id": "front"}, "camera_id='front' is no camera of the model"),
        ({"camera_name": "x"}, r"camera_name='x' is not one of the model's cameras \['front'"),
        ({"camera_name": ""}, "camera_name='' is not one of the model's cameras"),
        ({"camera_name": "front", "camera_id": 0}, "give camera_id or camera_name, not both"),
        ({"camera": {"foo": 1}}, r"default_camera_config has no 'foo'; a camera has \['azimuth'"),
        ({"camera": {"distance": "a"}}, "default_camera_config: distance is like 2.0, not 'a'"),
        ({"camera": {"lookat": (1, 2)}}, r"default_camera_config: lookat is like array.*\(1, 2\)"),
        ({"camera": {"trackbodyid": 2}}, "camera_config: trackbodyid is from -1 to 1, not 2"),
        ({"camera": {"type": 9}}, "default_camera_config: type is from 0 to 3, not 9"),
        ({"visual_options": {99: True}}, r"visual_options is a dict of mujoco.mjtVisFlag \(0 to "),
        ({"visual_options": {"a": True}}, r"visual_options is a dict .*; {'a': True} is not"),
        ({"visual_options": {0: "a"}}, r"visual_options is a dict .*; {0: 'a'} is not"),
        ({"width": 0}, "width must be an integer >= 1, not 0"),
        ({"height": -3}, "height must be an integer >= 1, not -3"),
        ({"width": "a"}, "width must be an integer >= 1, not 'a'"),
        ({"max_geom": 0}, "max_geom must be an integer >= 1, not 0"),
    ],
)  # fmt: skip
def test_options_are_checked_when_the_environment_is_made(given, message):
    """MuJoCo ends the process at some of these, and draws something else at others."""
    with pytest.raises(ValueError, match="^Ball: .*" + message):
        _ball(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"camera_id": -1},
        {"camera_id": 1},
        {"camera_name": "front"},
        {"camera": {"lookat": [0.0, 0.0, 1.0], "trackbodyid": -1}},
        {"visual_options": {mujoco.mjtVisFlag.mjVIS_JOINT: True}},
    ],
)
def test_options_that_are_accepted_draw(given, gl):
    """What passes the checks can be drawn."""
    renderer = _ball(**given)
    assert renderer.draw(np.zeros(1), np.zeros(1)).shape == (64, 64, 3)
    renderer.close()


def test_camera_that_does_not_exist_is_refused_by_make():
    """The check is made by the environment itself, before anything is drawn."""
    with pytest.raises(ValueError, match=r"Hopper: camera_id=99 is no camera .*; 0 is 'track'"):
        gym.make(HOPPER, render_mode="rgb_array", camera_id=99)


def test_render_without_a_mode_is_refused(vector):
    """render() of an environment made without render_mode says what to give, and when."""
    with pytest.raises(RuntimeError, match=r"Hopper: render\(\) needs a render_mode.*rgb_array"):
        vector(HOPPER).render()


def test_unknown_render_mode_is_refused():
    """A mode that does not exist is refused when the environment is made, with the known ones."""
    with pytest.raises(ValueError, match=r"Hopper: render_mode='ascii'.*rgb_array"):
        gym.make_vec(HOPPER, num_envs=1, render_mode="ascii")
