"""Limits and reward terms of the tasks; the cart-pole, which Gymnasium has not, by its formula."""

import gymnasium as gym
import numpy as np
import pytest
import warp as wp
from conftest import CARTPOLE, HOPPER

import diffenvs
from diffenvs.vector_env import load_task

IDS = sorted(diffenvs.TASKS)


@pytest.mark.parametrize("id", [id for id in IDS if load_task(diffenvs.TASKS[id][0]).gymnasium])
def test_limit_is_that_of_gymnasium(id):
    """Episodes are as long as those of the v5 task."""
    task, limit = diffenvs.TASKS[id]
    assert limit == gym.spec(load_task(task).gymnasium).max_episode_steps


@pytest.mark.parametrize("id", IDS)
def test_reward_terms_add_up(id, vector, actions):
    """The columns of info that are named as terms sum to the reward; all but forces are in use."""
    envs = vector(id)
    constant = 1.0 if id == "DiffHumanoidStandup-v0" else 0.0  # v5 has no column for it either
    terms = [n for n in envs.task.step_info if n.startswith("reward_") or n.endswith("_penalty")]
    used = set()
    for action in 1.5 * actions(envs, 4):
        _, reward, _, _, info = envs.step(action)
        total = constant + sum(info[name] for name in terms)
        np.testing.assert_allclose(total, reward, rtol=1e-5, atol=1e-5)
        used |= {name for name in terms if info[name].any()}
    assert set(terms) - used <= {"reward_contact", "reward_impact"}


def test_cartpole_outputs_vs_its_formula(vector):
    """Observation and reward of the cart-pole are what its docstring says."""
    envs = vector(CARTPOLE, num_envs=32)
    rng = np.random.default_rng(5)
    qpos, qvel = rng.uniform(-np.pi, np.pi, (32, 2)), rng.normal(size=(32, 2)) * 8.0
    qpos[:, 0] *= 0.1
    envs.set_state(qpos, qvel)
    action = rng.uniform(-1.5, 1.5, (32, 1)).astype(np.float32)
    obs, reward, terminated, _, _ = envs.step(action)
    (x, angle), (v, w) = envs.state.qpos.T, envs.state.qvel.T
    np.testing.assert_allclose(
        obs, np.stack([x, np.cos(angle), np.sin(angle), v, w], axis=1), atol=1e-5
    )
    wanted = 0.5 * (1 + np.cos(angle)) - 0.1 * x**2 - 0.001 * w**2 - 0.01 * action[:, 0] ** 2
    np.testing.assert_allclose(reward, wanted, atol=1e-5)
    assert not terminated.any()


def test_default_device_is_the_preferred_one(vector):
    """Without `device=` the worlds are where Warp would put them."""
    assert vector(HOPPER).device == wp.get_preferred_device()
