"""Seeds and resets: what a start depends on, masks, given states, and the noise of the start."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import CARTPOLE, HOPPER

import diffenvs


@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_start_depends_on_seed_and_world_alone(id, vector):
    """World i of `reset(seed=s)` starts as world 0 of `reset(seed=s + i)`, in any batch size."""
    three, one = vector(id), vector(id, num_envs=1)
    obs, _ = three.reset(seed=41)
    following, _ = three.reset()
    for world in range(3):
        np.testing.assert_array_equal(one.reset(seed=41 + world)[0][0], obs[world])
        np.testing.assert_array_equal(one.reset()[0][0], following[world])
    listed, _ = three.reset(seed=[43, 41, 42])
    np.testing.assert_array_equal(listed, obs[[2, 0, 1]])
    assert len(np.unique(np.concatenate([obs, following]), axis=0)) == 6


def test_starts_differ_between_seeds_and_episodes(vector):
    """No two starts of neighbouring seeds and episodes are equal, on no shifted diagonal either."""
    envs = vector(HOPPER)
    starts = [envs.reset(seed=41)[0], *(envs.reset()[0] for _ in range(3))]
    rows = np.concatenate(starts)
    distances = np.abs(rows[:, None] - rows[None]).max(axis=-1)
    assert distances[~np.eye(len(rows), dtype=bool)].min() > 1e-6


def test_partial_reset_leaves_other_worlds_alone(vector, actions, assert_same):
    """A masked reset changes neither the present nor the future of the other worlds."""
    one, two = vector(HOPPER), vector(HOPPER, key=1)
    given = actions(one, 6)
    for envs in (one, two):
        for action in given[:3]:
            last = envs.step(action)[0]
    mask = np.array([False, True, False])
    obs, info = one.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(obs[~mask], last[~mask])
    assert not np.array_equal(obs[mask], last[mask])
    np.testing.assert_array_equal(info["_x_position"], mask)
    for action in given[3:]:
        masked, whole = one.step(action)[0], two.step(action)[0]
        assert_same(masked[~mask], whole[~mask])
    # Episode 1 of a seed is the same one, whether its world was reset alone or with all others.
    np.testing.assert_array_equal(obs[mask], two.reset()[0][mask])
    np.testing.assert_array_equal(two.reset(seed=0)[0][mask], one.reset(seed=0)[0][mask])


def test_partial_reset_with_seeds(vector):
    """Seeds of a masked reset reach the worlds in the mask, the others keep theirs."""
    envs = vector(HOPPER)
    wanted, _ = envs.reset(seed=[7, 8, 9])
    start, _ = envs.reset(seed=0)
    mask = np.array([True, False, True])
    obs, _ = envs.reset(seed=[7, 8, 9], options={"reset_mask": mask})
    np.testing.assert_array_equal(obs[mask], wanted[mask])
    np.testing.assert_array_equal(obs[~mask], start[~mask])


def test_unseeded_envs_differ_and_the_seed_keyword_repeats():
    """Without any seed two environments start differently; with `seed=` they start alike."""
    starts = []
    for kwargs in ({}, {}, {"seed": 6}, {"seed": 6}):
        envs = gym.make_vec(CARTPOLE, num_envs=2, **kwargs)
        starts.append(envs.reset()[0])
        envs.close()
    assert not np.array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[2], starts[3])


def test_large_seeds_are_all_different(vector):
    """Seeds beyond 32 bits are folded, not cut off."""
    envs = vector(CARTPOLE)
    seeds = [1, 1 + 2**32, 1 + 2**40]
    obs, _ = envs.reset(seed=seeds)
    assert len(np.unique(obs, axis=0)) == 3


def test_start_noise_has_the_stated_distribution():
    """Hopper starts uniformly, CartPole normally around the start state, as wide as stated."""
    for id, spread in ((HOPPER, 0.005 / np.sqrt(3)), (CARTPOLE, 0.05)):
        envs = gym.make_vec(id, num_envs=2000)
        envs.reset(seed=0)
        qpos, qvel, _ = envs.state
        noise = np.hstack([qpos - envs.task.init_qpos, qvel - envs.task.init_qvel])
        # Standard errors of mean and deviation: at most 1/sqrt(2000) = 2.2% of the deviation.
        assert np.abs(noise.mean(axis=0)).max() < 5 * 0.0224 * spread
        np.testing.assert_allclose(noise.std(axis=0), spread, rtol=0.1)
        correlation = np.corrcoef(noise.T) - np.eye(noise.shape[1])
        assert np.abs(correlation).max() < 0.12
        if id == HOPPER:
            assert np.abs(noise).max() <= 0.005 * (1 + 1e-4)
        envs.close()


@pytest.mark.parametrize(
    ("mask", "error", "text"),
    [
        ([True, False, True], TypeError, "reset_mask.*array of bool"),
        (np.array([1, 0, 1]), TypeError, "reset_mask.*dtype bool.*int"),
        (np.array([True, False]), ValueError, r"reset_mask.*\(3,\).*\(2,\)"),
        (np.zeros(3, dtype=bool), ValueError, "reset_mask.*at least one"),
    ],
)
def test_reset_mask_is_checked(mask, error, text, vector):
    """A mask of another type, shape or without a True is refused as Gymnasium refuses it."""
    envs = vector(HOPPER)
    reference = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    reference.reset(seed=0)
    with pytest.raises(error):
        reference.reset(options={"reset_mask": mask})
    with pytest.raises(error, match=text):
        envs.reset(options={"reset_mask": mask})
    reference.close()


def test_first_reset_draws_the_seeds_that_are_missing():
    """A world without a seed in the first reset starts anywhere, not as the one of seed 0."""
    starts = []
    for _ in range(2):
        envs = gym.make_vec("DiffCartPoleSwingUp-v0", num_envs=2)
        starts.append(envs.reset(seed=[None, 5])[0])
        envs.close()
    assert not np.array_equal(starts[0][0], starts[1][0])
    np.testing.assert_array_equal(starts[0][1], starts[1][1])
