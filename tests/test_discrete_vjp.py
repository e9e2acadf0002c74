"""The adjoint of the integrator discrete against central differences of C MuJoCo."""

import feature_models
import mujoco
import numpy as np
import passive_models
import pytest
from test_step_vjp import NUM_STATES, check, load_gymnasium

from diffenvs.physics.accuracy import play


def test_discrete_vjp_vs_central_differences_gymnasium():
    """Hopper, whose joints have dampers and limits."""
    mjm = load_gymnasium("hopper", "discrete", "pyramidal")
    check(mjm, play(mjm, NUM_STATES, seed=1)[0])


def _stiff(mjm):
    """Springs of constraints that the step can't resolve, with an impedance that varies."""
    mjm.geom_solref[:] = (0.003, 1)
    mjm.jnt_solref[:] = (0.0015, 1)
    mjm.geom_solimp[:] = mjm.jnt_solimp[:] = (0.5, 0.99, 0.1, 0.3, 3)


def _direct(mjm):
    mjm.geom_solref[:] = mjm.jnt_solref[:] = (-300, -8)


ARMS = [
    (None, "pyramidal"),
    (None, "elliptic"),
    (_stiff, "pyramidal"),
    (_stiff, "elliptic"),
    (_direct, "elliptic"),
]


@pytest.mark.parametrize(("change", "cone"), ARMS)
def test_discrete_vjp_vs_central_differences_arm(change, cone):
    """Springs, affine actuators, limits of hinge, slide and ball, and rows of every stiffness."""
    mjm = feature_models.load("arm", "discrete", cone)
    if change is not None:
        change(mjm)
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=3))


@pytest.mark.parametrize("name", ["landing", "cluster"])
def test_discrete_vjp_vs_central_differences_free_bodies(name):
    """Free bodies that spin fast, with and without contacts: gyroscopic forces are implicit."""
    mjm = feature_models.load(name, "discrete")
    mjm.dof_damping[3:6] = 0.02
    states = feature_models.states(mjm, NUM_STATES, seed=1)
    turning = np.tile([1, 1, 1, 10, 10, 10], mjm.nv // 6)
    states = states._replace(qvel=(states.qvel * turning).astype(np.float32).astype(float))
    check(mjm, states)
    mjm.dof_frictionloss[-6:] = 0.5  # of the last body, which is then like one with contacts
    check(mjm, states)


def test_discrete_vjp_vs_central_differences_passive():
    """Polynomial springs and dampers, also of ball and free joints, and gravity compensation."""
    mjm = passive_models.load("discrete")
    mjm.opt.density = mjm.opt.viscosity = 0
    states = passive_models.states(mjm, NUM_STATES, seed=1)
    check(mjm, states._replace(ncon=np.ones(NUM_STATES)))


FILTERED = """
    <general joint="swing" dyntype="filter" dynprm="0.1" gainprm="6" biastype="affine"
             biasprm="0 -6 -0.5"/>
  </actuator>"""


def test_discrete_vjp_vs_central_differences_friction():
    """Friction losses that hold some joints, and a servo on an activation."""
    mjm = mujoco.MjModel.from_xml_string(feature_models.ARM.replace("</actuator>", FILTERED))
    mjm.opt.integrator = mujoco.mjtIntegrator.mjINT_DISCRETE
    mjm.dof_frictionloss[:] = 3
    states = feature_models.states(mjm, NUM_STATES, seed=3)
    act = np.random.default_rng(0).normal(size=(NUM_STATES, 1)).astype(np.float32)
    check(mjm, states._replace(act=act.astype(float)))


@pytest.mark.parametrize("flag", ["mjDSBL_SPRING", "mjDSBL_DAMPER"])
def test_discrete_vjp_vs_central_differences_flags(flag):
    """What an option disables is left out of the metric as well."""
    mjm = feature_models.load("arm", "discrete")
    states = feature_models.states(mjm, NUM_STATES, seed=2)
    mjm.opt.disableflags |= int(mujoco.mjtDisableBit.__members__[flag])
    check(mjm, states)
