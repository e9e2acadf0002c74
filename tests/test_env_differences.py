"""Windows of every task: their gradient against central differences of C MuJoCo in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import gymnasium as gym
import mujoco
import numpy as np
import pusher_play
import pytest

import diffenvs
from diffenvs.physics import finite_diff as fd
from diffenvs.vector_env import load_task

NUM_ENVS = 16
STEPS = 3


@dataclass
class Window:
    """How a task is played and what its reward is, in C MuJoCo."""

    reward: Callable  # (qpos before, qpos, qvel, action, dt) -> float
    contacts: float = 0.5  # part of the worlds that begin in contact
    reach: float = 0.9  # of the range of the actions
    elliptic: bool = False
    worlds: int = NUM_ENVS
    accept: Callable | None = None
    states: Callable | None = None


def _forward_reward(weight, ctrl_cost):
    """Reward of a runner: velocity along x and control cost; what it gets for standing is flat."""

    def reward(before, qpos, qvel, action, dt):
        return weight * (qpos[0] - before[0]) / dt - ctrl_cost * np.sum(action**2)

    return reward


def _cartpole_reward(before, qpos, qvel, action, dt):
    """Reward of the cart-pole, from its docstring."""
    upright = 0.5 * (1 + np.cos(qpos[1]))
    return upright - 0.1 * qpos[0] ** 2 - 0.001 * qvel[1] ** 2 - 0.01 * action[0] ** 2


def _reacher_reward(before, qpos, qvel, action, dt):
    """Reward of Reacher, from its docstring."""
    angle = np.cumsum(qpos[:2])
    tip = 0.1 * np.array([np.cos(angle[0]), np.sin(angle[0])])
    tip += 0.11 * np.array([np.cos(angle[1]), np.sin(angle[1])])
    square = np.sum((tip - qpos[2:]) ** 2)
    return 0.01 - np.sqrt(square + 0.01**2) - np.sum(action**2)


def _humanoid_reward(weight, ctrl_cost):
    """Reward of the humanoid: velocity of its centre of mass along x, and control cost."""
    mjm = mujoco.MjModel.from_xml_string(files("envs_assets").joinpath("humanoid.xml").read_text())
    data = mujoco.MjData(mjm)

    def centre(qpos):
        data.qpos[:] = qpos
        mujoco.mj_kinematics(mjm, data)
        mujoco.mj_comPos(mjm, data)
        return data.subtree_com[0, 0]

    def reward(before, qpos, qvel, action, dt):
        return weight * (centre(qpos) - centre(before)) / dt - ctrl_cost * np.sum(action**2)

    return reward


def _standup_reward(before, qpos, qvel, action, dt):
    """Reward of the humanoid that stands up: height over the time of a physics step."""
    return qpos[2] / 0.003 - 0.1 * np.sum(action**2) + 1.0


def _pendulum_reward(before, qpos, qvel, action, dt):
    """Reward of the inverted pendulum, from its docstring."""
    return 1.0 - 10.0 * qpos[1] ** 2 - 0.1 * qpos[0] ** 2 - 0.01 * np.sum(qvel**2)


def _double_pendulum_reward(before, qpos, qvel, action, dt):
    """Reward of the double pendulum, of two poles of 0.6 m; the second angle is a relative one."""
    angles = np.cumsum(qpos[1:])
    x, z = qpos[0] + 0.6 * np.sin(angles).sum(), 0.6 * np.cos(angles).sum()
    return 10.0 - 0.01 * x**2 - (z - 2.0) ** 2 - 0.001 * qvel[1] ** 2 - 0.005 * qvel[2] ** 2


def _elliptic(task):
    """MJCF of a task, with elliptic cones."""
    xml = files("envs_assets").joinpath(task.xml).read_text()
    return xml.replace("<option ", '<option cone="elliptic" ')


def _is_upright(mjm, data):
    """Whether a pendulum is so far from where its episode ends that it does not get there."""
    return np.abs(data.qpos[1:]).max() < 0.05 and np.abs(data.qvel[1:]).max() < 0.5


def _return_in_c(mjm, envs, reward, qpos, qvel, actions):
    """Sum of the rewards of a window by C MuJoCo, from a cold start of the solver."""
    data = mujoco.MjData(mjm)
    data.qpos[:], data.qvel[:] = qpos, qvel
    total = 0.0
    for action in actions:
        before = data.qpos.copy()
        data.ctrl[:] = action
        mujoco.mj_step(mjm, data, envs.task.nstep)
        total += reward(before, data.qpos, data.qvel, action, envs.dt)
    return total


def _differences(function, x, width):
    """Gradient of a function of a vector by central differences."""
    gradient = np.zeros_like(x)
    for i in range(len(x)):
        step = np.zeros_like(x)
        step[i] = width
        gradient[i] = (function(x + step) - function(x - step)) / (2 * width)
    return gradient


# Steep capsules, which legs of Ant and humanoids are, have another friction pyramid in mujoco_warp.
WINDOWS = {
    "DiffAnt-v0": Window(_forward_reward(1.0, 0.5), elliptic=True),
    "DiffCartPoleSwingUp-v0": Window(_cartpole_reward, contacts=0.0),
    "DiffHalfCheetah-v0": Window(_forward_reward(1.0, 0.1)),
    "DiffHopper-v0": Window(_forward_reward(1.0, 1e-3)),
    "DiffHumanoid-v0": Window(_humanoid_reward(1.25, 0.1), elliptic=True, worlds=6),
    "DiffHumanoidStandup-v0": Window(_standup_reward, contacts=0.25, elliptic=True, worlds=6),
    "DiffInvertedDoublePendulum-v0": Window(
        _double_pendulum_reward, contacts=0.0, reach=0.1, accept=_is_upright
    ),
    "DiffInvertedPendulum-v0": Window(
        _pendulum_reward, contacts=0.0, reach=0.1 / 3.0, accept=_is_upright
    ),
    # The rake rarely meets the object in random play; here it touches it in half of the worlds.
    "DiffPusher-v0": Window(pusher_play.reward, states=pusher_play.states),
    "DiffReacher-v0": Window(_reacher_reward, contacts=0.0),
    "DiffSwimmer-v0": Window(_forward_reward(1.0, 1e-4), contacts=0.0),
    "DiffWalker2d-v0": Window(_forward_reward(1.0, 1e-3)),
}


def test_every_task_has_a_window():
    """No task is left out below."""
    assert WINDOWS.keys() == diffenvs.TASKS.keys()


@pytest.mark.parametrize("id", WINDOWS)
def test_window_gradient_vs_c_mujoco(id, make):
    """d(sum of rewards) / d(qpos, qvel, actions) of three steps, from states of random play.

    Worlds in which two widths of the differences disagree are next to a change of the active
    constraints; they are left out, and may not be many.
    """
    window = WINDOWS[id]
    num_envs = window.worlds
    task = load_task(diffenvs.TASKS[id][0])
    kwargs = {"max_episode_steps": -1}
    if "terminate_when_unhealthy" in task.defaults:
        kwargs["terminate_when_unhealthy"] = False
    if window.elliptic:
        kwargs["xml_file"] = _elliptic(task)
    envs = make(id, num_envs=num_envs, **kwargs)
    envs.reset(seed=0)
    mjm, nq, nv = fd.converged(envs.model), envs.model.nq, envs.model.nv
    if window.states is not None:
        states = window.states(envs.model, num_envs, seed=3)
    else:
        states = fd.contact_rich_states(
            envs.model,
            num_envs,
            seed=3,
            contacts=window.contacts,
            max_speed=20.0,
            vigor=min(1.0, window.reach / 0.9),
            accept=window.accept,
        )
    rng = np.random.default_rng(4)
    high = envs.single_action_space.high
    actions = window.reach * high * rng.uniform(-1, 1, (STEPS, *envs.action_space.shape))
    actions = actions.astype(np.float32)
    envs.set_state(states.qpos, states.qvel)
    for action in actions:
        *_, terminated, _, _ = envs.grad_step(action)
        assert not terminated.any()
    adj_actions = envs.backward(None, np.ones((STEPS, num_envs), np.float32))
    start = envs.adj_initial_state
    errors, skipped = [], 0
    for world in range(num_envs):

        def total(x, shape=actions[:, world].shape):
            qpos, qvel, given = np.split(x, [nq, nq + nv])
            return _return_in_c(mjm, envs, window.reward, qpos, qvel, given.reshape(shape))

        x = [states.qpos[world], states.qvel[world], actions[:, world].ravel()]
        x = np.concatenate(x).astype(float)
        wanted, other = (_differences(total, x, width) for width in (1e-6, 3e-6))
        if fd.relative_error(other, wanted) > 1e-4:
            skipped += 1
            continue
        found = (start.qpos[world], start.qvel[world], adj_actions[:, world].ravel())
        for value, gradient in zip(found, np.split(wanted, [nq, nq + nv]), strict=True):
            assert np.linalg.norm(gradient) > 1e-6
            errors.append(fd.relative_error(value, gradient))
    assert skipped <= num_envs // 4
    assert np.median(errors) <= 1e-4
    assert max(errors) <= 3e-3


@pytest.mark.parametrize("id", ["DiffAnt-v0", "DiffHumanoid-v0", "DiffInvertedDoublePendulum-v0"])
def test_observation_gradient_vs_gymnasium(id, make):
    """d(random cotangent of observation and reward) / d(qpos, qvel, action) of a step.

    The oracle is Gymnasium's own task with all of its observation (forces, inertias, velocities of
    bodies), by our integrator and a converged solver, its kinematics computed anew after the step.
    """
    task = load_task(diffenvs.TASKS[id][0])
    window = WINDOWS[id]
    kwargs = {"max_episode_steps": -1} | {k: v for k, v in task.v5.items() if k != "integrator"}
    reference = gym.make(task.gymnasium).unwrapped
    converged = fd.converged(load_task(diffenvs.TASKS[id][0])().mjm)
    reference.model.opt.integrator = converged.opt.integrator
    if window.elliptic:
        kwargs["xml_file"] = _elliptic(task)
        reference.model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    for option in ("solver", "iterations", "ls_iterations", "tolerance", "ls_tolerance"):
        setattr(reference.model.opt, option, getattr(converged.opt, option))
    simulate, data = reference.do_simulation, reference.data

    def do_simulation(ctrl, n_frames):
        data.qacc_warmstart[:] = 0.0
        simulate(ctrl, n_frames)
        for stage in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel):
            stage(reference.model, data)

    reference.do_simulation = do_simulation
    envs = make(id, num_envs=NUM_ENVS, **kwargs)
    envs.reset(seed=0)
    model = envs.model
    nq, nv = model.nq, model.nv
    # The cart of the double pendulum is put at the end of its rail: the force there is observed.
    contacts = 0.75 if window.contacts else 0.0
    states = fd.contact_rich_states(model, NUM_ENVS, seed=5, contacts=contacts, max_speed=20.0)
    if not window.contacts:
        states.qpos[::2] = np.linspace([0.99, 0.0, 0.0], [1.0, 0.1, 0.1], NUM_ENVS // 2)
        states.qvel[::2] = 0.0
    rng = np.random.default_rng(6)
    reach = 0.9 if window.contacts else 0.01
    action = reach * envs.single_action_space.high * rng.uniform(-1, 1, envs.action_space.shape)
    action = action.astype(np.float32)
    envs.set_state(states.qpos, states.qvel)
    obs = envs.grad_step(action)[-1]["final_obs"]
    # Large numbers (forces, inertias) get small cotangents, so that none drowns the others.
    adj_obs = rng.normal(size=obs.shape) / np.maximum(1.0, np.abs(obs))
    adj_obs = adj_obs.astype(np.float32)
    limit = 0.99 if window.contacts else 9.9
    forces = np.abs(obs[:, -1 if not window.contacts else -6 * (model.nbody - 1) :])
    assert ((forces > 1e-3) & (forces < limit)).any()  # neither absent nor clipped
    adj_action = envs.backward(None, np.ones((1, NUM_ENVS), np.float32), adj_obs[None])[0]
    start = envs.adj_initial_state
    errors, skipped = [], 0
    for world in range(NUM_ENVS):

        def total(x, world=world):
            reference.set_state(x[:nq], x[nq : nq + nv])
            found, reward, *_ = reference.step(x[nq + nv :])
            return found @ adj_obs[world].astype(float) + reward

        x = [states.qpos[world], states.qvel[world], action[world]]
        x = np.concatenate(x).astype(float)
        reference.set_state(x[:nq], x[nq : nq + nv])
        # The end of the rail has 2e5 N/m, a position near 1 m is rounded to 6e-8 m.
        rounding = 1e-3 * np.abs(obs[world]).max() if window.contacts else 0.03
        np.testing.assert_allclose(obs[world], reference.step(action[world])[0], atol=rounding)
        wanted, other = (_differences(total, x, width) for width in (1e-6, 3e-6))
        if fd.relative_error(other, wanted) > 1e-4:
            skipped += 1
            continue
        found = (start.qpos[world], start.qvel[world], adj_action[world])
        for value, gradient in zip(found, np.split(wanted, [nq, nq + nv]), strict=True):
            assert np.linalg.norm(gradient) > 1e-6
            errors.append(fd.relative_error(value, gradient))
    assert skipped <= NUM_ENVS // 4
    assert np.median(errors) <= 1e-4
    assert max(errors) <= 3e-3
