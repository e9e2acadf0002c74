"""Equality constraints: the adjoint against central differences, and the step itself."""

import equality_models
import mujoco
import numpy as np
import pytest
import warp as wp
from assert_accurate import assert_accurate

from diffenvs.physics import Physics
from diffenvs.physics import finite_diff as fd


@pytest.mark.parametrize("integrator", ["euler", "implicitfast"])
def test_equality_vjp_vs_central_differences(integrator):
    """Every type of equality, at small and large violations."""
    mjm = equality_models.load(integrator)
    assert_accurate(mjm, equality_models.states(mjm, 24, seed=1))


def test_equality_vjp_vs_central_differences_rk4():
    """Each stage of RK4 has rows of its own."""
    mjm = equality_models.load("rk4")
    assert_accurate(mjm, equality_models.states(mjm, 4, seed=2), compared=1.0)


def test_equality_vjp_without_violation():
    """Where all rows are exactly satisfied the norm of the violation has no direction."""
    mjm = equality_models.load()
    identity = [0, 0, 0, 1, 0, 0, 0]
    mjm.body("hand").pos[:], mjm.body("hand").quat[:] = identity[:3], identity[3:]
    for name in ("grasp", "offset"):
        mjm.equality(name).data[:10] = [0, 0, 0, *identity]
    mjm.eq_active0[:] = [mjm.equality(i).name in ("grasp", "offset") for i in range(mjm.neq)]
    states = equality_models.states(mjm, 2, seed=3)
    states.qpos[:, :14] = [*identity, *identity]
    data = mujoco.MjData(mjm)
    data.qpos[:] = states.qpos[0]
    mujoco.mj_forward(mjm, data)
    assert data.ne == 12
    assert not data.efc_pos[:12].any()
    assert_accurate(mjm, states, compared=1.0)


def step(physics, states, record=None):
    """State after one step."""
    state, out = physics.make_state(), physics.make_state()
    state.qpos.assign(np.float32(states.qpos))
    state.qvel.assign(np.float32(states.qvel))
    ctrl = wp.array(np.float32(states.ctrl), dtype=float, device=physics.device)
    physics.launch_step(state, ctrl, out, record)
    physics.check_overflow()
    return np.hstack([out.qpos.numpy(), out.qvel.numpy()])


@pytest.mark.parametrize("integrator", ["euler", "rk4"])
def test_step_forgets_the_velocities_before(integrator):
    """The rows of connect and weld read velocities; never those of another step."""
    mjm = equality_models.load(integrator)
    physics = Physics(mjm, 3)
    states, before = (equality_models.states(mjm, 3, seed=s) for s in (4, 5))
    record = physics.make_record()
    expected = []
    exact = fd.converged(mjm)
    data = mujoco.MjData(exact)
    for q, v, u in zip(states.qpos, states.qvel, states.ctrl, strict=True):
        mujoco.mj_resetData(exact, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, u
        mujoco.mj_step(exact, data)
        expected.append(np.r_[data.qpos, data.qvel])
    for target in (record, None):
        step(physics, before, target)
        found = step(physics, states, target)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        change = np.abs(found - np.array(expected)).max()
        assert change < 2e-5 * np.abs(expected).max()


def mocap_vjp(mjm, cotangent, qpos, qvel, ctrl):
    """Cotangent of the pose of the mocap body, rotation in world axes, by central differences."""
    exact = fd.converged(mjm)
    data = mujoco.MjData(exact)
    eps = 1e-6

    def run(turn, shift):
        mujoco.mj_resetData(exact, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
        data.mocap_pos[0] += shift
        quat = np.array([1.0, 0, 0, 0])
        mujoco.mju_quatIntegrate(quat, turn, 1.0)
        mujoco.mju_mulQuat(data.mocap_quat[0], quat, data.mocap_quat[0].copy())
        mujoco.mj_step(exact, data)
        return data.qpos.copy(), data.qvel.copy()

    result = np.zeros(6)
    for i in range(6):
        d = eps * np.eye(6)[i]
        (q1, v1), (q2, v2) = run(-d[:3], -d[3:]), run(d[:3], d[3:])
        dq = np.zeros(mjm.nv)
        mujoco.mj_differentiatePos(mjm, dq, 2 * eps, q1, q2)
        result[i] = cotangent @ np.r_[dq, (v2 - v1) / (2 * eps)]
    return result


def test_equality_vjp_of_a_mocap_pose():
    """What a weld leaves on a mocap body is the cotangent of its pose."""
    mjm = equality_models.load()
    states = equality_models.states(mjm, 4, seed=6)
    n, body = 4, mjm.body("hand").id
    physics = Physics(mjm, n)
    record = physics.make_record()
    step(physics, states, record)
    cotangents = np.random.default_rng(0).normal(size=(n, 2 * mjm.nv))

    def seed(adj):
        adj.qpos.assign(np.float32(cotangents[:, : mjm.nv]))
        adj.qvel.assign(np.float32(cotangents[:, mjm.nv :]))
        adj.act.zero_()

    physics.launch_tangent_vjp(record, seed, lambda adj: None)
    ws, d = physics._workspace, record.substeps[0].d
    y, b, x_b = (a.numpy()[:, body].astype(float) for a in (ws.y, ws.b, ws.x_b))
    com = d.subtree_com.numpy()[:, mjm.body_rootid[body]].astype(float)
    for i in range(n):
        (wt, wl), (xt, xf) = b[i].reshape(2, 3), x_b[i].reshape(2, 3)
        y[i] -= np.r_[np.cross(wt, xt) + np.cross(wl, xf), np.cross(wt, xf)]
        y[i, :3] -= np.cross(mjm.body_pos[body] - com[i], y[i, 3:])
        expected = mocap_vjp(mjm, cotangents[i], states.qpos[i], states.qvel[i], states.ctrl[i])
        assert fd.relative_error(-y[i], expected) < 3e-4
