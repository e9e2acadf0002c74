"""Wrappers of Gymnasium on our environments, single and vector; gradients go around them.

RecordVideo is in `tests/test_render.py`.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import CARTPOLE, HOPPER
from gymnasium import wrappers

LIMIT = 12


@pytest.fixture
def hopper():
    """The single environment as gym.make gives it, with a short time limit."""
    env = gym.make(HOPPER, max_episode_steps=LIMIT)
    yield env
    env.close()


def _rewards_and_obs(env, steps, seed=0):
    """Play an episode of a single environment with random actions."""
    rng = np.random.default_rng(seed)
    obs, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        action = rng.uniform(-0.5, 0.5, env.action_space.shape).astype(np.float32)
        outputs = env.step(action)
        obs.append(outputs[0])
        rewards.append(outputs[1])
        if outputs[2] or outputs[3]:
            break
    return np.array(rewards), np.array(obs), outputs[4]


# Single


def test_record_episode_statistics(hopper):
    """The return and the length that the wrapper reports are those of the episode."""
    rewards, _, info = _rewards_and_obs(wrappers.RecordEpisodeStatistics(hopper), LIMIT)
    assert info["episode"]["l"] == len(rewards) == LIMIT
    assert info["episode"]["r"] == pytest.approx(rewards.sum(), rel=1e-5)


def test_normalize_observation(hopper):
    """Each observation is put in units of the mean and deviation of those so far."""
    _, raw, _ = _rewards_and_obs(hopper, LIMIT)
    env = wrappers.NormalizeObservation(hopper)
    _, obs, _ = _rewards_and_obs(env, LIMIT)
    assert np.isfinite(obs).all()
    np.testing.assert_allclose(env.obs_rms.mean, raw.mean(axis=0), atol=1e-3)
    last = (raw[-1] - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon)
    np.testing.assert_allclose(obs[-1], last, rtol=1e-4, atol=1e-5)
    assert np.abs(obs[1:] - raw[1:]).max() > 0.1


def test_normalize_reward(hopper):
    """Rewards are divided by the deviation of the discounted return so far."""
    raw, _, _ = _rewards_and_obs(hopper, LIMIT)
    env = wrappers.NormalizeReward(hopper)
    rewards, _, _ = _rewards_and_obs(env, LIMIT)
    last = raw[-1] / np.sqrt(env.return_rms.var + env.epsilon)
    assert rewards[-1] == pytest.approx(last, rel=1e-4)
    assert np.isfinite(rewards).all() and np.abs(rewards - raw).max() > 0.1


def test_clip_action(hopper, assert_same):
    """An action of 3 is one of 1, in its cost too, which the bare environment does not clip."""
    actions = [np.full(3, value, np.float32) for value in (3.0, 1.0)]
    results = []
    for env, action in ((wrappers.ClipAction(hopper), actions[0]), (hopper, actions[1])):
        env.reset(seed=0)
        results.append(env.step(action))
    for value, wanted in zip(results[0][:2], results[1][:2], strict=True):
        assert_same(value, wanted)
    hopper.reset(seed=0)
    assert hopper.step(actions[0])[1] == pytest.approx(results[1][1] - 1e-3 * 3 * 8, abs=1e-4)


def test_rescale_action(hopper, assert_same):
    """Actions in [0, 10] reach the environment in [-1, 1]."""
    results = []
    rescaled = wrappers.RescaleAction(hopper, np.float32(0), np.float32(10))
    for env, value in ((rescaled, 7.5), (hopper, 0.5)):
        env.reset(seed=0)
        results.append(env.step(np.full(3, value, np.float32)))
    for value, wanted in zip(results[0][:2], results[1][:2], strict=True):
        assert_same(value, wanted)


def test_time_aware_observation(hopper):
    """The number of the step is put behind the observation."""
    env = wrappers.TimeAwareObservation(hopper)
    _, obs, _ = _rewards_and_obs(env, LIMIT)
    assert env.observation_space.shape == (12,)
    assert all(env.observation_space.contains(row.astype(np.float32)) for row in obs)
    np.testing.assert_array_equal(obs[:, -1], np.arange(LIMIT + 1))


def test_frame_stack_observation(hopper):
    """The last four observations are one, at the start four times the first."""
    _, raw, _ = _rewards_and_obs(hopper, LIMIT)
    env = wrappers.FrameStackObservation(hopper, 4)
    _, obs, _ = _rewards_and_obs(env, LIMIT)
    assert obs.shape == (LIMIT + 1, 4, 11)
    np.testing.assert_array_equal(obs[0], np.tile(raw[0], (4, 1)))
    np.testing.assert_array_equal(obs[-1], raw[-4:])


def test_wrappers_on_each_other(hopper):
    """A stack of wrappers as it is used in training runs an episode, and leads to grad_step."""
    env = wrappers.RescaleAction(hopper, np.float32(-2), np.float32(2))
    env = wrappers.ClipAction(env)
    env = wrappers.NormalizeObservation(env)
    env = wrappers.RecordEpisodeStatistics(env)
    _, obs, info = _rewards_and_obs(env, LIMIT)
    assert info["episode"]["l"] == LIMIT
    assert np.isfinite(obs).all()
    assert env.get_wrapper_attr("grad_step") == env.unwrapped.grad_step


# Vector


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_vector_record_episode_statistics(mode, vector, actions):
    """Length and return of the wrapper are those of the episode, in both autoreset modes."""
    inner = vector(CARTPOLE, autoreset_mode=mode, max_episode_steps=4)
    envs = wrappers.vector.RecordEpisodeStatistics(inner)
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


def test_vector_record_episode_statistics_with_a_partial_reset(vector, actions):
    """The wrapper counts on in the worlds that were not reset: our reset leaves options alone."""
    envs = wrappers.vector.RecordEpisodeStatistics(vector(CARTPOLE))
    envs.reset(seed=0)
    for action in actions(envs, 5):
        envs.step(action)
    assert envs.episode_lengths.tolist() == [5, 5, 5]
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert envs.episode_lengths.tolist() == [0, 5, 5]


def test_vector_normalize_observation(vector, actions):
    """Observations of all worlds go into the statistics, in whose units they are returned."""
    inner = vector(HOPPER, autoreset_mode="NEXT_STEP")
    given = actions(inner, 4)
    raw = [inner.reset(seed=0)[0], *(inner.step(action)[0] for action in given)]
    envs = wrappers.vector.NormalizeObservation(inner)
    envs.reset(seed=0)
    obs = [envs.step(action)[0] for action in given][-1]
    wanted = (raw[-1] - envs.obs_rms.mean) / np.sqrt(envs.obs_rms.var + envs.epsilon)
    np.testing.assert_allclose(obs, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(envs.obs_rms.mean, np.concatenate(raw).mean(axis=0), atol=1e-3)


def test_vector_normalize_reward(vector, actions):
    """Rewards of all worlds are divided by the deviation of the discounted returns."""
    inner = vector(HOPPER, autoreset_mode="NEXT_STEP")
    given = actions(inner, 4)
    raw = [inner.step(action)[1] for action in given]
    envs = wrappers.vector.NormalizeReward(inner)
    envs.reset(seed=0)
    reward = [envs.step(action)[1] for action in given][-1]
    wanted = raw[-1] / np.sqrt(envs.return_rms.var + envs.epsilon)
    np.testing.assert_allclose(reward, wanted, rtol=1e-4)


def test_vector_clip_and_rescale_action(vector, assert_same):
    """Vector wrappers of actions: beyond the bounds is at the bounds, and bounds may be others."""
    inner = vector(HOPPER)
    clipped = wrappers.vector.ClipAction(inner)
    rescaled = wrappers.vector.RescaleAction(inner, np.float32(0), np.float32(10))
    for envs, value, same in ((clipped, 3.0, 1.0), (rescaled, 7.5, 0.5)):
        results = []
        for env, given in ((envs, value), (inner, same)):
            env.reset(seed=0)
            results.append(env.step(np.full((3, 3), given, np.float32)))
        for found, wanted in zip(results[0][:2], results[1][:2], strict=True):
            assert_same(found, wanted)


def test_vector_dict_info_to_list(vector, actions):
    """Info comes as a dictionary per world."""
    envs = wrappers.vector.DictInfoToList(vector(HOPPER))
    envs.reset(seed=0)
    *_, info = envs.step(actions(envs, 1)[0])
    assert [set(world) >= {"x_position", "reward_forward"} for world in info] == [True] * 3


# Gradients


def test_no_wrapper_has_grad_step(vector):
    """Gymnasium's wrappers hand on step and reset alone: a gradient is never cut in silence."""
    envs = wrappers.vector.TransformReward(vector(HOPPER, arrays="torch"), lambda reward: reward)
    assert not hasattr(envs, "grad_step")
    assert envs.unwrapped.grad_step(_zeros(envs))[1].shape == (3,)


def _zeros(envs):
    return torch.zeros(envs.action_space.shape, device=wp.device_to_torch(envs.unwrapped.device))


@pytest.mark.parametrize(
    ("wrap", "mode", "error"),
    [
        (wrappers.vector.RecordEpisodeStatistics, "SAME_STEP", TypeError),
        (wrappers.vector.NormalizeObservation, "NEXT_STEP", TypeError),
        (wrappers.vector.NormalizeReward, "NEXT_STEP", RuntimeError),
        (wrappers.vector.ClipAction, "SAME_STEP", TypeError),
    ],
)
@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_wrappers_for_numpy_refuse_tensors(wrap, mode, error, vector):
    """What computes with NumPy fails on tensors at once, so that nobody trains on a cut graph."""
    envs = wrap(vector(HOPPER, arrays="torch", autoreset_mode=mode))
    with pytest.raises(error):
        envs.reset(seed=0)
        envs.step(_zeros(envs))


def test_transformations_in_torch_keep_the_gradient(vector, actions):
    """Rescaled actions and normalized observations around grad_step: the chain rule, in two lines.

    The README shows these lines.
    """
    envs, raw = vector(HOPPER, arrays="torch"), vector(HOPPER, arrays="torch", key=1)
    device = wp.device_to_torch(envs.device)
    given = torch.tensor(actions(envs, 1)[0], device=device)
    low, high = 0.0, 10.0
    mean, std = torch.full((11,), 0.2, device=device), torch.full((11,), 3.0, device=device)

    action = ((given + 1) * 5).requires_grad_()  # in [low, high]
    obs, *_ = envs.unwrapped.grad_step(2 * (action - low) / (high - low) - 1)
    obs = (obs - mean) / std
    obs.sum().backward()

    reference = given.clone().requires_grad_()
    raw.grad_step(reference)[0].sum().backward()
    assert reference.grad.abs().min() > 0
    torch.testing.assert_close(action.grad, reference.grad / 5 / 3, rtol=1e-4, atol=1e-6)
