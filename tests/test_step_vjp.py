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
    """One of Gymnasium's own models, with another integrator and cone, and the Newton solver."""
    mjm = mujoco.MjModel.from_xml_path(str(ASSETS / f"{name}.xml"))
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    mjm.opt.cone = feature_models.CONES[cone]
    mjm.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
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
    adj_out.qpos.assign(np.array(seeds, np.float32))
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


def vjp_errors(mjm, states, nstep=1, idle=(), oracle=None, seed=0):
    """Relative errors against central differences of `oracle`, by default the same model.

    Inputs in `idle` must have no influence at all.

    Returns:
        errors (n, 3) of the cotangents of qpos, qvel, ctrl; the error (n,) of the next state; a
        mask (n,) of the states where the oracle is trustworthy.
    """
    rng = np.random.default_rng(seed)
    n, nv = len(states.qpos), mjm.nv
    cotangents = rng.normal(size=(n, 2 * nv))
    qpos, qvel, *pulled = step_vjp(mjm, states, cotangents, nstep)
    exact = fd.converged(oracle or mjm)
    errors, drift, trusted = np.zeros((n, 3)), np.zeros(n), np.ones(n, bool)
    for i, (q, v, u, c) in enumerate(
        zip(states.qpos, states.qvel, states.ctrl, cotangents, strict=True)
    ):
        found = fd.transition(exact, q, v, u, nstep=nstep)
        reference, doubt = found.vjp(c), found.vjp_error(c)
        trusted[i] = not found.kink and max(doubt) < ORACLE
        for k, name in enumerate(("qpos", "qvel", "ctrl")):
            expected = getattr(reference, name)
            if name not in idle and expected.size > 0:
                assert np.linalg.norm(expected) > 1e-6, "nothing to compare"
            errors[i, k] = fd.relative_error(pulled[k][i], expected)
        drift[i] = fd.relative_error(np.r_[qpos[i], qvel[i]], np.r_[found.qpos, found.qvel])
    return errors, drift, trusted


def check(mjm, states, **options):
    """Assert the accuracy that the project promises; for `options` see `vjp_errors`."""
    errors, drift, trusted = vjp_errors(mjm, states, **options)
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
        ("humanoid", "pyramidal"),
    )
    for integrator in ("euler", "implicitfast")
]
GYMNASIUM += [("hopper", "rk4", "pyramidal"), ("ant", "rk4", "elliptic")]


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
    ("arm", "euler", "pyramidal", None),
    ("arm", "euler", "elliptic", 4),
    ("arm", "implicitfast", "pyramidal", 3),
    ("arm", "implicitfast", "elliptic", 6),
    ("landing", "euler", "pyramidal", 1),
    ("landing", "euler", "pyramidal", 3),
    ("landing", "euler", "pyramidal", 4),
    ("landing", "euler", "pyramidal", 6),
    ("landing", "euler", "elliptic", 3),
    ("landing", "implicitfast", "pyramidal", 3),
    ("landing", "implicitfast", "elliptic", 1),
    ("landing", "implicitfast", "elliptic", 3),
    ("landing", "implicitfast", "elliptic", 4),
    ("landing", "implicitfast", "elliptic", 6),
    ("anisotropic", "euler", "pyramidal", 3),
    ("anisotropic", "implicitfast", "elliptic", 3),
    ("cluster", "euler", "pyramidal", 1),
    ("cluster", "euler", "pyramidal", 3),
    ("cluster", "euler", "pyramidal", 4),
    ("cluster", "euler", "pyramidal", 6),
    ("cluster", "euler", "elliptic", 3),
    ("cluster", "implicitfast", "pyramidal", 3),
    ("cluster", "implicitfast", "elliptic", 3),
    ("cluster", "implicitfast", "elliptic", 4),
    ("cluster", "implicitfast", "elliptic", 6),
    ("fist", "euler", "pyramidal", 3),
    ("fist", "euler", "elliptic", 3),
    ("fist", "implicitfast", "pyramidal", 6),
    ("fist", "implicitfast", "elliptic", 4),
    ("crawler", "euler", "pyramidal", 3),
    ("crawler", "implicitfast", "elliptic", 6),
    ("long", "euler", "pyramidal", 3),
    ("long", "implicitfast", "elliptic", 3),
]


@pytest.mark.parametrize(("name", "integrator", "cone", "condim"), FEATURES)
def test_step_vjp_vs_central_differences_features(name, integrator, cone, condim):
    """The VJP of every supported feature agrees with central differences of C MuJoCo."""
    mjm = feature_models.load(name, integrator, cone, condim)
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=1))


FLAGS = [
    ("euler", "mjDSBL_CONSTRAINT"),
    ("euler", "mjDSBL_LIMIT"),
    ("euler", "mjDSBL_SPRING"),
    ("euler", "mjDSBL_DAMPER"),
    ("euler", "mjDSBL_ACTUATION"),
    ("euler", "mjDSBL_EULERDAMP"),
    ("implicitfast", "mjDSBL_CONTACT"),
    ("implicitfast", "mjDSBL_SPRING"),
    ("implicitfast", "mjDSBL_GRAVITY"),
    ("implicitfast", "mjDSBL_CLAMPCTRL"),
]


@pytest.mark.parametrize(("integrator", "flag"), FLAGS)
def test_step_vjp_vs_central_differences_flags(integrator, flag):
    """What an option disables is left out of the derivative as well."""
    mjm = feature_models.load("arm", integrator)
    states = feature_models.states(mjm, NUM_STATES, seed=2)
    mjm.opt.disableflags |= int(mujoco.mjtDisableBit.__members__[flag])
    check(mjm, states, idle=("ctrl",) if flag == "mjDSBL_ACTUATION" else ())


def _softness(mjm):
    mjm.geom_solimp[:] = mjm.jnt_solimp[:] = (0.5, 0.99, 0.1, 0.3, 3)


def _saturated(mjm):
    mjm.geom_solimp[:] = mjm.jnt_solimp[:] = (0.9, 0.9, 0.001, 0.5, 2)


def _direct(mjm):
    mjm.geom_solref[:] = mjm.jnt_solref[:] = (-300, -8)


def _refsafe(mjm):
    mjm.geom_solref[:] = mjm.jnt_solref[:] = (0.003, 1)  # shorter than two time steps


def _not_refsafe(mjm):
    mjm.geom_solref[:] = mjm.jnt_solref[:] = (0.006, 1)
    mjm.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_REFSAFE)


def _margin(mjm):
    mjm.geom_margin[:], mjm.geom_gap[:], mjm.jnt_margin[:] = 0.02, 0.01, 0.05


def _impratio(mjm):
    mjm.opt.impratio = 10


def _sparse(mjm):
    mjm.opt.jacobian = mujoco.mjtJacobian.mjJAC_SPARSE


def _gravity(mjm):
    mjm.opt.gravity[:] = (1, 2, -7)
    mjm.opt.timestep = 0.01


OPTIONS = [_softness, _saturated, _direct, _refsafe, _not_refsafe, _margin, _impratio, _sparse]


@pytest.mark.parametrize("change", [*OPTIONS, _gravity])
@pytest.mark.parametrize("cone", feature_models.CONES)
def test_step_vjp_vs_central_differences_options(change, cone):
    """The VJP follows the parameters of constraints and of the solver."""
    mjm = feature_models.load("arm", "implicitfast", cone)
    change(mjm)
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=3))


@pytest.mark.parametrize(("name", "integrator"), [("arm", "implicitfast"), ("landing", "euler")])
def test_step_vjp_vs_central_differences_substeps(name, integrator):
    """Four substeps in one recorded step are differentiated through."""
    mjm = feature_models.load(name, integrator)
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=4), nstep=4)


def test_step_vjp_vs_central_differences_far_from_origin():
    """A hundred metres away single precision still resolves the derivative."""
    mjm = load_gymnasium("ant", "euler", "elliptic")
    states = fd.contact_rich_states(mjm, NUM_STATES, seed=1)
    qpos = states.qpos.copy()
    qpos[:, :2] = (qpos[:, :2] + 100).astype(np.float32)
    check(mjm, states._replace(qpos=qpos))


POLE = """
<mujoco>
  <option timestep="0.004"/>
  <default>
    <geom solref="0.02 0.9" solimp="0.8 0.97 0.03 0.4 2" friction="0.8 0.02 0.01" contype="0"/>
  </default>
  <worldbody>
    <geom type="plane" size="5 5 0.1" contype="1" conaffinity="0"/>
    <body>
      <freejoint/>
      <inertial pos="0.02 0.01 0.03" mass="1" diaginertia="0.02 0.03 0.015"/>
      {}
    </body>
  </worldbody>
</mujoco>"""
CAPSULE = POLE.format('<geom type="capsule" size="0.07 0.15"/>')
ENDS = POLE.format('<geom size="0.07" pos="0 0 0.15"/><geom size="0.07" pos="0 0 -0.15"/>')


@pytest.mark.parametrize("condim", [3, 6])
def test_step_vjp_vs_central_differences_steep_capsule(condim):
    """A steep capsule has the friction frame of spheres at its ends, which C MuJoCo agrees on."""
    capsule, ends = (mujoco.MjModel.from_xml_string(xml) for xml in (CAPSULE, ENDS))
    capsule.geom_condim[:] = ends.geom_condim[:] = condim
    rng = np.random.default_rng(0)
    data = mujoco.MjData(capsule)
    poses = []
    while len(poses) < NUM_STATES:
        quat = np.array([1.0, 0, 0, 0])
        mujoco.mju_quatIntegrate(quat, rng.normal(size=3) * (0.3, 0.3, 1.5), 1.0)
        data.qpos[:] = np.array([*rng.normal(size=2), rng.uniform(0.18, 0.22), *quat], np.float32)
        mujoco.mj_forward(capsule, data)
        if fd.has_steep_capsule(capsule, data) and data.contact.dist.min() > -0.03:
            poses.append(data.qpos.copy())
    none = np.zeros((NUM_STATES, 0))
    qvel = (rng.normal(size=(NUM_STATES, 6)) * 0.7).astype(np.float32).astype(float)
    states = fd.States(np.array(poses), qvel, none, none, qvel, np.ones(NUM_STATES))
    check(capsule, states, oracle=ends)
