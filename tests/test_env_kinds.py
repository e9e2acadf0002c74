"""torch, NumPy and Warp arrays: one gradient, also through resets; windows, histories, states."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import CARTPOLE, HOPPER, to_numpy
from gymnasium.vector import AutoresetMode

import diffenvs

STEPS = 8
KINDS = ("numpy", "torch", "warp")


@wp.kernel
def _scale(given: wp.array2d[float], factor: float, out: wp.array2d[float]):
    """A policy of the user: the action is a parameter times a factor."""
    i, j = wp.tid()
    out[i, j] = factor * given[i, j]


@wp.kernel
def _dot(x: wp.array2d[float], weight: wp.array2d[float], out: wp.array[float]):
    """A loss of the user: add the weighted sum of a matrix."""
    i, j = wp.tid()
    wp.atomic_add(out, 0, x[i, j] * weight[i, j])


@wp.kernel
def _dot_vector(x: wp.array[float], weight: wp.array[float], out: wp.array[float]):
    """A loss of the user: add the weighted sum of a vector."""
    i = wp.tid()
    wp.atomic_add(out, 0, x[i] * weight[i])


def _tensor(envs, value, requires_grad=False):
    device = wp.device_to_torch(envs.device)
    return torch.tensor(value, device=device, requires_grad=requires_grad)


def _array(envs, value, requires_grad=False):
    return wp.array(value, dtype=float, device=envs.device, requires_grad=requires_grad)


def _falling(envs):
    """A start from which world 0 stays up, and worlds 1 and 2 fall within STEPS."""
    qpos = np.tile(envs.task.init_qpos, (3, 1)).astype(np.float32)
    qvel = np.zeros((3, envs.task.mjm.nv), np.float32)
    qpos[:, 2] = 0.0, 0.15, 0.12
    qvel[:, 2] = 0.0, 3.0, 3.0
    return qpos, qvel


def _weights(envs, steps=STEPS, seed=1):
    """Random cotangents of everything that a window of grad_steps returns."""
    rng = np.random.default_rng(seed)
    n, nobs, mjm = envs.num_envs, envs.task.obs_size, envs.task.mjm
    shapes = {"obs": (n, nobs), "reward": (n,), "final_obs": (n, nobs)}
    shapes |= {"qpos": (n, mjm.nq), "qvel": (n, mjm.nv)}
    return {
        name: rng.normal(size=(steps, *shape)).astype(np.float32) for name, shape in shapes.items()
    }


def _reset_done(envs, outputs):
    """Return which worlds are done, and reset them in mode DISABLED."""
    done = to_numpy(outputs[2]) | to_numpy(outputs[3])
    if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and done.any():
        envs.reset(options={"reset_mask": done})
    return done


def _differentiate_numpy(envs, start, given, weights):
    """Gradient of the weighted sum of all outputs by backward(), and where worlds ended."""
    envs.set_state(*start)
    ends = np.array([_reset_done(envs, envs.grad_step(action)) for action in given])
    adj_state = (weights["qpos"], weights["qvel"], None)
    adj_actions = envs.backward(
        weights["obs"], weights["reward"], weights.get("final_obs"), adj_state
    )
    initial = envs.adj_initial_state
    return (adj_actions, initial.qpos, initial.qvel), ends


def _differentiate_torch(envs, start, given, weights):
    """The same by loss.backward()."""
    leaves = [_tensor(envs, x, requires_grad=True) for x in (given, *start)]
    weights = {name: _tensor(envs, value) for name, value in weights.items()}
    envs.set_state(*leaves[1:])
    loss, ends = 0.0, []
    for t, action in enumerate(leaves[0]):
        obs, reward, *_, info = outputs = envs.grad_step(action)
        loss = loss + (weights["obs"][t] * obs).sum() + (weights["reward"][t] * reward).sum()
        loss = loss + (weights["qpos"][t] * envs.state.qpos).sum()
        loss = loss + (weights["qvel"][t] * envs.state.qvel).sum()
        if "final_obs" in weights:
            loss = loss + (weights["final_obs"][t] * info["final_obs"]).sum()
        ends.append(_reset_done(envs, outputs))
    loss.backward()
    return [leaf.grad.cpu().numpy() for leaf in leaves], np.array(ends)


def _differentiate_warp(envs, start, given, weights):
    """The same by tape.backward(), with kernels of the user before and after the steps."""
    device = envs.device
    envs.set_state(*start)
    first = envs.state
    leaves = [_array(envs, x, requires_grad=True) for x in 2.0 * given]
    loss = wp.zeros(1, dtype=float, device=device, requires_grad=True)
    ends = []

    def add(kernel, x, weight):
        inputs = [x, _array(envs, weight)]
        wp.launch(kernel, x.shape, inputs=inputs, outputs=[loss], device=device)

    with wp.Tape() as tape:
        for t, leaf in enumerate(leaves):
            action = wp.zeros_like(leaf, requires_grad=True)
            wp.launch(_scale, leaf.shape, inputs=[leaf, 0.5], outputs=[action], device=device)
            obs, reward, *_, info = outputs = envs.grad_step(action)
            add(_dot, obs, weights["obs"][t])
            add(_dot_vector, reward, weights["reward"][t])
            add(_dot, envs.state.qpos, weights["qpos"][t])
            add(_dot, envs.state.qvel, weights["qvel"][t])
            if "final_obs" in weights:
                add(_dot, info["final_obs"], weights["final_obs"][t])
            ends.append(_reset_done(envs, outputs))
    tape.backward(loss)
    adj_actions = np.stack([2.0 * leaf.grad.numpy() for leaf in leaves])
    return [adj_actions, to_numpy(first.qpos.grad), to_numpy(first.qvel.grad)], np.array(ends)


DIFFERENTIATE = {
    "numpy": _differentiate_numpy,
    "torch": _differentiate_torch,
    "warp": _differentiate_warp,
}


def _assert_close(value, reference, what=""):
    """Equal up to the order in which float32 cotangents are added (on CUDA: contact rows too)."""
    tolerance = 1e-3 if wp.get_preferred_device().is_cuda else 1e-5
    scale = np.abs(reference).max()
    assert scale > 0, what
    np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * scale, err_msg=what)


# One gradient


@pytest.mark.parametrize("kind", ["torch", "warp"])
@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_gradient_vs_numpy_with_resets(kind, mode, vector, actions):
    """torch and Warp find the gradient of NumPy's backward, in a window in which worlds reset."""
    reference = vector(HOPPER, autoreset_mode=mode)
    envs = vector(HOPPER, autoreset_mode=mode, arrays=kind)
    weights = _weights(reference)
    if mode == "DISABLED":
        del weights["final_obs"]
    given = 0.3 * actions(reference, STEPS)
    start = _falling(reference)
    wanted, ends = _differentiate_numpy(reference, start, given, weights)
    found, ends_too = DIFFERENTIATE[kind](envs, start, given, weights)
    assert ends.any(axis=0).tolist() == [False, True, True]
    assert not ends[-1].any()
    np.testing.assert_array_equal(ends_too, ends)
    for name, value, gradient in zip(("actions", "qpos", "qvel"), found, wanted, strict=True):
        for world in range(3):
            _assert_close(value[..., world, :], gradient[..., world, :], f"{name}, world {world}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_steps_made_again(kind, vector, actions, assert_same):
    """With retain="steps" every kind finds its own gradient again, bit for bit on the CPU."""
    runs = []
    for kwargs in ({}, {"retain": "steps"}):
        envs = vector(HOPPER, arrays=kind, **kwargs)
        given = 0.3 * actions(envs, STEPS)
        runs.append(DIFFERENTIATE[kind](envs, _falling(envs), given, _weights(envs)))
    (wanted, ends), (found, ends_too) = runs
    assert ends.any(axis=0).tolist() == [False, True, True]
    np.testing.assert_array_equal(ends_too, ends)
    for value, reference in zip(found, wanted, strict=True):
        assert np.abs(reference).max() > 0
        assert_same(value, reference)


@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_gradient_of_torch_vs_numpy(id, vector, actions):
    """In every task loss.backward() and backward() agree over four steps."""
    reference, envs = vector(id), vector(id, arrays="torch")
    weights = _weights(reference, steps=4)
    given = actions(reference, 4)
    start = reference.state[:2]
    wanted, _ = _differentiate_numpy(reference, start, given, weights)
    found, _ = _differentiate_torch(envs, start, given, weights)
    for name, value, gradient in zip(("actions", "qpos", "qvel"), found, wanted, strict=True):
        _assert_close(value, gradient, name)


def test_gradient_of_single_env_vs_vector_env(vector, actions):
    """Behind gym.make, unwrapped.grad_step and backward give the gradient of a batch of one."""
    envs = vector(HOPPER, num_envs=1)
    env = gym.make(HOPPER)
    env.reset(seed=0)
    given, weights = actions(envs, 4), _weights(envs, steps=4)
    del weights["final_obs"]
    wanted, _ = _differentiate_numpy(envs, envs.state[:2], given, weights)
    world = {name: value[:, 0] for name, value in weights.items()}
    for action in given:
        env.unwrapped.grad_step(action[0])
    adj_actions = env.unwrapped.backward(
        world["obs"], world["reward"], (world["qpos"], world["qvel"], None)
    )
    initial = env.unwrapped.adj_initial_state
    # Started at the reset, not by set_state, but from the same state and as cold.
    _assert_close(adj_actions, wanted[0][:, 0])
    _assert_close(initial.qpos, wanted[1][0])
    _assert_close(initial.qvel, wanted[2][0])
    env.close()


def test_final_obs_is_differentiable_where_a_world_fell(vector, actions):
    """final_obs of a world that was reset has the gradient of obs in a world that may fall."""
    envs = vector(HOPPER)
    free = vector(HOPPER, terminate_when_unhealthy=False)
    start, steps = _falling(envs), 0
    for env in (envs, free):
        env.set_state(*start)
    for action in 0.3 * actions(envs, STEPS):
        steps += 1
        free.grad_step(action)
        if envs.grad_step(action)[2][1]:
            break
    weight = np.zeros((steps, *envs.observation_space.shape), np.float32)
    weight[-1, 1] = np.random.default_rng(0).normal(size=weight.shape[-1])
    found = envs.backward(None, None, weight)
    wanted = free.backward(weight, None)
    _assert_close(found, wanted)
    assert (np.abs(found[:, 1]).max(axis=-1) > 0).all()


def test_reward_of_the_last_step_of_an_episode_is_not_cut(vector, actions):
    """The step that ends an episode passes its reward back, but neither obs nor state after it."""
    envs = vector(HOPPER)
    envs.set_state(*_falling(envs))
    steps = 0
    for action in 0.3 * actions(envs, STEPS):
        steps += 1
        if envs.grad_step(action)[2][1]:
            break
    w = {name: np.zeros_like(x[:steps]) for name, x in _weights(envs).items()}
    w["obs"][-1, 1] = w["qpos"][-1, 1] = w["qvel"][-1, 1] = 1.0
    assert not envs.backward(w["obs"], None, None, (w["qpos"], w["qvel"], None)).any()
    assert not any(x.any() for x in envs.adj_initial_state)
    w["reward"][-1, 1] = 1.0
    adj_actions = envs.backward(None, w["reward"])
    assert (np.abs(adj_actions[:, 1]).max(axis=-1) > 0).all()
    assert not adj_actions[:, [0, 2]].any()


# Histories


@pytest.mark.parametrize("kind", ["torch", "warp"])
def test_partial_reset_keeps_the_history_of_other_worlds(kind, vector, actions):
    """obs and state after a masked reset: gradients pass where worlds were kept, and only there."""
    envs = vector(HOPPER, arrays=kind, autoreset_mode="DISABLED")
    given = actions(envs, 1)[0]
    mask = np.array([False, True, False])
    gradients = []
    for after_reset in (True, False):
        envs.reset(seed=0)
        with wp.Tape() as tape:
            action = (_tensor if kind == "torch" else _array)(envs, given, requires_grad=True)
            obs = envs.grad_step(action)[0]
            if after_reset:
                obs, _ = envs.reset(options={"reset_mask": mask})
            qvel = envs.state.qvel
        if kind == "torch":
            (obs.sum() + 3.0 * qvel.sum()).backward()
        else:
            tape.backward(grads={obs: wp.ones_like(obs), qvel: wp.full_like(qvel, 3.0)})
        gradients.append(to_numpy(action.grad))
    found, wanted = gradients
    assert not found[mask].any()
    _assert_close(found[~mask], wanted[~mask])


@pytest.mark.parametrize("kind", ["torch", "warp"])
def test_state_after_plain_steps_takes_a_gradient(kind, vector, actions):
    """A window may begin after `step`, or within an episode: its start is differentiated too."""
    envs, reference = vector(HOPPER, arrays=kind), vector(HOPPER)
    given = actions(envs, 2)
    reference.step(given[0])
    reference.grad_step(given[1])
    reference.backward(None, np.ones((1, 3), np.float32))
    wanted = reference.adj_initial_state
    if kind == "torch":
        first, second = _tensor(envs, given)
        envs.step(first)
        start = [x.requires_grad_() for x in envs.state[:2]]
        envs.grad_step(second)[1].sum().backward()
    else:
        first, second = (_array(envs, x) for x in given)
        envs.step(first)
        start = envs.state[:2]
        with wp.Tape() as tape:
            reward = envs.grad_step(second)[1]
        tape.backward(grads={reward: wp.ones_like(reward)})
    _assert_close(to_numpy(start[0].grad), wanted.qpos)
    _assert_close(to_numpy(start[1].grad), wanted.qvel)


def test_warp_actions_in_a_torch_environment(vector, actions):
    """Actions of a Warp array are stepped and recorded in any environment, and `state` follows."""
    envs, reference = vector(HOPPER, arrays="torch"), vector(HOPPER, arrays="warp")
    given = actions(envs, 2)
    gradients = []
    for env in (envs, reference):
        leaves = [_array(env, x, requires_grad=True) for x in given]
        with wp.Tape() as tape:
            for leaf in leaves:
                before = to_numpy(env.state.qpos)
                reward = env.grad_step(leaf)[1]
        assert isinstance(reward, wp.array)
        tape.backward(grads={reward: wp.ones_like(reward)})
        gradients.append(np.stack([to_numpy(leaf.grad) for leaf in leaves]))
    assert (to_numpy(envs.state.qpos) != before).any()
    _assert_close(to_numpy(envs.state.qpos), to_numpy(reference.state.qpos))
    _assert_close(*gradients)


def test_detach_separates_windows_of_torch(vector, actions):
    """After detach() a loss knows nothing of earlier actions, and its gradient is a fresh one's."""
    envs, fresh = vector(HOPPER, arrays="torch"), vector(HOPPER, arrays="torch", key=1)
    given = _tensor(envs, actions(envs, 4))
    before = given[:2].clone().requires_grad_()
    for action in before:
        envs.grad_step(action)
    envs.detach()
    assert not any(x.requires_grad for x in envs.state)
    fresh.set_state(*(x.clone() for x in envs.state))
    gradients = []
    for env in (envs, fresh):
        after = given[2:].clone().requires_grad_()
        sum(env.grad_step(action)[1].sum() for action in after).backward()
        gradients.append(to_numpy(after.grad))
    assert before.grad is None
    # The solver of `fresh` started cold, so it agrees within the solver's tolerance only.
    scale = np.abs(gradients[1]).max()
    assert scale > 0
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=0, atol=1e-3 * scale)


def test_window_of_torch_after_detach(vector, actions):
    """detach() does not invalidate a graph; that happens when its record is written again."""
    envs = vector(CARTPOLE, arrays="torch", window=4)
    action = _tensor(envs, actions(envs, 1)[0], requires_grad=True)
    reward = envs.grad_step(action)[1]
    envs.detach()
    reward.sum().backward(retain_graph=True)
    assert action.grad.abs().max() > 0
    envs.grad_step(action.detach())
    with pytest.raises(RuntimeError, match="grad_step 0 of an earlier window was overwritten"):
        reward.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_full_window_is_refused_by_every_kind(kind, vector, actions):
    """One grad_step more than `window` raises, and after detach() the next window begins."""
    envs = vector(CARTPOLE, arrays=kind, window=4)
    given = actions(envs, 1)[0]
    if kind != "numpy":
        given = (_tensor if kind == "torch" else _array)(envs, given)
    for _ in range(4):
        envs.grad_step(given)
    with pytest.raises(RuntimeError, match=r"window of 4 grad_steps is full.*detach\(\).*window="):
        envs.grad_step(given)
    envs.detach()
    envs.grad_step(given)


def test_backward_twice_in_torch(vector, actions):
    """Every pass through a graph adds the same gradient: the record is only read."""
    envs = vector(HOPPER, arrays="torch")
    given = _tensor(envs, actions(envs, 3), requires_grad=True)
    loss = sum(envs.grad_step(action)[1].sum() for action in given)
    loss.backward(retain_graph=True)
    once = given.grad.clone()
    assert once.abs().max() > 0
    loss.backward(retain_graph=True)
    torch.testing.assert_close(given.grad, 2 * once, rtol=1e-6, atol=0)


def test_second_derivative_in_torch_is_refused(vector, actions):
    """The gradient has no gradient of its own, and torch says so instead of giving zeros."""
    envs = vector(CARTPOLE, arrays="torch")
    action = _tensor(envs, actions(envs, 1)[0], requires_grad=True)
    obs = envs.grad_step(action)[0]
    (gradient,) = torch.autograd.grad((obs**2).sum(), action, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_windows_in_succession_train_a_policy(vector):
    """The loop of the README: every window gives each parameter a finite gradient of its own."""
    envs = vector(HOPPER, arrays="torch", window=4)
    torch.manual_seed(0)
    policy = torch.nn.Sequential(torch.nn.Linear(11, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    policy.to(wp.device_to_torch(envs.device))
    obs, _ = envs.reset(seed=0)
    seen = []
    for _ in range(3):
        loss, obs = 0.0, obs.detach()
        for _ in range(4):
            obs, reward, *_ = envs.grad_step(policy(obs))
            loss = loss - reward.mean()
        policy.zero_grad()
        loss.backward()
        envs.detach()
        gradients = [p.grad.clone() for p in policy.parameters()]
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)
        assert not any(torch.equal(gradients[0], g) for g in seen)
        seen.append(gradients[0])


def test_torch_takes_views_as_actions(vector, actions):
    """Actions that are not contiguous get the gradient of their contiguous copy."""
    envs = vector(HOPPER, arrays="torch", num_envs=4)
    wide = _tensor(envs, actions(envs, 1)[0].T.copy(), requires_grad=True)
    assert not wide.t().is_contiguous()
    (found,) = torch.autograd.grad(envs.grad_step(wide.t())[1].sum(), wide)
    envs.reset(seed=0)
    dense = wide.detach().t().contiguous().requires_grad_()
    (wanted,) = torch.autograd.grad(envs.grad_step(dense)[1].sum(), dense)
    _assert_close(to_numpy(found.t()), to_numpy(wanted))


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_kinds_of_arrays_give_equal_numbers(mode, vector, actions, assert_same):
    """NumPy, torch and Warp environments return the same outputs over steps with resets."""
    kwargs = {"autoreset_mode": mode, "max_episode_steps": 3}
    results = {}
    for kind in KINDS:
        envs = vector(HOPPER, arrays=kind, **kwargs)
        obs, _ = envs.reset(seed=2)
        rows = [to_numpy(obs)]
        for action in actions(envs, 8):
            if kind != "numpy":
                action = (_tensor if kind == "torch" else _array)(envs, action)
            *outputs, info = envs.step(action)
            rows += [to_numpy(value) for value in outputs]
            rows += [to_numpy(info[name]) for name in envs.task.state_info]
            done = to_numpy(outputs[2]) | to_numpy(outputs[3])
            if mode == "SAME_STEP":
                rows += [to_numpy(info["final_obs"]), to_numpy(info["_final_obs"])]
            if mode == "DISABLED" and done.any():
                rows.append(to_numpy(envs.reset(options={"reset_mask": done})[0]))
        results[kind] = rows
    assert sum(row.dtype == bool and row.any() for row in results["numpy"]) >= 2
    for kind in ("torch", "warp"):
        for value, wanted in zip(results[kind], results["numpy"], strict=True):
            assert value.dtype == wanted.dtype
            assert_same(value, wanted, kind)


@pytest.mark.parametrize("kind", ["torch", "warp"])
def test_reset_mask_of_the_kind_of_the_environment(kind, vector):
    """A mask may be an array of the kind that the environment returns."""
    envs = vector(HOPPER, arrays=kind)
    mask = np.array([False, True, False])
    second = to_numpy(envs.reset()[0])
    first = to_numpy(envs.reset(seed=0)[0])
    if kind == "torch":
        given = _tensor(envs, mask)
    else:
        given = wp.array(mask, dtype=wp.bool, device=envs.device)
    obs, info = envs.reset(options={"reset_mask": given})
    np.testing.assert_array_equal(to_numpy(obs)[mask], second[mask])
    np.testing.assert_array_equal(to_numpy(obs)[~mask], first[~mask])
    np.testing.assert_array_equal(to_numpy(info["_x_position"]), mask)
