"""Watching an environment, without eyes: a stand-in for the window, and the page by its server."""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import diffenvs
from diffenvs import play

CARTPOLE = "DiffCartPoleSwingUp-v0"


class Handle:
    """Stands in for what `mujoco.viewer.launch_passive` returns."""

    def __init__(self, mjm, mjd, key_callback, **options):
        self.mjm, self.mjd, self.key = mjm, mjd, key_callback
        self.cam = mujoco.MjvCamera()
        self.frames, self.texts, self.keys, self.closed = [], [], {}, False

    def lock(self):
        return nullcontext()

    def is_running(self):
        return not self.closed

    def set_texts(self, texts):
        self.texts.append(texts)

    def sync(self):
        self.frames.append((self.mjd.qpos.copy(), self.mjd.geom_xpos.copy()))
        self.keys.pop(len(self.frames), lambda: None)()

    def close(self):
        self.closed = True

    def lines(self, frame):
        """The text of a frame, value by name."""
        _, _, names, values = self.texts[frame]
        return dict(zip(names.split("\n"), values.split("\n"), strict=True))


@pytest.fixture
def handles(monkeypatch):
    """Puts stand-ins in the place of MuJoCo's viewer, and time in fast motion."""
    import mujoco.viewer

    made = []

    def launch(*args, **kwargs):
        made.append(Handle(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(mujoco.viewer, "launch_passive", launch)
    monkeypatch.setattr(play, "_check_display", lambda: None)
    return made


@pytest.fixture
def sleeps(monkeypatch):
    """Collects for how long the loop would have slept, and lets that time pass at once."""
    taken = []
    clock = [0.0]
    monkeypatch.setattr(play.time, "perf_counter", lambda: clock[0])

    def sleep(seconds):
        taken.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(play.time, "sleep", sleep)
    return taken


@pytest.fixture(scope="module")
def env():
    """One cart-pole with episodes of five steps."""
    env = gym.make(CARTPOLE, max_episode_steps=5, device="cpu")
    yield env
    env.close()


def _window(env):
    world = env.unwrapped
    return play.DesktopWindow(world.model, {"distance": 3.0, "lookat": (0.0, 1.0, 2.0)})


def _push(obs):
    return np.ones((1, 1), dtype=np.float32)


def _episode(env, steps, seed=None):
    """States and rewards of an episode, by the loop of Gymnasium's documentation."""
    env.reset(seed=seed)
    states, rewards = [], []
    for _ in range(steps):
        rewards.append(env.step(_push(None)[0])[1])
        states.append(env.unwrapped.state.qpos)
    return states, np.cumsum(rewards), rewards


def test_window_shows_what_the_environment_does(env, handles, sleeps, capsys):
    """States, reward and return of two episodes and a half are those of a plain loop."""
    episodes = play.play(env, _push, _window(env), seed=3, steps=12)
    (handle,) = handles
    expected = [_episode(env, 5, seed=3), _episode(env, 5), _episode(env, 2)]
    qpos = np.concatenate([states for states, _, _ in expected])
    np.testing.assert_allclose([frame[0] for frame in handle.frames], qpos)
    assert len(handle.frames) == len(handle.texts) == 12
    for frame in range(12):
        number, step = divmod(frame, 5)
        lines = handle.lines(frame)
        assert lines["episode"] == str(number + 1)
        assert lines["time"] == f"{0.04 * (step + 1):.2f} s"
        assert lines["reward"] == f"{expected[number][2][step]:.3f}"
        assert lines["return"] == f"{expected[number][1][step]:.1f}"
    assert handle.lines(3)["last return"] == "-"
    assert handle.lines(5)["last return"] == f"{expected[0][1][-1]:.1f} in 5 steps"
    assert [length for _, length in episodes] == [5, 5]
    assert episodes[1][0] == pytest.approx(expected[1][1][-1])
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("episode")]
    assert printed[0] == f"episode 1: return {expected[0][1][-1]:.1f} in 5 steps, truncated"
    # What is drawn was computed for the state, and the camera is the task's.
    assert not np.allclose(handle.frames[0][1], handle.frames[11][1])
    assert handle.cam.distance == 3.0 and handle.cam.lookat.tolist() == [0.0, 1.0, 2.0]


def test_window_runs_in_real_time(env, handles, sleeps):
    """Twenty steps of 0.04 s take 0.8 s, and half of that at twice the speed."""
    for speed in (1.0, 2.0):
        window = _window(env)
        window.controls.speed = speed
        sleeps.clear()
        play.play(env, _push, window, steps=20)
        assert sum(sleeps) == pytest.approx(0.8 / speed)


def test_keys(env, handles, sleeps):
    """Space stops the world and starts it again, Backspace begins an episode; closing ends it."""
    window = _window(env)
    (handle,) = handles
    handle.keys = {
        2: lambda: handle.key(play.SPACE),
        4: lambda: handle.key(play.SPACE),
        6: lambda: handle.key(play.BACKSPACE),
        8: handle.close,
    }
    play.play(env, _push, window)
    times = [handle.lines(frame)["time"] for frame in range(len(handle.frames))]
    steps = [round(float(text.split()[0]) / 0.04) for text in times]
    assert steps == [1, 2, 2, 2, 3, 4, 1, 2]


@pytest.mark.parametrize("policy", ["random", "zero", "file"])
def test_command(policy, handles, sleeps, tmp_path, monkeypatch):
    """The command plays random actions, none, or a file, and closes window and environment."""
    closed = []
    monkeypatch.setattr(diffenvs.DiffEnv, "close", lambda env: closed.append(env))
    path = tmp_path / "policy.py"
    path.write_text("def policy(obs):\n    return 0 * obs[:, :1]\n")
    name = str(path) if policy == "file" else policy
    options = f"--env {CARTPOLE} --steps 4 --seed 1 --kwarg reset_noise_scale=0"
    play.main([*options.split(), "--policy", name])
    (handle,) = handles
    assert handle.closed and len(handle.frames) == 4 and len(closed) == 1
    hangs = np.allclose([frame[0] for frame in handle.frames], [[0, np.pi]] * 4, atol=1e-4)
    assert hangs == (policy != "random")


def test_no_display_points_to_the_page(monkeypatch):
    """Where no window can be opened the message says so, and what can be done."""

    def fail():
        raise RuntimeError("DISPLAY is missing")

    monkeypatch.setattr(play, "_check_display", fail)
    message = r"diffenvs.play: no window can be opened here \(DISPLAY is missing\); --web shows"
    with pytest.raises(SystemExit, match=message):
        play.main(["--env", CARTPOLE])


def test_missing_policy(handles, capsys):
    """A policy that is neither a file nor a name is refused before a window opens."""
    with pytest.raises(SystemExit, match=r"diffenvs.play: policy: there is no file 'rndom'"):
        play.main(["--env", CARTPOLE, "--policy", "rndom"])
    assert not handles
    assert "Compiling" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--port 99999", "argument --port: '99999' is not an integer from 0 to 65535"),
        ("--port -1", "argument --port: '-1' is not an integer from 0 to 65535"),
        ("--seed -1", "argument --seed: '-1' is not an integer >= 0"),
        ("--steps 0", "argument --steps: '0' is not an integer >= 1"),
        ("--steps x", "argument --steps: 'x' is not an integer >= 1"),
    ],
)
def test_numbers_of_the_command(options, message, capsys):
    """Numbers that are none, or out of range, are refused before a window or a page opens."""
    with pytest.raises(SystemExit):
        play.main(["--env", CARTPOLE, "--web", *options.split()])
    assert message in capsys.readouterr().err


def test_no_page(monkeypatch):
    """Where MuJoCo comes without its page (on Windows) the command says so."""
    monkeypatch.setitem(sys.modules, "mujoco.studio", None)
    monkeypatch.delitem(sys.modules, "diffenvs.play_web", raising=False)
    with pytest.raises(SystemExit, match=r"page in the browser \(mujoco.studio\) is not to be had"):
        play.main(["--env", CARTPOLE, "--web"])


# In a process of its own: the page hooks itself into logging and into the handling of exceptions.
WEB = """
import json, socket, struct, sys, threading, time, urllib.request
import numpy as np
from websockets.sync.client import connect
from diffenvs import play, play_web
from diffenvs.tasks.cartpole_swingup import CartPoleSwingUp

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
task = CartPoleSwingUp()
window = play_web.WebWindow("Swing", task.mjm, task.camera, port)
found = {}

def show(i):
    assert window.is_running()
    state = (np.array([0.125 * i, 0.5]), np.zeros(2), np.zeros(0))
    window.show(state, [("reward", f"{i}.5"), ("return", "9.0")])
    time.sleep(0.02)

def get(path):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).read()

try:
    show(0)
    until = time.time() + 60
    while not window.overlay.drawn and time.time() < until:
        show(1)
    found["drawn"] = window.overlay.drawn
    found["page"] = get("/").decode()
    found["model"] = task.mjm.names[:20] in get("/model")
    found["camera"] = [window.overlay.viewer.camera.distance, window.overlay.viewer.camera.azimuth]
    with connect(f"ws://127.0.0.1:{port}/state", max_size=None) as socket:
        # The page gets the state of the world: 0.125 * 77 does not stand there by chance.
        wanted, seen = struct.pack("<dd", 0.125 * 77, 0.5), False
        while not seen and time.time() < until:
            show(77)
            try:
                message = socket.recv(timeout=0.01)
            except TimeoutError:
                continue
            if isinstance(message, bytes):
                socket.send("state_ack")
                seen = wanted in message
        found["state"] = seen
    # What the user does on the page.
    viewer = window.overlay.viewer
    from mujoco.studio import messages, sim
    from mujoco.studio.messages import ResetEvent, StepControlSnapshot
    before = (window.controls.paused, window.controls.restart, window.controls.speed)
    viewer.send_to_sim(
        StepControlSnapshot(pause_state=sim.PauseState.NORMAL_PAUSED, speed=50.0)
    )
    viewer.send_to_sim(ResetEvent())
    while not (window.controls.restart and window.controls.paused) and time.time() < until:
        show(2)
    found["controls"] = [
        *before, window.controls.paused, window.controls.restart, window.controls.speed
    ]
    other = play_web.WebWindow("Swing", task.mjm, task.camera, port)
    try:
        while other.is_running() and time.time() < until:
            time.sleep(0.02)
    except RuntimeError as error:
        found["taken"] = str(error)
finally:
    window.close()
for thread in set(threading.enumerate()) - {threading.main_thread()}:
    thread.join(20.0)
found["threads"] = [str(thread) for thread in threading.enumerate()]
try:
    get("/")
except OSError:
    found["closed"] = True
print("FOUND", json.dumps(found))
"""


def _environment(folder):
    """Environment of a process without a display, whose settings do not get into the home."""
    without = ("DISPLAY", "WAYLAND_DISPLAY")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return kept | {"XDG_CONFIG_HOME": str(folder)}


def test_page(tmp_path):
    """The page is served with model, state and text, obeys its controls, and closes cleanly."""
    done = subprocess.run(
        [sys.executable, "-c", WEB],
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("FOUND ")[2])
    assert found["drawn"] in ([["reward", f"{i}.5"], ["return", "9.0"]] for i in (0, 1))
    assert "MuJoCo Web Viewer" in found["page"]
    assert found["model"] and found["state"]
    assert found["camera"] == [4.5, 90.0]
    assert found["controls"] == [False, False, 1.0, True, True, 0.5]
    assert "already in use" in found["taken"]
    assert len(found["threads"]) == 1 and found["closed"], found["threads"]


def test_page_by_the_command(tmp_path):
    """The command prints the address of the page, plays, and ends after its steps."""
    options = f"--env {CARTPOLE} --web --steps 8 --policy zero --kwarg max_episode_steps=4"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "diffenvs.play", *options.split()],
        capture_output=True,
        text=True,
        env=_environment(tmp_path),
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start > 8 * 0.04
    assert "http://localhost:" in done.stdout
    assert "episode 2: return" in done.stdout and "in 4 steps, truncated" in done.stdout
