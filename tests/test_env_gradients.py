"""Gradients of windows: against C MuJoCo in float64, and what cuts, keeps and refuses them."""

import mujoco
import numpy as np
import pytest
import warp as wp
from conftest import CARTPOLE, HOPPER

import diffenvs


def _actions(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (steps, *envs.action_space.shape)).astype(np.float32)


def _weights(envs, steps, seed=1):
    """Random cotangents of obs and reward for a window."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(steps, *envs.observation_space.shape)).astype(np.float32),
        rng.normal(size=(steps, envs.num_envs)).astype(np.float32),
    )


def _window(envs, actions):
    return [envs.grad_step(action) for action in actions]


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_grad_step_vs_step(id, mode, make, assert_same):
    """grad_step returns what step returns, to the last bit on the CPU, also where worlds reset."""
    limit = 3 if mode == "SAME_STEP" else -1
    envs = make(id, num_envs=2, autoreset_mode=mode, max_episode_steps=limit)
    actions = _actions(envs, 4)
    runs = []
    for step in (envs.step, envs.grad_step, envs.grad_step):  # the third replays all its graphs
        envs.reset(seed=0)
        runs.append([step(action) for action in actions])
    for run in runs[1:]:
        for theirs, ours in zip(runs[0], run, strict=True):
            for a, b in zip(theirs[:4], ours[:4], strict=True):
                assert_same(a, b)
            assert set(theirs[4]) == set(ours[4])
            for name, value in theirs[4].items():
                if not isinstance(value, dict):
                    assert_same(value, ours[4][name])


@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_backward_is_repeatable_and_linear(id, make):
    """backward only reads the record: twice gives the same, and double cotangents the double."""
    envs = make(id, num_envs=2)
    envs.reset(seed=0)
    _window(envs, _actions(envs, 4))
    adj_obs, adj_reward = _weights(envs, 4)
    first = envs.backward(adj_obs, adj_reward)
    start = envs.adj_initial_state
    assert first.shape == (4, *envs.action_space.shape)
    assert (np.abs(first).max(axis=(1, 2)) > 1e-3).all()
    assert np.abs(start.qpos).max() > 1e-3 and np.abs(start.qvel).max() > 1e-3
    np.testing.assert_array_equal(envs.backward(adj_obs, adj_reward), first)
    twice = envs.backward(2.0 * adj_obs, 2.0 * adj_reward)
    np.testing.assert_allclose(twice, 2.0 * first, rtol=1e-5, atol=1e-6)
    parts = envs.backward(adj_obs, None) + envs.backward(None, adj_reward)
    np.testing.assert_allclose(parts, first, rtol=1e-3, atol=1e-4 * np.abs(first).max())


def _float64_return(mjm, task, qpos, qvel, actions, weights):
    """Weighted sum of Hopper's observations and rewards of a rollout of C MuJoCo."""
    adj_obs, adj_reward = weights
    data = mujoco.MjData(mjm)
    data.qpos[:], data.qvel[:] = qpos, qvel
    total, rows = 0.0, []
    for action, weight_obs, weight_reward in zip(actions, adj_obs, adj_reward, strict=True):
        x = data.qpos[0]
        data.ctrl[:] = action
        for _ in range(task.nstep):
            # A cold start on either side of a difference, as the solver's end is not quite exact.
            data.qacc_warmstart[:] = 0.0
            mujoco.mj_step(mjm, data)
            rows.append(tuple(data.efc_type[: data.nefc]) + tuple(data.efc_state[: data.nefc]))
        reward = (data.qpos[0] - x) / task.dt - 1e-3 * action @ action
        obs = np.concatenate([data.qpos[1:], np.clip(data.qvel, -10.0, 10.0)])
        total += obs @ weight_obs + reward * weight_reward
    return total, rows


def test_window_gradient_vs_c_mujoco(make):
    """The gradient of three Hopper steps agrees with central differences of C MuJoCo.

    Reward and observation are computed anew in NumPy, so this covers the whole chain. Worlds in
    which a difference crosses a change of the active constraints are left out, and counted.
    """
    envs = make(HOPPER, num_envs=24)
    task = envs.task
    envs.reset(seed=0)
    rng = np.random.default_rng(3)
    qpos = np.tile(task.init_qpos, (24, 1)) + rng.uniform(-0.03, 0.03, (24, 6))
    qpos[:, 1] -= 0.02 + 0.03 * rng.random(24)  # the foot presses into the floor
    qvel = rng.normal(size=(24, 6)) * 0.3
    actions = rng.uniform(-0.9, 0.9, (3, 24, 3))
    weights = _weights(envs, 3)
    envs.set_state(np.float32(qpos), np.float32(qvel))
    _window(envs, actions)
    exact = envs.backward(*weights)
    start = envs.adj_initial_state

    mjm = mujoco.MjModel.from_xml_string(_asset("hopper.xml"))
    mjm.opt.integrator = task.mjm.opt.integrator
    mjm.opt.tolerance, mjm.opt.iterations, mjm.opt.ls_iterations = 1e-14, 200, 200
    step, compared, constrained = 1e-6, 0, 0
    for world in range(24):
        own = (weights[0][:, world], weights[1][:, world])
        given = [qpos[world], qvel[world], actions[:, world]]
        gradient = [start.qpos[world], start.qvel[world], exact[:, world]]
        found = [np.zeros_like(x) for x in given]
        sets = set()
        for which, primal in enumerate(given):
            for index in np.ndindex(primal.shape):
                sides = []
                for sign in (1.0, -1.0):
                    moved = [x.copy() for x in given]
                    moved[which][index] += sign * step
                    total, rows = _float64_return(mjm, task, *moved, own)
                    sides.append(total)
                    sets.add(str(rows))
                found[which][index] = (sides[0] - sides[1]) / (2 * step)
        if len(sets) > 1:
            continue
        compared += 1
        constrained += any(rows)
        for ours, theirs in zip(gradient, found, strict=True):
            assert np.linalg.norm(theirs) > 1e-3
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            assert error < 3e-4, (world, error)
    assert compared >= 16
    assert constrained >= 8


def _asset(name):
    from importlib.resources import files

    return files("envs_assets").joinpath(name).read_text()


def test_reset_cuts_the_gradient(make):
    """In SAME_STEP nothing comes back through a reset, exactly; final_obs is not cut."""
    envs = make(CARTPOLE, max_episode_steps=3)
    envs.reset(seed=0)
    actions = _actions(envs, 5)
    _window(envs, actions)
    adj_obs, adj_reward = _weights(envs, 5)
    after = np.zeros_like(adj_obs)
    after[2:] = adj_obs[2:]  # obs[2] is that of the new start
    late_reward = np.zeros_like(adj_reward)
    late_reward[3:] = adj_reward[3:]
    gradient = envs.backward(after, late_reward)
    assert (gradient[:3] == 0.0).all()
    assert (np.abs(gradient[3:]) > 0.0).all()
    assert not any(np.any(value) for value in envs.adj_initial_state)
    adj_final = np.zeros_like(adj_obs)
    adj_final[2] = 1.0
    assert (np.abs(envs.backward(None, None, adj_final)[:3]) > 0.0).all()
    state = (np.ones((5, *envs.state.qpos.shape)), None, None)
    state[0][:2] = 0.0
    gradient = envs.backward(None, None, None, state)
    assert (gradient[:3] == 0.0).all()
    assert (np.abs(gradient[3:]) > 0.0).all()


def test_nan_stays_in_its_episode(make):
    """A world that diverged and was reset does not spoil the gradient of its next episode."""
    envs = make("DiffAnt-v0", num_envs=2)
    envs.reset(seed=0)
    qvel = envs.state.qvel
    qvel[1] = np.nan
    envs.rollout.state.qvel.assign(qvel)  # set_state refuses it
    actions = _actions(envs, 3)
    *_, terminated, _, _ = envs.grad_step(actions[0])
    assert terminated.tolist() == [False, True]
    _window(envs, actions[1:])
    gradient = envs.backward(*_weights(envs, 3))
    assert np.isfinite(gradient[1:]).all()
    assert np.isfinite(gradient[:, 0]).all()
    assert (np.abs(gradient[1:, 1]).max(axis=1) > 1e-4).all()


def test_partial_reset_cuts_the_gradient(make):
    """In DISABLED a reset by the user inside a window cuts its worlds, and no other."""
    envs = make(CARTPOLE, autoreset_mode="DISABLED", max_episode_steps=-1)
    actions = _actions(envs, 4)
    late = np.zeros((4, 3), np.float32)
    late[2:] = 1.0

    def gradient(mask):
        envs.reset(seed=0)
        _window(envs, actions[:2])
        if mask is not None:
            envs.reset(options={"reset_mask": mask})
        _window(envs, actions[2:])
        return envs.backward(None, late), envs.adj_initial_state

    mask = np.array([False, True, False])
    cut, cut_start = gradient(mask)
    whole, whole_start = gradient(None)
    assert (cut[:2, 1] == 0.0).all() and (cut_start.qpos[1] == 0.0).all()
    np.testing.assert_array_equal(cut[:, ~mask], whole[:, ~mask])
    np.testing.assert_array_equal(cut_start.qpos[~mask], whole_start.qpos[~mask])
    assert (np.abs(whole[:2]) > 0.0).all() and (np.abs(cut[2:]) > 0.0).all()


def test_gradient_at_the_start_of_a_window_after_resets(make):
    """A reset before a window cuts nothing inside it."""
    envs = make(CARTPOLE, autoreset_mode="DISABLED", max_episode_steps=-1)
    envs.reset(seed=0)
    envs.reset(options={"reset_mask": np.array([True, True, False])})
    _window(envs, _actions(envs, 2))
    envs.backward(None, np.ones((2, 3)))
    assert (np.abs(envs.adj_initial_state.qvel[:, 1]) > 0.0).all()


def test_window_begins_anew(make):
    """After detach, step, reset and set_state only later grad_steps are in the window."""
    envs = make(CARTPOLE)
    action = _actions(envs, 1)[0]
    qpos, qvel = np.zeros((2, 3, 2), np.float32)
    for begin in (
        envs.detach,
        envs.reset,
        lambda: envs.step(action),
        lambda: envs.set_state(qpos, qvel),
    ):
        envs.reset(seed=0)
        envs.grad_step(action)
        before = envs.state
        begin()
        if begin == envs.detach:
            np.testing.assert_array_equal(envs.state.qpos, before.qpos)
        with pytest.raises(RuntimeError, match="CartPoleSwingUp: there is nothing to"):
            envs.backward(None, None)
        envs.grad_step(action)
        assert envs.backward(None, np.ones((1, 3))).shape == (1, 3, 1)


def test_detach_does_not_disturb_the_rollout(make):
    """Windows of two steps follow the same trajectory as one window of six."""
    envs = make(CARTPOLE, max_episode_steps=4)
    actions = _actions(envs, 6)
    envs.reset(seed=0)
    whole = [out[0] for out in _window(envs, actions)]
    envs.reset(seed=0)
    for t, action in enumerate(actions):
        np.testing.assert_array_equal(envs.grad_step(action)[0], whole[t])
        if t % 2:
            envs.detach()


def test_next_step_has_no_gradient(make):
    """grad_step refuses NEXT_STEP and says which modes it works with."""
    envs = make(CARTPOLE, autoreset_mode="NEXT_STEP")
    envs.reset(seed=0)
    with pytest.raises(RuntimeError, match="grad_step works with autoreset_mode SAME_STEP"):
        envs.grad_step(_actions(envs, 1)[0])


def test_clamped_action_acts_through_its_cost_only(make):
    """Beyond the range of the motor an action has the gradient of the control cost, no other."""
    envs = make(HOPPER)
    envs.reset(seed=0)
    action = np.full((3, 3), 1.5, np.float32)
    envs.grad_step(action)
    gradient = envs.backward(np.ones((1, 3, 11)), np.ones((1, 3)))
    np.testing.assert_allclose(gradient[0], -2e-3 * action, rtol=1e-5)


# Warp tapes


@wp.kernel
def _policy(obs: wp.array2d[float], weight: wp.array[float], action_out: wp.array2d[float]):
    """A linear policy."""
    world = wp.tid()
    total = float(0.0)
    for i in range(obs.shape[1]):
        total += weight[i] * obs[world, i]
    action_out[world, 0] = total


@wp.kernel
def _add(reward: wp.array[float], total_out: wp.array[float]):
    wp.atomic_add(total_out, 0, reward[wp.tid()])


def test_tape_through_a_policy(make):
    """Kernels of a user's before and after our steps: a closed loop against finite differences."""
    envs = make(CARTPOLE, arrays="warp", max_episode_steps=-1)

    def run(weight):
        obs, _ = envs.reset(seed=0)
        weight = wp.array(weight, dtype=float, device=envs.device, requires_grad=True)
        total = wp.zeros(1, dtype=float, device=envs.device, requires_grad=True)
        with wp.Tape() as tape:
            for _ in range(6):
                action = wp.zeros((3, 1), dtype=float, device=envs.device, requires_grad=True)
                wp.launch(_policy, 3, [obs, weight], [action], device=envs.device)
                obs, reward, *_ = envs.grad_step(action)
                wp.launch(_add, 3, [reward], [total], device=envs.device)
        tape.backward(total)
        return total.numpy()[0], weight.grad.numpy().copy()

    weight = np.float32([0.3, -0.2, 0.5, 0.1, -0.1])
    _, gradient = run(weight)
    assert np.abs(gradient).min() > 1e-4
    for i in range(5):
        moved = np.eye(5, dtype=np.float32)[i] * 0.02
        difference = (run(weight + moved)[0] - run(weight - moved)[0]) / 0.04
        np.testing.assert_allclose(gradient[i], difference, rtol=2e-2, atol=1e-4)


def test_tape_refuses_an_overwritten_window(make):
    """A tape whose record a later window has overwritten raises when it is run."""
    envs = make(CARTPOLE, arrays="warp")
    envs.reset(seed=0)
    action = wp.zeros((3, 1), dtype=float, device=envs.device, requires_grad=True)
    with wp.Tape() as tape:
        _, reward, *_ = envs.grad_step(action)
    envs.detach()
    envs.grad_step(action)
    reward.grad.fill_(1.0)
    with pytest.raises(RuntimeError, match="record of grad_step 0 of an earlier window was overwr"):
        tape.backward()
