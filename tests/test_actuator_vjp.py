"""The adjoint of all kinds of actuators against central differences of C MuJoCo in float64."""

import actuator_models
import mujoco
import numpy as np
import pytest

from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy import MEDIAN, WORST, step_vjp

NUM_STATES = 16
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
    for i, c in enumerate(cotangents):
        inputs = {name: getattr(states, name)[i] for name in ("qpos", "qvel", "act", "ctrl")}
        found = fd.transition(exact, **inputs)
        reference = found.vjp(c)._asdict()
        trusted.append(not found.kink and max(found.vjp_error(c)) < ORACLE)
        row = []
        for name, values in inputs.items():
            expected = reference[name]
            assert expected.size == 0 or np.linalg.norm(expected) > 1e-4, "nothing to compare"
            row.append(fd.relative_error(pulled[name][i], expected))
            getattr(data, name)[:] = values
        errors.append(row)
        mujoco.mj_step(exact, data)
        drift.append(fd.relative_error(after[i], np.r_[data.qpos, data.qvel, data.act]))
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
