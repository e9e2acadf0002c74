"""Gymnasium's interface: making, checkers, pickles, batches of worlds."""

import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from conftest import CARTPOLE, HOPPER
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import diffenvs

IDS = sorted(diffenvs.TASKS)

WITHOUT_IMPORT = """
import gymnasium as gym
env = gym.make("diffenvs:DiffCartPoleSwingUp-v0")
envs = gym.make_vec("diffenvs:DiffCartPoleSwingUp-v0", num_envs=2)
assert type(env.unwrapped).__name__ == "DiffEnv", env
assert type(envs).__name__ == "DiffVectorEnv" and envs.num_envs == 2, envs
print("MADE")
"""


def _warnings(run) -> set[str]:
    """Messages of all warnings that a function causes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return {str(warning.message) for warning in caught}


# Making


def test_make_without_importing_the_package():
    """The id "diffenvs:..." is enough for gym.make and gym.make_vec in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MADE" in done.stdout


@pytest.mark.parametrize("id", IDS)
def test_make_vec_is_native_and_warns_of_nothing(id):
    """make_vec takes our vector environment, without a warning, and its limit is the id's."""
    made = []
    assert _warnings(lambda: made.append(gym.make_vec(id, num_envs=3))) == set()
    (envs,) = made
    assert type(envs) is diffenvs.DiffVectorEnv
    assert envs.num_envs == 3
    assert envs.rollout.max_episode_steps == diffenvs.TASKS[id][1]
    assert envs.spec.id == id
    envs.close()


def test_make_vec_from_a_spec_gives_the_same_environment(vector):
    """The spec of a vector environment survives JSON and makes the same one again."""
    envs = vector(HOPPER, window=3, ctrl_cost_weight=0.25, autoreset_mode="DISABLED")
    again = gym.make_vec(envs.spec)
    assert json.loads(envs.spec.to_json())["kwargs"]["ctrl_cost_weight"] == 0.25
    assert again.num_envs == envs.num_envs
    assert again.rollout.window == 3
    assert again.task.parameters == envs.task.parameters
    assert again.autoreset_mode is AutoresetMode.DISABLED
    again.close()


def test_make_limits_the_single_environment(assert_same):
    """gym.make puts Gymnasium's TimeLimit around it: the id's limit, or the one that is given."""
    assert gym.spec(CARTPOLE).max_episode_steps == diffenvs.TASKS[CARTPOLE][1]
    env = gym.make(CARTPOLE, max_episode_steps=3)
    first, _ = env.reset(seed=5)
    for _ in range(2):
        flags = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)]
        assert flags == [(False, False), (False, False), (False, True)]
        obs, _ = env.reset()
        assert not np.array_equal(first, obs)
    obs, _ = env.reset(seed=5)
    assert_same(obs, first)
    env.close()


def test_register_makes_a_task_of_the_user():
    """diffenvs.register gives an id with the defaults that it was called with."""
    id = "RegisteredInTest-v0"
    task = diffenvs.TASKS[CARTPOLE][0]
    diffenvs.register(id, task, max_episode_steps=7, ctrl_cost_weight=0.5)
    try:
        envs = gym.make_vec(id, num_envs=2)
        assert envs.rollout.max_episode_steps == 7
        assert envs.task.parameters["ctrl_cost_weight"] == 0.5
        assert gym.spec(id).max_episode_steps == 7
        envs.close()
    finally:
        del gym.registry[id]


# Checkers


@pytest.mark.parametrize("id", IDS)
def test_check_env_warns_of_nothing_but_what_gymnasiums_task_warns_of(id, single):
    """Gymnasium's checker accepts every id, with no warning that its own task does not give."""
    env = single(id)
    theirs = env.worlds.task.gymnasium or "Hopper-v5"
    known = _warnings(lambda: check_env(gym.make(theirs).unwrapped, skip_render_check=True))
    found = _warnings(lambda: check_env(env, skip_render_check=True))
    assert found - known == set()


@pytest.mark.parametrize("id", IDS)
def test_single_env_returns_what_gymnasium_promises(id, single):
    """Observation, reward, flags and info have the types that the interface names."""
    env = single(id)
    obs, info = env.reset(seed=1)
    assert env.observation_space.dtype == obs.dtype == np.float32
    assert env.observation_space.contains(obs)
    assert env.action_space.dtype == np.float32
    assert set(info) == set(env.worlds.task.state_info)
    env.action_space.seed(1)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs)
    assert type(reward) is float
    assert type(terminated) is bool and type(truncated) is bool
    assert set(info) == {*env.worlds.task.state_info, *env.worlds.task.step_info}
    assert all(type(value) is float for value in info.values())


@pytest.mark.parametrize("id", IDS)
def test_passive_checker_warns_of_nothing(id):
    """The wrapper that gym.make adds finds nothing to say in 20 steps."""
    env = gym.make(id, disable_env_checker=False)
    env.action_space.seed(0)

    def play():
        env.reset(seed=0)
        for _ in range(20):
            if any(env.step(env.action_space.sample())[2:4]):
                env.reset()

    assert _warnings(play) == set()
    env.close()


@pytest.mark.parametrize("id", IDS)
def test_rollout_repeats_with_the_same_seed(id, single, assert_same):
    """Two environments with one seed and the same actions agree over 50 steps and resets."""
    one, two = single(id), gym.make(id).unwrapped
    one.action_space.seed(3)
    obs = [env.reset(seed=3)[0] for env in (one, two)]
    assert_same(*obs)
    for _ in range(50):
        action = one.action_space.sample()
        outputs = [env.step(action) for env in (one, two)]
        for a, b in zip(*(output[:4] for output in outputs), strict=True):
            assert_same(a, b)
        assert outputs[0][4].keys() == outputs[1][4].keys()
        assert_same(*(list(output[4].values()) for output in outputs))
        if outputs[0][2]:
            assert_same(*(env.reset()[0] for env in (one, two)))
    two.close()


@pytest.mark.parametrize("id", IDS)
def test_pickled_env_is_the_same_env(id, single, assert_same):
    """A single environment is pickled by its arguments and steps as the original does."""
    env = single(id)
    again = pickle.loads(pickle.dumps(env))
    assert_same(again.reset(seed=8)[0], env.reset(seed=8)[0])
    action = np.full(env.action_space.shape, 0.5, np.float32)
    for ours, theirs in zip(again.step(action)[:4], env.step(action)[:4], strict=True):
        assert_same(ours, theirs)
    again.close()


def test_pickle_keeps_keywords():
    """Keywords of the task come back with a pickled environment."""
    env = gym.make(HOPPER, exclude_current_positions_from_observation=False).unwrapped
    again = pickle.loads(pickle.dumps(env))
    assert again.observation_space.shape == env.observation_space.shape == (12,)
    env.close()
    again.close()


# Vector interface


@pytest.mark.parametrize("id", IDS)
def test_vector_env_returns_batches_in_its_spaces(id, vector, actions):
    """Batches have the promised shapes and types, and info a column per name."""
    envs = vector(id)
    n = envs.num_envs
    obs, info = envs.reset(seed=0)
    assert envs.observation_space.contains(obs)
    assert envs.observation_space.shape == (n, *envs.single_observation_space.shape)
    assert envs.action_space.shape == (n, *envs.single_action_space.shape)
    assert {name: value.shape for name, value in info.items()} == {
        name: (n,) for name in envs.task.state_info
    }
    obs, reward, terminated, truncated, info = envs.step(actions(envs, 1)[0])
    assert envs.observation_space.contains(obs)
    assert reward.shape == terminated.shape == truncated.shape == (n,)
    assert reward.dtype == np.float32
    assert terminated.dtype == truncated.dtype == np.bool_
    for name in (*envs.task.state_info, *envs.task.step_info):
        assert info[name].shape == (n,)
    assert isinstance(envs.metadata["autoreset_mode"], AutoresetMode)
    assert envs.metadata["render_fps"] == round(1.0 / envs.dt)
    assert "render_fps" not in type(envs).metadata


def test_vector_env_returns_fresh_arrays(vector, actions):
    """What a step returned is not changed by the next step and shares no memory with it."""
    envs = vector(HOPPER)
    given = actions(envs, 2)
    first = envs.step(given[0])
    kept = [np.copy(value) for value in (*first[:4], first[4]["final_obs"])]
    second = envs.step(given[1])
    for before, copy, after in zip(
        (*first[:4], first[4]["final_obs"]),
        kept,
        (*second[:4], second[4]["final_obs"]),
        strict=True,
    ):
        np.testing.assert_array_equal(before, copy)
        assert not np.shares_memory(before, after)
    assert not np.array_equal(first[0], second[0])


@pytest.mark.parametrize("id", IDS)
def test_vector_env_vs_single_envs(id, vector, single, actions, assert_same):
    """World i over two ends of episodes is a single environment with the seed `seed + i`."""
    envs, env = vector(id, max_episode_steps=3), single(id)
    given = actions(envs, 7)
    obs, info = envs.reset(seed=20)
    batch = [envs.step(action) for action in given]
    for world in range(envs.num_envs):
        first, first_info = env.reset(seed=20 + world)
        assert_same(first, obs[world])
        for name, value in first_info.items():
            assert_same(np.float32(value), info[name][world], name)
        elapsed = 0
        for outputs, action in zip(batch, given[:, world], strict=True):
            *found, columns = env.step(action)
            elapsed += 1
            found[3] = elapsed == 3
            for value, values in zip(found[1:], outputs[1:4], strict=True):
                assert_same(np.asarray(value, values.dtype), values[world])
            assert_same(found[0], outputs[4]["final_obs"][world])
            for name, value in columns.items():
                assert_same(np.float32(value), outputs[4]["final_info"][name][world], name)
            done = found[2] or found[3]
            assert outputs[4]["_final_obs"][world] == outputs[4]["_final_info"][world] == done
            if done:
                found[0], columns = env.reset()
                elapsed = 0
            assert_same(found[0], outputs[0][world])
            for name in first_info:
                assert_same(np.float32(columns[name]), outputs[4][name][world], name)


def test_class_metadata_is_not_shared(vector):
    """An environment in another autoreset mode leaves the metadata of the class alone."""
    envs = vector(CARTPOLE, autoreset_mode="NEXT_STEP")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert type(envs).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_close_twice():
    """Closing is possible more than once."""
    envs = gym.make_vec(CARTPOLE, num_envs=1)
    envs.close()
    envs.close()
    assert envs.closed
