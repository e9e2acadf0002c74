"""What happens to worlds that are done: the three autoreset modes, and the time limit."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from gymnasium.vector import AutoresetMode

HOPPER = "DiffHopper-v0"
CARTPOLE = "DiffCartPoleSwingUp-v0"
FALLEN = np.array([False, True, False])
PITCH = 1  # entry of the observation


def _topple(envs, worlds=FALLEN):
    """Pitch the torso of some worlds so far that the next step ends their episode."""
    qpos, qvel, _ = envs.state
    qpos[worlds, 2] = 0.5
    envs.set_state(qpos, qvel)


def _next_starts(vector, episode=1):
    """Observations at the start of a later episode of seed 0."""
    envs = vector(HOPPER, key="starts")
    for _ in range(episode):
        obs, _ = envs.reset()
    return obs


def _zeros(envs):
    return np.zeros(envs.action_space.shape, np.float32)


# The tables: what the step that ends an episode returns, and the steps after it


def test_next_step_mode_table(vector, actions, assert_same):
    """NEXT_STEP: terminal outputs, then a step that resets and ignores the action, then normal."""
    envs = vector(HOPPER, autoreset_mode="NEXT_STEP")
    twin = vector(HOPPER, autoreset_mode="NEXT_STEP", key=1)
    given = actions(envs, 3)
    _topple(envs)
    _topple(twin)
    obs, reward, terminated, truncated, info = envs.step(given[0])
    twin.step(given[0])
    assert terminated.tolist() == FALLEN.tolist()
    assert not truncated.any()
    assert obs[1, PITCH] > 0.2
    assert reward[1] != 0
    assert not {"final_obs", "final_info"} & set(info)

    other = given[1].copy()
    other[1] = -other[1]
    obs, reward, terminated, truncated, info = envs.step(given[1])
    again = twin.step(other)
    np.testing.assert_array_equal(obs[1], _next_starts(vector)[1])
    assert reward[1] == 0 and (reward[[0, 2]] != 0).all()
    assert not terminated.any() and not truncated.any()
    assert [info[name][1] for name in envs.task.step_info] == [0.0] * len(envs.task.step_info)
    assert info["x_position"][1] == pytest.approx(envs.state.qpos[1, 0])
    for value, same in zip((obs, reward), again[:2], strict=True):
        assert_same(value, same, "the action of the world that is reset was not ignored")

    before = envs.state.qpos[1]
    obs, reward, terminated, *_ = envs.step(given[2])
    assert not terminated.any() and reward[1] != 0
    assert 0 < np.abs(envs.state.qpos[1] - before).max() < 0.1


def test_same_step_mode_table(vector, actions, assert_same):
    """SAME_STEP: reward and flags of the terminal step, the next episode's obs, final_* beside."""
    envs = vector(HOPPER)
    reference = vector(HOPPER, autoreset_mode="DISABLED")
    given = actions(envs, 2)
    _topple(envs)
    _topple(reference)
    obs, reward, terminated, truncated, info = envs.step(given[0])
    terminal = reference.step(given[0])
    assert terminated.tolist() == FALLEN.tolist()
    for value, wanted in zip((reward, terminated, truncated), terminal[1:4], strict=True):
        assert_same(value, wanted)
    np.testing.assert_array_equal(obs[1], _next_starts(vector)[1])
    np.testing.assert_array_equal(obs[~FALLEN], info["final_obs"][~FALLEN])
    assert_same(info["final_obs"], terminal[0])
    assert info["final_obs"][1, PITCH] > 0.2
    np.testing.assert_array_equal(info["_final_obs"], FALLEN)
    np.testing.assert_array_equal(info["_final_info"], FALLEN)
    for name, column in terminal[4].items():
        assert_same(info["final_info"][name], column, name)
        np.testing.assert_array_equal(info["final_info"][f"_{name}"], FALLEN)
    # Positions are those of the new episode, what describes the step is still that of the step.
    assert info["x_position"][1] == pytest.approx(envs.state.qpos[1, 0])
    assert info["x_position"][1] != info["final_info"]["x_position"][1]
    assert_same(info["reward_forward"], terminal[4]["reward_forward"])

    obs, reward, terminated, _, info = envs.step(given[1])
    assert not terminated.any() and reward[1] != 0
    assert not info["_final_obs"].any()
    np.testing.assert_array_equal(info["final_obs"], obs)


def test_disabled_mode_table(vector, actions, assert_same):
    """DISABLED: terminal outputs, an error until the world is reset, the others go on as before."""
    envs = vector(HOPPER, autoreset_mode="DISABLED")
    twin = vector(HOPPER, autoreset_mode="DISABLED", key=1)  # without the refused steps
    given = actions(envs, 2)
    _topple(envs)
    twin.set_state(*envs.state)
    obs, _, terminated, truncated, info = envs.step(given[0])
    assert terminated.tolist() == FALLEN.tolist()
    assert obs[1, PITCH] > 0.2
    assert not {"final_obs", "final_info"} & set(info)
    with pytest.raises(AssertionError, match=r"worlds \[1\] are done.*reset_mask"):
        envs.step(given[1])
    with pytest.raises(AssertionError, match=r"worlds \[1\] are done.*reset_mask"):
        envs.grad_step(given[1])
    start, _ = envs.reset(options={"reset_mask": terminated | truncated})
    np.testing.assert_array_equal(start[1], _next_starts(vector)[1])
    np.testing.assert_array_equal(start[~FALLEN], obs[~FALLEN])
    after = envs.step(given[1])
    assert not after[2].any()
    twin.step(given[0])
    twin.reset(options={"reset_mask": FALLEN})
    for value, wanted in zip(after[:4], twin.step(given[1])[:4], strict=True):
        assert_same(value, wanted)


@pytest.mark.parametrize("arrays", ["torch", "warp"])
def test_disabled_mode_reports_a_done_world_on_device(arrays, vector, to_numpy):
    """Device arrays: stepping a done world is reported, on CUDA when the host next waits for it."""
    envs = vector(HOPPER, autoreset_mode="DISABLED", arrays=arrays)
    qpos, qvel, _ = map(to_numpy, envs.state)
    qpos[1, 2] = 0.5
    envs.set_state(qpos, qvel)
    if arrays == "torch":
        zeros = torch.zeros(envs.action_space.shape, device=wp.device_to_torch(envs.device))
    else:
        zeros = wp.zeros(envs.action_space.shape, dtype=float, device=envs.device)
    envs.grad_step(zeros)
    envs.detach()
    with pytest.raises(AssertionError, match=r"worlds that were done were stepped.*reset_mask"):
        envs.grad_step(zeros)
        envs.detach()
    envs.reset(seed=0)  # what the message asks for is not refused


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_vector_env_vs_gymnasium_sync(mode, actions, assert_same):
    """60 steps with falls equal Gymnasium's SyncVectorEnv over our single environments."""
    kwargs = {"num_envs": 2, "healthy_angle_range": (-0.08, 0.08)}
    native = gym.make_vec(HOPPER, autoreset_mode=mode, **kwargs)
    sync = gym.make_vec(
        HOPPER,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode[mode]},
        **kwargs,
    )
    assert_same(native.reset(seed=4)[0], sync.reset(seed=4)[0])
    episodes = 0
    for action in actions(native, 60):
        ours, theirs = native.step(action), sync.step(action)
        for value, wanted in zip(ours[:4], theirs[:4], strict=True):
            assert_same(value, np.asarray(wanted, value.dtype))
        done = ours[2] | ours[3]
        episodes += done.sum()
        for name in ("x_position", "z_distance_from_origin"):
            assert_same(ours[4][name], np.float32(theirs[4][name]), name)
        if mode == "SAME_STEP" and done.any():
            np.testing.assert_array_equal(ours[4]["_final_obs"], theirs[4]["_final_obs"])
            for world in np.flatnonzero(done):
                assert_same(ours[4]["final_obs"][world], theirs[4]["final_obs"][world])
                value = ours[4]["final_info"]["reward_forward"][world]
                assert_same(value, np.float32(theirs[4]["final_info"]["reward_forward"][world]))
    assert episodes >= 2
    native.close()
    sync.close()


# Time limit


@pytest.mark.parametrize(
    ("mode", "truncated_at"),
    [("SAME_STEP", [4, 8, 12]), ("NEXT_STEP", [4, 9, 14]), ("DISABLED", [4, 8, 12])],
)
def test_time_limit_by_make_vec(mode, truncated_at, vector):
    """`max_episode_steps` truncates every world, and the count begins anew with each episode."""
    envs = vector(CARTPOLE, autoreset_mode=mode, max_episode_steps=4)
    found = []
    for step in range(1, 15):
        _, _, terminated, truncated, _ = envs.step(_zeros(envs))
        assert not terminated.any()
        assert truncated.all() == truncated.any()
        if truncated.all():
            found.append(step)
            if mode == "DISABLED":
                envs.reset(options={"reset_mask": truncated})
    assert found == truncated_at


def test_time_limit_of_partially_reset_worlds(vector):
    """A masked reset restarts the count of its worlds and of no other."""
    envs = vector(CARTPOLE, max_episode_steps=4)
    for _ in range(3):
        envs.step(_zeros(envs))
    envs.reset(options={"reset_mask": FALLEN})
    flags = [envs.step(_zeros(envs))[3].tolist() for _ in range(4)]
    assert flags[0] == [True, False, True]
    assert flags[1:3] == [[False] * 3] * 2
    assert flags[3] == [False, True, False]


def test_time_limit_minus_one_is_none(vector):
    """-1 switches the limit of the id off, as in gym.make."""
    envs = vector(CARTPOLE, num_envs=1, max_episode_steps=-1)
    zero = _zeros(envs)
    assert not any(envs.step(zero)[3].any() for _ in range(510))


def test_terminated_and_truncated_together(vector):
    """A world that falls in the last step of its time reports both, and is reset once."""
    envs = vector(HOPPER, max_episode_steps=1)
    _topple(envs)
    obs, _, terminated, truncated, info = envs.step(_zeros(envs))
    assert terminated.tolist() == FALLEN.tolist()
    assert truncated.all() and info["_final_obs"].all()
    np.testing.assert_array_equal(obs, _next_starts(vector))


# Arguments


@pytest.mark.parametrize("given", list(AutoresetMode))
def test_autoreset_mode_by_name_and_value(given, vector):
    """The mode is accepted as the enumeration, its name and its value."""
    for mode in (given, given.name, given.value):
        envs = gym.make_vec(CARTPOLE, num_envs=1, autoreset_mode=mode)
        assert envs.metadata["autoreset_mode"] is given
        envs.close()


def test_diverged_world_is_reset_and_harms_no_other(vector, actions, assert_same):
    """A world whose state is NaN ends, starts again with finite numbers, and the others go on."""
    envs, twin = vector(HOPPER), vector(HOPPER, key=1)
    qpos, qvel, _ = envs.state
    twin.set_state(qpos, qvel)
    envs.set_state(qpos, qvel)
    qvel[1, 3] = np.nan
    envs.rollout.state.qvel.assign(qvel)  # set_state refuses it
    for step, action in enumerate(actions(envs, 3)):
        obs, reward, terminated, *_ = envs.step(action)
        wanted = twin.step(action)
        assert_same(obs[~FALLEN], wanted[0][~FALLEN])
        assert_same(reward[~FALLEN], wanted[1][~FALLEN])
        assert np.isfinite(obs).all()
        assert terminated.tolist() == (FALLEN.tolist() if step == 0 else [False] * 3)
