"""The adjoint of the integrator discrete against central differences of C MuJoCo."""

import feature_models
import mujoco
import numpy as np
import passive_models
import pytest
import warp as wp
from test_step_vjp import NUM_STATES, check, load_gymnasium

from diffenvs.physics.accuracy import play
from diffenvs.physics.constraint_vjp import row_coefficients
from diffenvs.physics.spatial import vec5


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


@pytest.mark.parametrize(("name", "loss"), [("landing", 0), ("cluster", 0), ("landing", 0.3)])
def test_discrete_vjp_vs_central_differences_free_bodies(name, loss):
    """Free bodies that spin fast: gyroscopic forces are implicit unless a row acts on the body."""
    mjm = feature_models.load(name, "discrete")
    mjm.dof_damping[3:6] = 0.02
    mjm.dof_frictionloss[15:18] = loss
    states = feature_models.states(mjm, NUM_STATES, seed=1)
    turning = np.tile([1, 1, 1, 10, 10, 10], mjm.nv // 6)
    states.qpos[::2, 16] += 1  # nothing touches the third body
    check(mjm, states._replace(qvel=(states.qvel * turning).astype(np.float32).astype(float)))


@pytest.mark.parametrize(("cone", "condim"), [("pyramidal", 3), ("pyramidal", 1), ("elliptic", 4)])
def test_discrete_vjp_vs_central_differences_adhesion(cone, condim):
    """Adhesion, whose part in aref is divided by D."""
    mjm = feature_models.load("landing", "discrete", cone, condim)
    mjm.flg_adhesion = True
    mjm.geom_adhesion[:] = 5
    mjm.dof_damping[:] = 5  # the metric differs from the inertia
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=1))


def test_discrete_vjp_vs_central_differences_passive():
    """Polynomial springs and dampers, also of ball and free joints, and gravity compensation."""
    mjm = passive_models.load("discrete")
    mjm.opt.density = mjm.opt.viscosity = 0
    states = passive_models.states(mjm, NUM_STATES, seed=1)
    check(mjm, states._replace(ncon=np.ones(NUM_STATES)))


COUPLED = """
  <equality>
    <joint joint1="elbow" joint2="wrist" polycoef="0.1 0.6 0.5 -0.4 0.3" solref="0.003 1"
           solimp="0.7 0.96 0.3 0.4 2"/>
    <joint joint1="swing" polycoef="0.2" solimp="0.5 0.9 0.5 0.4 2"/>
  </equality>
</mujoco>"""


def test_discrete_vjp_vs_central_differences_equality():
    """Joints that follow another joint, or a constant."""
    mjm = mujoco.MjModel.from_xml_string(feature_models.ARM.replace("</mujoco>", COUPLED))
    mjm.opt.integrator = mujoco.mjtIntegrator.mjINT_DISCRETE
    check(mjm, feature_models.states(mjm, NUM_STATES, seed=3))


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


@wp.kernel(enable_backward=False)
def _coefficients(
    timestep: float,
    solref_in: wp.array[wp.vec2],
    solimp_in: wp.array[vec5],
    pos_in: wp.array[float],
    found_out: wp.array2d[float],
):
    i = wp.tid()
    c = row_coefficients(True, 0, timestep, solref_in[i], solimp_in[i], pos_in[i])
    found_out[i, 0] = c.pos
    found_out[i, 1] = c.pos_vel
    found_out[i, 2] = c.vel
    found_out[i, 3] = c.log_D


def _row(h, solref, solimp, pos, vel):
    """Return -aref and log D (but for a constant) of a row, as MuJoCo has them."""
    dmin, dmax, width, mid, power = solimp
    x = np.abs(pos) / width
    below, above = mid * (x / mid) ** power, 1 - (1 - mid) * ((1 - x) / (1 - mid)) ** power
    imp = dmin + np.where(x <= mid, below, above) * (dmax - dmin)
    k, b = 1 / (dmax * solref[0] * solref[1]) ** 2, 2 / (dmax * solref[0])
    room = mujoco.mjMAXIMP / (1 - mujoco.mjMAXIMP) * (1 - imp) / imp
    stiff = h * h * k * imp > 1
    safe = np.minimum(b / np.sqrt(h * h * k * imp), np.maximum(0, room - 2) / h)
    k, b = np.where(stiff, 1 / (h * h * imp), k), np.where(stiff, safe, b)
    F = 1 + h * b + h * h * k * imp
    log_D = np.log(np.minimum(F * imp / (1 - imp), mujoco.mjMAXIMP / (1 - mujoco.mjMAXIMP)))
    return (k * imp * pos + (b + h * k * imp) * vel) / F, log_D


def test_row_coefficients_vs_differences():
    """Rows of every stiffness, with impedances up to the bound of damping and that of D."""
    rng, n, h = np.random.default_rng(0), 500, 0.004
    solref = 10 ** rng.uniform(-3, -1.5, n), rng.uniform(0.5, 1.5, n)
    dmin, dmax = np.sort(1 - 10 ** rng.uniform(-4, -0.3, (n, 2)), axis=1).T
    shape = rng.uniform(0.01, 0.1, n), rng.uniform(0.2, 0.8, n), rng.uniform(1.2, 3, n)
    solimp = (dmin, dmax, *shape)
    pos, vel, eps = -rng.uniform(0.02, 0.98, n) * shape[0], rng.normal(size=n), 1e-7
    found = wp.zeros((n, 4), dtype=float)
    given = [
        wp.array(np.stack(x, -1).astype(np.float32), dtype=t)
        for x, t in ((solref, wp.vec2), (solimp, vec5), ((pos,), float))
    ]
    given[2] = given[2].flatten()
    wp.launch(_coefficients, dim=n, inputs=[h, *given], outputs=[found])
    pos0, pos_vel, of_vel, log_D = found.numpy().astype(float).T
    sides = [_row(h, solref, solimp, pos + e, vel) for e in (eps, -eps)]
    by_pos, by_pos_log = ((a - b) / (2 * eps) for a, b in zip(*sides, strict=True))
    by_vel = (
        _row(h, solref, solimp, pos, vel + 1)[0] - _row(h, solref, solimp, pos, vel - 1)[0]
    ) / 2
    scale = 1 + np.abs(by_pos) + 1e-3 * pos0
    assert (np.abs(pos0 + pos_vel * vel - by_pos) / scale).max() < 3e-3
    np.testing.assert_allclose(of_vel, by_vel, rtol=1e-3)
    np.testing.assert_allclose(log_D, by_pos_log, rtol=3e-3, atol=3e-3)
    assert (log_D == 0).sum() > 10
