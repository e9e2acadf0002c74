"""Pusher for tests: states in which the rake touches the object, and the reward in float64."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import mujoco
import numpy as np


class States(NamedTuple):
    """States of the model, float32."""

    qpos: np.ndarray  # (n, nq)
    qvel: np.ndarray  # (n, nv)


@cache
def _model_and_data():
    """A place for C MuJoCo to compute Pusher's kinematics."""
    mjm = mujoco.MjModel.from_xml_string(files("envs_assets").joinpath("pusher.xml").read_text())
    return mjm, mujoco.MjData(mjm)


def reward(before, qpos, qvel, action, dt):
    """Reward of Pusher, from its docstring."""
    mjm, data = _model_and_data()
    data.qpos[:] = qpos
    mujoco.mj_kinematics(mjm, data)
    tips, thing, goal = (data.body(name).xpos for name in ("tips_arm", "object", "goal"))
    near, dist = np.linalg.norm(thing - tips), np.linalg.norm(thing - goal)
    return -0.5 * near - dist - 0.1 * np.sum(action**2)


def states(mjm, n, seed):
    """n states of Pusher; in the first half the rake touches the object, in the other it is far."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    thing, rake = mjm.body("object").id, mjm.body("r_wrist_roll_link").id
    found = []
    while len(found) < n:
        data.qpos[:7] = rng.uniform(*mjm.jnt_range[:7].T)
        data.qpos[7:] = rng.uniform(-1.0, 1.0, 4)
        mujoco.mj_kinematics(mjm, data)
        wrist = data.xpos[rake]
        if not -0.3 < wrist[2] < -0.22:
            continue  # too low, in the table, or too high for the object
        if len(found) < n // 2:
            place = wrist + rng.uniform(-0.15, 0.15, 3) - mjm.body_pos[thing]
            data.qpos[[8, 7]] = place[:2]
        data.qpos[:] = data.qpos.astype(np.float32)
        data.qvel[:] = rng.normal(size=mjm.nv, scale=0.5).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        bodies = mjm.geom_bodyid[data.contact.geom]
        touch = ((bodies == thing).any(axis=1) & (bodies == rake).any(axis=1)).any()
        apart = np.linalg.norm(data.xpos[thing] - wrist) > 0.4
        wanted = touch if len(found) < n // 2 else apart
        if wanted and data.contact.dist.min() > -0.004:
            found.append((data.qpos.copy(), data.qvel.copy()))
    qpos, qvel = (np.array(x, dtype=np.float32) for x in zip(*found, strict=True))
    return States(qpos, qvel)
