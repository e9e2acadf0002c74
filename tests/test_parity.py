"""Every task against the one of that name in Gymnasium, on C MuJoCo: steps and free runs.

Ours is made with the keywords of `Task.v5`, Gymnasium's with none; in the last test both are made
with others. Two things are allowed to differ, and are told apart. Staleness: after a step
Gymnasium reads kinematics of the forward pass before, we those of the state; so Gymnasium's task is
run twice, as it is and with its kinematics computed anew after the step. Single precision: what is
left between the latter and ours.
"""

import warnings
from dataclasses import dataclass, fields
from importlib.resources import files

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import diffenvs
from diffenvs.physics import finite_diff as fd
from diffenvs.vector_env import load_task

TASKS = {id: load_task(task) for id, (task, _) in diffenvs.TASKS.items()}
NUM_ENVS = 4
STEPS = 20


@dataclass
class Allowed:
    """Bounds of the largest difference in 4 runs of 20 steps, each about twice what was measured.

    Observations and rewards are compared relative to the larger of 1 and their size.
    """

    obs: float
    reward: float
    stale_obs: float = 0.0
    stale_reward: float = 0.0


ALLOWED = {
    "DiffAnt-v0": Allowed(7e-4, 8e-6, 0.0, 0.05),
    "DiffHalfCheetah-v0": Allowed(3e-4, 5e-6),
    "DiffHopper-v0": Allowed(1e-5, 3e-6),
    "DiffHumanoid-v0": Allowed(5e-4, 1e-4, 0.6, 6e-4),
    "DiffHumanoidStandup-v0": Allowed(1.5e-3, 5e-7, 0.5),
    "DiffInvertedDoublePendulum-v0": Allowed(4e-4, 1e-6, 0.0, 1.5e-3),
    "DiffInvertedPendulum-v0": Allowed(5e-6, 0.0),
    "DiffPusher-v0": Allowed(3e-6, 3e-7, 0.016, 5e-3),
    "DiffReacher-v0": Allowed(1e-6, 2e-7, 1e-5, 5e-6),
    "DiffSwimmer-v0": Allowed(8e-6, 5e-7),
    "DiffWalker2d-v0": Allowed(1.5e-4, 6e-6),
}
NUDGE = 1e-6  # m, rad, per s: a few roundings of a float32


class Reference:
    """Gymnasium's task; with `fresh` its kinematics are computed anew after each step."""

    def __init__(self, id, cone, fresh, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.env = gym.make(TASKS[id].gymnasium, **kwargs).unwrapped
        model = self.env.model
        model.opt.cone = cone
        if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
            # mujoco_warp has no PGS, so that the task's own is solved less exactly than ours.
            model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
            model.opt.iterations = 100
        # Where capsules stand steeply on a plane, mujoco_warp turns the pyramid of friction. That
        # changes nothing where all motion is in a plane.
        free = (model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).any()
        self._turns = free and cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
        self.steep = False
        """Whether a capsule stood steeply on a plane within the last step."""
        if fresh:
            self.env.do_simulation = self._do_simulation

    def _do_simulation(self, ctrl, n_frames):
        model, data = self.env.model, self.env.data
        data.ctrl[:] = ctrl
        self.steep = False
        for _ in range(n_frames):
            self._look()
            mujoco.mj_step(model, data)
        mujoco.mj_rnePostConstraint(model, data)
        for stage in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel):
            stage(model, data)
        self._look()

    def _look(self):
        """See whether a capsule is steep and so low that it may touch the floor in this step."""
        if self._turns:
            model = self.env.model
            probe = mujoco.MjData(model)
            probe.qpos[:] = self.env.data.qpos
            mujoco.mj_kinematics(model, probe)
            capsules = model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
            upright = np.abs(probe.geom_xmat[capsules, 8])  # z of the axis
            radius, half = model.geom_size[capsules, :2].T
            low = probe.geom_xpos[capsules, 2] - half * upright - radius < 0.1
            self.steep |= bool((low & (upright > np.sin(np.radians(55.0)))).any())

    @property
    def state(self):
        """Copies of qpos, qvel."""
        return self.env.data.qpos.copy(), self.env.data.qvel.copy()

    def start(self, seed, nudge=0.0):
        """Begin an episode, in a state that is moved by so much; return the state."""
        self.env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        qpos, qvel = (x + nudge * rng.normal(size=x.shape) for x in self.state)
        self.env.set_state(qpos, qvel)
        return np.hstack(self.state)

    def step(self, action):
        """Step; return observation, reward, terminated."""
        return self.env.step(action)[:3]


def _elliptic(id):
    """MJCF of a task, with elliptic cones."""
    text = files("envs_assets").joinpath(TASKS[id].xml).read_text()
    return text.replace("<option ", '<option cone="elliptic" ')


def _difference(a, b):
    """Largest difference, relative to the larger of 1 and the size."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return (np.abs(a - b) / np.maximum(1.0, np.abs(b))).max()


@dataclass
class Step:
    """What Gymnasium's task did in one step."""

    before: tuple  # qpos, qvel
    obs: np.ndarray
    reward: float
    terminated: bool
    stale: tuple  # obs, reward as v5 has them
    nudged: tuple  # obs, reward of a run whose start was moved by `NUDGE`
    steep: bool


@pytest.fixture
def play(make):
    """Function of an id and a cone: our worlds, actions, and lists of `Step` by Gymnasium."""

    def play(id, cone):
        kwargs = {"autoreset_mode": "DISABLED", "max_episode_steps": -1} | TASKS[id].v5
        if cone:
            kwargs["xml_file"] = _elliptic(id)
        envs = make(id, NUM_ENVS, **kwargs)
        envs.reset(seed=0)
        stale, fresh, nudged = (Reference(id, cone, fresh) for fresh in (False, True, True))
        space = envs.single_action_space
        shape = (STEPS, NUM_ENVS, *space.shape)
        actions = np.random.default_rng(0).uniform(space.low, space.high, shape)
        actions = actions.astype(np.float32)
        runs = []
        for world in range(NUM_ENVS):
            np.testing.assert_array_equal(stale.start(world), fresh.start(world))
            nudged.start(world, NUDGE)
            run = []
            for action in actions[:, world]:
                before = fresh.state
                wanted, other, moved = (env.step(action) for env in (fresh, stale, nudged))
                np.testing.assert_array_equal(np.hstack(stale.state), np.hstack(fresh.state))
                run.append(Step(before, *wanted, other[:2], moved[:2], fresh.steep))
            runs.append(run)
        return envs, actions, runs

    return play


PYRAMIDAL, ELLIPTIC = int(mujoco.mjtCone.mjCONE_PYRAMIDAL), int(mujoco.mjtCone.mjCONE_ELLIPTIC)
CASES = [(id, PYRAMIDAL) for id, task in TASKS.items() if task.gymnasium]
CASES.append(("DiffAnt-v0", ELLIPTIC))  # with pyramids few of its steps compare, see above


@pytest.mark.parametrize(("id", "cone"), CASES)
def test_step_vs_gymnasium(id, cone, play):
    """Observation, reward and termination of each step of random play, from v5's own state."""
    envs, actions, runs = play(id, cone)
    found = {field.name: [] for field in fields(Allowed)}
    for t in range(STEPS):
        envs.set_state(*(np.stack([run[t].before[i] for run in runs]) for i in (0, 1)))
        obs, reward, terminated, _, _ = envs.step(actions[t])
        for world, run in enumerate(runs):
            step = run[t]
            if step.steep:
                continue
            found["obs"].append(_difference(obs[world], step.obs))
            found["reward"].append(_difference(reward[world], step.reward))
            found["stale_obs"].append(_difference(step.stale[0], step.obs))
            found["stale_reward"].append(_difference(step.stale[1], step.reward))
            assert terminated[world] == step.terminated
    assert len(found["obs"]) >= STEPS
    worst = {name: max(values) for name, values in found.items()}
    print(id, {name: f"{value:.1e}" for name, value in worst.items()}, len(found["obs"]))
    for name, value in worst.items():
        assert value <= getattr(ALLOWED[id], name), name


@pytest.mark.parametrize(("id", "cone"), [c for c in CASES if c != ("DiffAnt-v0", PYRAMIDAL)])
def test_free_run_vs_gymnasium(id, cone, play):
    """20 steps on our own parts from v5 as v5 does from itself, when its start is nudged.

    Contacts amplify rounding: of HalfCheetah a nudge of 1e-6 makes differences of order 1.
    """
    envs, actions, runs = play(id, cone)
    envs.set_state(*(np.stack([run[0].before[i] for run in runs]) for i in (0, 1)))
    found, nudged = [], []
    alive = np.ones(NUM_ENVS, dtype=bool)
    for t in range(STEPS):
        obs, reward, terminated, _, _ = envs.step(actions[t])
        for world in np.flatnonzero(alive):
            step = runs[world][t]
            alive[world] = not (terminated[world] or step.terminated or step.steep)
            if not step.steep:
                wanted = [*step.obs, step.reward]
                found.append(_difference([*obs[world], reward[world]], wanted))
                nudged.append(_difference([*step.nudged[0], step.nudged[1]], wanted))
        if terminated.any():
            envs.reset(options={"reset_mask": terminated})
    print(id, *(f"{np.median(x):.1e} {max(x):.1e}" for x in (found, nudged)), len(found))
    assert len(found) >= STEPS
    assert np.median(found) <= 3 * np.median(nudged)
    assert max(found) <= 3 * max(nudged)


PARTS = {  # the other half of the humanoid's observation than by default, or part of it
    "include_cinert_in_observation": True,
    "include_cvel_in_observation": False,
    "include_qfrc_actuator_in_observation": False,
    "include_cfrc_ext_in_observation": True,
}
# Keywords that are no weights, or that by default are a weight of 0; ranges that some worlds leave.
OTHER = {
    "DiffAnt-v0": {
        "contact_cost_weight": 1e-2,
        "contact_force_range": (-0.3, 0.4),
        "healthy_z_range": (0.62, 0.75),
        "include_cfrc_ext_in_observation": True,
    },
    "DiffHopper-v0": {
        "healthy_angle_range": (-0.162, 0.1),
        "healthy_state_range": (-4.0, 5.0),
        "healthy_z_range": (1.1993, 1.3),
    },
    "DiffHumanoid-v0": PARTS
    | {
        "contact_cost_weight": 1e-6,
        "contact_cost_range": (0.2, 0.9),
        "healthy_z_range": (1.267, 1.4),
    },
    "DiffHumanoidStandup-v0": PARTS | {"impact_cost_weight": 1e-6, "impact_cost_range": (0.2, 0.9)},
    "DiffWalker2d-v0": {"healthy_angle_range": (-0.052, 0.046), "healthy_z_range": (1.13, 1.25)},
}
# Twice what was measured; the humanoids observe forces of 1e4 N next to small ones.
OTHER_OBS = {"DiffHumanoid-v0": 5e-4, "DiffHumanoidStandup-v0": 8e-3}


@pytest.mark.parametrize("id", [id for id, task in TASKS.items() if task.gymnasium])
def test_other_keywords_vs_gymnasium(id, make):
    """A step with other values of the keywords: weights times 1.7, ranges, parts, 3 substeps.

    It begins in moving states, on the floor where there is one; actions exceed their bounds.
    """
    task = TASKS[id]
    kwargs = {
        name: 1.7 * value
        for name, value in task.defaults.items()
        if name.endswith("_weight") or name == "healthy_reward"
    }
    if "exclude_current_positions_from_observation" in task.defaults:
        kwargs["exclude_current_positions_from_observation"] = False
    kwargs |= OTHER.get(id, {}) | {"frame_skip": 3}
    # Not of a step, of ours alone, and a flag that other tests see.
    rest = {"reset_noise_scale", "reward", "terminate_when_unhealthy"}
    assert task.defaults.keys() - kwargs.keys() <= rest  # each other keyword is changed
    steep = id in ("DiffAnt-v0", "DiffHumanoid-v0", "DiffHumanoidStandup-v0")
    ours = task.v5 | kwargs | ({"xml_file": _elliptic(id)} if steep else {})
    envs = make(id, 2 * NUM_ENVS, autoreset_mode="DISABLED", **ours)
    envs.reset(seed=0)
    legs = id in OTHER or id == "DiffHalfCheetah-v0"
    qpos, qvel, *_ = fd.contact_rich_states(
        envs.model, envs.num_envs, seed=2, contacts=0.5 * legs, max_speed=10.0
    )
    reach = 1.4 * envs.single_action_space.high
    actions = reach * np.random.default_rng(1).uniform(-1.0, 1.0, envs.action_space.shape)
    actions = actions.astype(np.float32)
    envs.set_state(qpos, qvel)
    obs, reward, terminated, _, info = envs.step(actions)
    reference = Reference(id, ELLIPTIC if steep else PYRAMIDAL, True, **kwargs)
    found = {"obs": [], "reward": [], "info": []}
    for world in range(envs.num_envs):
        reference.env.set_state(*(np.float32(x[world]).astype(float) for x in (qpos, qvel)))
        wanted, wanted_reward, ends, _, terms = reference.env.step(actions[world])
        found["obs"].append(_difference(obs[world], wanted))
        found["reward"].append(_difference(reward[world], wanted_reward))
        found["info"] += [_difference(info[k][world], terms[k]) for k in terms if k in info]
        assert terminated[world] == ends
    worst = {name: max(values) for name, values in found.items()}
    print(id, {name: f"{value:.1e}" for name, value in worst.items()}, terminated.sum())
    assert worst["obs"] <= OTHER_OBS.get(id, 4e-5)
    assert worst["reward"] <= 1e-5
    assert worst["info"] <= 6e-5
    if "healthy_z_range" in kwargs:
        assert 0 < terminated.sum() < envs.num_envs
    for name in {"reward_contact", "reward_impact"} & info.keys():
        assert len(np.unique(info[name])) > 1
