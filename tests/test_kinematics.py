"""Kinematics of a state against C MuJoCo, and their adjoint against central differences of it."""

import mujoco
import mujoco_warp as mjw
import numpy as np
import pytest
import warp as wp

from diffenvs.physics.finite_diff import relative_error
from diffenvs.physics.kinematics import FIELDS, Kinematics

# Every type of joint, several on a body, offsets and turns everywhere, a body without joints.
XML = """
<mujoco>
  <worldbody>
    <body pos=".1 .2 .3" quat="1 .2 .3 .1">
      <geom type="box" size=".1 .2 .3" pos=".1 0 0"/>
      <joint type="slide" axis="1 2 0" pos=".1 .2 .1"/>
      <joint type="hinge" axis="0 1 1" pos=".1 -.1 .2"/>
      <site pos=".1 .2 .3"/>
      <body pos="0 0 .4" euler="30 20 10">
        <joint type="ball" pos=".1 .1 .1"/>
        <geom type="capsule" size=".1 .2" euler="40 0 10"/>
        <body pos=".3 0 0">
          <geom size=".1"/>
          <body pos="0 .2 0">
            <joint axis="1 0 0"/>
            <joint axis="0 1 0" ref="20"/>
            <geom size=".05 .1" type="capsule" pos=".1 .2 .1" euler="20 30 0"/>
            <site pos="0 .1 0"/>
          </body>
        </body>
      </body>
    </body>
    <body pos="5 0 1">
      <freejoint/>
      <geom type="box" size=".1 .2 .3" pos=".1 .1 0"/>
      <body pos=".2 0 0">
        <joint axis="0 1 0" pos=".1 0 .1"/>
        <geom size=".1 .2" type="capsule" euler="0 60 0"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""
NWORLD = 4


def _in_c(mjm, qpos, qvel):
    """The fields by C MuJoCo."""
    data = mujoco.MjData(mjm)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_kinematics(mjm, data)
    mujoco.mj_comPos(mjm, data)
    mujoco.mj_comVel(mjm, data)
    return {field: np.array(getattr(data, field)) for field in FIELDS}


@pytest.fixture(scope="module")
def moved():
    """A model, states of it (quaternions of any norm) and their kinematics."""
    mjm = mujoco.MjModel.from_xml_string(XML)
    rng = np.random.default_rng(0)
    qpos = (mjm.qpos0 + 0.5 * rng.normal(size=(NWORLD, mjm.nq))).astype(np.float32)
    qvel = rng.normal(size=(NWORLD, mjm.nv)).astype(np.float32)
    kinematics = Kinematics(mjw.put_model(mjm), NWORLD, FIELDS)
    kinematics.launch(wp.array(qpos), wp.array(qvel))
    return mjm, qpos, qvel, kinematics


@pytest.mark.parametrize("field", FIELDS)
def test_kinematics_vs_c_mujoco(field, moved):
    """Every field equals MuJoCo's, to rounding."""
    mjm, qpos, qvel, kinematics = moved
    for world in range(NWORLD):
        wanted = _in_c(mjm, qpos[world].astype(float), qvel[world])[field]
        found = kinematics.values[field].numpy()[world].reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, atol=1e-6 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("field", FIELDS)
def test_kinematics_vjp_vs_finite_differences(field, moved):
    """The cotangent of the state is that of central differences of C MuJoCo in float64."""
    mjm, qpos, qvel, kinematics = moved
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=kinematics.adj[field].numpy().shape).astype(np.float32)
    adj_qpos, adj_qvel = wp.zeros(qpos.shape, dtype=float), wp.zeros(qvel.shape, dtype=float)
    kinematics.zero_adj()
    kinematics.adj[field].assign(cotangent)
    state = (wp.array(qpos), wp.array(qvel))
    kinematics.launch_vjp(*state, adj_qpos, adj_qvel)
    found = np.hstack([adj_qpos.numpy(), adj_qvel.numpy()])
    for world in range(NWORLD):
        x = np.concatenate([qpos[world], qvel[world]]).astype(float)

        def total(x, world=world):
            value = _in_c(mjm, x[: mjm.nq], x[mjm.nq :])[field]
            return (value * cotangent[world].reshape(value.shape)).sum()

        steps = 1e-6 * np.eye(len(x))
        gradient = np.array([(total(x + step) - total(x - step)) / 2e-6 for step in steps])
        assert np.linalg.norm(gradient[: mjm.nq]) > 0.1
        assert relative_error(found[world], gradient) < 1e-5


def test_kinematics_refuses_an_unknown_field(moved):
    """What is not there is refused by name, with what there is."""
    mjm = moved[0]
    with pytest.raises(ValueError, match=r"Kinematics: \['xmat'\] are not among \['xpos', 'xipos'"):
        Kinematics(mjw.put_model(mjm), 1, ["xpos", "xmat"])
