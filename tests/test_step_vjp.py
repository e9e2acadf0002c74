"""The adjoint of a whole step against central differences of C MuJoCo in float64."""

import pathlib

import feature_models
import gymnasium
import mujoco
import numpy as np
import pytest
from assert_accurate import assert_accurate

from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy import play

NUM_STATES = 24

ASSETS = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


def load_gymnasium(name, integrator, cone):
    """One of Gymnasium's own models, with another integrator and cone, and the Newton solver."""
    mjm = mujoco.MjModel.from_xml_path(str(ASSETS / f"{name}.xml"))
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    mjm.opt.cone = feature_models.CONES[cone]
    mjm.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return mjm


def check(mjm, states, **options):
    """`assert_accurate` of states half of which are in contact."""
    assert np.mean(states.ncon > 0) >= 0.5
    assert_accurate(mjm, states, **options)


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
    states, steep = play(mjm, NUM_STATES, seed=1)
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
