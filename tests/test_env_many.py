"""Several environments in one process, and on two devices: none disturbs another."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import CARTPOLE, HOPPER, to_numpy

import diffenvs

ANT = "DiffAnt-v0"
STEPS = 5


def _outputs(envs, action):
    *outputs, info = envs.step(action)
    return [to_numpy(value) for value in (*outputs, info["final_obs"])]


def _assert_same_rows(assert_same, rows, wanted):
    for value, reference in zip(rows, wanted, strict=True):
        assert_same(value, reference)


def test_interleaved_steps(vector, actions, assert_same):
    """All tasks, two environments of one of them: in turn they do what each does alone."""
    names = [*((id, 0) for id in diffenvs.TASKS), (HOPPER, 1)]
    many = [vector(id, key=key, max_episode_steps=4) for id, key in names]
    given = [actions(envs, STEPS, seed=i) for i, envs in enumerate(many)]
    alone = []
    for envs, own in zip(many, given, strict=True):
        envs.reset(seed=3)
        alone.append([_outputs(envs, action) for action in own])
    for envs in many:
        envs.reset(seed=3)
    for t in range(STEPS):
        for envs, own, wanted in zip(many, given, alone, strict=True):
            _assert_same_rows(assert_same, _outputs(envs, own[t]), wanted[t])
    assert not np.array_equal(alone[1][-1][0], alone[-1][-1][0])  # Hopper, other actions


def test_interleaved_windows(vector, actions, assert_same):
    """Windows of several environments that are open at once have the gradients of each alone."""
    many = [vector(HOPPER), vector(HOPPER, key=1), vector(CARTPOLE), vector(ANT)]
    given = [actions(envs, STEPS, seed=i) for i, envs in enumerate(many)]
    ones = np.ones((STEPS, 3), np.float32)
    alone = []
    for envs, own in zip(many, given, strict=True):
        for action in own:
            envs.grad_step(action)
        alone.append((envs.backward(None, ones), *envs.adj_initial_state))
    for envs in many:
        envs.reset(seed=0)
    for t in range(STEPS):
        for envs, own in zip(many, given, strict=True):
            envs.grad_step(own[t])
    for envs, wanted in reversed(list(zip(many, alone, strict=True))):
        found = (envs.backward(None, ones), *envs.adj_initial_state)
        assert np.abs(found[0]).max() > 0
        _assert_same_rows(assert_same, found, wanted)


def test_one_graph_through_two_environments(vector, actions):
    """A loss on two environments of torch gives each its own gradient, in one backward pass."""
    many = [vector(id, arrays="torch") for id in (HOPPER, CARTPOLE)]
    gradients = []
    for together in (False, True):
        leaves, losses = [], []
        for envs in many:
            envs.reset(seed=0)
            device = wp.device_to_torch(envs.device)
            leaves.append(torch.tensor(actions(envs, 3), device=device, requires_grad=True))
            losses.append(0.0)
        for t in range(3):
            for i, envs in enumerate(many):
                losses[i] = losses[i] + envs.grad_step(leaves[i][t])[1].sum()
        if together:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
        gradients.append([to_numpy(leaf.grad) for leaf in leaves])
    for value, wanted in zip(*gradients, strict=True):
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_closing_one_leaves_the_other(vector, actions, assert_same):
    """An environment that is closed and forgotten takes nothing of another of its task with it."""
    envs = vector(HOPPER)
    given = actions(envs, 4)
    wanted = [_outputs(envs, action) for action in given]
    envs.reset(seed=0)
    for t, action in enumerate(given):
        other = gym.make_vec(HOPPER, num_envs=2)
        other.reset(seed=t)
        other.step(action[:2])
        other.close()
        del other
        _assert_same_rows(assert_same, _outputs(envs, action), wanted[t])


@pytest.mark.skipif(not wp.is_cuda_available(), reason="needs a GPU beside the CPU")
@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_two_devices(arrays, vector, actions, to_numpy):
    """The same worlds on the CPU and on a GPU, stepped in turn, agree in outputs and gradient.

    Up to the rounding of other instructions, which five steps with contacts amplify a little.
    """
    many = [vector(HOPPER, device=device, arrays=arrays) for device in ("cpu", "cuda:0")]
    given = actions(many[0], STEPS)
    rows, losses, leaves = [[], []], [0.0, 0.0], []
    for envs in many:
        assert str(envs.device) == ("cpu" if envs is many[0] else "cuda:0")
        if arrays == "torch":
            device = wp.device_to_torch(envs.device)
            leaves.append(torch.tensor(given, device=device, requires_grad=True))
        else:
            leaves.append(given)
    for t in range(STEPS):
        for i, envs in enumerate(many):
            obs, reward, *_ = envs.grad_step(leaves[i][t])
            if arrays == "torch":
                assert obs.device == leaves[i].device
                losses[i] = losses[i] + reward.sum()
            rows[i] += [to_numpy(obs), to_numpy(reward)]
    for value, wanted in zip(*rows, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-3)
    if arrays == "torch":
        sum(loss.to("cpu") for loss in losses).backward()
        gradients = [to_numpy(leaf.grad) for leaf in leaves]
    else:
        gradients = [envs.backward(None, np.ones((STEPS, 3), np.float32)) for envs in many]
    scale = np.abs(gradients[0]).max()
    assert scale > 0
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0, atol=2e-3 * scale)
    # A snapshot of one goes on on the other.
    many[1].set_state(many[0].get_state())
    np.testing.assert_array_equal(*(to_numpy(envs.state.qpos) for envs in many))
