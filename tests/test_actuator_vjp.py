"""The adjoint of all kinds of actuators against central differences of C MuJoCo in float64."""

import actuator_models
import mujoco
import numpy as np
import pytest

from diffenvs.physics import finite_diff as fd
from diffenvs.physics import linearize
from diffenvs.physics.accuracy import MEDIAN, WORST, step_vjp

NUM_STATES = 16
ZERO = 1e-5  # of the norm of a cotangent: rounding of differences, no influence
ORACLE = 3e-4  # where central differences of several widths disagree more, they prove nothing


def vjp_errors(mjm, states, seed=0):
    """Relative errors of (qpos, qvel, act, ctrl), of the step itself, and where to trust them.

    In every other state only the velocity has a cotangent, so that what comes back at positions
    and activations is the derivative of forces alone.
    """
    rng = np.random.default_rng(seed)
    cotangents = rng.normal(size=(len(states.qpos), 2 * mjm.nv + mjm.na))
    cotangents[::2, : mjm.nv] = cotangents[::2, 2 * mjm.nv :] = 0.0
    after, pulled = step_vjp(mjm, states, cotangents)
    exact, data = fd.converged(mjm), mujoco.MjData(mjm)
    errors, drift, trusted = [], [], []
    influence = dict.fromkeys(("qpos", "qvel", "act", "ctrl"), 0)
    for i, c in enumerate(cotangents):
        inputs = {name: getattr(states, name)[i] for name in influence}
        found = fd.transition(exact, **inputs)
        reference, doubts = found.vjp(c), dict(zip(found.shapes, found.vjp_error(c), strict=True))
        row, doubt = [], 0.0
        for name, values in inputs.items():
            expected = getattr(reference, name)
            some = np.linalg.norm(expected) > ZERO
            influence[name] += some or expected.size == 0
            doubt = max(doubt, doubts[name] * some)
            error = np.linalg.norm(pulled[name][i])
            row.append(fd.relative_error(pulled[name][i], expected) if some else error)
            getattr(data, name)[:] = values
        errors.append(row)
        trusted.append(not found.kink and doubt < ORACLE)
        mujoco.mj_step(exact, data)
        drift.append(fd.relative_error(after[i], np.r_[data.qpos, data.qvel, data.act]))
    assert min(influence.values()) >= len(cotangents) / 2, "too little to compare"
    return np.array(errors), np.array(drift), np.array(trusted)


def check(mjm, states):
    """Assert the accuracy that the project promises."""
    errors, drift, trusted = vjp_errors(mjm, states)
    text = f"set aside {(~trusted).sum()} of {len(trusted)}\n{errors}"
    assert trusted.mean() > 0.8, text
    assert drift[trusted].max() < 1e-5, f"the step itself differs\n{drift}"
    assert np.median(errors[trusted], axis=0).max() <= MEDIAN, text
    assert errors[trusted].max() <= WORST, text


@pytest.mark.parametrize("name", ["arm", "limb"])
@pytest.mark.parametrize("integrator", actuator_models.INTEGRATORS)
def test_actuator_vjp_vs_central_differences(name, integrator):
    """Every transmission, activation, gain and bias, in every integrator."""
    mjm = actuator_models.load(name, integrator)
    check(mjm, actuator_models.states(mjm, NUM_STATES))


def test_linearize_vs_central_differences_activations():
    """The rows and columns of the activations are in the matrices."""
    mjm = actuator_models.load("limb", "euler")
    states = actuator_models.states(mjm, 2)
    found_A, found_B = linearize(mjm, states.qpos, states.qvel, states.ctrl, states.act)
    exact = fd.converged(mjm)
    for i, (q, v, a, u) in enumerate(zip(*states[:4], strict=True)):
        expected = fd.transition(exact, q, v, u, a)
        np.testing.assert_allclose(found_A[i], expected.A, atol=1e-4 * np.abs(expected.A).max())
        np.testing.assert_allclose(found_B[i], expected.B, atol=1e-4 * np.abs(expected.B).max())


TURNS = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.01"/>
  <worldbody>
    <site name="ground" euler="0.3 0.1 -0.4"/>
    <body>
      <joint name="ball" type="ball" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0.1 0.08 -0.2" size="0.05" mass="0.6"/>
      <site name="tip" pos="0.05 -0.03 -0.1" euler="-0.4 0.2 0.6"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="ball" gear="0.6 0.3 -1" kp="2" kv="0.2"/>
    <intvelocity jointinparent="ball" gear="0.8 -0.3 0.1" kp="2" actrange="-9 9"/>
    <general site="tip" refsite="ground" gear="0 0 0 0.5 0.8 -0.3" dyntype="filter" dynprm="0.1"
             gainprm="1.5" biastype="affine" biasprm="0 -1.5 -0.1"/>
  </actuator>
</mujoco>"""


@pytest.mark.parametrize("integrator", actuator_models.INTEGRATORS)
def test_actuator_vjp_vs_central_differences_turns(integrator):
    """A servo that follows an angle takes the nearest turn of its target."""
    mjm = mujoco.MjModel.from_xml_string(TURNS)
    mjm.opt.integrator = actuator_models.INTEGRATORS[integrator]
    states = actuator_models.states(mjm, NUM_STATES)
    rng = np.random.default_rng(1)
    act, ctrl = (np.float32(rng.uniform(-8, 8, x.shape)) for x in (states.act, states.ctrl))
    check(mjm, states._replace(act=act.astype(float), ctrl=ctrl.astype(float)))
