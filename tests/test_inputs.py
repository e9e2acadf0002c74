"""Applied forces and poses of mocap bodies as inputs of a step: values, gradients, messages."""

import feature_models
import mujoco
import numpy as np
import pytest
import warp as wp

from diffenvs.physics import Inputs, Physics, UnsupportedFeature
from diffenvs.physics.finite_diff import converged, relative_error

# A ball that touches, and is welded to, a tray that is moved by hand; next to it a mocap post with
# a pendulum on it.
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
  <equality>
    <weld body1="tray" body2="ball" relpose="0.1 0.2 0.1 1 0.1 0.2 0.1" solref="0.03 1"/>
  </equality>
</mujoco>"""

NUM_STATES = 8
STATE = ("qpos", "qvel")
INPUTS = ("ctrl", "qfrc_applied", "xfrc_applied", "mocap_pos", "mocap_quat")
DTYPES = dict(zip(INPUTS, (float, float, wp.spatial_vector, wp.vec3, wp.quat), strict=True))


def load(integrator="euler", cone="pyramidal"):
    """Compile the scene."""
    mjm = mujoco.MjModel.from_xml_string(SCENE)
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    mjm.opt.cone = feature_models.CONES[cone]
    return mjm


def sample(mjm, n, seed=0):
    """States and inputs, (n, size) each; the ball touches the tray."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows = {name: [] for name in STATE + INPUTS}
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


def test_inputs_left_out():
    """Fields that are None act as zero forces and the model's own mocap poses, step by step."""
    mjm = load()
    physics = Physics(mjm, 2)
    state = physics.make_state()
    plain = physics.step(state, wp.zeros((2, 1), dtype=float, device=physics.device))
    everything = physics.make_inputs()
    np.testing.assert_allclose(everything.mocap_pos.numpy()[1], mjm.body_pos[[1, 4]], rtol=1e-6)
    np.testing.assert_allclose(everything.mocap_quat.numpy()[1], mjm.body_quat[[1, 4]], rtol=1e-6)
    pushed = physics.make_inputs()
    pushed.qfrc_applied.fill_(1.0)
    moved = physics.make_inputs()
    moved.mocap_pos.fill_(1.0)
    for inputs in (everything, Inputs(everything.ctrl), everything.ctrl):
        for other in (pushed, moved, Inputs(pushed.ctrl, pushed.qfrc_applied)):
            qvel = physics.step(state, other).qvel.numpy()
            assert other is moved or np.abs(qvel - plain.qvel.numpy()).min() > 1e-4
        after = physics.step(state, inputs)
        np.testing.assert_array_equal(after.qvel.numpy(), plain.qvel.numpy())
        np.testing.assert_array_equal(after.qpos.numpy(), plain.qpos.numpy())


def test_inputs_gradients_accumulate():
    """Two steps under the same inputs have the gradient of one step of two substeps."""
    mjm = load()
    point = sample(mjm, 2)
    found = []
    for nstep in (1, 2):
        physics = Physics(mjm, 2, nstep=nstep)
        state, inputs = arrays(point, physics, requires_grad=True)
        inputs.mocap_quat = None
        with wp.Tape() as tape:
            for _ in range(2 // nstep):
                state = physics.step(state, inputs)
        state.qvel.grad.fill_(1.0)
        tape.backward()
        found.append([x.grad.numpy() for x in inputs.given().values()])
    for a, b in zip(*found, strict=True):
        assert np.abs(a).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_inputs_messages():
    """Wrong arrays, and records that were made for other inputs, are refused by name."""
    mjm = load()
    physics = Physics(mjm, 2)
    state, out = physics.make_state(), physics.make_state()
    inputs = physics.make_inputs()
    for field, array, text in (
        ("qfrc_applied", wp.zeros((2, 3), dtype=float), "qfrc_applied is float32 (2, 3) on"),
        ("xfrc_applied", wp.zeros((2, 6), dtype=wp.vec3), "it must be spatial_vector"),
        ("mocap_pos", wp.zeros((2, 1), dtype=wp.vec3), "it must be vec3f (2, 2) on"),
        ("mocap_quat", wp.zeros((2, 2), dtype=wp.vec4), "it must be quat"),
        ("mocap_quat", np.zeros((2, 2, 4)), "mocap_quat is a ndarray, not a wp.array"),
    ):
        wrong = physics.make_inputs()
        setattr(wrong, field, array)
        with pytest.raises(ValueError) as error:
            physics.step(state, wrong)
        assert text in str(error.value)
    with pytest.raises(ValueError, match="record was made for ctrl, not for ctrl, qfrc_applied"):
        physics.launch_step(state, inputs, out, physics.make_record())
    record = physics.make_record(Inputs(inputs.ctrl, xfrc_applied=inputs.xfrc_applied))
    physics.launch_step(state, Inputs(inputs.ctrl, xfrc_applied=inputs.xfrc_applied), out, record)
    with pytest.raises(ValueError, match="no cotangent of mocap_pos"):
        adj = Inputs(inputs.ctrl, mocap_pos=inputs.mocap_pos)
        physics.launch_step_vjp(record, out, physics.make_state(), adj)


MOCAP_PROBLEMS = {
    "geom 'floor' is a plane on a mocap body: use another shape": (
        '<geom name="floor" type="plane" size="1 1 1"/>',
        "",
    ),
    "tendon 'rope' (spatial) is attached to a mocap body: detach it": (
        "",
        '<tendon><spatial name="rope"><site site="here"/><site site="there"/></spatial></tendon>',
    ),
    "actuator 'pull' has a force that depends on the pose of a site on a mocap body": (
        "",
        '<actuator><position name="pull" site="there" refsite="here" kp="1"/></actuator>',
    ),
}


@pytest.mark.parametrize("problem", MOCAP_PROBLEMS)
def test_inputs_refuse_mocap_poses(problem):
    """What on a mocap body keeps its pose from a gradient; the other inputs have theirs."""
    body, extra = MOCAP_PROBLEMS[problem]
    mjm = mujoco.MjModel.from_xml_string(
        f"""
        <mujoco>
          <worldbody>
            <body mocap="true"><site name="here"/>{body}</body>
            <body><freejoint/><site name="there"/><geom size="0.1"/></body>
          </worldbody>
          {extra}
        </mujoco>"""
    )
    physics = Physics(mjm)
    inputs = physics.make_inputs()
    physics.make_record(Inputs(inputs.ctrl, inputs.qfrc_applied))
    with pytest.raises(UnsupportedFeature) as error:
        physics.make_record(inputs)
    assert problem in str(error.value)
