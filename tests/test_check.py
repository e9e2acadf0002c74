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
from diffenvs.physics.check_contact import colliding_pairs

ASSETS = pathlib.Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"

SPHERE, BOX = 'size="0.1"', 'type="box" size="0.1 0.1 0.1"'
CYLINDER = 'type="cylinder" size="0.1 0.1"'
ELLIPSOID = 'type="ellipsoid" size="0.1 0.2 0.1"'
CAPSULE = 'type="capsule" size="0.1 0.1"'
MESH = 'type="mesh" mesh="rock"'
HFIELD = 'type="hfield" hfield="hill"'
HILL = '<hfield name="hill" nrow="2" ncol="2" size="1 1 1 1"/>'
ROCK = '<mesh name="rock" vertex="0 0 0  0.1 0 0  0 0.1 0  0 0 0.1"/>'


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


def changed(field, value):
    """A compiled model of which a field is set."""
    mjm = build()
    getattr(mjm, field)[:] = value
    return mjm


SLIDE_ON_BALL = (
    '<body><joint type="ball"/><joint type="slide"/><geom size="0.1"/><body name="end" pos="1 0 0">'
    '<joint/><geom size="0.1"/><site name="end" pos="0.2 0 0"/></body></body>'
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
    "pgs": (lambda: build('solver="PGS"'), "option solver = mjSOL_PGS: set solver to Newton or CG"),
    "noslip": (lambda: build('noslip_iterations="3"'), "option noslip_iterations = 3"),
    "iterations": (lambda: build('iterations="1"'), "option iterations = 1: the adjoint needs"),
    "ls": (lambda: build('ls_iterations="2"'), "option ls_iterations = 2: the adjoint needs"),
    "tolerance": (lambda: build('tolerance="0.01"'), "option tolerance = 0.01: the adjoint"),
    "cg iterations": (
        lambda: build('solver="CG" iterations="30"'),
        "option iterations = 30: the adjoint needs a converged solver, set it to >= 100",
    ),
    "cg tolerance": (
        lambda: build('solver="CG" tolerance="1e-5"'),
        "option tolerance = 1e-05: the adjoint needs a converged solver, set it to <= 1e-06",
    ),
    "ls tolerance": (
        lambda: build('ls_tolerance="0.5"'),
        "option ls_tolerance = 0.5: the adjoint needs a converged solver, set it to <= 0.1",
    ),
    "ccd iterations": (
        lambda: build('ccd_iterations="5"', world=falling(ELLIPSOID)),
        "option ccd_iterations = 5: contacts are not found to their precision, set it to 20",
    ),
    "ccd tolerance": (
        lambda: build('ccd_tolerance="1e-3"', world=falling(ELLIPSOID)),
        "option ccd_tolerance = 0.001: contacts are not found to their precision, set it to 1e-05",
    ),
    "density": (lambda: build('density="-1"'), "option density = -1: set it to 0 or more"),
    "limits": (
        lambda: build(joint='range="-0.1 0.1" margin="0.2" limited="true"'),
        "joint 'h' is less than two margins from limit to limit, where both act in MuJoCo",
    ),
    "limits of a tendon": (
        lambda: tendon('range="-0.1 0.1" margin="0.2" limited="true"'),
        "tendon 't' is less than two margins from limit to limit, where both act in MuJoCo",
    ),
    "dcmotor": (
        lambda: actuator('<dcmotor name="act" joint="h" motorconst="1 1" resistance="1"/>'),
        "actuator 'act' has actuator_gaintype mjGAIN_DCMOTOR: set gaintype to fixed, affine or",
    ),
    "so3": (
        lambda: build(
            world='<body><joint name="ball" type="ball"/><geom size="0.1"/></body>',
            extra='<actuator><general name="act" joint="ball" gaintype="so3" biastype="so3" '
            'gainprm="1" biasprm="0 -1"/></actuator>',
        ),
        "actuator 'act' has actuator_biastype mjBIAS_SO3: set biastype to none, affine or muscle",
    ),
    "user dynamics": (
        lambda: actuator('<general name="act" joint="h" dyntype="user" actdim="1"/>'),
        "actuator 'act' has actuator_dyntype mjDYN_USER: set dyntype to none, integrator",
    ),
    "user gain": (
        lambda: actuator('<general name="act" joint="h" gaintype="user"/>'),
        "actuator 'act' has actuator_gaintype mjGAIN_USER: set gaintype to fixed, affine or",
    ),
    "group": (
        lambda: build(
            'actuatorgroupdisable="2"',
            extra='<actuator><motor name="act" joint="h" group="2"/></actuator>',
        ),
        "actuator 'act' is disabled by option actuatorgroupdisable",
    ),
    "springyield": (
        lambda: build(joint='stiffness="1" springyield="1"'),
        "joint 'h' has a spring that yields",
    ),
    "equality of a flex": (
        lambda: build(
            world='<flexcomp name="rope" type="grid" dim="1" count="3 1 1" spacing="0.1 0.1 0.1">'
            '<edge equality="true"/>'
            '<contact contype="0" conaffinity="0" selfcollide="none"/></flexcomp>'
        ),
        "equality 0 (unnamed) has eq_type mjEQ_FLEX: use a connect, weld, joint or tendon",
    ),
    "equality, sparse": (
        lambda: build(
            'jacobian="sparse"',
            geom='/><body name="end"/><geom size="0.1" contype="0" conaffinity="0"',
            extra='<equality><weld name="w" body1="end"/></equality>',
        ),
        "equality 'w' holds body 'end', which has no joint, with a sparse jacobian",
    ),
    "other search": (
        lambda: build(extra=OFF.format("nativeccd"), asset=ROCK, tip=SPHERE, world=falling(MESH)),
        "option disableflags, mjDSBL_NATIVECCD with geoms whose contact is searched",
    ),
    "set after compilation": (
        lambda: changed("geom_surfacevel", 1),
        "field geom_surfacevel of MjModel is ignored without flg_surfacevel",
    ),
    "equality, slide on ball": (
        lambda: build(
            world=SLIDE_ON_BALL,
            extra='<equality><connect name="c" body1="end" anchor="0 0 0"/></equality>',
        ),
        "equality 'c' holds body 'end', which is moved by a ball joint with a slide after it",
    ),
    "tendon, free body": (
        lambda: build(
            'integrator="implicitfast"',
            world='<body><freejoint/><geom size="0.1"/><site name="end"/></body>',
            extra='<tendon><spatial name="t" armature="1"><site site="here"/><site site="end"/>'
            "</spatial></tendon>",
        ),
        "tendon 't' (spatial) has armature, under implicitfast, and holds a free body without",
    ),
    "tendon, slide on ball": (
        lambda: build(
            world=SLIDE_ON_BALL,
            extra='<tendon><spatial name="t" armature="1"><site site="here"/><site site="end"/>'
            "</spatial></tendon>",
        ),
        "tendon 't' (spatial) has armature and is moved by a ball joint with a slide after it",
    ),
    "tendon yield": (
        lambda: tendon('stiffness="1" springyield="1"'),
        "tendon 't' has a spring that yields",
    ),
    "tendon force": (
        lambda: build(
            extra=TENDON.format('actuatorfrclimited="true" actuatorfrcrange="-1 1"')
            + '<actuator><motor tendon="t"/><motor tendon="t" gear="2"/></actuator>'
        ),
        "tendon 't' has actuatorfrcrange and several actuators of which one",
    ),
    "on body": (
        lambda: actuator('<adhesion name="act" body="link" ctrlrange="0 1"/>'),
        "actuator 'act' has actuator_trntype mjTRN_BODY",
    ),
    "user bias": (
        lambda: actuator('<general name="act" joint="h" biastype="user"/>'),
        "actuator 'act' has actuator_biastype mjBIAS_USER: set biastype to none, affine or",
    ),
    "on crank": (
        lambda: actuator(
            '<general name="act" cranksite="here" slidersite="here" cranklength="1"/>'
        ),
        "actuator 'act' has actuator_trntype mjTRN_SLIDERCRANK: drive a joint, a tendon or a site",
    ),
    "filterexact": (
        lambda: build(
            'integrator="RK4"',
            extra='<actuator><general name="act" joint="h" dyntype="filterexact" dynprm="1"/>'
            "</actuator>",
        ),
        "actuator 'act' has dyntype filterexact under RK4",
    ),
    "force range on tendon": (
        lambda: build(
            joint='actuatorfrcrange="-1 1"',
            extra='<actuator><motor name="act" tendon="t"/></actuator>' + TENDON.format(""),
        ),
        "joint 'h' has actuatorfrcrange and is driven through a site or tendon",
    ),
    "clamped without actuation": (
        lambda: build(
            extra=OFF.format("actuation")
            + '<actuator><intvelocity name="act" joint="h" actrange="-1 1"/></actuator>',
        ),
        "actuator 'act' has an actrange and option disableflags has mjDSBL_ACTUATION",
    ),
    "force range and gravcomp": (
        lambda: build(joint='actuatorfrcrange="-1 1" actuatorgravcomp="true"'),
        "joint 'h' has actuatorfrcrange and actuatorgravcomp: remove one of them",
    ),
    "implicit free body": (
        lambda: build(
            'integrator="implicitfast"',
            world=falling(SPHERE).replace("<freejoint/>", '<joint name="free" type="free"/>'),
            extra='<actuator><damper name="act" joint="free" kv="1" ctrlrange="0 1"/></actuator>',
        ),
        "actuator 'act' acts on the free body 'body_other' by a force that depends on velocity",
    ),
    "implicit branches": (
        lambda: build(
            'integrator="implicitfast"',
            world='<body><joint name="branch"/><geom size="0.1"/></body>',
            extra='<tendon><fixed name="t"><joint joint="h" coef="1"/><joint joint="branch" '
            'coef="1"/></fixed></tendon><actuator><muscle name="act" tendon="t" '
            'lengthrange="0 1"/></actuator>',
        ),
        "actuator 'act' couples joints that the mass matrix does not, by a force that depends on",
    ),
    "implicit sliders": (
        lambda: build(
            'integrator="implicitfast"',
            world='<body><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/>'
            '<geom size="0.1"/><site name="slider"/></body>',
            extra='<actuator><position name="act" site="slider" refsite="here" gear="1 1 0 0 0 0" '
            'kv="1"/></actuator>',
        ),
        "actuator 'act' couples joints that the mass matrix does not, by a force that depends on",
    ),
    "pid": (lambda: actuator('<pid name="act" joint="h"/>'), "actuator 'act' has actuator_"),
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
    "sdf": (
        lambda: build(asset=ROCK, world=falling('type="sdf" mesh="rock"')),
        "geom 'other' (sdf) can collide with geom 'floor' (plane), geom 'tip' (sphere)",
    ),
    "hfield": (
        lambda: build(asset=HILL, world=f'<geom name="ground" {HFIELD}/>'),
        "geom 'tip' (sphere) can collide with geom 'ground' (hfield)",
    ),
    "parent and child": (
        lambda: build(
            asset=HILL,
            world=f'<body><joint/><geom name="up" {HFIELD} mass="1"/><body><joint/>'
            '<geom name="down" size="0.1" contype="2" conaffinity="1"/></body></body>',
            geom='contype="0" conaffinity="0"',
            extra=OFF.format("filterparent"),
        ),
        "geom 'down' (sphere) can collide with geom 'up' (hfield)",
    ),
    "unnamed": (
        lambda: build(asset=HILL, world=f"<geom {HFIELD}/>"),
        "geom 'tip' (sphere) can collide with geom 1 (unnamed) (hfield)",
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


UNDER_DISCRETE = {
    "actuator": (
        {
            "extra": '<actuator><general name="act" joint="h" dyntype="integrator" '
            'gaintype="affine" gainprm="1 2"/></actuator>'
        },
        "actuator 'act' is more than an affine force at a hinge or slide without actuatorfrcrange",
    ),
    "tendon": ({"extra": TENDON.format('stiffness="1"')}, "tendon 't' exerts a force under disc"),
    "equality": (
        {"extra": '<equality><connect name="e" body1="link" anchor="0 0 0"/></equality>'},
        "equality 'e' is a constraint under discrete",
    ),
    "fluid": (
        {
            "option": 'density="1.2"',
            "world": '<body name="brick"><freejoint/><geom type="box" size="1 2 3"/></body>',
        },
        "body 'brick' has joints that its inertia does not couple but the fluid does",
    ),
}


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
    "moving surface, adhesion": lambda: build(geom='surfacevel="1 0 0" adhesion="1"'),
    "pair solreffriction": lambda: build(
        extra='<contact><pair geom1="floor" geom2="tip" solreffriction="0.1 1"/></contact>'
    ),
    "sphere with cylinder": lambda: build(world=falling(CYLINDER)),
    "sphere with box": lambda: build(world=falling(BOX)),
    "sphere with mesh": lambda: build(asset=ROCK, world=falling(MESH)),
    "ellipsoid with box": lambda: build(tip=BOX, world=falling(ELLIPSOID)),
    "capsule with ellipsoid": lambda: build(tip=CAPSULE, world=falling(ELLIPSOID)),
    "box with mesh, one point": lambda: build(
        tip=BOX,
        asset=ROCK,
        world=falling(MESH),
        extra='<option><flag multiccd="disable"/></option>',
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
