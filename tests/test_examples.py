"""Each example runs for two iterations, leaves what it promises and says honestly what came of it.

Windows are shortened where the example has a constant for it: every slot captures its own graph.
"""

import importlib.util
import pathlib
import re
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pusher_play
import pytest

from diffenvs.policy import save_policy

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    """Import an example, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a task is found by the name of its module
    spec.loader.exec_module(module)
    return module


def numbers(pattern, text):
    """All numbers that follow the pattern."""
    return [float(found) for found in re.findall(pattern + r"\s*(-?\d[\d.e-]*\d)", text)]


def test_numpy_gradient_agrees_with_differences(capfd, monkeypatch):
    """The gradient is that of the differences to within their own error, and leads uphill."""
    example = load("numpy_gradient")
    monkeypatch.setattr(example, "STEPS", 8)
    example.main(iterations=2, seed=0, rate=0.3)
    out = capfd.readouterr().out
    errors = [float(line.split()[0]) for line in out.splitlines() if "is moved by" in line]
    assert len(errors) == 3 and min(errors) < 5e-3
    assert "The return rose" in out


def test_trajectory_optimization_descends_and_draws(tmp_path, capfd, monkeypatch):
    """Two steps of Adam lower the cost, are no somersault, and leave a picture."""
    example = load("trajectory_optimization")
    monkeypatch.setattr(example, "STEPS", 8)
    example.main(iterations=2, num_envs=4, lr=0.1, seed=0, out=tmp_path / "out")
    out = capfd.readouterr().out
    before, after = numbers("cost", out)
    assert after < before
    assert "NO somersault" in out
    assert (tmp_path / "out" / "trajectory_optimization.png").stat().st_size > 10_000


def test_ilqr_lowers_the_cost(capfd):
    """The cost falls from one iteration to the next; a plan without feedback does not stand."""
    load("ilqr").main(iterations=2, seed=0)
    out = capfd.readouterr().out
    before, after, last = numbers("(?:cost|cost of)", out)
    assert last == after < before
    assert "without feedback: 0 of 20 stand" in out


def test_own_robot_trains_and_draws(tmp_path, capfd, monkeypatch):
    """A task from outside the package has gradients; two steps of Adam raise the return."""
    example = load("own_robot")
    monkeypatch.setattr(example, "WINDOW", 8)
    example.main(iterations=2, num_envs=4, lr=1e-2, seed=0, out=tmp_path / "out")
    out = capfd.readouterr().out
    assert len(numbers("iteration", out.replace(":", ".0"))) == 2
    assert "Before training" in out and "After training" in out
    assert "no picture" in out or (tmp_path / "out" / "own_robot.png").stat().st_size > 10_000


def test_stiff_pusher_is_pusher_with_hard_contacts(tmp_path, capfd):
    """As inert on its rails, thousands of times lighter in contacts; a push moves it, in C MuJoCo.

    The model that it writes is the one that is trained on.
    """
    example = load("stiff_pusher")
    path = tmp_path / "stiff.xml"
    example.main(path)
    assert "xml_file" in capfd.readouterr().out
    stiff = mujoco.MjModel.from_xml_path(str(path))
    soft = example.Pusher().mjm
    thing = soft.body("object").id
    assert [m.body_invweight0[thing, 0] for m in (soft, stiff)] == pytest.approx([127324, 25], 1e-5)
    for name in ("dof_M0", "dof_damping", "body_pos", "actuator_ctrlrange", "geom_solref"):
        before, after = getattr(soft, name), getattr(stiff, name)
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-9, err_msg=name)

    envs = gym.make_vec("StiffPusher-v0", num_envs=4)
    assert envs.unwrapped.model.body_invweight0[thing, 0] == pytest.approx(25.0)
    envs.close()
    states, moved = pusher_play.states(soft, 8, seed=0), []
    for mjm in (soft, stiff):
        data = mujoco.MjData(mjm)
        data.qpos[:], data.qvel[:] = states.qpos[0], 0.0  # the rake touches the object
        mujoco.mj_step(mjm, data, 10)
        moved.append(np.linalg.norm(data.qpos[7:9] - states.qpos[0, 7:9]))
    assert moved[1] > 10.0 * moved[0] > 0.0


def test_landscape_draws_every_run(tmp_path, capfd, monkeypatch):
    """A policy and a curve become a picture."""
    torch = pytest.importorskip("torch")
    example = load("landscape")
    for name, small in (("WIDTH", 240), ("HEIGHT", 180)):
        monkeypatch.setattr(example, name, small)
    folder = tmp_path / "runs" / "DiffCartPoleSwingUp-v0"
    folder.mkdir(parents=True)
    save_policy(folder / "policy.pt2", torch.nn.Linear(5, 1), 5)
    (folder / "curve.csv").write_text("iteration,steps,seconds,return\n1,9,1,2\n2,18,2,3\n")
    picture = tmp_path / "landscape.png"
    try:
        example.main(tmp_path / "runs", picture, seed=0, steps=20, columns=4)
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    assert "DiffCartPoleSwingUp-v0: 0.80 s in the picture, 20 steps" in capfd.readouterr().out
    assert picture.stat().st_size > 20_000
    with pytest.raises(SystemExit, match=r"no folder with policy\.pt2 and curve\.csv"):
        example.main(tmp_path, picture, seed=0, steps=20, columns=4)


def test_landscape_shows_a_stretch_of_a_long_way():
    """A robot that stays is shown from its start; one that runs, once it is under way."""
    example = load("landscape")
    box = np.array([[-0.5, -0.5, 0.0], [0.5, 0.5, 1.0]])
    stays = np.repeat(box[None], 300, axis=0)
    runs = stays + np.linspace(0.0, 30.0, 300)[:, None, None] * [1.0, 0.0, 0.0]
    poses = example.choose(stays, dt=0.05)
    assert poses[0] == 0 and poses[-1] == round(example.SECONDS / 0.05)
    poses = example.choose(runs, dt=0.05)
    assert poses[0] == 100
    steps = np.diff(runs[poses, 0, 0])
    assert np.allclose(steps, 2.5 * np.sqrt(3.0) / 3.0, atol=0.1)  # of diagonals of the box
