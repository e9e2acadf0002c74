"""Physics: the functional step, tapes, graphs, linearize, and what is refused."""

import dataclasses

import feature_models
import mujoco
import numpy as np
import pytest
import warp as wp
from test_step_vjp import load_gymnasium

from diffenvs.physics import Physics, UnsupportedFeature, linearize
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.sizes import most_rows

NUM_STATES = 24


@wp.kernel
def _loss(qpos: wp.array2d[float], qvel: wp.array2d[float], out: wp.array[float]):
    """A user's own kernel: sum of squares of all velocities and heights."""
    i = wp.tid()
    total = qpos[i, 2] * qpos[i, 2]
    for k in range(qvel.shape[1]):
        total += qvel[i, k] * qvel[i, k]
    wp.atomic_add(out, 0, total)


@wp.kernel
def _halve(given: wp.array2d[float], out: wp.array2d[float]):
    i, k = wp.tid()
    out[i, k] = 0.5 * given[i, k]


@pytest.fixture(scope="module")
def ant():
    """Ant with 24 contact-rich states, two physics steps a step."""
    mjm = load_gymnasium("ant", "implicitfast", "elliptic")
    states = fd.contact_rich_states(mjm, NUM_STATES, seed=0)
    return Physics(mjm, NUM_STATES, nstep=2), states


def _state(physics, states, requires_grad=False):
    state = physics.make_state(requires_grad)
    state.qpos.assign(np.float32(states.qpos))
    state.qvel.assign(np.float32(states.qvel))
    ctrl = wp.array(
        np.float32(states.ctrl), dtype=float, device=physics.device, requires_grad=requires_grad
    )
    return state, ctrl


def _assert_same(physics, given, expected, message=""):
    """Equal to the last bit on the CPU; on CUDA rows are ordered by atomics, so to rounding."""
    if physics.device.is_cpu:
        assert np.array_equal(given, expected), message
    else:
        assert fd.relative_error(given, expected) < 1e-4, message


def _grads(state, ctrl):
    return [x.grad.numpy().copy() for x in (state.qpos, state.qvel, ctrl)]


def _rollout(physics, state, ctrl):
    """Loss of three steps through a user's kernels: d loss / d(state, ctrl)."""
    for x in (state.qpos, state.qvel, ctrl):
        x.grad.zero_()
    loss = wp.zeros(1, dtype=float, device=physics.device, requires_grad=True)
    with wp.Tape() as tape:
        half = wp.zeros_like(ctrl, requires_grad=True)
        wp.launch(_halve, dim=ctrl.shape, inputs=[ctrl], outputs=[half], device=physics.device)
        x = physics.step(state, ctrl)
        x = physics.step(x, half)
        x = physics.step(x, ctrl)
        wp.launch(_loss, dim=physics.nworld, inputs=[x.qpos, x.qvel, loss], device=physics.device)
    tape.backward(loss)
    return tape, float(loss.numpy()[0]), _grads(state, ctrl)


def test_tape_vs_chained_launches(ant):
    """tape.backward() through steps and a user's kernels equals the chain rule written out."""
    physics, states = ant
    state, ctrl = _state(physics, states, requires_grad=True)
    _, _, grads = _rollout(physics, state, ctrl)

    controls = [ctrl.numpy(), 0.5 * ctrl.numpy(), ctrl.numpy()]
    x, records = state, []
    for u in controls:
        records.append(physics.make_record())
        out = physics.make_state()
        physics.launch_step(x, wp.array(u, dtype=float, device=physics.device), out, records[-1])
        x = out
    adj_out, adj = physics.make_state(), physics.make_state()
    seed = np.zeros_like(x.qpos.numpy())
    seed[:, 2] = 2 * x.qpos.numpy()[:, 2]
    adj_out.qpos.assign(seed)
    adj_out.qvel.assign(2 * x.qvel.numpy())
    expected = np.zeros_like(ctrl.numpy())
    adj_ctrl = wp.zeros_like(ctrl)
    for record, weight in zip(reversed(records), (1.0, 0.5, 1.0), strict=True):
        physics.launch_step_vjp(record, adj_out, adj, adj_ctrl)
        expected += weight * adj_ctrl.numpy()
        adj_out, adj = adj, adj_out
    bound = 1e-6 if physics.device.is_cpu else 1e-5  # the steps are made twice, see _assert_same
    for got, want in zip(
        grads, (adj_out.qpos.numpy(), adj_out.qvel.numpy(), expected), strict=True
    ):
        assert np.linalg.norm(want) > 1.0
        assert fd.relative_error(got, want) < bound


def test_tape_directional_derivative_vs_c_mujoco(ant):
    """The gradient of a rollout on a tape predicts C MuJoCo's own change along it."""
    physics, states = ant
    state, ctrl = _state(physics, states, requires_grad=True)
    _, _, (_, _, grad_ctrl) = _rollout(physics, state, ctrl)
    exact = fd.converged(physics.mjm)
    data = mujoco.MjData(exact)

    def loss(i, u):
        data.qpos[:], data.qvel[:] = states.qpos[i], states.qvel[i]
        data.qacc_warmstart[:] = 0
        for scale in (1.0, 0.5, 1.0):
            data.ctrl[:] = scale * u
            mujoco.mj_step(exact, data, nstep=2)
        return data.qpos[2] ** 2 + np.sum(data.qvel**2)

    rng = np.random.default_rng(0)
    errors = []
    for i in range(NUM_STATES):
        direction = rng.normal(size=physics.nu)
        # three widths; where they disagree an active set changes on the way
        slopes = [
            (loss(i, states.ctrl[i] + e * direction) - loss(i, states.ctrl[i] - e * direction))
            / (2 * e)
            for e in (1e-4, 1e-5, 1e-6)
        ]
        scale = np.linalg.norm(grad_ctrl[i]) * np.linalg.norm(direction)
        if np.ptp(slopes) < 1e-4 * scale:
            errors.append(abs(grad_ctrl[i] @ direction - slopes[1]) / scale)
    assert len(errors) >= 15
    assert np.median(errors) < 1e-4
    assert max(errors) < 3e-3


def test_tape_repeats_and_reuses_memory(ant):
    """The same rollout gives the same gradients again, on the memory of tapes that are gone."""
    physics, states = ant
    state, ctrl = _state(physics, states, requires_grad=True)
    tape, loss, grads = _rollout(physics, state, ctrl)
    tape.reset()
    held = len(physics._free)
    assert held >= 3
    tape, again, grads_again = _rollout(physics, state, ctrl)
    assert len(physics._free) == held - 3
    _assert_same(physics, again, loss)
    for one, two in zip(grads, grads_again, strict=True):
        _assert_same(physics, one, two)
    # a gradient taken while another tape is alive is the same
    other, _, grads_other = _rollout(physics, state, ctrl)
    _assert_same(physics, grads_other[2], grads[2])
    assert tape is not other


def test_recorded_step_equals_step_bit_for_bit(ant):
    """Recording, replaying a graph and launching eagerly give the same bits; inputs stay."""
    physics, states = ant
    state, ctrl = _state(physics, states)
    before = state.qpos.numpy().copy()
    eager, recorded = physics.make_state(), physics.make_state()
    physics.launch_step(state, ctrl, eager)
    physics.launch_step(state, ctrl, recorded, physics.make_record())
    replayed = physics.step(state, ctrl)
    with wp.Tape():
        taped = physics.step(state, ctrl)
    for name in ("qpos", "qvel", "qacc_warmstart"):
        expected = getattr(eager, name).numpy()
        for other in (recorded, replayed, taped):
            _assert_same(physics, getattr(other, name).numpy(), expected, name)
    assert np.array_equal(state.qpos.numpy(), before)


def test_subtrees_give_back_the_joint_forces(ant):
    """S . x_mu is M a + c - J'f less the armature: a check of all signs, nothing differenced."""
    mjm, states = ant[0].mjm, ant[1]
    physics = Physics(mjm, NUM_STATES)
    state, ctrl = _state(physics, states)
    out, record = physics.make_state(), physics.make_record()
    physics.launch_step(state, ctrl, out, record)
    adj_out, adj = physics.make_state(), physics.make_state()
    adj_out.qvel.fill_(1.0)
    physics.launch_step_vjp(record, adj_out, adj, wp.zeros_like(ctrl))
    d = record.substeps[0].d
    ws = physics._workspace
    x_mu, end = ws.x_mu.numpy(), ws.body_end.numpy()
    x_mu = np.stack([x_mu[:, i : end[i]].sum(axis=1) for i in mjm.dof_bodyid], axis=1)
    given = np.einsum("wdk,wdk->wd", d.cdof.numpy(), x_mu)
    expected = d.efc.Ma.numpy() + d.qfrc_bias.numpy() - d.qfrc_constraint.numpy()
    expected -= mjm.dof_armature * d.qacc.numpy()
    assert np.linalg.norm(expected, axis=1).min() > 1.0
    # limits act in joint space and are no part of these: leave out dofs past theirs
    inside = np.ones((NUM_STATES, mjm.nv), bool)
    low, high = mjm.jnt_range[1:].T
    angles = states.qpos[:, 7:]
    inside[:, 6:] = (angles > low + 0.02) & (angles < high - 0.02)
    assert inside.sum() > 200
    scale = np.abs(x_mu).max(axis=(1, 2))[:, None]
    assert (np.abs(given - expected) / scale)[inside].max() < 1e-5


def test_linearize_vs_transition_fd():
    """A and B of all worlds at once against mjd_transitionFD's convention, in float64."""
    mjm = load_gymnasium("ant", "implicitfast", "elliptic")
    states = fd.contact_rich_states(mjm, NUM_STATES, seed=0)
    A, B = linearize(mjm, states.qpos, states.qvel, states.ctrl)
    assert A.shape == (NUM_STATES, 2 * mjm.nv, 2 * mjm.nv)
    assert B.shape == (NUM_STATES, 2 * mjm.nv, mjm.nu)
    assert A.dtype == B.dtype == np.float64
    exact, data = fd.converged(mjm), None
    errors = []
    for i in range(NUM_STATES):
        data = mujoco.MjData(exact)
        data.qpos[:], data.qvel[:], data.ctrl[:] = states.qpos[i], states.qvel[i], states.ctrl[i]
        mujoco.mj_forward(exact, data)
        A_fd, B_fd = np.zeros(A.shape[1:]), np.zeros(B.shape[1:])
        mujoco.mjd_transitionFD(exact, data, 1e-6, True, A_fd, B_fd, None, None)
        assert np.linalg.norm(B_fd) > 0.01
        errors.append([fd.relative_error(A[i], A_fd), fd.relative_error(B[i], B_fd)])
    assert np.median(errors, axis=0).max() < 1e-4
    assert np.max(errors) < 3e-3
    again = linearize(mjm, states.qpos, states.qvel, states.ctrl)
    assert fd.relative_error(A, again[0]) < 1e-6
    # a change of the model is noticed
    mjm.opt.gravity[2] = -1.0
    assert not np.array_equal(A, linearize(mjm, *states[:2], states.ctrl)[0])


def test_linearize_refuses_wrong_input():
    """Shapes and values are checked by name."""
    mjm = load_gymnasium("hopper", "euler", "pyramidal")
    good = np.zeros((2, mjm.nq)), np.zeros((2, mjm.nv)), np.zeros((2, mjm.nu))
    with pytest.raises(ValueError, match=r"linearize: qvel has shape \(3, 6\); .* \(n, 6\)"):
        linearize(mjm, good[0], np.zeros((3, 6)), good[2])
    with pytest.raises(ValueError, match="linearize: ctrl is not finite"):
        linearize(mjm, good[0], good[1], np.full((2, mjm.nu), np.nan))


def test_step_refuses_wrong_arrays(ant):
    """A wrong shape or type says what was given and what is accepted."""
    physics, states = ant
    state, ctrl = _state(physics, states)
    with pytest.raises(ValueError, match=r"ctrl is float32 \(3, 8\) on .*; .* \(24, 8\)"):
        physics.step(state, wp.zeros((3, 8), dtype=float, device=physics.device))
    with pytest.raises(ValueError, match=r"ctrl is a ndarray, not a wp\.array"):
        physics.step(state, ctrl.numpy())
    with pytest.raises(ValueError, match="nworld is 0; it must be an integer, at least 1"):
        Physics(physics.mjm, 0)
    with pytest.raises(ValueError, match="njmax is True; it must be an integer, at least 1"):
        Physics(physics.mjm, 2, njmax=True)
    with pytest.raises(RuntimeError, match="this record holds no step yet"):
        physics.launch_step_vjp(physics.make_record(), state, state, ctrl)
    record, adj = physics.make_record(), physics.make_state()
    physics.launch_step(state, ctrl, physics.make_state(), record)
    with pytest.raises(ValueError, match=r"adj_state\.qpos and adj_state_out\.qpos are one array"):
        physics.launch_step_vjp(record, adj, adj, wp.zeros_like(ctrl))
    few = dataclasses.replace(physics.make_state(), qvel=wp.zeros((24, 3), dtype=float))
    with pytest.raises(ValueError, match=r"adj_state_out\.qvel is float32 \(24, 3\) .* \(24, 14\)"):
        physics.launch_step_vjp(record, few, adj, wp.zeros_like(ctrl))
    with pytest.raises(ValueError, match=r"_vjp: ctrl is float32 \(24, 3\) on .*; .* \(24, 8\)"):
        physics.launch_step_vjp(record, physics.make_state(), adj, few.qvel)


def test_model_without_adjoint_is_refused():
    """Construction goes through check_model."""
    mjm = load_gymnasium("hopper", "euler", "pyramidal")
    mjm.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICIT
    with pytest.raises(UnsupportedFeature, match="IMPLICIT"):
        Physics(mjm)
    with pytest.raises(UnsupportedFeature, match="IMPLICIT"):
        linearize(mjm, *(np.zeros((1, k)) for k in (mjm.nq, mjm.nv, mjm.nu)))


def test_most_rows_holds_all_but_contacts():
    """Limits, friction losses and equalities always fit; rows of contacts are bounded."""
    joint = '<body><joint range="-1 1" frictionloss="1"/><geom size="0.1"/></body>'

    def rows(n, ncon):
        mjm = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{n * joint}</worldbody></mujoco>")
        return most_rows(mjm, ncon)

    assert rows(1, 2) == 2 + 2 * 4
    assert rows(1, 64) == 192
    assert rows(100, 64) == 200 + 64
    assert rows(100, 1) == 200 + 4


@pytest.mark.parametrize("limit", ["njmax", "nconmax"])
def test_overflow_is_raised(limit):
    """Contacts or rows that do not fit are reported with the argument to raise, never dropped."""
    mjm = feature_models.load("landing", "implicitfast")
    states = feature_models.states(mjm, NUM_STATES)
    physics = Physics(mjm, NUM_STATES, **{limit: 2 if limit == "njmax" else 1})
    state, ctrl = _state(physics, states, requires_grad=True)
    physics.launch_step(state, ctrl, physics.make_state())
    with pytest.raises(RuntimeError, match=f"raise {limit}"):
        physics.check_overflow()
    physics.check_overflow()  # reported once
    # a step on a tape tells by itself, on CUDA when its gradient is asked for
    with pytest.raises(RuntimeError, match=f"raise {limit}"), wp.Tape() as tape:
        out = physics.step(state, ctrl)
        out.qvel.grad.fill_(1.0)
        tape.backward()


def test_gradient_of_qpos_is_orthogonal_to_quaternions(ant):
    """The norm of a quaternion changes nothing; the gradient scales with the norm that is given."""
    physics, states = ant
    state, ctrl = _state(physics, states, requires_grad=True)
    _, _, (grad, _, _) = _rollout(physics, state, ctrl)
    quat = state.qpos.numpy()[:, 3:7]
    norm = np.linalg.norm(grad[:, 3:7], axis=1)
    assert (np.abs(np.sum(grad[:, 3:7] * quat, axis=1)) < 1e-5 * norm).all()

    scaled = states.qpos.copy()
    scaled[:, 3:7] *= 2.0
    state, ctrl = _state(physics, states._replace(qpos=scaled), requires_grad=True)
    _, _, (grad_scaled, _, _) = _rollout(physics, state, ctrl)
    assert fd.relative_error(2.0 * grad_scaled[:, 3:7], grad[:, 3:7]) < 1e-3
    tangent = [
        fd.tangent_map(physics.mjm, q).T @ g for q, g in zip(scaled, grad_scaled, strict=True)
    ]
    assert np.linalg.norm(tangent) > 1.0
