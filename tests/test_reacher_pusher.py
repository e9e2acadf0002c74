"""Reacher and Pusher: where episodes start, the reward at the goal, what moves the object."""

import re
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pusher_play
import pytest
import warp as wp

from diffenvs.physics import State
from diffenvs.tasks.pusher import Pusher
from diffenvs.tasks.reacher import SMOOTHING, Reacher

DRAWS = 3000
UNTOUCHED = 7.0


def _our_starts(task, seeds, episodes):
    """Start states of worlds, (n, nq) and (n, nv); every third world is left as it was."""
    n, nq, nv = len(seeds), task.mjm.nq, task.mjm.nv
    state = State(*(wp.full((n, k), UNTOUCHED, dtype=float) for k in (nq, nv, 0, nv)))
    mask = wp.array(np.arange(n) % 3 != 2, dtype=wp.bool)
    seed, episode = (wp.array(x, dtype=int) for x in (seeds, episodes))
    task.launch_reset(mask, seed, episode, task.make_start(mask.device), state)
    warmstart = state.qacc_warmstart.numpy()
    assert (warmstart[mask.numpy()] == 0.0).all() and (warmstart[~mask.numpy()] == UNTOUCHED).all()
    return state.qpos.numpy(), state.qvel.numpy()


def _largest_gap(a, b):
    """Kolmogorov-Smirnov statistic: largest difference of the two empirical distributions."""
    x = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(sample), x, side="right") / len(sample) for sample in (a, b)]
    return np.abs(below[0] - below[1]).max()


@pytest.fixture(params=[Reacher, Pusher], ids=["reacher", "pusher"], scope="module")
def starts(request):
    """A task, start states (qpos, qvel side by side) of ours and as many of Gymnasium's."""
    task = request.param()
    reference = gym.make(task.gymnasium).unwrapped
    reference.reset(seed=0)
    theirs = []
    for _ in range(DRAWS):
        reference.reset_model()
        theirs.append(np.concatenate([reference.data.qpos, reference.data.qvel]))
    reference.close()
    n = DRAWS * 3 // 2
    states = np.hstack(_our_starts(task, np.arange(n) // 2, np.arange(n) % 2))
    given = np.arange(n) % 3 != 2
    assert (states[~given] == UNTOUCHED).all()
    return task, states[given].astype(float), np.array(theirs)


def test_start_is_distributed_as_that_of_gymnasium(starts):
    """In each number that is random and its bounds, in the distance and along 16 directions.

    Two samples of one distribution differ by more than allowed once in a million times; a target
    that is uniform by radius instead of by area would differ by 0.25.
    """
    task, ours, theirs = starts
    allowed = np.sqrt(-np.log(0.5e-6) / DRAWS)
    random = np.ptp(theirs, axis=0) > 0
    np.testing.assert_allclose(ours[:, ~random], theirs[:, ~random], atol=1e-7)
    assert random.sum() == {"Reacher": 6, "Pusher": 9}[task.name]
    place = slice(2, 4) if task.name == "Reacher" else slice(7, 9)
    low, width = theirs[:, random].min(axis=0), np.ptp(theirs[:, random], axis=0)
    directions = np.random.default_rng(0).normal(size=(random.sum(), 16))
    views = []
    for states in (ours, theirs):
        numbers = (states[:, random] - low) / width
        distance = np.linalg.norm(states[:, place], axis=1, keepdims=True)
        views.append(np.hstack([numbers, distance, numbers @ directions]))
        for bound in (numbers.min(axis=0), 1.0 - numbers.max(axis=0)):
            np.testing.assert_allclose(bound, 0.0, atol=0.02)
    gaps = [_largest_gap(a, b) for a, b in zip(*(view.T for view in views), strict=True)]
    assert max(gaps) < allowed


def test_start_keeps_its_distance(starts):
    """Reacher's target is within 0.2 m of the root, Pusher's object farther than 0.17 m away."""
    task, ours, _ = starts
    if task.name == "Reacher":
        assert np.linalg.norm(ours[:, 2:4], axis=1).max() < 0.2
    else:
        assert np.linalg.norm(ours[:, 7:9], axis=1).min() > 0.17


def test_start_depends_on_seed_and_episode_alone(starts):
    """The same pair gives the same start in any world, another seed or episode another one."""
    task = starts[0]
    qpos, qvel = _our_starts(task, [5, 5, 0, 5, 6], [1, 2, 0, 1, 1])
    both = np.hstack([qpos, qvel])
    np.testing.assert_array_equal(both[0], both[3])
    for other in (1, 4):
        assert (both[0] != both[other]).sum() == (np.ptp(starts[2], axis=0) > 0).sum()


def _reacher_reward(reward, offsets):
    """Reward and its gradient by the place of the fingertip, at offsets (n, 3) from the target."""
    task = Reacher(reward=reward, reward_dist_weight=2.0)
    n = len(offsets)
    xpos = np.zeros((n, task.mjm.nbody, 3), np.float32)
    xpos[:, task.p.target] = (0.1, -0.05, 0.01)
    xpos[:, task.p.fingertip] = xpos[:, task.p.target] + offsets
    zeros = {"qpos": 4, "qvel": 4, "action": 2}
    fields = {name: wp.zeros((n, k), dtype=float) for name, k in zeros.items()}
    adj_fields = {name: wp.zeros((n, k), dtype=float) for name, k in zeros.items()}
    fields["xpos"] = wp.array(xpos, dtype=wp.vec3, ndim=2)
    adj_fields["xpos"] = wp.zeros_like(fields["xpos"])
    outputs = (
        wp.zeros((n, task.obs_size), dtype=float),
        wp.zeros(n, dtype=float),
        wp.zeros(n, dtype=wp.bool),
        wp.zeros((n, len(task.step_info)), dtype=float),
    )
    task.launch_outputs(fields, outputs)
    adj_reward = wp.full(n, 1.0, dtype=float)
    task.launch_outputs_vjp(fields, outputs, wp.zeros_like(outputs[0]), adj_reward, adj_fields)
    adj = adj_fields["xpos"].numpy()
    np.testing.assert_array_equal(adj[:, task.p.target], -adj[:, task.p.fingertip])
    return outputs[1].numpy(), adj[:, task.p.fingertip]


@pytest.mark.parametrize("reward", ["smooth", "v5"])
def test_reacher_reward_has_a_gradient_at_the_target(reward):
    """The distance, or its smooth stand-in, and the gradient: zero at zero in both cases."""
    directions = np.array([[1, 0, 0], [0.6, -0.8, 0], [0, 0, 1]])
    offsets = np.concatenate([np.zeros((1, 3)), *(directions * r for r in (1e-4, 0.01, 0.3))])
    value, gradient = _reacher_reward(reward, offsets)
    length = np.linalg.norm(offsets, axis=1)
    eps = SMOOTHING if reward == "smooth" else 0.0
    wanted = np.sqrt(length**2 + eps**2)
    np.testing.assert_allclose(value, -2.0 * (wanted - eps), atol=1e-7)
    assert value[0] == 0.0 and (gradient[0] == 0.0).all()
    slope = -2.0 * offsets[1:] / wanted[1:, None]
    np.testing.assert_allclose(gradient[1:], slope, rtol=1e-3, atol=1e-3)


def test_actions_move_the_object_by_touch_alone(make):
    """d(place of the object) / d(actions) is zero in just the worlds where nothing touches it."""
    n, steps = 16, 3
    envs = make("DiffPusher-v0", num_envs=n, max_episode_steps=-1)
    envs.reset(seed=0)
    states = pusher_play.states(envs.model, n, seed=3)
    envs.set_state(states.qpos, states.qvel)
    actions = np.random.default_rng(4).uniform(-0.9, 0.9, (steps, n, 7)).astype(np.float32)
    for action in actions:
        envs.grad_step(action)
    adj_obs = np.zeros((steps, n, 23), np.float32)
    adj_obs[:, :, 17:20] = 1.0
    moved = np.abs(envs.backward(adj_obs, None)).max(axis=(0, 2))
    assert (moved[n // 2 :] == 0.0).all()
    assert np.sum(moved[: n // 2] > 1e-4) >= n // 4


def test_pusher_refuses_a_goal_without_joints():
    """The start state is for eleven joints, and would be written beyond fewer."""
    text = files("envs_assets").joinpath("pusher.xml").read_text()
    text, removed = re.subn(r'<joint name="goal_slide[xy]"[^>]*/>', "", text)
    assert removed == 2
    with pytest.raises(ValueError, match="does not have: 7 joints of the arm, two of the object"):
        Pusher(xml_file=text)
