"""The numbers of Gymnasium's v5 tasks: spaces, formulas, steps; and what keywords do."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import warp as wp
from conftest import CARTPOLE, HOPPER

import diffenvs

IDS = sorted(diffenvs.TASKS)
V5 = {
    "DiffAnt-v0": "Ant-v5",
    "DiffHalfCheetah-v0": "HalfCheetah-v5",
    "DiffHopper-v0": "Hopper-v5",
}


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
    """The columns of info that are named as terms sum to the reward; all but forces are in use."""
    envs = vector(id)
    constant = 1.0 if id == "DiffHumanoidStandup-v0" else 0.0  # v5 has no column for it either
    terms = [n for n in envs.task.step_info if n.startswith("reward_") or n.endswith("_penalty")]
    used = set()
    for action in 1.5 * actions(envs, 4):
        _, reward, _, _, info = envs.step(action)
        total = constant + sum(info[name] for name in terms)
        np.testing.assert_allclose(total, reward, rtol=1e-5, atol=1e-5)
        used |= {name for name in terms if info[name].any()}
    assert set(terms) - used <= {"reward_contact", "reward_impact"}


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
