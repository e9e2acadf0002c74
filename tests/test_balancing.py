"""Tasks that end when something falls: where they end, and what the pendulums are rewarded for."""

import numpy as np
import pytest
import warp as wp

from diffenvs.tasks.inverted_double_pendulum import InvertedDoublePendulum
from diffenvs.tasks.inverted_pendulum import InvertedPendulum
from diffenvs.tasks.walker2d import Walker2d


def _launch(task, **fields):
    """Obs, reward, terminated of the outputs kernel, and the gradient of the sum of rewards.

    Each field is a list of rows, one per world, of numbers or of vectors.
    """
    arrays, adj = {}, {}
    for name in task.reads:
        value = np.asarray(fields[name], dtype=np.float32)
        dtype = wp.vec3 if value.ndim == 3 else float
        arrays[name] = wp.array(value, dtype=dtype)
        adj[name] = wp.zeros_like(arrays[name])
    n, columns = len(value), len(task.state_info) + len(task.step_info)
    outputs = (
        wp.zeros((n, task.obs_size), dtype=float),
        wp.zeros(n, dtype=float),
        wp.zeros(n, dtype=wp.bool),
        wp.zeros((n, columns), dtype=float),
    )
    task.launch_outputs(arrays, outputs)
    task.launch_outputs_vjp(arrays, outputs, wp.zeros_like(outputs[0]), wp.ones(n, float), adj)
    gradient = {name: array.numpy() for name, array in adj.items()}
    return *(x.numpy() for x in outputs[:3]), gradient


def test_smooth_reward_of_the_pendulum_is_greatest_at_rest_in_the_middle():
    """It is what the docstring says: 1 there and with no gradient, and below it elsewhere."""
    states = np.random.default_rng(0).normal(size=(200, 4)) * [0.3, 0.1, 1.0, 1.0]
    states[0] = 0.0
    _, reward, terminated, gradient = _launch(
        InvertedPendulum(), qpos=states[:, :2], qvel=states[:, 2:]
    )
    upright = np.abs(states[:, 1]) <= 0.2
    np.testing.assert_array_equal(terminated, ~upright)
    assert 0 < terminated.sum() < len(states) // 2
    wanted = upright - states**2 @ [0.1, 10.0, 0.01, 0.01]
    np.testing.assert_allclose(reward, wanted, atol=1e-5)
    assert reward[0] == 1.0 and reward[1:].max() < 1.0
    slope = np.hstack([gradient["qpos"], gradient["qvel"]])
    np.testing.assert_allclose(slope, -2 * states * [0.1, 10.0, 0.01, 0.01], atol=1e-5)


def test_v5_reward_of_the_pendulum_is_survival_and_has_no_gradient():
    """It is 1 until the pole leans too far or a number is not finite, and flat."""
    angle = [0.0, 0.199, -0.199, 0.201, -0.201, np.nan]
    qpos = [[0.5, x] for x in angle]
    qvel = np.ones((6, 2))
    _, reward, terminated, gradient = _launch(InvertedPendulum(reward="v5"), qpos=qpos, qvel=qvel)
    assert terminated.tolist() == [False] * 3 + [True] * 3
    assert reward.tolist() == [1.0] * 3 + [0.0] * 3
    assert all((x == 0.0).all() for x in gradient.values())
    for column in range(4):
        state = np.zeros((1, 4))
        state[0, column] = np.inf
        *_, terminated, _ = _launch(
            InvertedPendulum(reward="v5"), qpos=state[:, :2], qvel=state[:, 2:]
        )
        assert terminated.all()


def test_rewards_that_the_pendulum_knows():
    """The choice of a reward is checked by name."""
    with pytest.raises(ValueError, match=r"InvertedPendulum: reward='V5' is not one of \['smooth'"):
        InvertedPendulum(reward="V5")


def test_double_pendulum_vs_its_formula():
    """Observation, reward, gradient and end of the double pendulum are what its docstring says."""
    rng = np.random.default_rng(0)
    n = 200
    qpos, qvel = rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) * 8.0
    site_xpos = rng.normal(size=(n, 1, 3)) * 0.3 + [0.0, 0.0, 1.0]
    force = rng.normal(size=(n, 3)) * 10.0
    obs, reward, terminated, gradient = _launch(
        InvertedDoublePendulum(healthy_reward=7.0),
        qpos=qpos,
        qvel=qvel,
        site_xpos=site_xpos,
        qfrc_constraint=force,
    )
    angles, clipped = qpos[:, 1:], [x.clip(-10.0, 10.0) for x in (qvel, force[:, :1])]
    wanted = np.hstack([qpos[:, :1], np.sin(angles), np.cos(angles), *clipped])
    np.testing.assert_allclose(obs, wanted, atol=1e-5)
    x, z = site_xpos[:, 0, 0], site_xpos[:, 0, 2]
    np.testing.assert_array_equal(terminated, z <= 1.0)
    wanted = 7.0 * (z > 1.0) - 0.01 * x**2 - (z - 2.0) ** 2 - qvel**2 @ [0.0, 1e-3, 5e-3]
    np.testing.assert_allclose(reward, wanted, atol=1e-4)
    slope = np.stack([-0.02 * x, 0.0 * x, -2.0 * (z - 2.0)], axis=1)
    np.testing.assert_allclose(gradient["site_xpos"][:, 0], slope, atol=1e-5)
    np.testing.assert_allclose(gradient["qvel"], -2 * qvel * [0.0, 1e-3, 5e-3], atol=1e-5)


def test_double_pendulum_feels_the_end_of_the_rail(vector):
    """The force is that of the end of the rail on the cart, and zero at the start of an episode."""
    envs = vector("DiffInvertedDoublePendulum-v0", num_envs=16)
    zero, push = np.zeros((16, 3)), np.ones((16, 1), dtype=np.float32)
    for side in (1.0, -1.0, 0.0):  # at an end, pushed against it
        envs.set_state(zero + np.array([side, 0.0, 0.0]), zero)
        obs, *_ = envs.step(side * push)
        # mujoco_warp takes the force from a difference of forces, so its zero is a rounded one.
        np.testing.assert_allclose(obs[:, 8], -10.0 * side, atol=1e-6)
    envs.set_state(zero + np.array([1.0, 0.0, 0.0]), zero)
    envs.step(push)
    obs, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(obs[:, 8], 0.0)


def test_walker_ends_at_the_bounds_of_its_health():
    """Height and pitch end the episode from their bounds on, or never if it is told so."""
    bound = np.float32(0.8)
    height = [1.25, bound, np.nextafter(bound, np.float32(1)), 2.0, 1.99, 1.25, 1.25, 1.25, np.nan]
    pitch = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.99, 0.0]
    qpos = np.zeros((9, 9))
    qpos[:, 1], qpos[:, 2] = height, pitch
    fields = {"qpos_prev": qpos, "qpos": qpos, "qvel": np.zeros((9, 9)), "action": np.zeros((9, 6))}
    _, reward, terminated, _ = _launch(Walker2d(), **fields)
    ends = [False, True, False, True, False, True, True, False, True]
    assert terminated.tolist() == ends
    np.testing.assert_array_equal(reward, 1.0 - np.array(ends))
    assert not _launch(Walker2d(terminate_when_unhealthy=False), **fields)[2].any()


def test_walker_clips_velocities():
    """A velocity beyond 10 is 10 in the observation."""
    qpos, qvel = np.zeros((1, 9)), np.linspace(-20.0, 20.0, 9)[None]
    obs, *_ = _launch(Walker2d(), qpos_prev=qpos, qpos=qpos, qvel=qvel, action=np.zeros((1, 6)))
    np.testing.assert_allclose(obs[:, 8:], qvel.clip(-10.0, 10.0), rtol=1e-6)
