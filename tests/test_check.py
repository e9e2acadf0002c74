"""`check_model`: every refused feature by name, everything supported accepted."""

import pathlib
import re

import feature_models
import gymnasium
import mujoco
import numpy as np
import pytest

from diffenvs.physics import UnsupportedFeature, check_model
from diffenvs.physics import check as check_module

ASSETS = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"

SPHERE, BOX = 'size="0.1"', 'type="box" size="0.1 0.1 0.1"'
CYLINDER = 'type="cylinder" size="0.1 0.1"'
ELLIPSOID = 'type="ellipsoid" size="0.1 0.2 0.1"'
TETRAHEDRON = 'vertex="0 0 0  0.1 0 0  0 0.1 0  0 0 0.1"'


def build(option="", joint="", tip=SPHERE, geom="", world="", asset="", extra="", body=""):
    """A body 'link' with a hinge 'h', a slide 's' and a geom 'tip' above a floor."""
    return mujoco.MjModel.from_xml_string(
        f"""
        <mujoco model="tiny">
          <option {option}/>
          <asset>{asset}</asset>
          <worldbody>
            <geom name="floor" type="plane" size="1 1 1"/>
            <site name="here"/>
            <body name="link" pos="0 0 1" {body}>
              <joint name="h" {joint}/>
              <joint name="s" type="slide" axis="1 0 0"/>
              <geom name="tip" {tip} {geom}/>
            </body>
            {world}
          </worldbody>
          {extra}
        </mujoco>"""
    )


def actuator(xml):
    """One actuator 'act', which may also use the tendon 't'."""
    return build(extra=f"<actuator>{xml}</actuator>" + TENDON.format(""))


def tendon(attributes):
    """A fixed tendon 't' over both joints."""
    return build(extra=TENDON.format(attributes))


OFF = '<option><flag {}="disable"/></option>'
TENDON = (
    '<tendon><fixed name="t" {}><joint joint="h" coef="1"/><joint joint="s" coef="1"/></fixed>'
    "</tendon>"
)


def falling(geom, name="other"):
    """A second, free body with one geom."""
    return (
        f'<body name="body_{name}" pos="0 0 3"><freejoint/><geom name="{name}" {geom}/>'
        '<inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/></body>'
    )


def message(mjm):
    """What `check_model` says, one line per feature."""
    with pytest.raises(UnsupportedFeature) as error:
        check_model(mjm)
    return str(error.value)


REFUSED = {
    "implicit": (lambda: build('integrator="implicit"'), "mjINT_IMPLICIT: set integrator"),
    "discrete": (lambda: build('integrator="discrete"'), "mjINT_DISCRETE: set integrator"),
    "cg": (lambda: build('solver="CG"'), "option solver = mjSOL_CG: set solver to Newton"),
    "pgs": (lambda: build('solver="PGS"'), "option solver = mjSOL_PGS: set solver to Newton"),
    "noslip": (lambda: build('noslip_iterations="3"'), "option noslip_iterations = 3"),
    "density": (lambda: build('density="1.2"'), "option density = 1.2: set density to 0"),
    "viscosity": (lambda: build('viscosity="0.1"'), "option viscosity = 0.1: set viscosity"),
    "wind": (lambda: build('wind="1 0 0"'), "option wind = [1.0, 0.0, 0.0]: set wind to 0"),
    "iterations": (lambda: build('iterations="1"'), "option iterations = 1: the adjoint needs"),
    "ls": (lambda: build('ls_iterations="2"'), "option ls_iterations = 2: the adjoint needs"),
    "tolerance": (lambda: build('tolerance="0.01"'), "option tolerance = 0.01: the adjoint"),
    "group": (
        lambda: build(
            'actuatorgroupdisable="2"',
            extra='<actuator><motor name="act" joint="h" group="2"/></actuator>',
        ),
        "actuator 'act' is disabled by option actuatorgroupdisable",
    ),
    "gravcomp": (lambda: build(body='gravcomp="0.5"'), "body 'link' has gravity compensation"),
    "stiffnesspoly": (lambda: build(joint='stiffness="1 2"'), "joint 'h' has polynomial stiff"),
    "dampingpoly": (lambda: build(joint='damping="1 2"'), "joint 'h' has polynomial damping"),
    "springyield": (
        lambda: build(joint='stiffness="1" springyield="1"'),
        "joint 'h' has a spring that yields",
    ),
    "actuatorfrcrange": (
        lambda: build(joint='actuatorfrcrange="-1 1"'),
        "joint 'h' has actuatorfrcrange: set actuatorfrclimited to false",
    ),
    "frictionloss": (lambda: build(joint='frictionloss="0.1"'), "joint 'h' has frictionloss"),
    "ball spring": (
        lambda: build(joint='type="ball" stiffness="1"'),
        "joint 'h' (ball or free) has a spring: set its stiffness to 0",
    ),
    "free spring": (
        lambda: build(
            world='<body><joint name="f" type="free" stiffness="1"/><geom size="0.1"/></body>'
        ),
        "joint 'f' (ball or free) has a spring",
    ),
    "surfacevel": (lambda: build(geom='surfacevel="1 0 0"'), "geom 'tip' has a surface velocity"),
    "adhesion": (lambda: build(geom='adhesion="1"'), "geom 'tip' has adhesion: set adhesion to 0"),
    "pair solref": (
        lambda: build(
            extra='<contact><pair name="p" geom1="floor" geom2="tip" solreffriction="0.1 1"/>'
            "</contact>"
        ),
        "pair 'p' has solreffriction: leave solreffriction out",
    ),
    "pair adhesion": (
        lambda: build(
            extra='<contact><pair name="p" geom1="floor" geom2="tip" adhesion="1"/></contact>'
        ),
        "pair 'p' has adhesion",
    ),
    "equality": (
        lambda: build(
            extra='<equality><joint name="gear" joint1="h" joint2="s" active="false"/></equality>'
        ),
        "equality 'gear': has no adjoint, remove it",
    ),
    "tendon stiffness": (lambda: tendon('stiffness="1"'), "tendon 't' has stiffness"),
    "tendon poly": (lambda: tendon('stiffness="0 1"'), "tendon 't' has polynomial stiffness"),
    "tendon yield": (
        lambda: tendon('stiffness="1" springyield="1"'),
        "tendon 't' has a spring that yields",
    ),
    "tendon damping": (lambda: tendon('damping="1"'), "tendon 't' has damping: move the damping"),
    "tendon dampoly": (lambda: tendon('damping="0 1"'), "tendon 't' has polynomial damping"),
    "tendon friction": (lambda: tendon('frictionloss="1"'), "tendon 't' has frictionloss"),
    "tendon armature": (lambda: tendon('armature="1"'), "tendon 't' has armature"),
    "tendon limit": (
        lambda: tendon('limited="true" range="-1 1"'),
        "tendon 't' has a limit: limit the joints instead",
    ),
    "tendon force": (
        lambda: tendon('actuatorfrclimited="true" actuatorfrcrange="-1 1"'),
        "tendon 't' has actuatorfrcrange",
    ),
    "on tendon": (
        lambda: actuator('<motor name="act" tendon="t"/>'),
        "actuator 'act' has actuator_trntype mjTRN_TENDON: drive a joint instead",
    ),
    "on site": (
        lambda: actuator('<motor name="act" site="here"/>'),
        "actuator 'act' has actuator_trntype mjTRN_SITE: drive a joint instead",
    ),
    "in parent": (
        lambda: actuator('<motor name="act" jointinparent="h"/>'),
        "actuator 'act' has actuator_trntype mjTRN_JOINTINPARENT",
    ),
    "on body": (
        lambda: actuator('<adhesion name="act" body="link" ctrlrange="0 1"/>'),
        "actuator 'act' has actuator_trntype mjTRN_BODY",
    ),
    "on ball": (
        lambda: build(
            joint='type="ball"',
            extra='<actuator><motor name="act" joint="h" gear="1 0 0"/></actuator>',
        ),
        "actuator 'act' drives joint 'h', which is free or ball: drive hinge or slide joints",
    ),
    "integrator": (
        lambda: actuator('<intvelocity name="act" joint="h" actrange="-1 1"/>'),
        "actuator 'act' has actuator_dyntype mjDYN_INTEGRATOR: set dyntype to none",
    ),
    "filter": (
        lambda: actuator('<general name="act" joint="h" dyntype="filter" dynprm="0.1"/>'),
        "actuator 'act' has actuator_dyntype mjDYN_FILTER: set dyntype to none",
    ),
    "filterexact": (
        lambda: actuator('<general name="act" joint="h" dyntype="filterexact" dynprm="0.1"/>'),
        "actuator 'act' has actuator_dyntype mjDYN_FILTEREXACT",
    ),
    "muscle": (
        lambda: actuator('<muscle name="act" joint="h" lengthrange="-1 1"/>'),
        "actuator 'act' has actuator_gaintype mjGAIN_MUSCLE: set gaintype to fixed or affine",
    ),
    "user bias": (
        lambda: actuator('<general name="act" joint="h" biastype="user"/>'),
        "actuator 'act' has actuator_biastype mjBIAS_USER: set biastype to none or affine",
    ),
    "pid": (lambda: actuator('<pid name="act" joint="h"/>'), "actuator 'act' has actuator_"),
    "actuator damping": (
        lambda: actuator('<motor name="act" joint="h" damping="1"/>'),
        "actuator 'act' has damping: set the damping of its joint instead",
    ),
    "actuator dampoly": (
        lambda: actuator('<motor name="act" joint="h" damping="0 1"/>'),
        "actuator 'act' has polynomial damping",
    ),
    "actuator armature": (
        lambda: actuator('<motor name="act" joint="h" armature="1"/>'),
        "actuator 'act' has armature: set the armature of its joint instead",
    ),
    "delay": (
        lambda: actuator('<motor name="act" joint="h" delay="0.01" nsample="3"/>'),
        "actuator 'act' has a delay: set delay to 0",
    ),
    "unclamped gain": (
        lambda: build(
            'integrator="implicitfast"',
            extra='<actuator><general name="act" joint="h" gaintype="affine" gainprm="1 0 1" '
            'ctrllimited="true" ctrlrange="-1 1"/></actuator>',
        ),
        "actuator 'act' has a velocity gain and a ctrlrange under implicitfast",
    ),
    "no damper": (
        lambda: build('integrator="implicitfast"', extra=OFF.format("damper")),
        "option disableflags, mjDSBL_DAMPER with implicitfast: mujoco_warp then treats",
    ),
    "no actuation": (
        lambda: build('integrator="implicitfast"', extra=OFF.format("actuation")),
        "option disableflags, mjDSBL_ACTUATION with implicitfast: mujoco_warp then treats",
    ),
    "sphere-box": (
        lambda: build(world=falling(BOX)),
        "geom 'other' (box) can collide with geom 'tip' (sphere): replace it by spheres or caps",
    ),
    "cylinder": (
        lambda: build(world=falling(CYLINDER)),
        "geom 'other' (cylinder) can collide with geom 'floor' (plane), geom 'tip' (sphere):",
    ),
    "ellipsoid": (
        lambda: build(world=falling(ELLIPSOID)),
        "geom 'other' (ellipsoid) can collide with geom 'floor' (plane), geom 'tip' (sphere):",
    ),
    "mesh": (
        lambda: build(
            asset=f'<mesh name="rock" {TETRAHEDRON}/>', world=falling('type="mesh" mesh="rock"')
        ),
        "geom 'other' (mesh) can collide with geom 'floor' (plane), geom 'tip' (sphere):",
    ),
    "hfield": (
        lambda: build(
            asset='<hfield name="hill" nrow="2" ncol="2" size="1 1 1 1"/>',
            world='<geom name="ground" type="hfield" hfield="hill"/>',
        ),
        "geom 'tip' (sphere) can collide with geom 'ground' (hfield)",
    ),
    "box-box": (
        lambda: build(tip=BOX, world=falling(BOX)),
        "(box) can collide with geom",
    ),
    "pair of boxes": (
        lambda: build(
            tip=BOX,
            world=falling('type="capsule" size="0.1 0.1" contype="0" conaffinity="0"'),
            extra='<contact><pair geom1="tip" geom2="other"/></contact>',
        ),
        "geom 'tip' (box) can collide with geom 'other' (capsule)",
    ),
    "parent and child": (
        lambda: build(
            world='<body><joint/><geom name="up" size="0.1"/><body><joint/>'
            '<geom name="down" type="cylinder" size="0.1 0.1" contype="2" conaffinity="1"/>'
            "</body></body>",
            extra='<option><flag filterparent="disable"/></option>',
        ),
        "geom 'down' (cylinder) can collide with geom 'floor' (plane), geom 'tip' (sphere), "
        "geom 'up' (sphere)",
    ),
    "unnamed": (
        lambda: build(world=falling(ELLIPSOID, "").replace('name=""', "")),
        "geom 2 (unnamed) (ellipsoid) can collide with",
    ),
    "slippery": (
        lambda: build(geom='friction="0.05"', extra='<default><geom friction="0"/></default>'),
        "geom 'floor' (plane) and geom 'tip' (sphere) have a sliding friction of 0.05: raise it "
        "to 0.1, set cone to elliptic, or set condim to 1",
    ),
    "slippery impratio": (
        lambda: build('impratio="400"', geom='friction="0.9"'),
        "have a sliding friction of 1: raise it to 2, set cone",
    ),
    "slippery priority": (
        lambda: build(geom='friction="0.05" priority="1"'),
        "geom 'floor' (plane) and geom 'tip' (sphere) have a sliding friction of 0.05",
    ),
    "slippery pair": (
        lambda: build(
            extra='<contact><pair geom1="tip" geom2="floor" friction="1 0.01"/></contact>'
        ),
        "geom 'floor' (plane) and geom 'tip' (sphere) have a sliding friction of 0.01",
    ),
    "distance sensor": (
        lambda: build(
            world=falling(CYLINDER + ' contype="0" conaffinity="0"'),
            extra='<sensor><distance name="gap" geom1="tip" geom2="other"/></sensor>',
        ),
        "sensor 'gap' adds geom pairs to the collision list: remove it",
    ),
    "flex": (
        lambda: build(
            world='<flexcomp name="rope" type="grid" dim="1" count="3 1 1" spacing="0.1 0.1 0.1">'
            '<contact contype="0" conaffinity="0" selfcollide="none"/></flexcomp>'
        ),
        "flex 'rope': has no adjoint, remove it",
    ),
    "no dof": (
        lambda: mujoco.MjModel.from_xml_string(
            '<mujoco><worldbody><geom size="1"/></worldbody></mujoco>'
        ),
        "the model has no degree of freedom",
    ),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_check_refuses_by_name(feature):
    """A model with one unsupported feature is refused, with its name and a way out."""
    make, text = REFUSED[feature]
    assert text in message(make())


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


def test_check_lists_everything():
    """One message names the model and all of its offending elements."""
    options = 'integrator="implicit" density="1"'
    text = message(build(options, joint='frictionloss="1" stiffness="1 2"'))
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


ACCEPTED = {
    "plain": build,
    "elliptic": lambda: build('cone="elliptic" impratio="10"'),
    "sparse": lambda: build('jacobian="sparse"'),
    "spring": lambda: build(joint='stiffness="1" damping="1" armature="1" range="-1 1"'),
    "tendon that measures": lambda: tendon(""),
    "slippery elliptic": lambda: build(
        'cone="elliptic"', geom='friction="0.05"', extra='<default><geom friction="0"/></default>'
    ),
    "frictionless": lambda: build(
        geom='friction="0" condim="1" priority="1"',
    ),
    "frictionless pair": lambda: build(
        extra='<contact><pair geom1="tip" geom2="floor" condim="1" friction="0"/></contact>'
    ),
    "disabled contact": lambda: build(
        extra='<option><flag contact="disable"/></option>',
        world=falling(CYLINDER),
    ),
    "masks": lambda: build(world=falling(CYLINDER + ' contype="2" conaffinity="2"')),
    "exclude": lambda: build(
        world=falling(BOX),
        extra='<contact><exclude body1="link" body2="body_other"/></contact>',
    ),
    "static": lambda: build(
        geom='contype="0" conaffinity="0"',
        world='<geom type="cylinder" size="1 1"/><geom type="box" size="1 1 1"/>',
    ),
    "same body": lambda: build(
        tip='type="capsule" size="0.1 0.1"',
        world='<body><joint/><geom size="0.1" contype="0" conaffinity="2"/>'
        '<geom type="ellipsoid" size="0.1 0.1 0.1" contype="2" conaffinity="0"/></body>',
    ),
    "parent and child": lambda: build(
        geom='contype="0" conaffinity="0"',
        world='<body><joint/><geom size="0.1" contype="4" conaffinity="4"/><body><joint/>'
        '<geom type="cylinder" size="0.1 0.1" contype="4" conaffinity="4"/></body></body>',
    ),
    "mocap": lambda: build(world='<body mocap="true"><geom type="capsule" size="0.1 0.1"/></body>'),
    "sensors, keys, sites": lambda: build(
        extra='<sensor><jointpos joint="h"/><touch site="here"/></sensor>'
        '<keyframe><key qpos="1 1"/></keyframe>'
    ),
    "group enabled": lambda: build(
        'actuatorgroupdisable="2"', extra='<actuator><motor joint="h" group="1"/></actuator>'
    ),
    "velocity gain": lambda: build(
        extra='<actuator><general joint="h" gaintype="affine" gainprm="1 0 1" ctrllimited="true" '
        'ctrlrange="-1 1"/></actuator>'
    ),
}


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
    "pusher_v5": ["geom 18 (unnamed) (cylinder) can collide with geom 'table' (plane)"],
    "reacher": [],
    "swimmer": ["option density = 4000.0", "option viscosity = 0.1"],
    "walker2d_v5": [],
}


@pytest.mark.parametrize("name", GYMNASIUM)
def test_check_gymnasium_models(name):
    """Of Gymnasium's eleven models seven pass; the others are refused for stated reasons."""
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
        pairs = set(check_module.colliding_pairs(mjm))
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
