"""Gymnasium's interface: making, spaces, seeds, wrappers, and the numbers of its own v5 tasks."""

import json
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import warp as wp
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import diffenvs

IDS = sorted(diffenvs.TASKS)
V5 = {
    "DiffAnt-v0": "Ant-v5",
    "DiffHalfCheetah-v0": "HalfCheetah-v5",
    "DiffHopper-v0": "Hopper-v5",
}
HOPPER = "DiffHopper-v0"
CARTPOLE = "DiffCartPoleSwingUp-v0"

WITHOUT_IMPORT = """
import gymnasium as gym
env = gym.make("diffenvs:DiffCartPoleSwingUp-v0")
envs = gym.make_vec("diffenvs:DiffCartPoleSwingUp-v0", num_envs=2)
assert type(env.unwrapped).__name__ == "DiffEnv", env
assert type(envs).__name__ == "DiffVectorEnv" and envs.num_envs == 2, envs
print("MADE")
"""


@pytest.fixture(scope="module")
def single():
    """Function that gives the single environment of an id, without wrappers."""
    made = {}

    def make(id):
        if id not in made:
            made[id] = gym.make(id).unwrapped
        return made[id]

    yield make
    for env in made.values():
        env.close()


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
def test_check_env_warns_of_nothing_but_what_mujoco_tasks_warn_of(id, single):
    """Gymnasium's checker accepts every id, with no warning that its own Hopper does not give."""
    known = _warnings(lambda: check_env(gym.make("Hopper-v5").unwrapped, skip_render_check=True))
    found = _warnings(lambda: check_env(single(id), skip_render_check=True))
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


@pytest.mark.parametrize("num_envs", [1, 3])
def test_vector_env_equals_single_envs(num_envs, vector, single, actions, assert_same):
    """World i of a batch does what a single environment with the seed `seed + i` does."""
    envs = vector(HOPPER, num_envs=num_envs, autoreset_mode="DISABLED")
    given = actions(envs, 8)
    obs, _ = envs.reset(seed=20)
    batch = [envs.step(action) for action in given]
    env = single(HOPPER)
    for world in range(num_envs):
        first, _ = env.reset(seed=20 + world)
        assert_same(obs[world], first)
        for t, action in enumerate(given):
            *outputs, info = env.step(action[world])
            for value, values in zip(outputs, batch[t][:4], strict=True):
                assert_same(np.asarray(value, values.dtype), values[world])
            for name, value in info.items():
                assert_same(np.float32(value), batch[t][4][name][world], name)


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


# Seeds and resets


def test_start_depends_on_seed_and_world_alone(vector):
    """World i of `reset(seed=s)` starts as world 0 of `reset(seed=s + i)`, in any batch size."""
    three, one = vector(HOPPER), vector(HOPPER, num_envs=1)
    obs, _ = three.reset(seed=41)
    for world in range(3):
        np.testing.assert_array_equal(one.reset(seed=41 + world)[0][0], obs[world])
    listed, _ = three.reset(seed=[43, 41, 42])
    np.testing.assert_array_equal(listed, obs[[2, 0, 1]])


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


# Wrappers


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


# The numbers of Gymnasium's tasks


def _wild_states(envs, seed):
    """States far around the start: healthy ones, fallen ones, and velocities beyond 10."""
    rng = np.random.default_rng(seed)
    n, task = envs.num_envs, envs.task
    qpos = task.init_qpos + rng.uniform(-0.3, 0.3, (n, task.mjm.nq))
    qvel = rng.normal(size=(n, task.mjm.nv)) * rng.choice([1.0, 8.0], (n, 1))
    return qpos.astype(np.float32), qvel.astype(np.float32)


def _reference(id, **kwargs):
    """Gymnasium's own task, in Ant's case without contact forces as ours."""
    if id == "DiffAnt-v0":
        kwargs |= {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}
    return gym.make(V5[id], **kwargs).unwrapped


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("id", sorted(V5))
def test_outputs_vs_gymnasium_formulas(id, positions, vector):
    """From the same states before and after a step, obs, reward, flags and info are those of v5.

    The states are ours, so only the rounding of float32 differs; in the velocity it is that of a
    position, some 1e-7 m, divided by dt.
    """
    kwargs = {"exclude_current_positions_from_observation": not positions}
    kwargs |= {"ctrl_cost_weight": 0.3, "forward_reward_weight": 1.5}
    envs = vector(id, num_envs=32, autoreset_mode="DISABLED", **kwargs)
    v5 = _reference(id, **kwargs)
    qpos, qvel = _wild_states(envs, seed=1)
    envs.set_state(qpos, qvel)
    action = np.random.default_rng(2).uniform(-1.5, 1.5, envs.action_space.shape)
    action = action.astype(np.float32)
    obs, reward, terminated, truncated, info = envs.step(action)
    after = envs.state
    assert not truncated.any()
    assert v5.dt == pytest.approx(envs.dt)
    ends = []
    for world in range(envs.num_envs):
        v5.set_state(after.qpos[world].astype(float), after.qvel[world].astype(float))
        moved = after.qpos[world, :2].astype(float) - qpos[world, :2].astype(float)
        velocity = moved / v5.dt
        np.testing.assert_allclose(obs[world], v5._get_obs(), rtol=1e-6, atol=1e-6)
        wanted, terms = v5._get_rew(velocity[0], action[world])
        assert reward[world] == pytest.approx(wanted, rel=1e-4, abs=1e-3)
        terms["x_velocity"] = velocity[0]
        terms |= v5._get_reset_info()
        for name, column in info.items():
            if name in terms:
                assert column[world] == pytest.approx(terms[name], rel=1e-4, abs=1e-3), name
        ends.append(id != "DiffHalfCheetah-v0" and not v5.is_healthy)
    np.testing.assert_array_equal(terminated, ends)
    if id != "DiffHalfCheetah-v0":
        assert 0 < np.sum(ends) < envs.num_envs
    assert np.abs(after.qvel).max() > 10
    v5.close()


@pytest.mark.parametrize("id", ["DiffHalfCheetah-v0", "DiffHopper-v0"])
def test_step_vs_gymnasium_with_the_same_integrator(id, vector):
    """A whole step of v5, its model set to our integrator, gives our outputs: float32 and contacts.

    Ant is left out: its v5 velocity comes from kinematics that are a substep old, and mujoco_warp
    turns the friction pyramid of steep capsules.
    """
    envs = vector(id, num_envs=32, autoreset_mode="DISABLED")
    v5 = _reference(id)
    v5.model.opt.integrator = envs.model.opt.integrator
    envs.reset(seed=3)
    for action in np.random.default_rng(4).uniform(-1, 1, (3, *envs.action_space.shape)):
        action = action.astype(np.float32)
        before = envs.state
        obs, reward, terminated, _, _ = envs.step(action)
        for world in range(envs.num_envs):
            v5.set_state(before.qpos[world].astype(float), before.qvel[world].astype(float))
            wanted = v5.step(action[world])
            np.testing.assert_allclose(obs[world], wanted[0], rtol=1e-3, atol=1e-3)
            assert reward[world] == pytest.approx(wanted[1], rel=1e-3, abs=1e-3)
            assert terminated[world] == wanted[2]
    v5.close()


@pytest.mark.parametrize("id", sorted(V5))
def test_spaces_vs_gymnasium(id, vector):
    """Sizes, action bounds, control step, start noise and limit are those of the v5 task."""
    envs, v5 = vector(id), _reference(id)
    assert envs.single_observation_space.shape == v5.observation_space.shape
    np.testing.assert_array_equal(envs.single_action_space.low, v5.action_space.low)
    np.testing.assert_array_equal(envs.single_action_space.high, v5.action_space.high)
    np.testing.assert_allclose(envs.task.init_qpos, v5.init_qpos)
    np.testing.assert_allclose(envs.task.init_qvel, v5.init_qvel)
    assert envs.task.parameters["reset_noise_scale"] == v5._reset_noise_scale
    assert envs.metadata["render_fps"] == v5.metadata["render_fps"]
    assert envs.rollout.max_episode_steps == gym.spec(V5[id]).max_episode_steps
    v5.close()


@pytest.mark.parametrize("id", IDS)
def test_reward_terms_add_up(id, vector, actions):
    """The "reward_..." columns of info sum to the reward, with weights that are all in use."""
    envs = vector(id)
    for action in 1.5 * actions(envs, 4):
        _, reward, _, _, info = envs.step(action)
        terms = {name: info[name] for name in envs.task.step_info if name.startswith("reward_")}
        assert len(terms) >= 2
        assert all(np.abs(term).max() > 0 for term in terms.values())
        np.testing.assert_allclose(sum(terms.values()), reward, rtol=1e-5, atol=1e-5)


def test_cartpole_outputs_vs_its_formula(vector):
    """Observation and reward of the cart-pole are what its docstring says."""
    envs = vector(CARTPOLE, num_envs=32)
    qpos, qvel = _wild_states(envs, seed=5)
    qpos[:, 1] *= 10
    envs.set_state(qpos, qvel)
    action = np.random.default_rng(6).uniform(-1.5, 1.5, (32, 1)).astype(np.float32)
    obs, reward, terminated, _, _ = envs.step(action)
    (x, angle), (v, w) = envs.state.qpos.T, envs.state.qvel.T
    np.testing.assert_allclose(
        obs, np.stack([x, np.cos(angle), np.sin(angle), v, w], axis=1), atol=1e-5
    )
    wanted = 0.5 * (1 + np.cos(angle)) - 0.1 * x**2 - 0.001 * w**2 - 0.01 * action[:, 0] ** 2
    np.testing.assert_allclose(reward, wanted, atol=1e-5)
    assert not terminated.any()


def test_health_parameters_are_used(vector):
    """Ranges, survive reward and `terminate_when_unhealthy` do what their names say."""
    tight = vector(HOPPER, autoreset_mode="DISABLED", healthy_z_range=(1.3, 2.0))
    free = vector(
        HOPPER,
        autoreset_mode="DISABLED",
        healthy_z_range=(1.3, 2.0),
        terminate_when_unhealthy=False,
        healthy_reward=5.0,
    )
    wide = vector(HOPPER, autoreset_mode="DISABLED", healthy_reward=5.0)
    zero = np.zeros(wide.action_space.shape, np.float32)
    for envs, ends, survive in ((tight, True, 0.0), (free, False, 0.0), (wide, False, 5.0)):
        *_, terminated, _, info = envs.step(zero)
        assert terminated.tolist() == [ends] * 3
        assert info["reward_survive"].tolist() == [survive] * 3


def test_frame_skip_and_integrator_are_used(vector, actions):
    """`frame_skip` sets the length of a step, and `integrator` that of the model."""
    default, shorter = vector(HOPPER), vector(HOPPER, frame_skip=1)
    assert default.dt == pytest.approx(0.008)
    assert shorter.dt == pytest.approx(0.002)
    given = actions(default, 1)[0]
    before = default.state.qpos
    moved = []
    for envs in (default, shorter):
        envs.step(given)
        moved.append(np.abs(envs.state.qpos - before).max())
    assert 0 < moved[1] < 0.5 * moved[0]
    for name, value in (("euler", "EULER"), ("implicitfast", "IMPLICITFAST")):
        wanted = getattr(mujoco.mjtIntegrator, f"mjINT_{value}")
        assert vector(HOPPER, integrator=name).model.opt.integrator == wanted


def test_default_device_is_the_preferred_one(vector):
    """Without `device=` the worlds are where Warp would put them."""
    assert vector(HOPPER).device == wp.get_preferred_device()
