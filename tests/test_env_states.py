"""Start states that are given to `reset`, and snapshots: `get_state`, `set_state`."""

import pickle
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import CARTPOLE, HOPPER, to_numpy

import diffenvs
from diffenvs.env_state import Snapshot

MIDDLE = np.array([False, True, False])

GO_ON = """
import pickle, sys
import gymnasium as gym
import diffenvs

snapshot, actions = pickle.load(open(sys.argv[1], "rb"))
envs = gym.make_vec(sys.argv[2], num_envs=3, max_episode_steps=6)
envs.set_state(snapshot)
outputs = [envs.step(action)[:4] for action in actions]
pickle.dump(outputs, open(sys.argv[3], "wb"))
"""


def _states(envs, seed=0):
    """A state per world near that in which the worlds are."""
    rng = np.random.default_rng(seed)
    qpos, qvel, _ = map(to_numpy, envs.state)
    noise = [0.02 * rng.normal(size=x.shape).astype(np.float32) for x in (qpos, qvel)]
    return qpos + noise[0], qvel + noise[1]


def _on_device(envs, value, **kwargs):
    """Actions of the kind of the environment."""
    if envs.arrays == "torch":
        return torch.tensor(value, device=wp.device_to_torch(envs.device), **kwargs)
    if envs.arrays == "warp":
        return wp.array(value, dtype=float, device=envs.device, **kwargs)
    return value


def _play(envs, given):
    """Outputs of steps, on the host, with done worlds reset in mode DISABLED."""
    rows = []
    for action in given:
        *outputs, info = envs.step(_on_device(envs, action))
        rows += [to_numpy(value) for value in outputs]
        rows += [to_numpy(info[name]) for name in envs.task.state_info]
        done = to_numpy(outputs[2]) | to_numpy(outputs[3])
        if envs.autoreset_mode.name == "DISABLED" and done.any():
            rows.append(to_numpy(envs.reset(options={"reset_mask": done})[0]))
    return rows


def _assert_same_rows(assert_same, rows, wanted):
    assert len(rows) == len(wanted)
    for value, reference in zip(rows, wanted, strict=True):
        assert_same(value, reference)


# Start states


@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_episodes_begin_in_given_states(id, vector):
    """Every world begins in its row, with the observation of a world that was put there."""
    envs = vector(id)
    qpos, qvel = _states(envs)
    obs, info = envs.reset(options={"state": (qpos, qvel)})
    np.testing.assert_array_equal(envs.state.qpos, qpos)
    np.testing.assert_array_equal(envs.state.qvel, qvel)
    assert not envs.state.act.any()
    assert set(info) == set(envs.task.state_info)
    envs.set_state(qpos, qvel)
    mask = {"reset_mask": MIDDLE}
    again, _ = envs.reset(options={**mask, "state": (qpos[::-1], qvel[::-1])})
    np.testing.assert_array_equal(again, obs)  # row 1 is the middle one either way


def test_given_states_in_some_worlds(vector, actions, assert_same):
    """Worlds outside the mask go on, those in it begin in their rows, counted anew."""
    envs, twin = (vector(HOPPER, max_episode_steps=8, key=key) for key in range(2))
    given = actions(envs, 9)
    qpos, qvel = _states(envs)
    for action in given[:3]:
        last = envs.step(action)[0]
        twin.step(action)
    qpos[0] = np.nan  # not looked at
    state = (qpos.astype(float), qvel.tolist(), None)
    options = {"reset_mask": MIDDLE, "state": state}
    obs, info = envs.reset(options=options)
    assert list(options) == ["reset_mask", "state"] and options["state"] is state
    np.testing.assert_array_equal(obs[~MIDDLE], last[~MIDDLE])
    np.testing.assert_array_equal(obs[1, :5], qpos[1, 1:])
    np.testing.assert_array_equal(info["_x_position"], MIDDLE)
    assert info["x_position"][1] == qpos[1, 0]
    for t, action in enumerate(given[3:], start=1):
        outputs, wanted = envs.step(action), twin.step(action)
        assert_same(outputs[0][~MIDDLE], wanted[0][~MIDDLE])
        assert outputs[3].tolist() == [t == 5, False, t == 5]
    # The episode that began in a given state was the second; what follows is the third.
    twin.reset(seed=0)
    twin.reset()
    third, _ = twin.reset()
    obs, _ = envs.reset(options={"reset_mask": MIDDLE})
    np.testing.assert_array_equal(obs[1], third[1])


def test_given_state_of_the_single_environment(single, vector, assert_same):
    """One world begins in the state that was given, and steps as one of a batch does."""
    env, envs = single(HOPPER), vector(HOPPER, num_envs=1, autoreset_mode="DISABLED")
    env.reset(seed=0)
    qpos, qvel = (x[0] for x in _states(envs))
    action = np.full(3, 0.5, np.float32)
    outputs = []
    for state in ((qpos, qvel), [qpos, qvel, np.zeros(0)]):
        obs, _ = env.reset(options={"state": state})
        np.testing.assert_array_equal(obs[:5], qpos[1:])
        np.testing.assert_array_equal(env.state.qvel, qvel)
        outputs.append(env.step(action)[0])
    envs.reset(options={"state": (qpos[None], qvel[None])})
    outputs.append(envs.step(action[None])[0][0])
    assert_same(outputs[1], outputs[0])
    assert_same(outputs[2], outputs[0])
    with pytest.raises(
        ValueError, match=r"Hopper: options\['state'\]: qpos has the shape \(1, 6\)"
    ):
        env.reset(options={"state": (qpos[1:], qvel)})
    with pytest.raises(
        ValueError, match=r"reset knows no options \['reset_mask'\]; it has 'state'"
    ):
        env.reset(options={"reset_mask": MIDDLE})


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("here", TypeError, r"is a tuple \(qpos, qvel\) or \(qpos, qvel, act\), not <class 'str'>"),
        ((np.zeros((3, 6)),), TypeError, r"\(qpos, qvel, act\), not 1 of them"),
        ((np.zeros((3, 6)), np.zeros((3, 5))), ValueError, r"qvel has the shape \(3, 6\), not \(3"),
        ((np.zeros(6), np.zeros(6)), ValueError, r"qpos has the shape \(3, 6\), not \(6,\)"),
        ((np.zeros((3, 6)),) * 3, ValueError, r"act has the shape \(3, 0\), not \(3, 6\)"),
        ((np.full((3, 6), "a"), np.zeros((3, 6))), TypeError, "qpos is an array of real numbers"),
        ((np.zeros((3, 6), complex), np.zeros((3, 6))), TypeError, "qpos is an array of real num"),
        ((np.zeros((3, 6)), np.full((3, 6), np.inf)), ValueError, r"but qvel\[1, 0\] is inf"),
    ],
)  # fmt: skip
def test_wrong_start_states_are_refused(state, error, message, vector):
    """What is wrong with a state is said, and nothing is reset."""
    envs = vector(HOPPER)
    before = envs.get_state()
    with pytest.raises(error, match=r"^Hopper: options\['state'\].*" + message):
        envs.reset(seed=4, options={"reset_mask": MIDDLE, "state": state})
    after = envs.get_state()
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)


def test_unknown_options_are_refused(vector):
    """The message has what is known."""
    with pytest.raises(
        ValueError, match=r"no options \['states'\]; it has 'reset_mask' and 'state"
    ):
        vector(HOPPER).reset(options={"states": ()})


@pytest.mark.parametrize("arrays", ["numpy", "torch", "warp"])
def test_given_states_cut_the_gradient(arrays, vector, actions):
    """Nothing passes back through a reset into a given state; where there was none, all does."""
    envs = vector(HOPPER, arrays=arrays, autoreset_mode="DISABLED")
    wants = {} if arrays == "numpy" else {"requires_grad": True}
    given = [_on_device(envs, action, **wants) for action in actions(envs, 2)]
    state = [_on_device(envs, value, **wants) for value in _states(envs)]
    with wp.Tape() as tape:
        envs.grad_step(given[0])
        envs.reset(options={"reset_mask": MIDDLE, "state": tuple(state)})
        reward = envs.grad_step(given[1])[1]
    if arrays == "numpy":
        adjoints = envs.backward(None, np.float32([[0] * 3, [1] * 3]))
    elif arrays == "torch":
        reward.sum().backward()
        adjoints = [to_numpy(action.grad) for action in given]
        assert state[0].grad is None
    else:
        tape.backward(grads={reward: wp.ones_like(reward)})
        adjoints = [to_numpy(action.grad) for action in given]
        assert not to_numpy(state[0].grad).any()
    assert not adjoints[0][1].any()
    assert adjoints[0][~MIDDLE].any(axis=1).all()
    assert adjoints[1].any(axis=1).all()


# Snapshots


@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_snapshot_goes_on_bit_for_bit(id, vector, actions, assert_same):
    """Every task goes on from a snapshot as it did before, in another environment too."""
    envs = vector(id, max_episode_steps=4)
    given = actions(envs, 8)
    _play(envs, given[:3])
    snapshot = pickle.loads(pickle.dumps(envs.get_state()))
    wanted = _play(envs, given[3:])
    envs.set_state(snapshot)
    start, _ = envs.reset(options={"reset_mask": MIDDLE})
    envs.set_state(snapshot)
    # Other worlds show what they last showed, though no step was made since.
    np.testing.assert_array_equal(start[~MIDDLE], snapshot.arrays["obs"][~MIDDLE])
    _assert_same_rows(assert_same, _play(envs, given[3:]), wanted)
    other = vector(id, max_episode_steps=4, key=1)
    other.set_state(snapshot)
    _assert_same_rows(assert_same, _play(other, given[3:]), wanted)


@pytest.mark.parametrize("arrays", ["numpy", "torch", "warp"])
@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_snapshots_of_every_mode_and_kind(arrays, mode, vector, actions, assert_same):
    """Pending resets, elapsed steps, seeds and episodes come back, for every kind of arrays."""
    envs = vector(HOPPER, arrays=arrays, autoreset_mode=mode, max_episode_steps=4)
    given = actions(envs, 13)
    _play(envs, given[:2])
    envs.reset(seed=[5, 6, 7], options={"reset_mask": MIDDLE})
    snapshots, rows = [], []
    for t in range(2, 8):
        snapshots.append(envs.get_state())
        rows.append(_play(envs, given[t : t + 1]))
    if mode == "NEXT_STEP":
        assert any(snapshot.arrays["pending"].any() for snapshot in snapshots)
    for first, snapshot in enumerate(snapshots):
        envs.set_state(snapshot)
        again = [_play(envs, given[t : t + 1]) for t in range(first + 2, 8)]
        for value, wanted in zip(again, rows[first:], strict=True):
            _assert_same_rows(assert_same, value, wanted)


def test_snapshot_in_another_process(vector, actions, assert_same, tmp_path):
    """An environment in a fresh interpreter goes on where this one was, without a reset."""
    envs = vector(CARTPOLE, max_episode_steps=6)
    given = actions(envs, 10)
    _play(envs, given[:2])
    (tmp_path / "in").write_bytes(pickle.dumps((envs.get_state(), given[2:])))
    wanted = [envs.step(action)[:4] for action in given[2:]]
    command = [sys.executable, "-c", GO_ON, tmp_path / "in", CARTPOLE, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs = pickle.loads((tmp_path / "out").read_bytes())
    for row, reference in zip(outputs, wanted, strict=True):
        _assert_same_rows(assert_same, row, reference)


def test_snapshot_is_a_copy(vector, actions):
    """Steps do not change a snapshot, and what is done to it does not change the environment."""
    envs = vector(HOPPER)
    snapshot = envs.get_state()
    kept = pickle.loads(pickle.dumps(snapshot))
    _play(envs, actions(envs, 2))
    envs.set_state(snapshot)
    _play(envs, actions(envs, 1))
    for name, array in kept.arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[name], array)
    envs.set_state(snapshot)
    snapshot.arrays["qpos"][:] = 0.0
    np.testing.assert_array_equal(envs.state.qpos, kept.arrays["qpos"])


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_snapshot_between_grad_steps_begins_a_window(arrays, vector, actions, assert_same):
    """After set_state(snapshot) the gradient is that of the steps after it, each time the same."""
    envs = vector(HOPPER, arrays=arrays)
    given = actions(envs, 3)
    envs.grad_step(_on_device(envs, given[0]))
    snapshot = envs.get_state()
    gradients = []
    for _ in range(2):
        envs.set_state(snapshot)
        assert envs.rollout.recorded == 0
        if arrays == "torch":
            leaf = _on_device(envs, given[1:], requires_grad=True)
            sum(envs.grad_step(action)[1].sum() for action in leaf).backward()
            gradients.append(to_numpy(leaf.grad))
        else:
            for action in given[1:]:
                envs.grad_step(action)
            gradients.append(envs.backward(None, np.ones((2, 3), np.float32)))
    assert np.abs(gradients[0]).max() > 0
    assert_same(gradients[1], gradients[0])


def test_snapshot_of_the_single_environment(single, assert_same):
    """One world goes on from a snapshot; one that had terminated has terminated again."""
    env = single(HOPPER)
    env.reset(seed=3)
    action = np.full(3, 0.5, np.float32)
    start = env.get_state()
    wanted = [env.step(action)[0] for _ in range(3)]
    qpos, qvel, _ = env.state
    qpos[2] = 0.5
    env.set_state(qpos, qvel)
    assert env.step(action)[2]
    fallen = env.get_state()
    env.set_state(start)
    for obs in wanted:
        assert_same(env.step(action)[0], obs)
    env.set_state(fallen)
    with pytest.raises(AssertionError, match="Hopper: the episode has terminated"):
        env.step(action)
    env.reset()
    env.step(action)


def test_wrong_snapshots_are_refused(vector, single):
    """Another task, another number of worlds, other arrays: each is named, and nothing is set."""
    envs, cartpole = vector(HOPPER), vector(CARTPOLE)
    snapshot, before = envs.get_state(), envs.state.qpos
    rest = {name: array for name, array in snapshot.arrays.items() if name != "seed"}
    double = snapshot.arrays | {"qvel": snapshot.arrays["qvel"].astype(float)}
    for wrong, message in (
        (cartpole.get_state(), "this is a snapshot of CartPoleSwingUp, not of Hopper"),
        (Snapshot("Hopper", rest), r"a snapshot has the arrays \[.*'seed'.*\], not \['qpos'"),
        (
            Snapshot("Hopper", double),
            r"qvel of a snapshot has the shape \(3, 6\) and dtype float32",
        ),
        (single(HOPPER).get_state(), r"qpos of a snapshot has the shape \(3, 6\).*not \(1, 6\)"),
    ):
        with pytest.raises(ValueError, match="^Hopper: " + message):
            envs.set_state(wrong)
    with pytest.raises(TypeError, match=r"set_state takes \(qpos, qvel\).* or a snapshot.* alone"):
        envs.set_state(before)
    with pytest.raises(TypeError, match=r"set_state takes \(qpos, qvel\).* or a snapshot.* alone"):
        single(HOPPER).set_state(before[0])
    np.testing.assert_array_equal(envs.state.qpos, before)


def test_done_worlds_do_not_fit_same_step(vector):
    """In SAME_STEP no world waits for its reset, so a snapshot in which one does is refused."""
    envs = vector(CARTPOLE, autoreset_mode="NEXT_STEP", max_episode_steps=1)
    envs.step(np.zeros((3, 1), np.float32))
    with pytest.raises(ValueError, match=r"worlds \[0, 1, 2\] of the snapshot are done and wait"):
        vector(CARTPOLE).set_state(envs.get_state())


def test_get_state_before_reset():
    """Before the first reset there is nothing to keep."""
    envs = gym.make_vec(CARTPOLE, num_envs=1)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before get_state"):
        envs.get_state()


def test_pickled_vector_env_is_made_anew():
    """A vector environment is pickled by its arguments; `get_state` has what it was doing."""
    envs = gym.make_vec("DiffCartPoleSwingUp-v0", num_envs=2, ctrl_cost_weight=0.5)
    again = pickle.loads(pickle.dumps(envs))
    assert again.num_envs == 2 and again.task.parameters == envs.task.parameters
    np.testing.assert_array_equal(again.reset(seed=3)[0], envs.reset(seed=3)[0])
    envs.step(np.ones((2, 1), np.float32))
    again.set_state(envs.get_state())
    np.testing.assert_array_equal(again.state.qpos, envs.state.qpos)
