"""Small models that hold one feature each: what `check_model` refuses, and what it accepts."""

import mujoco

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


# feature: (model, part of the message)
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

# the same, under the integrator discrete
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
