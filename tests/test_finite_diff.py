"""The oracle itself, against MuJoCo's own finite differences and closed forms."""

import feature_models
import mujoco
import numpy as np
import pytest

from diffenvs.physics import finite_diff as fd
from diffenvs.physics import kinks

PENDULUM = """
<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.01" integrator="{integrator}" gravity="0 0 -9.81"/>
  <worldbody>
    <body>
      <joint axis="0 1 0" damping="0.3"/>
      <inertial pos="0 0 -0.5" mass="2" diaginertia="0.1 0.1 0.1"/>
    </body>
  </worldbody>
  <actuator><motor joint="0" gear="3" ctrlrange="-1 1"/></actuator>
</mujoco>"""

DROP = """
<mujoco>
  <option timestep="0.005"><flag eulerdamp="disable"/></option>
  <worldbody>
    <geom type="plane" size="1 1 1" condim="1" solref="0.02 1" solimp="0.9 0.9 0.01"/>
    <body>
      <joint type="slide" axis="0 0 1"/>
      <geom size="0.1" mass="1.5" condim="1" solref="0.02 1" solimp="0.9 0.9 0.01"/>
    </body>
  </worldbody>
</mujoco>"""


def pendulum(integrator="Euler"):
    """One hinge with its closed form: inertia, stiffness of gravity at angle q, damping, gear."""
    xml = PENDULUM.format(integrator=integrator).replace('joint="0"', 'joint="hinge"')
    return fd.converged(
        mujoco.MjModel.from_xml_string(xml.replace("<joint axis", '<joint name="hinge" axis'))
    )


@pytest.mark.parametrize("integrator", ["Euler", "implicitfast"])
@pytest.mark.parametrize("nstep", [1, 3])
def test_transition_vs_closed_form_pendulum(integrator, nstep):
    """A damped pendulum has its derivative in closed form, step after step."""
    mjm = pendulum(integrator)
    h, mass, arm, damping, gear = 0.01, 2.0, 0.5, 0.3, 3.0
    inertia = 0.1 + mass * arm**2
    q, v, u = 0.7, -0.4, 0.3
    A, B = np.eye(2), np.zeros((2, 1))
    for _ in range(nstep):
        implicit = inertia + h * damping  # both integrators treat the damping implicitly
        step_v = [-h * mass * 9.81 * arm * np.cos(q) / implicit, 1 - h * damping / implicit]
        step_u = h * gear / implicit
        step_A = np.array([[1 + h * step_v[0], h * step_v[1]], step_v])
        A, B = step_A @ A, step_A @ B + np.array([[h * step_u], [step_u]])
        v += h * (-mass * 9.81 * arm * np.sin(q) - damping * v + gear * u) / implicit
        q += h * v
    found = fd.transition(mjm, np.array([0.7]), np.array([-0.4]), np.array([u]), nstep=nstep)
    assert not found.kink
    np.testing.assert_allclose(found.A, A, rtol=1e-6)
    np.testing.assert_allclose(found.B, B, rtol=1e-6)
    np.testing.assert_allclose([found.qpos[0], found.qvel[0]], [q, v], rtol=1e-12)


def test_transition_vs_closed_form_contact():
    """A frictionless contact with a constant impedance I is a damped spring on the mass.

    The row's force is D (aref - a) with D = I / ((1 - I) A), A = 1 / mass, so that
    a = (1 - I) g + I aref, aref = -b v - k I dist.
    """
    mjm = fd.converged(mujoco.MjModel.from_xml_string(DROP))
    h, impedance, time, height = 0.005, 0.9, 0.02, 0.1 - 0.002
    b, k = 2 / (impedance * time), 1 / (impedance * time) ** 2
    found = fd.transition(mjm, np.array([height]), np.array([-0.1]), np.zeros(0))
    dv = np.array([-h * impedance * k * impedance, 1 - h * impedance * b])
    assert not found.kink
    np.testing.assert_allclose(found.A, [[1 + h * dv[0], h * dv[1]], dv], rtol=1e-6)


@pytest.mark.parametrize("name", feature_models.MODELS)
@pytest.mark.parametrize("cone", feature_models.CONES)
def test_transition_vs_mjd_transition_fd(name, cone):
    """The oracle's matrices are those of MuJoCo where the state is not at a kink."""
    mjm = fd.converged(feature_models.load(name, "implicitfast", cone))
    states = feature_models.states(mjm, 3, seed=5)
    compared = 0
    for q, v, u in zip(states.qpos, states.qvel, states.ctrl, strict=True):
        found = fd.transition(mjm, q, v, u)
        data = mujoco.MjData(mjm)
        data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, u
        mujoco.mj_forward(mjm, data)
        A = np.zeros(found.A.shape)
        B = np.zeros(found.B.shape)
        mujoco.mjd_transitionFD(mjm, data, 1e-6, True, A, B if B.size else None, None, None)
        if not found.kink:
            compared += 1
            assert fd.relative_error(found.A, A) < 1e-6
            # MuJoCo does not differentiate across the range of a control
            inside = np.array([not _clamped(mjm, i, u) for i in range(mjm.nu)], bool)
            assert fd.relative_error(found.B[:, inside], B[:, inside]) < 1e-6
    assert compared >= 2


def _clamped(mjm, i, ctrl):
    low, high = mjm.actuator_ctrlrange[i]
    return bool(mjm.actuator_ctrllimited[i]) and not low < ctrl[i] < high


def test_transition_vjp_splits_its_inputs():
    """`vjp` is the cotangent times [A B], cut into qpos, qvel, act and ctrl."""
    mjm = fd.converged(feature_models.load("arm"))
    states = feature_models.states(mjm, 1)
    found = fd.transition(mjm, states.qpos[0], states.qvel[0], states.ctrl[0])
    cotangent = np.random.default_rng(0).normal(size=2 * mjm.nv)
    pulled, error = found.vjp(cotangent), found.vjp_error(cotangent)
    np.testing.assert_allclose(np.r_[pulled.qpos, pulled.qvel], cotangent @ found.A)
    np.testing.assert_allclose(pulled.ctrl, cotangent @ found.B)
    assert pulled.act.shape == (0,)
    assert 0 < max(error) < 1e-4


def test_transition_kink_at_contact_that_begins():
    """A body that hangs within the difference width above the plane is at a kink."""
    mjm = fd.converged(mujoco.MjModel.from_xml_string(DROP))

    def kink(height):
        return fd.transition(mjm, np.array([height]), np.array([-0.1]), np.zeros(0)).kink

    assert kink(0.1 + 1e-8)
    assert not kink(0.1 + 1e-3)
    assert not kink(0.1 - 1e-3)


def test_transition_kink_at_contact_that_lets_go():
    """A contact whose force is about to vanish is at a kink though its geoms overlap."""
    mjm = fd.converged(mujoco.MjModel.from_xml_string(DROP))
    b, k, impedance, depth = 2 / 0.018, 1 / 0.018**2, 0.9, 0.002
    speed = (9.81 + k * impedance * depth) / b  # here aref equals the free acceleration
    height = np.array([0.1 - depth])
    assert fd.transition(mjm, height, np.array([speed]), np.zeros(0)).kink
    assert not fd.transition(mjm, height, np.array([speed + 0.01]), np.zeros(0)).kink
    assert not fd.transition(mjm, height, np.array([speed - 0.01]), np.zeros(0)).kink


def test_transition_kink_at_clamps():
    """A control at the end of its range and a force at its limit are kinks; beyond is smooth."""
    mjm = pendulum()

    def run(ctrl):
        return fd.transition(mjm, np.array([0.1]), np.array([0.2]), np.array([ctrl]))

    assert run(1.0).kink
    assert not run(1.1).kink
    assert not run(0.9).kink
    assert np.all(run(1.1).B == 0)
    mjm.actuator_forcelimited[0], mjm.actuator_forcerange[0] = True, (-0.5, 0.5)
    assert run(0.5).kink
    assert not run(0.7).kink
    assert np.all(run(0.7).B == 0)


def test_transition_kink_at_cone():
    """A contact at the border between sticking and sliding is at a kink with elliptic cones."""
    xml = DROP.replace('condim="1"', 'condim="3"').replace(
        '<joint type="slide" axis="0 0 1"/>',
        '<joint type="slide" axis="0 0 1"/><joint type="slide" axis="1 0 0"/>',
    )
    mjm = mujoco.MjModel.from_xml_string(xml)
    mjm.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    mjm = fd.converged(mjm)
    data = mujoco.MjData(mjm)
    data.qpos[0] = 0.098

    def zone(speed):
        data.qvel[:] = 0, speed
        mujoco.mj_forward(mjm, data)
        return kinks.cone_zone(
            data.efc_J.reshape(-1, 2) @ data.qacc - data.efc_aref, data.contact[0]
        )

    assert (zone(0.0), zone(1.0)) == (1, 2)
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if zone(middle) == 1 else (low, middle)

    def kink(speed):
        return fd.transition(mjm, np.array([0.098, 0]), np.array([0, speed]), np.zeros(0)).kink

    assert kink(low)
    assert not kink(low - 1e-3)
    assert not kink(low + 1e-3)


def test_transition_diverged():
    """A step that is not finite raises instead of giving a derivative."""
    mjm = pendulum()
    with pytest.raises(ValueError, match="diverged"):
        fd.transition(mjm, np.array([np.nan]), np.zeros(1), np.zeros(1))


def test_relative_error():
    """Equal zeros differ by nothing; a value where the reference vanishes is infinitely wrong."""
    assert fd.relative_error(np.array([3.0, 4.4]), np.array([3.0, 4.0])) == pytest.approx(0.08)
    assert fd.relative_error(np.zeros(2), np.zeros(2)) == 0
    assert fd.relative_error(np.ones(2), np.zeros(2)) == np.inf


def test_converged_leaves_the_model_alone():
    """`converged` returns a copy; integrator and cone stay, the solver is run to the end."""
    mjm = feature_models.load("arm", "implicitfast", "elliptic")
    mjm.opt.solver = mujoco.mjtSolver.mjSOL_CG
    copy = fd.converged(mjm)
    assert mjm.opt.solver == mujoco.mjtSolver.mjSOL_CG
    assert copy.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert copy.opt.tolerance <= 1e-15 < mjm.opt.tolerance
    assert copy.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert copy.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC


@pytest.mark.parametrize("contacts", [0.5, 1.0])
def test_contact_rich_states(contacts):
    """States are reproducible, exact in float32, within the control range and rich in contacts."""
    mjm = feature_models.load("crawler")
    states = fd.contact_rich_states(mjm, 12, seed=3, contacts=contacts)
    again = fd.contact_rich_states(mjm, 12, seed=3, contacts=contacts)
    other = fd.contact_rich_states(mjm, 12, seed=4, contacts=contacts)
    shapes = [(12, mjm.nq), (12, mjm.nv), (12, 0), (12, mjm.nu), (12, mjm.nv), (12,)]
    assert [x.shape for x in states] == shapes
    assert np.sum(states.ncon > 0) >= contacts * 12
    assert np.abs(states.ctrl).max() <= 1
    for a, b, c, name in zip(states, again, other, states._fields, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.size == 0 or name == "ncon" or not np.array_equal(a, c)
    for x in (states.qpos, states.qvel, states.ctrl):
        np.testing.assert_array_equal(x, x.astype(np.float32))
    data = mujoco.MjData(mjm)
    data.qpos[:], data.qvel[:], data.ctrl[:] = states.qpos[5], states.qvel[5], states.ctrl[5]
    mujoco.mj_forward(mjm, data)
    assert data.ncon == states.ncon[5]
    np.testing.assert_allclose(states.qacc_warmstart[5], data.qacc, rtol=1e-3, atol=1e-2)


def test_contact_rich_states_gives_up():
    """A model without contacts can't give states with contacts, and says so."""
    with pytest.raises(
        RuntimeError, match=r"only 0 of 4 states found, 4 of them must have contact"
    ):
        fd.contact_rich_states(pendulum(), 4, contacts=1.0)


@pytest.mark.parametrize(("degrees", "steep"), [(0, False), (55, False), (65, True), (90, True)])
def test_has_steep_capsule(degrees, steep):
    """Only a capsule steeper than 60 degrees to the plane it touches counts."""
    mjm = mujoco.MjModel.from_xml_string(
        f"""
        <mujoco>
          <worldbody>
            <geom type="plane" size="1 1 1" euler="10 0 0"/>
            <body euler="10 0 0">
              <freejoint/>
              <geom type="capsule" size="0.1 0.1" euler="0 {90 - degrees} 0"/>
            </body>
          </worldbody>
        </mujoco>"""
    )
    data = mujoco.MjData(mjm)
    mujoco.mj_forward(mjm, data)
    assert data.ncon > 0
    assert fd.has_steep_capsule(mjm, data) == steep


CARRIED = """
<mujoco>
  <option timestep="0.004" gravity="0 0 -3" cone="elliptic"/>
  <worldbody>
    <body name="hand" mocap="true" pos="0.1 0.2 0.3" euler="20 10 30">
      <geom type="capsule" size="0.1 0.2"/>
    </body>
    <body name="load" pos="0.15 0.2 0.45">
      <freejoint/>
      <geom type="sphere" size="0.1" pos="0 0.01 0"/>
      <body pos="0.2 0 0"><joint axis="0 1 0"/><geom size="0.05" pos="0.1 0 0"/></body>
    </body>
  </worldbody>
</mujoco>"""


def test_transition_of_forces_and_mocap():
    """Applied forces act as they should, and the mocap pose as moving everything else back."""
    mjm = fd.converged(mujoco.MjModel.from_xml_string(CARRIED))
    rng = np.random.default_rng(0)
    data = mujoco.MjData(mjm)
    mujoco.mj_forward(mjm, data)
    assert data.ncon == 1
    qvel, qfrc, xfrc = rng.normal(size=7), rng.normal(size=7), rng.normal(size=(mjm.nbody, 6))
    found = fd.transition(
        mjm,
        data.qpos,
        qvel,
        np.zeros(0),
        qfrc_applied=qfrc,
        xfrc_applied=xfrc,
        mocap_pos=data.mocap_pos,
        mocap_quat=data.mocap_quat,
    )
    assert not found.kink
    assert found.by("xfrc_applied").shape == (14, mjm.nbody, 6)
    assert np.linalg.norm(found.by("qfrc_applied")) > 1e-3
    # a force at the centre of mass of a body is its Jacobian's transpose in joint space
    for body in range(mjm.nbody):
        jacp, jacr = np.zeros((3, 7)), np.zeros((3, 7))
        mujoco.mj_jacBodyCom(mjm, data, jacp, jacr, body)
        expected = found.by("qfrc_applied") @ np.vstack([jacp, jacr]).T
        np.testing.assert_allclose(found.by("xfrc_applied")[:, body], expected, atol=1e-9)
    # without gravity, moving the hand is moving the load back and the result forth again
    mjm.opt.gravity[:] = 0
    kwargs = {"mocap_pos": data.mocap_pos, "mocap_quat": data.mocap_quat}
    found = fd.transition(mjm, data.qpos, qvel, np.zeros(0), **kwargs)
    forth = np.zeros((14, 3))
    forth[:3] = np.eye(3)
    np.testing.assert_allclose(found.by("mocap_pos")[:, 0], forth - found.A[:, :3], atol=1e-6)
    hand = data.mocap_pos[0]

    def turned(qpos, qvel):
        """Rates of (dq, qvel) when the world turns about the hand's centre."""
        rate = np.zeros((14, 3))
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, qpos[3:7])
        rate[:3] = -_cross(qpos[:3] - hand)
        rate[3:6] = rotation.reshape(3, 3).T
        rate[7:10] = -_cross(qvel[:3])
        return rate

    expected = turned(found.qpos, found.qvel) - found.A @ turned(data.qpos, qvel)
    np.testing.assert_allclose(found.by("mocap_quat")[:, 0], expected, atol=1e-6)
    cotangent = rng.normal(size=14)
    pulled = found.vjp(cotangent)
    np.testing.assert_allclose(pulled.mocap_pos, [cotangent @ found.by("mocap_pos")[:, 0]])
    assert pulled.mocap_quat.shape == (1, 3)
    assert pulled.qfrc_applied is None
    assert len(found.vjp_error(cotangent)) == 6


def _cross(p):
    """The matrix of p ×."""
    return np.array([[0, -p[2], p[1]], [p[2], 0, -p[0]], [-p[1], p[0], 0]])


def test_contact_rich_states_from_a_keyframe():
    """Play starts near the keyframe, and uses that part of the controls that it is told to."""
    xml = feature_models.ARM.replace(
        "</mujoco>",
        '<keyframe><key qpos="0.2 0.3 0 0 1 0 0 0 1 0 0 0 0.5" ctrl="0.7 0 0 0 0 0"/></keyframe>'
        "</mujoco>",
    )
    mjm = mujoco.MjModel.from_xml_string(xml)
    options = {"contacts": 0.0, "key": 0, "restart": 7, "every": 1}
    near = fd.contact_rich_states(mjm, 14, spread=1e-4, vigor=0.1, **options)
    assert np.abs(near.qpos[[0, 7], :2] - [0.2, 0.3]).max() < 0.02
    assert (near.ctrl[:, 0] > 0.7 - 0.1 * 1.4 - 1e-6).all()
    assert (near.ctrl[:, 0] <= np.float32(0.7)).all()
    assert np.abs(near.ctrl[:, 2]).max() < 0.1 + 1e-6
    far = fd.contact_rich_states(mjm, 14, spread=0.3, **options)
    assert np.abs(far.qpos[[0, 7], :2] - [0.2, 0.3]).max() > 0.05
    assert np.abs(far.ctrl[:, 2]).max() > 0.2


@pytest.mark.parametrize("integrator", ["EULER", "RK4", "IMPLICITFAST", "DISCRETE"])
@pytest.mark.parametrize("cone", feature_models.CONES)
def test_converged_whatever_the_solver_does(integrator, cone):
    """With every integrator the solver's path to the solution makes no difference."""
    mjm = feature_models.load("arm", "euler", cone)
    mjm.opt.integrator = mujoco.mjtIntegrator.__members__[f"mjINT_{integrator}"]
    mjm = fd.converged(mjm)
    other = fd.converged(mjm)
    other.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
    other.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_WARMSTART)
    other.opt.jacobian = mujoco.mjtJacobian.mjJAC_SPARSE
    states = feature_models.states(mjm, 4, seed=5)
    assert np.sum(states.ncon) > 0
    for q, v, u in zip(states.qpos, states.qvel, states.ctrl, strict=True):
        after = []
        for m in (mjm, other):
            data = mujoco.MjData(m)
            data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, u
            mujoco.mj_step(m, data)
            after.append(np.concatenate([data.qpos, data.qvel]))
        assert fd.relative_error(after[0], after[1]) < 1e-12
