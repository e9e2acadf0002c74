"""retain="steps" against "substeps": the same gradients, in a fraction of the memory."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import CARTPOLE, HOPPER

STEPS = 5
PENDULUM = "DiffInvertedPendulum-v0"
VARIANTS = {
    "contacts": (HOPPER, {}),
    "resets": (HOPPER, {"max_episode_steps": 3}),
    "forces": ("DiffAnt-v0", {"reward": "v5", "max_episode_steps": 3}),
    "kinematics": ("DiffHumanoid-v0", {}),
    "rk4": (PENDULUM, {"integrator": "rk4"}),
    "resets by the user": (CARTPOLE, {"autoreset_mode": "DISABLED", "max_episode_steps": -1}),
}


def _weights(envs, steps, seed=1):
    """Random cotangents of all that a window returns, in the order of `backward`."""
    rng = np.random.default_rng(seed)
    n, nobs, mjm = envs.num_envs, envs.task.obs_size, envs.model

    def draw(*shape):
        return rng.normal(size=(steps, n, *shape)).astype(np.float32)

    return draw(nobs), draw(), draw(nobs), (draw(mjm.nq), draw(mjm.nv), None)


def _gradients(envs, actions):
    """Gradients of windows that grow step by step, the second time of the whole one as well."""
    found = []
    envs.reset(seed=0)
    for t, action in enumerate(actions):
        envs.grad_step(action)
        if t == 1 and envs.metadata["autoreset_mode"].name == "DISABLED":
            envs.reset(options={"reset_mask": np.array([False, True, False])})
        if t % 2 == 0:
            weights = _weights(envs, t + 1)
            found += [envs.backward(*weights), *envs.adj_initial_state]
    found += [envs.backward(*weights), *envs.adj_initial_state]
    return found, envs.state


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_vs_substeps(variant, make, actions, assert_same):
    """Steps made again have the gradient of the steps themselves, to the last bit on the CPU.

    The windows are differentiated while they grow, so that making a step again must not disturb
    those that follow it.
    """
    id, kwargs = VARIANTS[variant]
    whole, again = (make(id, retain=retain, **kwargs) for retain in ("substeps", "steps"))
    given = actions(whole, STEPS)
    (wanted, end), (found, end_too) = (_gradients(envs, given) for envs in (whole, again))
    assert np.abs(wanted[0]).max() > 0
    for value, reference in zip((*found, *end_too), (*wanted, *end), strict=True):
        assert_same(value, reference)


def test_window_of_a_thousand_steps(make, actions, assert_same):
    """A thousand steps share one slot and two graphs; both ends of the window are as they should.

    Where only its first steps have cotangents, or only its last ones, the gradient is that of a
    short window which begins in the same state.
    """
    steps, few = 1000, 8
    envs = make(PENDULUM, num_envs=2, retain="steps", window=steps)
    short = make(PENDULUM, num_envs=2, window=few)
    given = 0.1 * actions(envs, steps)
    envs.reset(seed=0)
    snapshots = {}
    for t, action in enumerate(given):
        if t in (0, steps - few):
            snapshots[t] = envs.get_state()
        envs.grad_step(action)
    with pytest.raises(RuntimeError, match="the window of 1000 grad_steps is full"):
        envs.grad_step(given[0])
    (slot,) = envs.rollout._slots
    for begin, snapshot in snapshots.items():
        part = slice(begin, begin + few)
        adj_obs = np.zeros((steps, *envs.observation_space.shape), np.float32)
        adj_obs[part] = np.random.default_rng(0).normal(size=adj_obs[part].shape)
        found = envs.backward(adj_obs, None)
        short.reset(seed=0)
        short.set_state(snapshot)
        for action in given[part]:
            short.grad_step(action)
        wanted = short.backward(adj_obs[part], None)
        assert (np.abs(wanted).max(axis=(1, 2)) > 0).all()
        assert_same(found[part], wanted)
        assert not found[begin + few :].any()
    assert set(slot.graphs) == {"step", "backward"}


def test_overwritten_steps_are_refused(vector, actions):
    """The record of a step is versioned: a loss of an earlier window has no gradient any more."""
    envs = vector(CARTPOLE, arrays="torch", retain="steps")
    action = torch.tensor(actions(envs, 1)[0], device=wp.device_to_torch(envs.device))
    action.requires_grad_()
    kept = [envs.grad_step(action)[1].sum() for _ in range(2)]
    envs.detach()
    loss = envs.grad_step(action)[1].sum()
    with pytest.raises(RuntimeError, match="record of grad_step 0 of an earlier window"):
        kept[0].backward()
    (of_the_second,) = torch.autograd.grad(loss, action)
    assert of_the_second.abs().min() > 0


@pytest.mark.parametrize("retain", ["substeps", "steps"])
def test_memory_of_a_window(retain, actions):
    """`window_memory` foretells what a window takes, and counts what is allocated."""
    envs = gym.make_vec(CARTPOLE, num_envs=3, retain=retain, window=4)
    memory = envs.window_memory
    assert memory.allocated == memory.of(1) - (retain == "steps") * memory.per_step
    envs.reset(seed=0)
    for action in actions(envs, 4):
        envs.grad_step(action)
    assert envs.window_memory.allocated == memory.of(4)
    for steps in (-5, 2.5, True, "x"):
        with pytest.raises(ValueError, match=r"window_memory.of: steps must be an integer >= 0"):
            memory.of(steps)
    mjm = envs.model
    row = 4 * (mjm.nq + 2 * mjm.nv + mjm.na + mjm.nu) + 2
    if retain == "steps":
        assert memory.per_step == 3 * row
    else:
        assert memory.shared == 0
        assert memory.per_step > 20 * 3 * row
    envs.close()


def test_single_environment(single):
    """gym.make takes the keyword, and tells the memory of its one world."""
    env = single(CARTPOLE, retain="steps")
    env.reset(seed=0)
    env.grad_step(np.float32([0.5]))
    assert np.abs(env.backward(None, np.ones(1))).min() > 0
    assert env.window_memory.per_step == 4 * (2 + 2 * 2 + 1) + 2


@pytest.mark.parametrize("value", ["step", None, True])
def test_retain_is_checked(value):
    """What is not a way to retain is refused when the environment is made."""
    text = rf"CartPoleSwingUp: retain={value!r} is not one of \['substeps', 'steps'\]"
    with pytest.raises(ValueError, match=text):
        gym.make_vec(CARTPOLE, num_envs=1, retain=value)
