"""Springs, dampers, gravity compensation and fluid: their adjoint, and what of them is refused."""

import feature_models
import mujoco
import passive_models
import pytest
from assert_accurate import assert_accurate
from test_step_vjp import load_gymnasium

from diffenvs.physics import UnsupportedFeature, check_model
from diffenvs.physics.finite_diff import contact_rich_states

NUM_STATES = 8


@pytest.mark.parametrize("integrator", feature_models.INTEGRATORS)
def test_step_vjp_vs_central_differences_passive(integrator):
    """Every passive force of joints and bodies is differentiated, with every integrator."""
    mjm = passive_models.load(integrator)
    assert_accurate(mjm, passive_models.states(mjm, NUM_STATES, seed=1))


@pytest.mark.parametrize("flags", [("DAMPER",), ("SPRING", "DAMPER"), ("GRAVITY",)])
def test_step_vjp_vs_central_differences_passive_flags(flags):
    """What an option disables is left out; without springs and dampers all passive forces are."""
    mjm = passive_models.load("euler")
    states = passive_models.states(mjm, NUM_STATES, seed=2)
    for flag in flags:
        mjm.opt.disableflags |= int(mujoco.mjtDisableBit.__members__[f"mjDSBL_{flag}"])
    assert_accurate(mjm, states)


@pytest.mark.parametrize("integrator", ["euler", "implicitfast", "rk4"])
def test_step_vjp_vs_central_differences_swimmer(integrator):
    """Gymnasium's Swimmer, which moves by the drag of a dense fluid."""
    mjm = load_gymnasium("swimmer", integrator, "pyramidal")
    assert_accurate(mjm, contact_rich_states(mjm, NUM_STATES, seed=1, contacts=0.0))


def _message(mjm):
    with pytest.raises(UnsupportedFeature) as error:
        check_model(mjm)
    return str(error.value)


def _build(option="", joint="", geom="", body="", extra=""):
    return mujoco.MjModel.from_xml_string(
        f"""
        <mujoco>
          <option {option}/>
          <worldbody>
            <body name="boat" {body}>
              <joint name="x" type="slide" axis="1 0 0" {joint}/>
              <joint name="yaw" axis="0 0 1"/>
              <geom name="hull" size="0.2 0.1 0.1" type="box" {geom}/>
            </body>
          </worldbody>
          {extra}
        </mujoco>"""
    )


def test_check_refuses_ellipsoid_fluid():
    """The fluid of inertia boxes is covered, that of ellipsoids is refused where there is one."""
    check_model(_build('density="1"'))
    check_model(_build(geom='fluidshape="ellipsoid"'))
    text = _message(_build('viscosity="1"', geom='fluidshape="ellipsoid"'))
    assert "geom 'hull' (box) has fluidshape ellipsoid: set fluidshape to none" in text
    assert "option density = -1: set it to 0 or more" in _message(_build('density="-1"'))


def test_check_refuses_fluid_that_implicitfast_leaves_out():
    """Entries of the fluid's derivative that a diagonal inertia has no room for."""
    mjm = _build('density="1" integrator="implicitfast"')
    assert "body 'boat' has joints that its inertia does not couple" in _message(mjm)
    check_model(_build('density="1" integrator="implicitfast"', geom='pos="0.1 0 0"'))


MOTOR = '<actuator><motor joint="x"/></actuator>'


@pytest.mark.parametrize(
    ("joint", "extra", "text"),
    [
        ("", "", "which does nothing where no actuator is enabled: set actuatorgravcomp to false"),
        ('actuatorfrcrange="-1 1"', MOTOR, "joint 'x' has actuatorfrcrange and actuatorgravcomp"),
    ],
)
def test_check_refuses_gravcomp_through_actuators(joint, extra, text):
    """Gravity compensation by actuators must reach the joint, and unclamped."""
    joint = f'actuatorgravcomp="true" {joint}'
    assert text in _message(_build(joint=joint, body='gravcomp="1"', extra=extra))
    check_model(_build(joint='actuatorgravcomp="true"', body='gravcomp="1"', extra=MOTOR))
    if "which" in text:
        check_model(_build(joint=joint))
