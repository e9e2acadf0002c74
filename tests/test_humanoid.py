"""The humanoids: what their keywords include, and the gradient of all of it."""

import mujoco
import numpy as np
import pytest

from diffenvs.physics import finite_diff as fd
from diffenvs.tasks.humanoid import Humanoid
from diffenvs.tasks.humanoid_standup import HumanoidStandup

NUM_ENVS, STEPS = 8, 2
INCLUDED = {name: value for name, value in Humanoid.v5.items() if name.startswith("include_")}
STANDUP = "DiffHumanoidStandup-v0"
# Cotangents of the blocks of the observation, so that none of them drowns the others.
BLOCKS = {"qpos": (22, 1.0), "qvel": (23, 0.1), "cinert": (130, 1.0), "cvel": (78, 0.1)}
BLOCKS |= {"qfrc_actuator": (17, 0.1), "cfrc_ext": (78, 1e-3)}


def _seen_in_c(mjm, data, fresh, action):
    """Observation and reward of HumanoidStandup by C MuJoCo, after a step."""
    mujoco.mj_rnePostConstraint(mjm, data)
    fresh.qpos[:], fresh.qvel[:] = data.qpos, data.qvel
    for stage in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel):
        stage(mjm, fresh)
    obs = [data.qpos[2:], data.qvel, fresh.cinert[1:], fresh.cvel[1:]]
    obs += [data.qfrc_actuator[6:], data.cfrc_ext[1:]]
    impact = 5e-7 * np.sum(data.cfrc_ext**2)
    reward = data.qpos[2] / mjm.opt.timestep - 0.1 * np.sum(action**2) - impact + 1
    return np.concatenate([x.ravel() for x in obs]), reward


def _value_in_c(mjm, nstep, qpos, qvel, actions, adj_obs, adj_reward):
    """<cotangents, what is seen> of a window by C MuJoCo, from a cold start of the solver."""
    data, fresh = mujoco.MjData(mjm), mujoco.MjData(mjm)
    data.qpos[:], data.qvel[:] = qpos, qvel
    total = 0.0
    for action, weight, adj in zip(actions, adj_obs, adj_reward, strict=True):
        data.ctrl[:] = action
        mujoco.mj_step(mjm, data, nstep)
        obs, reward = _seen_in_c(mjm, data, fresh, action)
        total += weight @ obs + adj * reward
    return total


def test_gradient_of_everything_vs_c_mujoco(make):
    """All that can be observed, contact forces among it, and the impact cost, of lying humanoids.

    Directions in which two widths of the differences disagree cross a change of the active
    constraints; they are left out, and may not be many.
    """
    envs = make(STANDUP, NUM_ENVS, max_episode_steps=-1, impact_cost_weight=5e-7, **INCLUDED)
    envs.reset(seed=0)
    mjm, nq, nv = fd.converged(envs.model), envs.model.nq, envs.model.nv
    states = fd.contact_rich_states(
        envs.model, NUM_ENVS, seed=1, contacts=1.0, accept=lambda *x: not fd.has_steep_capsule(*x)
    )
    rng = np.random.default_rng(2)
    shape = (STEPS, NUM_ENVS)
    actions = rng.uniform(-0.36, 0.36, (*shape, mjm.nu)).astype(np.float32)
    scale = np.concatenate([np.full(size, scale) for size, scale in BLOCKS.values()])
    adj_obs = (scale * rng.normal(size=(*shape, len(scale)))).astype(np.float32)
    adj_reward = rng.normal(size=shape).astype(np.float32)
    envs.set_state(states.qpos, states.qvel)
    touched = []
    for action in actions:
        obs, *_, info = envs.grad_step(action)
        touched.append(info["reward_impact"] < -1e-3)
        assert obs.shape[1] == len(scale)
    assert np.mean(touched) > 0.5
    adj_actions = envs.backward(adj_obs, adj_reward)
    start = envs.adj_initial_state
    skipped, errors = [], []
    for world in range(NUM_ENVS):

        def value(x, world=world):
            qpos, qvel, given = np.split(x, [nq, nq + nv])
            given = given.reshape(actions[:, world].shape)
            cotangents = adj_obs[:, world], adj_reward[:, world]
            return _value_in_c(mjm, envs.task.nstep, qpos, qvel, given, *cotangents)

        x = [states.qpos[world], states.qvel[world], actions[:, world].ravel()]
        x = np.concatenate(x).astype(float)
        sides = np.zeros((2, len(x)))
        for side, width in zip(sides, (1e-6, 1e-7), strict=True):
            for i, step in enumerate(width * np.eye(len(x))):
                side[i] = (value(x + step) - value(x - step)) / (2 * width)
        smooth = np.abs(sides[0] - sides[1]) <= 1e-4 * np.abs(sides[1]).max()
        skipped.append(1 - smooth.mean())
        found = (start.qpos[world], start.qvel[world], adj_actions[:, world].ravel())
        for part, keep, wanted in zip(
            found,
            np.split(smooth, [nq, nq + nv]),
            np.split(sides[1], [nq, nq + nv]),
            strict=True,
        ):
            errors.append(fd.relative_error(part[keep], wanted[keep]))
    assert np.mean(skipped) <= 0.05
    assert np.median(errors) <= 1e-5
    assert max(errors) <= 3e-4


def test_impact_keywords_are_used(make, actions):
    """Weights scale their terms, and the cost of impacts is clipped to its range."""
    envs = make(
        STANDUP,
        impact_cost_weight=1e-3,
        impact_cost_range=(0.5, 0.75),
        uph_cost_weight=2.0,
        ctrl_cost_weight=0.2,
    )
    envs.reset(seed=0)
    impacts = []
    for action in actions(envs, 6):
        _, reward, *_, info = envs.step(action)
        impacts.append(info["reward_impact"])
        terms = [info[f"reward_{name}"] for name in ("linup", "quadctrl", "impact")]
        np.testing.assert_allclose(terms[0], 2 * envs.state.qpos[:, 2] / 0.003, rtol=1e-5)
        np.testing.assert_allclose(terms[1], -0.2 * np.sum(action**2, axis=1), rtol=1e-5)
        np.testing.assert_allclose(sum(terms) + 1, reward, rtol=1e-5)
    assert np.min(impacts) == pytest.approx(-0.75) and np.max(impacts) == pytest.approx(-0.5)


@pytest.mark.parametrize("task", [Humanoid, HumanoidStandup])
def test_observation_size(task):
    """Each keyword adds its entries to the 45 of the state."""
    assert task().obs_size == 45
    sizes = {"cinert": 130, "cvel": 78, "qfrc_actuator": 17, "cfrc_ext": 78}
    for name, size in sizes.items():
        assert task(**{f"include_{name}_in_observation": True}).obs_size == 45 + size
    everything = INCLUDED | {"exclude_current_positions_from_observation": False}
    assert task(**everything).obs_size == 350
