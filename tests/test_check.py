"""`check_model`: every refused feature by name, everything supported accepted."""

import pathlib
import re

import feature_models
import gymnasium
import mujoco
import numpy as np
import pytest
from check_models import ACCEPTED, REFUSED, TENDON, UNDER_DISCRETE, build

from diffenvs.physics import UnsupportedFeature, check_model
from diffenvs.physics import check as check_module
from diffenvs.physics.check_contact import colliding_pairs

ASSETS = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


def message(mjm):
    """What `check_model` says, one line per feature."""
    with pytest.raises(UnsupportedFeature) as error:
        check_model(mjm)
    return str(error.value)


@pytest.mark.parametrize("feature", REFUSED)
def test_check_refuses_by_name(feature):
    """A model with one unsupported feature is refused, with its name and a way out."""
    make, text = REFUSED[feature]
    assert text in message(make())


SOLREF = {
    "jnt_solref": "joint 's'",
    "dof_solref": "joint 's'",
    "geom_solref": "geom 'tip'",
    "pair_solref": "pair 'p'",
    "pair_solreffriction": "pair 'p'",
    "eq_solref": "equality 'e'",
    "tendon_solref_lim": "tendon 't'",
    "tendon_solref_fri": "tendon 't'",
}


@pytest.mark.parametrize("field", SOLREF)
def test_check_refuses_mixed_solref(field):
    """Both numbers are positive, or none: time constant and damping ratio, or direct values."""
    mjm = build(
        extra='<contact><pair name="p" geom1="floor" geom2="tip"/></contact>'
        '<equality><joint name="e" joint1="h" joint2="s"/></equality>' + TENDON.format("")
    )
    values = getattr(mjm, field)
    for mixed in ((0.02, -1.0), (-100.0, 1.0), (0.02, 0.0), (0.0, 1.0)):
        values[-1] = mixed
        assert f"{SOLREF[field]} has {field} {list(mixed)}, which MuJoCo repl" in message(mjm)
    for alike in ((0.02, 1.0), (-100.0, -5.0), (0.0, 0.0), (0.0, -5.0)):
        values[-1] = alike
        check_model(mjm)


@pytest.mark.parametrize("field", check_module._ONLY)
def test_check_refuses_field(field):
    """Every field that must keep one value is refused, by element and name, when it does not."""
    mjm = build(
        extra='<actuator><motor name="act" joint="h"/></actuator>'
        '<sensor><clock name="clock"/></sensor><contact><pair name="p" geom1="floor" geom2="tip"/>'
        "</contact>" + TENDON.format("")
    )
    check_model(mjm)
    element, accepted, what, advice = check_module._ONLY[field]
    values = getattr(mjm, field)
    values.reshape(len(values), -1)[-1, 0] = accepted + 1
    names = {"body": "link", "joint": "s", "dof": "s", "geom": "tip", "pair": "p", "tendon": "t"}
    name = {**names, "actuator": "act", "sensor": "clock"}[element]
    element = "joint" if element == "dof" else element
    assert f"{element} '{name}' has {what}: {advice}" in message(mjm)


ACCEPTED_FLAGS = set(
    """CONSTRAINT EQUALITY FRICTIONLOSS LIMIT CONTACT SPRING DAMPER GRAVITY CLAMPCTRL WARMSTART
    FILTERPARENT ACTUATION REFSAFE SENSOR EULERDAMP NATIVECCD ISLAND MULTICCD ENERGY INVDISCRETE
    """.split()
)


@pytest.mark.parametrize("bit", range(26))
@pytest.mark.parametrize("field", ["disableflags", "enableflags"])
def test_check_flags(field, bit):
    """Each flag of MuJoCo is either known to be handled or refused by name, unknown bits too."""
    enum = mujoco.mjtDisableBit if field == "disableflags" else mujoco.mjtEnableBit
    names = {int(v): k for k, v in enum.__members__.items() if not k.startswith("mjN")}
    name = names.get(1 << bit, f"bit {1 << bit}")
    mjm = build()
    setattr(mjm.opt, field, 1 << bit)
    if name.split("_")[-1] in ACCEPTED_FLAGS:
        check_model(mjm)
    else:
        assert f"option {field}, {name}: " in message(mjm)


@pytest.mark.parametrize("field", ["jnt_type", "actuator_gaintype", "actuator_dyntype"])
def test_check_refuses_unknown_enumeration_value(field):
    """A value that no release known to this package has is refused."""
    mjm = build(extra='<actuator><motor name="act" joint="h"/></actuator>')
    getattr(mjm, field)[0] = 77
    assert f"has {field} value 77" in message(mjm)
    for option in ("integrator", "cone", "solver", "jacobian"):
        mjm = build()
        setattr(mjm.opt, option, 77)
        assert f"option {option} = value 77" in message(mjm)


def test_check_refuses_unknown_field(monkeypatch):
    """A field of MjModel or MjOption that the package does not know is refused unless it is 0."""
    monkeypatch.setattr(check_module, "_FIELDS_FREE", check_module._FIELDS_FREE - {"jnt_axis"})
    monkeypatch.setattr(check_module, "_OPTIONS_FREE", check_module._OPTIONS_FREE - {"gravity"})
    text = message(build())
    assert "field jnt_axis of MjModel: unknown to diffenvs" in text
    assert "option gravity: unknown to diffenvs" in text
    zero = build('gravity="0 0 0"')
    zero.jnt_axis[:] = 0
    check_model(zero)


@pytest.mark.parametrize("kind", ["ball", "free"])
def test_check_refuses_force_range_of_rotations(kind):
    """MuJoCo's compiler clears the range of ball and free joints, but it can be set later."""
    mjm = build(world=f'<body><joint name="j" type="{kind}"/><geom size="0.1"/></body>')
    check_model(mjm)
    mjm.jnt_actfrclimited[-1] = True
    assert "joint 'j' has actuatorfrcrange and is free or ball: set actuator" in message(mjm)


@pytest.mark.parametrize("name", UNDER_DISCRETE)
def test_check_refuses_under_discrete(name):
    """What enters the metric of the integrator discrete, or its rows, without a derivative."""
    parts, text = UNDER_DISCRETE[name]
    option = 'integrator="discrete" ' + parts.get("option", "")
    assert text in message(build(**(parts | {"option": option})))


def test_check_lists_everything():
    """One message names the model and all of its offending elements."""
    option = 'solver="PGS"'
    sensor = '<sensor><distance geom1="floor" geom2="tip"/></sensor>'
    text = message(build(option, joint='stiffness="1" springyield="1"', extra=sensor))
    assert text.startswith("model 'tiny' has 4 features without a gradient in diffenvs:\n")
    assert len(re.findall(r"^  - ", text, flags=re.MULTILINE)) == 4


def test_check_refuses_dense_jacobian_of_large_models():
    """Beyond nv = 60 only the sparse Jacobian exists."""
    mjm = feature_models.load("long")
    check_model(mjm)
    mjm.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    assert "option jacobian = dense with nv = 64: set jacobian to auto" in message(mjm)


def test_check_refuses_callbacks():
    """An installed callback would be ignored in silence by mujoco_warp."""
    mjm = build()
    mujoco.set_mjcb_control(lambda model, data: None)
    try:
        assert "mjcb_control is installed" in message(mjm)
    finally:
        mujoco.set_mjcb_control(None)
    check_model(mjm)


@pytest.mark.parametrize("feature", ACCEPTED)
def test_check_accepts(feature):
    """What the adjoint covers, or what exerts no force, passes."""
    check_model(ACCEPTED[feature]())


@pytest.mark.parametrize("name", feature_models.MODELS)
@pytest.mark.parametrize("integrator", feature_models.INTEGRATORS)
@pytest.mark.parametrize("cone", feature_models.CONES)
def test_check_accepts_feature_models(name, integrator, cone):
    """The models against which the adjoint is tested pass."""
    check_model(feature_models.load(name, integrator, cone))


# What stands in the way.
GYMNASIUM = {
    "ant": [],
    "half_cheetah": [],
    "hopper": [],
    "humanoid": ["option solver = mjSOL_PGS"],
    "humanoidstandup": ["option solver = mjSOL_PGS"],
    "inverted_double_pendulum": [],
    "inverted_pendulum": [],
    "pusher_v5": [],
    "reacher": [],
    "swimmer": [],
    "walker2d_v5": [],
}


@pytest.mark.parametrize("name", GYMNASIUM)
def test_check_gymnasium_models(name):
    """Of Gymnasium's eleven models nine pass; the others are refused for stated reasons."""
    mjm = mujoco.MjModel.from_xml_path(str(ASSETS / f"{name}.xml"))
    expected = GYMNASIUM[name]
    if not expected:
        check_model(mjm)
        return
    lines = message(mjm).split("\n  - ")[1:]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith(text)


@pytest.mark.parametrize("seed", range(3))
def test_colliding_pairs_vs_mujoco(seed):
    """Every contact that MuJoCo makes is between geoms that the filters let through."""
    rng = np.random.default_rng(seed)
    seen = set()
    for name in ("cluster", "landing", "arm"):
        mjm = feature_models.load(name)
        mjm.geom_contype[:] = rng.integers(0, 4, mjm.ngeom)
        mjm.geom_conaffinity[:] = rng.integers(0, 4, mjm.ngeom)
        pairs = set(colliding_pairs(mjm))
        data = mujoco.MjData(mjm)
        touched = set()
        for _ in range(200):
            mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * 0.1, 1.0)
            data.qpos[mjm.jnt_qposadr[mjm.jnt_type == mujoco.mjtJoint.mjJNT_FREE.value]] *= 0.5
            mujoco.mj_forward(mjm, data)
            touched |= {tuple(sorted(g)) for g in data.contact.geom.tolist()}
        assert touched <= pairs
        seen |= touched
    assert seen
