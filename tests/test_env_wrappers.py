"""Wrappers of Gymnasium on our environments, single and vector."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import CARTPOLE, HOPPER


def test_record_episode_statistics_with_a_partial_reset(vector, actions):
    """The wrapper counts on in the worlds that were not reset: our reset leaves options alone."""
    envs = gym.wrappers.vector.RecordEpisodeStatistics(vector(CARTPOLE))
    envs.reset(seed=0)
    for action in actions(envs, 5):
        envs.step(action)
    assert envs.episode_lengths.tolist() == [5, 5, 5]
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert envs.episode_lengths.tolist() == [0, 5, 5]


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_record_episode_statistics_sums_the_episode(mode, vector, actions):
    """Length and return of the wrapper are those of the episode, in both autoreset modes."""
    inner = vector(CARTPOLE, autoreset_mode=mode, max_episode_steps=4)
    envs = gym.wrappers.vector.RecordEpisodeStatistics(inner)
    envs.reset(seed=0)
    total, episodes = np.zeros(3), 0
    for action in actions(envs, 10):
        _, reward, _, truncated, info = envs.step(action)
        total += reward
        if truncated.any():
            episodes += 1
            assert info["episode"]["l"].tolist() == [4, 4, 4]
            np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-5)
            total[:] = 0.0
    assert episodes == 2


def test_single_wrappers_work():
    """Gymnasium's wrappers of observations, actions and statistics run on the environment."""
    env = gym.make(HOPPER, max_episode_steps=20)
    env = gym.wrappers.RescaleAction(env, np.float32(-2), np.float32(2))
    env = gym.wrappers.ClipAction(env)
    env = gym.wrappers.NormalizeObservation(env)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    obs, _ = env.reset(seed=0)
    done = False
    steps = 0
    while not done:
        obs, _, terminated, truncated, info = env.step(env.action_space.sample())
        steps += 1
        done = terminated or truncated
    assert steps == info["episode"]["l"] <= 20
    assert np.isfinite(obs).all()
    assert env.get_wrapper_attr("grad_step") == env.unwrapped.grad_step
    env.close()


def test_vector_wrappers_work(vector, actions):
    """Gymnasium's vector wrappers of observations and info run on the environment."""
    normalized = gym.wrappers.vector.NormalizeObservation(
        vector(HOPPER, autoreset_mode="NEXT_STEP")
    )
    normalized.reset(seed=0)
    for action in actions(normalized, 3):
        obs = normalized.step(action)[0]
    assert np.isfinite(obs).all() and np.abs(obs).max() < 10
    listed = gym.wrappers.vector.DictInfoToList(vector(HOPPER))
    listed.reset(seed=0)
    *_, info = listed.step(actions(listed, 1)[0])
    assert [set(world) >= {"x_position", "reward_forward"} for world in info] == [True] * 3
