"""The adjoint of tendons and of friction loss, and what of tendons is refused."""

import mujoco
import pytest
import tendon_models
from assert_accurate import assert_accurate

from diffenvs.physics import UnsupportedFeature, check_model
from diffenvs.physics import finite_diff as fd

NUM_STATES = 24


CASES = [
    ("mjINT_EULER", "mjCONE_PYRAMIDAL", "mjJAC_DENSE", 1),
    ("mjINT_IMPLICITFAST", "mjCONE_PYRAMIDAL", "mjJAC_SPARSE", 3),
    ("mjINT_RK4", "mjCONE_ELLIPTIC", "mjJAC_DENSE", 1),
]


@pytest.mark.parametrize(("integrator", "cone", "jacobian", "nstep"), CASES)
def test_step_vjp_vs_central_differences_tendons(integrator, cone, jacobian, nstep):
    """Springs, dampers, limits, friction losses, armature and equalities of tendons."""
    mjm = tendon_models.load("arm", integrator)
    mjm.opt.cone = mujoco.mjtCone.__members__[cone]
    mjm.opt.jacobian = mujoco.mjtJacobian.__members__[jacobian]
    assert_accurate(mjm, tendon_models.states(mjm, NUM_STATES, seed=1), nstep=nstep)


def test_tendon_states_hold_every_regime():
    """The states of these tests have every spring, limit and friction on each of its sides."""
    mjm = fd.converged(tendon_models.load("arm"))
    states = tendon_models.states(mjm, NUM_STATES, seed=1)
    data = mujoco.MjData(mjm)
    found = set()
    for qpos, qvel, ctrl in zip(states.qpos, states.qvel, states.ctrl, strict=True):
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, ctrl
        mujoco.mj_forward(mjm, data)
        for kind, i, force, loss in zip(
            data.efc_type, data.efc_id, data.efc_force, data.efc_frictionloss, strict=True
        ):
            name = mujoco.mjtConstraint(kind).name.removeprefix("mjCNSTR_")
            if name.startswith("FRICTION"):
                found.add((name, "slides" if abs(force) > loss - 1e-9 else "holds"))
            elif name == "LIMIT_TENDON":
                low, high = mjm.tendon_range[i]
                found.add((name, "low" if data.ten_length[i] < (low + high) / 2 else "high"))
        for name in ("branch", "muscle"):
            i = mujoco.mj_name2id(mjm, mujoco.mjtObj.mjOBJ_TENDON, name)
            low, high = mjm.tendon_lengthspring[i]
            length = data.ten_length[i]
            found.add((name, "short" if length < low else "long" if length > high else "slack"))
    expected = {
        (name, side) for name in ("branch", "muscle") for side in ("short", "slack", "long")
    }
    expected |= {(f"FRICTION_{k}", side) for k in ("DOF", "TENDON") for side in ("slides", "holds")}
    assert expected | {("LIMIT_TENDON", side) for side in ("low", "high")} <= found


FLAGS = ("FRICTIONLOSS", "LIMIT", "EQUALITY", "SPRING", "DAMPER")


@pytest.mark.parametrize("flag", FLAGS)
def test_step_vjp_vs_central_differences_tendon_flags(flag):
    """What an option disables is left out of the derivative as well."""
    mjm = tendon_models.load("arm")
    states = tendon_models.states(mjm, 6, seed=2)
    mjm.opt.disableflags |= int(mujoco.mjtDisableBit.__members__[f"mjDSBL_{flag}"])
    assert_accurate(mjm, states)


SITES = """
<mujoco model="sites">
  <worldbody>
    <site name="wall" pos="0 0 1"/>
    <site name="inside" pos="0.52 0 0.5"/>
    <geom name="peg" size="0.1" pos="0.5 0 0.5" contype="0" conaffinity="0"/>
    <body>
      <freejoint/>
      <geom size="0.1" pos="0 0.1 0.2" mass="1" contype="0" conaffinity="0"/>
      <site name="here" pos="0.1 0 0"/>
    </body>
    <body pos="1 0 0">
      <freejoint/>
      <geom size="0.1" mass="1" contype="0" conaffinity="0"/>
      <site name="there" pos="0.1 0 0"/>
    </body>
  </worldbody>
  <tendon>
    <spatial name="t" {attributes}><site site="wall"/>{between}<site site="here"/></spatial>
  </tendon>
</mujoco>"""

REFUSED = {
    "side": (
        'stiffness="1"',
        '<geom geom="peg" sidesite="inside"/>',
        "mjINT_EULER",
        "tendon 't' wraps around geom 'peg' with a sidesite inside of it or on another body: move",
    ),
    "implicit": (
        'damping="1"',
        '<site site="there"/>',
        "mjINT_IMPLICITFAST",
        "tendon 't' has damping that changes with the state, under implicitfast",
    ),
    "implicit free body": (
        'damping="1"',
        "",
        "mjINT_IMPLICITFAST",
        "tendon 't' has damping, under implicitfast, and holds a free body without joints",
    ),
    "implicit free body, armature": (
        'armature="1"',
        "",
        "mjINT_IMPLICITFAST",
        "tendon 't' (spatial) has armature, under implicitfast, and holds a free body without",
    ),
    "armature": (
        'armature="1"',
        '<site site="there"/>',
        "mjINT_EULER",
        "tendon 't' (spatial) has armature and couples joints that the mass matrix does not",
    ),
    "yield": (
        'stiffness="1" springyield="1"',
        "",
        "mjINT_EULER",
        "tendon 't' has a spring that yields",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_check_refuses_tendon(case):
    """What of a tendon has no adjoint is refused by name, with a way out."""
    attributes, between, integrator, text = REFUSED[case]
    xml = SITES.format(attributes=attributes, between=between).replace(
        "<worldbody>", '<compiler autolimits="true"/><worldbody>', 1
    )
    mjm = mujoco.MjModel.from_xml_string(xml)
    mjm.opt.integrator = mujoco.mjtIntegrator.__members__[integrator]
    with pytest.raises(UnsupportedFeature) as error:
        check_model(mjm)
    assert text in str(error.value)
    mjm = mujoco.MjModel.from_xml_string(SITES.format(attributes="", between=between))
    check_model(mjm)  # a tendon that only measures


def test_check_refuses_armature_of_a_tendon_that_wraps():
    """MuJoCo's compiler refuses it, but armature can be set later."""
    xml = SITES.format(attributes="", between='<geom geom="peg"/>')
    mjm = mujoco.MjModel.from_xml_string(xml)
    mjm.tendon_armature[0] = 1
    with pytest.raises(UnsupportedFeature, match="'t' wraps around a geom and has armature: set"):
        check_model(mjm)
