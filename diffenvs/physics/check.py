"""Refuses, by name, every feature of a model whose derivative is not computed.

A wrong or silently zero gradient must be impossible, so whatever is not known to be right is
refused: enumerations and flags are compared with the values that are supported, and a field of
`MjModel` that this file does not know, as a newer MuJoCo may bring, is refused unless it is zero.
`check_model` looks at the whole compiled model and reports everything it found in one message.

Harmless, hence accepted: visual elements, sites, sensors other than geom distances, keyframes, user
data, tendons that measure only, and mocap bodies (their pose is an input, see `inputs.py`).
"""

from collections.abc import Iterator

import mujoco
import numpy as np

from .check_actuator import check_actuators, path_dofs
from .check_contact import check_contacts
from .check_discrete import check_discrete
from .check_tendon import (
    BOTH_LIMITS,
    both_limits,
    exerting,
    tendon_problems,
    turned_slides,
)
from .fold import folded


class UnsupportedFeature(ValueError):
    """The model holds something that has no adjoint here; the message lists all of it."""


def check_model(mjm: mujoco.MjModel) -> None:
    """Raise `UnsupportedFeature` with every element of `mjm` that can't be differentiated."""
    equivalent = folded(mjm)
    found = [problem for check in _CHECKS for problem in check(equivalent)]
    if not found:
        return
    name = mjm.names[: mjm.names.index(b"\0")].decode()
    count = f"{len(found)} feature{'s'[: len(found) > 1]}"
    head = f"model '{name}' has {count} without a gradient in diffenvs:"
    raise UnsupportedFeature("\n  - ".join([head, *found]))


_JOINT, _GEOM = mujoco.mjtJoint, mujoco.mjtGeom
_DISABLE, _ENABLE = mujoco.mjtDisableBit, mujoco.mjtEnableBit
_TRN, _DYN = mujoco.mjtTrn, mujoco.mjtDyn

_MAX_DENSE_NV = 60  # mujoco_warp has no dense Jacobian for larger models
_MAX_AUTO_DENSE_NV = 32  # above, jacobian = auto means sparse to mujoco_warp
# With fewer iterations the active set at the end is often not that of the solution: CG with 20 has
# worst errors of 4e-2 where 50 give 1e-4.
_MIN_ITERATIONS = {"iterations": 4, "ls_iterations": 4}
_MAX_TOLERANCE = 1e-5
_MIN_ITERATIONS_CG = {"iterations": 50, "ls_iterations": 4}
_MAX_TOLERANCE_CG = 1e-6


# field of opt: (values accepted, what to do instead)
_OPTIONS = {
    "integrator": (
        (
            mujoco.mjtIntegrator.mjINT_EULER,
            mujoco.mjtIntegrator.mjINT_RK4,
            mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
            mujoco.mjtIntegrator.mjINT_DISCRETE,
        ),
        "set integrator to Euler, RK4, implicitfast or discrete",
    ),
    "solver": (
        (mujoco.mjtSolver.mjSOL_NEWTON, mujoco.mjtSolver.mjSOL_CG),
        "set solver to Newton or CG",
    ),
    "cone": (
        (mujoco.mjtCone.mjCONE_PYRAMIDAL, mujoco.mjtCone.mjCONE_ELLIPTIC),
        "set cone to pyramidal or elliptic",
    ),
    "jacobian": (
        (
            mujoco.mjtJacobian.mjJAC_AUTO,
            mujoco.mjtJacobian.mjJAC_SPARSE,
            mujoco.mjtJacobian.mjJAC_DENSE,
        ),
        "set jacobian to auto",
    ),
    "noslip_iterations": ((0,), "set noslip_iterations to 0"),
}
_OPTIONS_FREE = set(
    """density viscosity wind
    ccd_iterations ccd_tolerance disableactuator disableflags enableflags gravity impratio
    iterations ls_iterations ls_tolerance magnetic noslip_tolerance o_friction o_margin o_solimp
    o_solref sdf_initpoints sdf_iterations sleep_tolerance timestep tolerance""".split()
)

_FLAGS_ACCEPTED = {
    "disableflags": (
        _DISABLE.mjDSBL_CONSTRAINT,
        _DISABLE.mjDSBL_EQUALITY,
        _DISABLE.mjDSBL_FRICTIONLOSS,
        _DISABLE.mjDSBL_LIMIT,
        _DISABLE.mjDSBL_CONTACT,
        _DISABLE.mjDSBL_SPRING,
        _DISABLE.mjDSBL_DAMPER,
        _DISABLE.mjDSBL_GRAVITY,
        _DISABLE.mjDSBL_CLAMPCTRL,
        _DISABLE.mjDSBL_WARMSTART,
        _DISABLE.mjDSBL_FILTERPARENT,
        _DISABLE.mjDSBL_ACTUATION,
        _DISABLE.mjDSBL_REFSAFE,
        _DISABLE.mjDSBL_SENSOR,
        _DISABLE.mjDSBL_EULERDAMP,
        _DISABLE.mjDSBL_NATIVECCD,
        _DISABLE.mjDSBL_ISLAND,
        _DISABLE.mjDSBL_MULTICCD,
    ),
    "enableflags": (_ENABLE.mjENBL_ENERGY, _ENABLE.mjENBL_INVDISCRETE),
}
_FLAG_ADVICE = {
    "mjDSBL_MIDPHASE": "mujoco_warp has no midphase to disable; clear the flag",
    "mjDSBL_AUTORESET": "mujoco_warp never resets by itself; clear the flag",
    "mjENBL_OVERRIDE": "clear the flag and set solref, solimp, margin and friction of the geoms",
    "mjENBL_SLEEP": "clear the flag: a body that falls asleep has no derivative",
}

# field: (element, value accepted, what it is, what to do instead)
_ONLY = {
    "body_plugin": ("body", -1, "a plugin", "remove the plugin"),
    "jnt_springyield": ("joint", 0, "a spring that yields", "set springyield to 0"),
    "jnt_plasticadr": ("joint", -1, "a plastic spring", "set springyield to 0"),
    "geom_plugin": ("geom", -1, "a plugin", "remove the plugin"),
    "tendon_springyield": ("tendon", 0, "a spring that yields", "set springyield to 0"),
    "tendon_plasticadr": ("tendon", -1, "a plastic spring", "set springyield to 0"),
    "actuator_plugin": ("actuator", -1, "a plugin", "remove the plugin"),
    "actuator_delay": ("actuator", 0, "a delay", "set delay to 0"),
    "actuator_history": ("actuator", 0, "a history of controls", "set nsample to 0"),
    "actuator_ctrlnum": ("actuator", 1, "several controls or none", "give it one control"),
    "actuator_outnum": ("actuator", 1, "several outputs or none", "give it one output"),
    "sensor_plugin": ("sensor", -1, "a plugin", "remove the plugin"),
}

# field: (element, enumeration, members accepted, what to do instead)
_TYPES = {
    "jnt_type": (
        "joint",
        _JOINT,
        ("mjJNT_FREE", "mjJNT_BALL", "mjJNT_HINGE", "mjJNT_SLIDE"),
        "use a free, ball, hinge or slide joint",
    ),
    "actuator_trntype": (
        "actuator",
        _TRN,
        ("mjTRN_JOINT", "mjTRN_JOINTINPARENT", "mjTRN_TENDON", "mjTRN_SITE"),
        "drive a joint, a tendon or a site instead",
    ),
    "actuator_dyntype": (
        "actuator",
        _DYN,
        (
            *("mjDYN_NONE", "mjDYN_INTEGRATOR", "mjDYN_FILTER", "mjDYN_FILTEREXACT"),
            "mjDYN_MUSCLE",
        ),
        "set dyntype to none, integrator, filter, filterexact or muscle",
    ),
    "eq_type": (
        "equality",
        mujoco.mjtEq,
        ("mjEQ_CONNECT", "mjEQ_WELD", "mjEQ_JOINT", "mjEQ_TENDON"),
        "use a connect, weld, joint or tendon equality",
    ),
    "actuator_gaintype": (
        "actuator",
        mujoco.mjtGain,
        ("mjGAIN_FIXED", "mjGAIN_AFFINE", "mjGAIN_MUSCLE"),
        "set gaintype to fixed, affine or muscle",
    ),
    "actuator_biastype": (
        "actuator",
        mujoco.mjtBias,
        ("mjBIAS_NONE", "mjBIAS_AFFINE", "mjBIAS_MUSCLE"),
        "set biastype to none, affine or muscle",
    ),
}

# flag that the compiler sets, without which the simulators ignore the fields
_COMPILED = {
    "flg_gravcomp": ("body_gravcomp",),
    "flg_surfacevel": ("geom_surfacevel",),
    "flg_adhesion": ("geom_adhesion", "pair_adhesion"),
}

# Sizes that must vanish.
_EMPTY = {"nflex": "flex", "nplugin": "plugin"}

# Fields of the elements that move or touch something, besides those of the tables above.
_FIELDS_FREE = set(
    """actuator_acc0 actuator_actadr actuator_actearly actuator_actlimited actuator_actnum
    actuator_actrange actuator_armature actuator_biasprm actuator_cranklength actuator_ctrladr
    actuator_ctrllimited actuator_ctrlrange actuator_ctrlspec actuator_damping
    actuator_dampingpoly actuator_dynprm actuator_forcelimited actuator_forcerange
    actuator_gainprm actuator_gear actuator_group actuator_historyadr actuator_length0
    actuator_lengthrange actuator_outadr actuator_trnid actuator_user body_bvhadr body_bvhnum
    body_conaffinity body_contype body_dofadr body_dofnum body_geomadr body_geomnum
    body_gravcomp body_inertia body_invweight0 body_ipos body_iquat body_jntadr body_jntnum
    body_margin body_mass body_mocapid body_parentid body_pos body_quat body_rootid
    body_sameframe body_simple body_subtreemass body_treeid body_user body_weldid dof_M0
    dof_Madr dof_armature dof_bodyid dof_damping dof_dampingpoly dof_frictionloss dof_invweight0
    dof_jntid dof_length dof_parentid dof_simplenum dof_solimp dof_solref dof_treeid eq_active0
    eq_data eq_obj1id eq_obj2id eq_objtype eq_solimp eq_solref exclude_signature flg_adhesion
    flg_gravcomp flg_surfacevel geom_aabb geom_adhesion geom_bodyid geom_castshadow
    geom_conaffinity geom_condim geom_contype geom_dataid geom_fluid geom_friction geom_gap
    geom_group geom_margin geom_matid geom_pos geom_priority geom_quat geom_rbound geom_rgba
    geom_sameframe geom_size geom_solimp geom_solmix geom_solref geom_surfacevel geom_type
    geom_user jnt_actfrclimited jnt_actfrcrange jnt_actgravcomp jnt_actuatorid jnt_axis
    jnt_bodyid jnt_dofadr jnt_group jnt_limited jnt_margin jnt_pos jnt_qposadr jnt_range
    jnt_solimp jnt_solref jnt_stiffness jnt_stiffnesspoly jnt_user names names_map pair_adhesion
    pair_dim pair_friction pair_gap pair_geom1 pair_geom2 pair_margin pair_signature pair_solimp
    pair_solref pair_solreffriction paths qpos0 qpos_spring signature tendon_actfrclimited
    tendon_actfrcrange tendon_actuatorid tendon_adr tendon_armature tendon_damping
    tendon_dampingpoly tendon_frictionloss tendon_group tendon_invweight0 tendon_length0
    tendon_lengthspring tendon_limited tendon_margin tendon_matid tendon_num tendon_range
    tendon_rgba tendon_solimp_fri tendon_solimp_lim tendon_solref_fri tendon_solref_lim
    tendon_stiffness tendon_stiffnesspoly tendon_treeid tendon_treenum tendon_type tendon_user
    tendon_width tree_bodyadr tree_bodynum tree_dofadr tree_dofnum tree_sleep_policy""".split()
)
# Elements that exert no force (or, for flex_, must not exist), sizes and derived indices.
_PREFIXES_FREE = tuple(
    """bvh_ cam_ efm flex flexedge_ hfield_ key_ light_ map mat_ mesh_ n name_ numeric_ oct_
    plugin_ sensor_ site_ skin_ ten_J tex_ text_ tuple_ wrap_ B_ D_ M_""".split()
)


def _options(mjm: mujoco.MjModel) -> Iterator[str]:
    for field, (accepted, advice) in _OPTIONS.items():
        value = np.atleast_1d(getattr(mjm.opt, field))
        if not np.isin(value, [int(a) for a in accepted]).all():
            yield f"option {field} = {_shown(value, accepted)}: {advice}"
    if mjm.opt.jacobian == mujoco.mjtJacobian.mjJAC_DENSE and mjm.nv > _MAX_DENSE_NV:
        yield f"option jacobian = dense with nv = {mjm.nv}: set jacobian to auto"
    cg = mjm.opt.solver == mujoco.mjtSolver.mjSOL_CG
    for field, least in (_MIN_ITERATIONS_CG if cg else _MIN_ITERATIONS).items():
        if getattr(mjm.opt, field) < least:
            yield (
                f"option {field} = {getattr(mjm.opt, field)}: the adjoint needs a converged "
                f"solver, set it to >= {least}"
            )
    most = _MAX_TOLERANCE_CG if cg else _MAX_TOLERANCE
    if mjm.opt.tolerance > most:
        yield (
            f"option tolerance = {mjm.opt.tolerance:g}: the adjoint needs a converged solver, "
            f"set it to <= {most:g}"
        )
    for field in _public(mjm.opt) - set(_OPTIONS) - _OPTIONS_FREE:
        if np.any(getattr(mjm.opt, field)):
            yield f"option {field}: unknown to diffenvs, leave it at 0"


def _flags(mjm: mujoco.MjModel) -> Iterator[str]:
    for field, enum in (("disableflags", _DISABLE), ("enableflags", _ENABLE)):
        accepted = sum(int(flag) for flag in _FLAGS_ACCEPTED[field])
        names = {int(v): k for k, v in enum.__members__.items()}
        left = int(getattr(mjm.opt, field)) & ~accepted
        for bit in (1 << i for i in range(left.bit_length()) if left >> i & 1):
            name = names.get(bit, f"bit {bit}")
            yield f"option {field}, {name}: {_FLAG_ADVICE.get(name, 'clear the flag')}"
    if mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST:
        for flag in (_DISABLE.mjDSBL_DAMPER, _DISABLE.mjDSBL_ACTUATION):
            if mjm.opt.disableflags & int(flag):
                yield (
                    f"option disableflags, {flag.name} with implicitfast: mujoco_warp then treats "
                    "no damping implicitly; clear the flag or set integrator to Euler"
                )


def _fields(mjm: mujoco.MjModel) -> Iterator[str]:
    for field, (element, accepted, what, advice) in _ONLY.items():
        values = np.asarray(getattr(mjm, field))
        bad = (values.reshape(len(values), -1) != accepted).any(axis=1) if values.size else []
        for i in np.flatnonzero(bad).tolist():
            yield f"{_name(mjm, element, i)} has {what}: {advice}"
    for field, (element, enum, accepted, advice) in _TYPES.items():
        for i, value in enumerate(getattr(mjm, field)):
            if value not in [int(enum.__members__[k]) for k in accepted]:
                yield f"{_name(mjm, element, i)} has {field} {_member(enum, value)}: {advice}"
    for size, element in _EMPTY.items():
        for i in range(getattr(mjm, size)):
            yield f"{_name(mjm, element, i)}: has no adjoint, remove it"
    for flag, fields in _COMPILED.items():
        for field in fields:
            if np.any(getattr(mjm, field)) and not getattr(mjm, flag):
                yield f"field {field} of MjModel is ignored without {flag}: set {flag} to True"
    known = _FIELDS_FREE | set(_ONLY) | set(_TYPES)
    for field in _public(mjm) - known:
        value = getattr(mjm, field)
        if not field.startswith(_PREFIXES_FREE) and isinstance(value, np.ndarray | int | float):
            if np.any(value):
                yield f"field {field} of MjModel: unknown to diffenvs, leave it at 0"
    if mjm.nv == 0:
        yield "the model has no degree of freedom: add a joint"


def _passive_forces(mjm: mujoco.MjModel) -> Iterator[str]:
    """Gravity compensation through actuators, and what of a fluid is not covered."""
    actuation = mjm.nactuator and not mjm.opt.disableflags & int(_DISABLE.mjDSBL_ACTUATION)
    if mjm.body_gravcomp.any() and not actuation:
        for i in np.flatnonzero(mjm.jnt_actgravcomp).tolist():
            yield (
                f"{_name(mjm, 'joint', i)} has actuatorgravcomp, which does nothing where no "
                "actuator is enabled: set actuatorgravcomp to false"
            )
    for field in ("density", "viscosity"):
        if getattr(mjm.opt, field) < 0:
            yield f"option {field} = {getattr(mjm.opt, field):g}: set it to 0 or more"
    if not (mjm.opt.density or mjm.opt.viscosity):
        return
    for i in np.flatnonzero(mjm.geom_fluid.reshape(mjm.ngeom, -1)[:, 0]).tolist():
        yield f"{_geom(mjm, i)} has fluidshape ellipsoid: set fluidshape to none"
    discrete = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE
    if discrete or mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST:
        for i in _uncoupled_bodies(mjm, but_free=not discrete):
            yield (
                f"{_name(mjm, 'body', i)} has joints that its inertia does not couple but the "
                "fluid does, which implicitfast and discrete leave out: set integrator to Euler or "
                "RK4"
            )


def _uncoupled_bodies(mjm: mujoco.MjModel, but_free: bool) -> list[int]:
    """Bodies of several dofs with a diagonal inertia, perhaps besides free and ball joints."""
    found = []
    for i in np.flatnonzero(mjm.body_simple).tolist():
        rotations = (int(_JOINT.mjJNT_FREE), int(_JOINT.mjJNT_BALL))
        first, count = mjm.body_jntadr[i], mjm.body_jntnum[i]
        free = np.isin(mjm.jnt_type[first : first + count], rotations).all()
        if mjm.body_dofnum[i] > 1 and not (but_free and free):
            found.append(i)
    return found


def _actuators(mjm: mujoco.MjModel) -> Iterator[str]:
    return check_actuators(mjm, _name)


def _discrete(mjm: mujoco.MjModel) -> Iterator[str]:
    return check_discrete(mjm, _name, exerting(mjm))


def _tendons(mjm: mujoco.MjModel) -> Iterator[str]:
    for i, problem in tendon_problems(mjm):
        yield f"{_name(mjm, 'tendon', i)} {problem}"


def _joints(mjm: mujoco.MjModel) -> Iterator[str]:
    """Hinges and slides that may be at both limits; a ball has one."""
    for i in np.flatnonzero(mjm.jnt_type != int(_JOINT.mjJNT_BALL)).tolist():
        if both_limits(mjm.jnt_limited[i], mjm.jnt_range[i], mjm.jnt_margin[i]):
            yield f"{_name(mjm, 'joint', i)} {BOTH_LIMITS}"


def _equalities(mjm: mujoco.MjModel) -> Iterator[str]:
    """Bodies that a connect or weld may not hold.

    Those without joints take their weight from the parent in mujoco_warp if the Jacobian is sparse.
    """
    mode = mjm.opt.jacobian
    dense = mode == mujoco.mjtJacobian.mjJAC_DENSE or (
        mode == mujoco.mjtJacobian.mjJAC_AUTO and mjm.nv <= _MAX_AUTO_DENSE_NV
    )
    on_bodies = (int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD))
    for i in np.flatnonzero(np.isin(mjm.eq_type, on_bodies)).tolist():
        bodies = np.array([mjm.eq_obj1id[i], mjm.eq_obj2id[i]])
        if mjm.eq_objtype[i] == int(mujoco.mjtObj.mjOBJ_SITE):
            bodies = mjm.site_bodyid[bodies]
        for body in bodies.tolist():
            holds = f"{_name(mjm, 'equality', i)} holds {_name(mjm, 'body', body)}, which"
            if not dense and mjm.body_weldid[body] not in (0, body):
                yield (
                    f"{holds} has no joint, with a sparse jacobian, where mujoco_warp takes the "
                    "weight of the parent: set jacobian to dense (nv <= 60), or hold the parent "
                    "instead"
                )
            if turned_slides(mjm, path_dofs(mjm, body)):
                yield (
                    f"{holds} is moved by a ball joint with a slide after it in the same body: put "
                    "the slide first"
                )


def _contacts(mjm: mujoco.MjModel) -> Iterator[str]:
    return check_contacts(mjm, _name, _geom)


def _callbacks(mjm: mujoco.MjModel) -> Iterator[str]:
    del mjm
    for name in ("passive", "control", "contactfilter", "act_dyn", "act_gain", "act_bias"):
        if getattr(mujoco, f"get_mjcb_{name}")() is not None:
            yield (
                f"callback mjcb_{name} is installed, which mujoco_warp never calls: "
                f"mujoco.set_mjcb_{name}(None)"
            )


_CHECKS = (
    _options,
    _flags,
    _fields,
    _actuators,
    _passive_forces,
    _joints,
    _tendons,
    _discrete,
    _equalities,
    _contacts,
    _callbacks,
)


def _public(struct: object) -> set[str]:
    return {name for name in dir(struct) if not name.startswith("_")}


def _name(mjm: mujoco.MjModel, element: str, i: int) -> str:
    """`joint 'knee'`, or `joint 3 (unnamed)`; a dof goes by the name of its joint."""
    if element == "dof":
        return _name(mjm, "joint", mjm.dof_jntid[i])
    kind = mujoco.mjtObj.__members__[f"mjOBJ_{element.upper()}"]
    name = mujoco.mj_id2name(mjm, kind, int(i))
    return f"{element} '{name}'" if name else f"{element} {i} (unnamed)"


def _geom(mjm: mujoco.MjModel, i: int) -> str:
    kind = _member(_GEOM, mjm.geom_type[i]).removeprefix("mjGEOM_").lower()
    return f"{_name(mjm, 'geom', i)} ({kind})"


def _member(enum: type, value: int) -> str:
    return {int(v): k for k, v in enum.__members__.items()}.get(int(value), f"value {value}")


def _shown(value: np.ndarray, accepted: tuple) -> str:
    """A scalar option as its enumeration names it, a vector as numbers."""
    if hasattr(accepted[0], "name"):
        return _member(type(accepted[0]), value[0])
    return str(value[0]) if value.size == 1 else str(value.tolist())
