"""The adjoint of all kinds of actuators against central differences of C MuJoCo in float64."""

import actuator_models
import numpy as np
import pytest
import warp as wp
from test_step_vjp import tangent_map

from diffenvs.physics import Physics
from diffenvs.physics import finite_diff as fd

NUM_STATES = 16
MEDIAN, WORST = 1e-4, 3e-3
ORACLE = 3e-4


def step_vjp(mjm, states, cotangents):
    """The next state and the pulled back cotangents of qpos (tangent), qvel, act, ctrl."""
    n, nv = len(states.qpos), mjm.nv
    physics = Physics(mjm, n)
    state, out, adj_out, adj = (physics.make_state() for _ in range(4))
    for name in ("qpos", "qvel", "act"):
        getattr(state, name).assign(np.float32(getattr(states, name)))
    ctrl = wp.array(np.float32(states.ctrl), dtype=float, device=physics.device)
    record = physics.make_record()
    physics.launch_step(state, ctrl, out, record)
    qpos, qvel, act = (x.numpy().astype(float) for x in (out.qpos, out.qvel, out.act))
    seeds = [
        np.linalg.pinv(tangent_map(mjm, q)).T @ c[:nv]
        for q, c in zip(qpos, cotangents, strict=True)
    ]
    adj_out.qpos.assign(np.array(seeds, np.float32))
    adj_out.qvel.assign(np.float32(cotangents[:, nv : 2 * nv]))
    adj_out.act.assign(np.float32(cotangents[:, 2 * nv :]))
    adj_ctrl = wp.zeros((n, mjm.nu), dtype=float, device=physics.device)
    physics.launch_step_vjp(record, adj_out, adj, adj_ctrl)
    adj_qpos = [
        tangent_map(mjm, q).T @ g
        for q, g in zip(states.qpos, adj.qpos.numpy().astype(float), strict=True)
    ]
    adjoint = [x.numpy().astype(float) for x in (adj.qvel, adj.act, adj_ctrl)]
    return np.hstack([qpos, qvel, act]), [np.array(adj_qpos), *adjoint]


def vjp_errors(mjm, states, seed=0):
    """Relative errors of (qpos, qvel, act, ctrl), of the step itself, and where to trust them."""
    rng = np.random.default_rng(seed)
    cotangents = rng.normal(size=(len(states.qpos), 2 * mjm.nv + mjm.na))
    state, pulled = step_vjp(mjm, states, cotangents)
    exact = fd.converged(mjm)
    errors, drift, trusted = [], [], []
    for i, c in enumerate(cotangents):
        inputs = [x[i] for x in (states.qpos, states.qvel, states.ctrl, states.act)]
        found = fd.transition(exact, *inputs)
        reference = found.vjp(c)
        trusted.append(not found.kink and max(found.vjp_error(c)) < ORACLE)
        for expected in reference:
            assert expected.size == 0 or np.linalg.norm(expected) > 1e-3, "nothing to compare"
        errors.append([fd.relative_error(p[i], r) for p, r in zip(pulled, reference, strict=True)])
        after = fd._run(exact, *_start(exact, inputs), 1)[:3]
        drift.append(fd.relative_error(state[i], np.concatenate(after)))
    return np.array(errors), np.array(drift), np.array(trusted)


def _start(mjm, inputs):
    import mujoco

    qpos, qvel, ctrl, act = inputs
    return mujoco.MjData(mjm), [qpos, qvel, act, ctrl], np.zeros(mjm.nv)


@pytest.mark.parametrize("name", ["arm", "limb"])
@pytest.mark.parametrize("integrator", actuator_models.INTEGRATORS)
def test_actuator_vjp_vs_central_differences(name, integrator):
    """Every transmission, activation, gain and bias, in every integrator."""
    mjm = actuator_models.load(name, integrator)
    errors, drift, trusted = vjp_errors(mjm, actuator_models.states(mjm, NUM_STATES))
    text = f"set aside {(~trusted).sum()} of {len(trusted)}\n{errors}"
    assert trusted.mean() > 0.8, text
    assert drift[trusted].max() < 1e-5, f"the step itself differs\n{drift}"
    assert np.median(errors[trusted], axis=0).max() <= MEDIAN, text
    assert errors[trusted].max() <= WORST, text
