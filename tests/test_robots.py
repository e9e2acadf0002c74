"""Gradients of whole robots: a humanoid of 41 dofs, and an arm that holds an object."""

import mujoco
import numpy as np
import pytest
import robot_models
from test_step_vjp import check

from diffenvs.physics.accuracy import play

NUM_STATES = 24
slow = pytest.mark.slow

HUMANOIDS = [{}, {"feet": "capsule"}, {"feet": "sphere"}, {"actuators": "servo"}]
GRIPPERS = [
    {},
    {"fingers": "equality"},
    {"fingers": "tendon"},
    {"fingertips": "sphere", "object": "sphere"},
    {"fingertips": "box", "object": "box"},
    {"actuators": "servo"},
]


@pytest.mark.parametrize("parts", HUMANOIDS)
def test_humanoid_stands(parts):
    """Its servos keep the humanoid on its feet for a second."""
    mjm = robot_models.load(robot_models.humanoid_xml(**parts))
    assert (mjm.nv, mjm.nu) == (41, 35)
    assert mjm.na == (35 if parts.get("actuators") == "servo" else 0)
    assert 45 < mjm.body_mass.sum() < 70
    data = mujoco.MjData(mjm)
    mujoco.mj_resetDataKeyframe(mjm, data, mjm.key("home").id)
    mujoco.mj_step(mjm, data, 250)
    assert data.body("pelvis").xpos[2] > 0.85
    assert data.ncon >= 8
    smaller = robot_models.load(robot_models.humanoid_xml(hands=False, actuators="motor"))
    assert (smaller.nv, smaller.nu) == (33, 27)


@pytest.mark.parametrize("parts", GRIPPERS)
def test_gripper_holds(parts):
    """For a second the object stays between the fingers, above the table."""
    mjm = robot_models.load(robot_models.gripper_xml(**parts))
    assert mjm.nv == 14
    data = mujoco.MjData(mjm)
    mujoco.mj_resetDataKeyframe(mjm, data, mjm.key("home").id)
    mujoco.mj_step(mjm, data, 500)
    tips = [data.geom(f"tip_{side}").xpos for side in ("left", "right")]
    assert np.linalg.norm(data.body("object").xpos - np.mean(tips, axis=0)) < 0.01
    assert data.body("object").xpos[2] > 0.2
    assert data.ncon >= 2
    if parts.get("fingers") in ("equality", "tendon"):
        assert mjm.nu == 7
        assert abs(data.joint("finger_left").qpos[0] - data.joint("finger_right").qpos[0]) < 1e-3


@pytest.mark.parametrize(
    ("parts", "integrator"),
    [
        ({}, "implicitfast"),
        pytest.param({"feet": "capsule", "actuators": "servo"}, "euler", marks=slow),
        pytest.param({"feet": "capsule", "hands": False}, "rk4", marks=slow),
        pytest.param({}, "discrete", marks=slow),
    ],
)
def test_humanoid_gradients(parts, integrator):
    """The gradient of a step of the standing and stumbling humanoid is that of C MuJoCo."""
    mjm = robot_models.load(robot_models.humanoid_xml(**parts), integrator)
    states, _ = play(mjm, NUM_STATES, seed=1, key=0, spread=0.02, vigor=0.2)
    assert states.ncon.mean() > 2
    # four stages meet more contacts that make or break
    check(mjm, states, compared=0.7 if integrator == "rk4" else 0.8)


@pytest.mark.parametrize(
    ("parts", "integrator"),
    [
        ({}, "implicitfast"),
        ({"actuators": "servo", "fingers": "tendon"}, "implicitfast"),
        pytest.param({"actuators": "servo", "fingers": "equality"}, "euler", marks=slow),
        pytest.param({"fingertips": "sphere", "object": "sphere"}, "rk4", marks=slow),
        pytest.param({"fingertips": "box", "object": "box"}, "euler", marks=slow),
        pytest.param({}, "discrete", marks=slow),
    ],
)
def test_gripper_gradients(parts, integrator):
    """The gradient of a step is that of C MuJoCo while the object is held."""
    mjm = robot_models.load(robot_models.gripper_xml(**parts), integrator)
    if parts.get("object") == "box":  # else C MuJoCo has other points than mujoco_warp
        mjm.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
    states, _ = play(
        mjm, NUM_STATES, seed=1, key=0, spread=0.003, vigor=0.2, contacts=0.9, restart=100
    )
    assert np.mean(states.ncon >= 2) > 0.8
    check(mjm, states)
