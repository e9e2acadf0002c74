"""Applied forces and poses of mocap bodies as inputs of a step: values, gradients, messages."""

import feature_models
import mujoco
import numpy as np
import pytest
import warp as wp

from diffenvs.physics import Inputs, Physics, UnsupportedFeature
from diffenvs.physics.finite_diff import converged, relative_error

# A ball on a tray that is moved by hand, next to a mocap post with a pendulum on it.
SCENE = """
<mujoco model="inputs">
  <compiler angle="radian"/>
  <option timestep="0.004"/>
  <default>
    <geom solref="0.02 0.9" solimp="0.8 0.97 0.03 0.4 2" friction="0.8 0.02 0.01" condim="4"/>
    <default class="ghost"><geom contype="0" conaffinity="0"/></default>
  </default>
  <worldbody>
    <body name="post" mocap="true" pos="0.6 0 0.5" quat="0.9 0.1 0.3 -0.2">
      <geom class="ghost" type="box" size="0.02 0.02 0.02" pos="0.1 0 0"/>
      <body name="rod" pos="0 0.05 0.02">
        <joint name="rod" axis="0.2 1 0.1" damping="0.1" pos="0.01 0 0"/>
        <geom class="ghost" type="box" size="0.03 0.04 0.1" pos="0.02 0 -0.1" mass="0.6"/>
        <body name="link" pos="0 0 -0.2">
          <joint name="link" type="ball"/>
          <geom class="ghost" type="box" size="0.05 0.04 0.03" pos="0.06 0.02 0.01" mass="0.4"/>
        </body>
      </body>
    </body>
    <body name="hand" mocap="true">
      <body name="tray" pos="0.02 0.01 0" quat="0.9 0.1 0.2 0.3">
        <geom name="tray" type="capsule" size="0.07 0.2"/>
      </body>
    </body>
    <body name="ball">
      <freejoint/>
      <geom name="ball" size="0.1" pos="0.01 0.02 0" mass="0.5"/>
      <geom class="ghost" type="box" size="0.1 0.05 0.02" pos="0.02 0 0.03" mass="0.2"/>
    </body>
  </worldbody>
  <actuator><motor joint="rod" gear="0.5"/></actuator>
</mujoco>"""

NUM_STATES = 8
STATE = ("qpos", "qvel")
INPUTS = ("ctrl", "qfrc_applied", "xfrc_applied", "mocap_pos", "mocap_quat")
DTYPES = dict(zip(INPUTS, (float, float, wp.spatial_vector, wp.vec3, wp.quat), strict=True))


def load(integrator="euler", cone="pyramidal"):
    mjm = mujoco.MjModel.from_xml_string(SCENE)
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    mjm.opt.cone = feature_models.CONES[cone]
    return mjm


def sample(mjm, n, seed=0):
    """States and inputs, (n, size) each; the ball touches the tray."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    ball, rows = mjm.joint(1).qposadr[0], {name: [] for name in STATE + INPUTS}
    ball = mjm.jnt_qposadr[mjm.jnt_type == mujoco.mjtJoint.mjJNT_FREE][0]
    while len(rows["qpos"]) < n:
        mujoco.mj_resetData(mjm, data)
        mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * 0.4, 1.0)
        data.mocap_pos[:] += rng.normal(size=(2, 3)) * 0.1
        data.mocap_quat[:] = rng.normal(size=(2, 4))  # of any norm
        direction = rng.normal(size=3)
        data.qpos[ball : ball + 3] = data.mocap_pos[1]
        data.qpos[ball : ball + 3] += 0.17 * direction / np.linalg.norm(direction)
        data.qvel[:] = rng.normal(size=mjm.nv) * 0.5
        data.qfrc_applied[:] = rng.normal(size=mjm.nv)
        data.xfrc_applied[:] = rng.normal(size=(mjm.nbody, 6))
        data.ctrl[:] = rng.normal(size=mjm.nu)
        for name in rows:
            getattr(data, name)[:] = getattr(data, name).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        if data.ncon == 1 and -0.04 < data.contact.dist[0] < -0.001:
            for name, values in rows.items():
                values.append(getattr(data, name).copy())
    return {name: np.array(values) for name, values in rows.items()}


def arrays(point, physics, requires_grad=False):
    """The state and the inputs of `sample` on the device."""
    state = physics.make_state(requires_grad=requires_grad)
    for name in STATE:
        getattr(state, name).assign(np.float32(point[name]))
    inputs = Inputs(
        **{
            name: wp.array(
                np.float32(point[name]),
                dtype=dtype,
                device=physics.device,
                requires_grad=requires_grad,
            )
            for name, dtype in DTYPES.items()
        }
    )
    return state, inputs


def run(mjm, data, point, i, nstep):
    """The state after C MuJoCo's step, qpos by its components."""
    mujoco.mj_resetData(mjm, data)
    for name, values in point.items():
        getattr(data, name)[:] = values[i]
    for _ in range(nstep):
        mujoco.mj_step(mjm, data)
    return np.r_[data.qpos, data.qvel]


def differences(mjm, point, cotangents, nstep):
    """Central differences of `cotangent . step` by the components of every input."""
    mjm, eps = converged(mjm), 1e-6
    data = mujoco.MjData(mjm)
    grads = {name: np.zeros_like(point[name]) for name in INPUTS}
    for name, grad in grads.items():
        for index in np.ndindex(grad.shape):
            sides = []
            for side in (eps, -eps):
                moved = point | {name: point[name].copy()}
                moved[name][index] += side
                sides.append(run(mjm, data, moved, index[0], nstep))
            grad[index] = cotangents[index[0]] @ (sides[0] - sides[1]) / (2 * eps)
    return grads


@pytest.mark.parametrize(
    ("integrator", "cone", "nstep"),
    [("euler", "pyramidal", 1), ("implicitfast", "elliptic", 2), ("rk4", "pyramidal", 1)],
)
def test_inputs_vjp_vs_central_differences(integrator, cone, nstep):
    """Gradients by all inputs, through a tape, agree with central differences of C MuJoCo."""
    mjm = load(integrator, cone)
    point = sample(mjm, NUM_STATES)
    physics = Physics(mjm, NUM_STATES, nstep=nstep)
    state, inputs = arrays(point, physics, requires_grad=True)
    with wp.Tape() as tape:
        out = physics.step(state, inputs)
    data, exact = mujoco.MjData(mjm), converged(mjm)
    for i, after in enumerate(np.hstack([out.qpos.numpy(), out.qvel.numpy()])):
        assert relative_error(after, run(exact, data, point, i, nstep)) < 1e-4
    cotangents = np.random.default_rng(1).normal(size=(NUM_STATES, mjm.nq + mjm.nv))
    parts = np.float32(cotangents[:, : mjm.nq]), np.float32(cotangents[:, mjm.nq :])
    for array, part in zip((out.qpos, out.qvel), parts, strict=True):
        array.grad.assign(part)
    tape.backward()
    expected = differences(mjm, point, cotangents, nstep)
    for name in INPUTS:
        grad = getattr(inputs, name).grad.numpy().astype(float)
        errors = [relative_error(a, b) for a, b in zip(grad, expected[name], strict=True)]
        assert np.linalg.norm(expected[name].reshape(NUM_STATES, -1), axis=1).min() > 1e-6
        assert np.median(errors) <= 1e-4, (name, errors)
        assert max(errors) <= 3e-3, (name, errors)
