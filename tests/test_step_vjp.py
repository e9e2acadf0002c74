"""The adjoint of a whole step against central differences of C MuJoCo in float64."""

import pathlib

import feature_models
import gymnasium
import mujoco
import numpy as np
import pytest
import warp as wp

from diffenvs.physics import Physics
from diffenvs.physics import finite_diff as fd

NUM_STATES = 24
NUM_COMPARED = 20  # of these, at least so many must be away from kinks
MEDIAN, WORST = 1e-4, 3e-3
ORACLE = 3e-4  # where central differences of several widths disagree more, they prove nothing

ASSETS = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


def load_gymnasium(name, integrator, cone):
    """One of Gymnasium's own models, with another integrator and cone."""
    mjm = mujoco.MjModel.from_xml_path(str(ASSETS / f"{name}.xml"))
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    mjm.opt.cone = feature_models.CONES[cone]
    return mjm


def tangent_map(mjm, qpos):
    """Return d qpos / d tangent, (nq, nv); the columns of a rotation are half of quat * e_k."""
    jacobian = np.zeros((mjm.nq, mjm.nv))
    for kind, q, v in zip(mjm.jnt_type, mjm.jnt_qposadr, mjm.jnt_dofadr, strict=True):
        if kind == mujoco.mjtJoint.mjJNT_FREE.value:
            jacobian[q : q + 3, v : v + 3] = np.eye(3)
            q, v = q + 3, v + 3
        if kind in (mujoco.mjtJoint.mjJNT_FREE.value, mujoco.mjtJoint.mjJNT_BALL.value):
            for k in range(3):
                turned = np.zeros(4)
                mujoco.mju_mulQuat(turned, qpos[q : q + 4], np.eye(4)[k + 1])
                jacobian[q : q + 4, v + k] = turned / 2
        else:
            jacobian[q, v] = 1.0
    return jacobian


def step_vjp(mjm, states, cotangents, nstep=1):
    """Next state and pulled back cotangents of all states at once.

    Args:
        mjm: the model.
        states: `finite_diff.States` of n states.
        cotangents: of (dq, qvel) after the step, (n, 2 nv).
        nstep: physics steps.

    Returns:
        qpos, qvel after the step and the cotangents (tangent qpos, qvel, ctrl) before it.
    """
    n, nv = len(states.qpos), mjm.nv
    physics = Physics(mjm, n, nstep=nstep)
    state, out = physics.make_state(), physics.make_state()
    state.qpos.assign(np.float32(states.qpos))
    state.qvel.assign(np.float32(states.qvel))
    ctrl = wp.array(np.float32(states.ctrl), dtype=float, device=physics.device)
    record = physics.make_record()
    physics.launch_step(state, ctrl, out, record)
    physics.check_overflow()
    qpos, qvel = (x.numpy().astype(float) for x in (out.qpos, out.qvel))
    adj_out, adj = physics.make_state(), physics.make_state()
    seeds = [
        np.linalg.pinv(tangent_map(mjm, q)).T @ c[:nv]
        for q, c in zip(qpos, cotangents, strict=True)
    ]
    adj_out.qpos.assign(np.float32(seeds))
    adj_out.qvel.assign(np.float32(cotangents[:, nv:]))
    adj_ctrl = wp.zeros((n, mjm.nu), dtype=float, device=physics.device)
    physics.launch_step_vjp(record, adj_out, adj, adj_ctrl)
    adj_qpos = np.array(
        [
            tangent_map(mjm, q).T @ g
            for q, g in zip(states.qpos, adj.qpos.numpy().astype(float), strict=True)
        ]
    )
    return qpos, qvel, adj_qpos, adj.qvel.numpy().astype(float), adj_ctrl.numpy().astype(float)


def vjp_errors(mjm, states, nstep=1, seed=0):
    """Relative errors against the oracle.

    Returns:
        errors (n, 3) of the cotangents of qpos, qvel, ctrl; the error (n,) of the next state; a
        mask (n,) of the states where the oracle is trustworthy.
    """
    rng = np.random.default_rng(seed)
    n, nv = len(states.qpos), mjm.nv
    cotangents = rng.normal(size=(n, 2 * nv))
    qpos, qvel, *pulled = step_vjp(mjm, states, cotangents, nstep)
    exact = fd.converged(mjm)
    errors, drift, trusted = np.zeros((n, 3)), np.zeros(n), np.ones(n, bool)
    for i, (q, v, u, c) in enumerate(
        zip(states.qpos, states.qvel, states.ctrl, cotangents, strict=True)
    ):
        oracle = fd.transition(exact, q, v, u, nstep=nstep)
        reference, doubt = oracle.vjp(c), oracle.vjp_error(c)
        trusted[i] = not oracle.kink and max(doubt) < ORACLE
        for k, name in enumerate(("qpos", "qvel", "ctrl")):
            expected = getattr(reference, name)
            assert expected.size == 0 or np.linalg.norm(expected) > 1e-6, "nothing to compare"
            errors[i, k] = fd.relative_error(pulled[k][i], expected)
        drift[i] = fd.relative_error(np.r_[qpos[i], qvel[i]], np.r_[oracle.qpos, oracle.qvel])
    return errors, drift, trusted


def check(mjm, states, nstep=1):
    """Assert the accuracy that the project promises."""
    errors, drift, trusted = vjp_errors(mjm, states, nstep)
    text = f"set aside {(~trusted).sum()} of {len(trusted)}\n{errors}"
    assert np.mean(states.ncon > 0) >= 0.5
    assert trusted.sum() >= NUM_COMPARED, text
    assert drift[trusted].max() < 1e-4, f"the step itself differs\n{drift}"
    assert np.median(errors[trusted], axis=0).max() <= MEDIAN, text
    assert errors[trusted].max() <= WORST, text


GYMNASIUM = [
    (name, integrator, cone)
    for name, cone in (
        ("hopper", "pyramidal"),
        ("half_cheetah", "pyramidal"),
        ("ant", "pyramidal"),
        ("ant", "elliptic"),
        ("walker2d_v5", "pyramidal"),
    )
    for integrator in ("euler", "implicitfast")
]


@pytest.mark.parametrize(("name", "integrator", "cone"), GYMNASIUM)
def test_step_vjp_vs_central_differences_gymnasium(name, integrator, cone):
    """The VJP of Gymnasium's own models agrees with central differences of C MuJoCo."""
    mjm = load_gymnasium(name, integrator, cone)
    steep = 0

    def accept(model, data):
        nonlocal steep
        refused = cone == "pyramidal" and fd.has_steep_capsule(model, data)
        steep += refused
        return not refused

    states = fd.contact_rich_states(mjm, NUM_STATES, seed=1, accept=accept)
    assert steep < 5 * NUM_STATES, "too many capsules are steep"
    check(mjm, states)


FEATURES = [
    (name, integrator, cone, condim)
    for name, settings in {
        "arm": [("pyramidal", None), ("elliptic", 4)],
        "landing": [("pyramidal", c) for c in (1, 3, 4, 6)] + [("elliptic", c) for c in (3, 4, 6)],
        "anisotropic": [("pyramidal", 3), ("elliptic", 3)],
        "cluster": [("pyramidal", c) for c in (1, 3, 6)] + [("elliptic", c) for c in (3, 4, 6)],
        "crawler": [("pyramidal", 3), ("elliptic", 6)],
        "long": [("pyramidal", 3), ("elliptic", 3)],
    }.items()
    for cone, condim in settings
    for integrator in ("euler", "implicitfast")
]


@pytest.mark.parametrize(("name", "integrator", "cone", "condim"), FEATURES)
def test_step_vjp_vs_central_differences_features(name, integrator, cone, condim):
    """The VJP of every supported feature agrees with central differences of C MuJoCo."""
    mjm = feature_models.load(name, integrator, cone, condim)
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=1))
