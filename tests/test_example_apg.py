"""The example runs as a user runs it, for two iterations, and leaves what it promises."""

import pathlib
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from diffenvs import command_line
from diffenvs.policy import load_policy

SCRIPT = pathlib.Path(__file__).parent.parent / "examples" / "apg.py"


@pytest.mark.parametrize("env", ["DiffCartPoleSwingUp-v0", "DiffHopper-v0"])
def test_example_trains_for_two_iterations(tmp_path, env):
    """Logs, curve, policy and the returns before and after are there, and the verdict is honest."""
    small = "--num-envs 4 --iterations 2 --horizon 8 --eval-envs 2".split()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--env", env, *small, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout and "after training" in done.stdout
    if env == "DiffCartPoleSwingUp-v0":
        assert "NOT swung up" in done.stdout  # two steps of the optimizer can't
    folder = tmp_path / env
    for name in ("learning_curve.png", "policy.pt2"):
        assert (folder / name).stat().st_size > 1000
    # The policy is a file that the commands take, and normalises what it is given by itself.
    task = command_line.make_task(gym.spec(env), {})
    action = load_policy(folder / "policy.pt2", task)(np.ones((5, task.obs_size)))
    assert np.abs(action).max() < 1.0
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("*.mp4")) or "no video" in done.stdout


def test_example_lists_its_settings(tmp_path):
    """--help names every setting."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    )
    for option in ("--env", "--num-envs", "--horizon", "--device", "--seed", "--iterations"):
        assert option in done.stdout
