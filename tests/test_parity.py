"""Every task against the one of that name in Gymnasium, on C MuJoCo: steps and free runs.

Ours is made with the keywords of `Task.v5`, Gymnasium's with none. Two things are allowed to
differ, and are told apart. Staleness: after a step Gymnasium reads kinematics of the forward pass
before, we those of the state; so Gymnasium's task is run twice, as it is and with its kinematics
computed anew after the step. Single precision: what is left between the latter and ours.
"""

import warnings
from dataclasses import dataclass, fields

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import diffenvs
from diffenvs.env import _load_task
from diffenvs.physics.finite_diff import has_steep_capsule

TASKS = {id: _load_task(task) for id, (task, _) in diffenvs.TASKS.items()}
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
    "DiffHopper-v0": Allowed(1e-5, 3e-6),
    "DiffHalfCheetah-v0": Allowed(3e-4, 5e-6),
    "DiffAnt-v0": Allowed(1, 1),
}
NUDGE = 1e-6  # m, rad, per s: a few roundings of a float32


class Reference:
    """Gymnasium's task, with its kinematics computed anew after each step or as it is."""

    def __init__(self, id, fresh):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.env = gym.make(TASKS[id].gymnasium).unwrapped
        if TASKS[id](**TASKS[id].v5).mjm.opt.solver != self.env.model.opt.solver:
            # mujoco_warp has no PGS: the solver is part of what differs, and is taken out of it.
            self.env.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
            self.env.model.opt.iterations = 100
        if fresh:
            simulate = self.env.do_simulation

            def do_simulation(ctrl, n_frames):
                simulate(ctrl, n_frames)
                for stage in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_comVel):
                    stage(self.env.model, self.env.data)

            self.env.do_simulation = do_simulation

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

    def is_steep(self):
        """Whether a capsule stands steeply on a plane: there mujoco_warp's friction is another.

        It is the same where all motion is in the plane x-z.
        """
        model = self.env.model
        free = (model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).any()
        return free and has_steep_capsule(model, self.env.data)


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
    """Function of an id: our worlds, actions, and a list of `Step` for each world by Gymnasium."""

    def play(id):
        kwargs = {"autoreset_mode": "DISABLED", "max_episode_steps": -1} | TASKS[id].v5
        envs = make(id, NUM_ENVS, **kwargs)
        envs.reset(seed=0)
        stale, fresh, nudged = (Reference(id, fresh) for fresh in (False, True, True))
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
                before, steep = fresh.state, fresh.is_steep()
                obs, reward, terminated = fresh.step(action)
                other, moved = stale.step(action), nudged.step(action)
                np.testing.assert_array_equal(np.hstack(stale.state), np.hstack(fresh.state))
                steep |= fresh.is_steep()
                run.append(Step(before, obs, reward, terminated, other[:2], moved[:2], steep))
            runs.append(run)
        return envs, actions, runs

    return play


PARAMETRIZE = pytest.mark.parametrize("id", [id for id, task in TASKS.items() if task.gymnasium])


@PARAMETRIZE
def test_step_vs_gymnasium(id, play):
    """Observation, reward and termination of each step of random play, from v5's own state."""
    envs, actions, runs = play(id)
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
    assert len(found["obs"]) >= STEPS * NUM_ENVS * 3 // 4
    worst = {name: max(values) for name, values in found.items()}
    print(id, {name: f"{value:.1e}" for name, value in worst.items()}, len(found["obs"]))
    for name, value in worst.items():
        assert value <= getattr(ALLOWED[id], name), name


@PARAMETRIZE
def test_free_run_vs_gymnasium(id, play):
    """20 steps on our own parts from v5 as v5 does from itself, when its start is nudged.

    Contacts amplify rounding: of HalfCheetah a nudge of 1e-6 makes differences of order 1.
    """
    envs, actions, runs = play(id)
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
