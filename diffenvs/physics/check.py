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

from .check_actuator import check_actuators
from .check_contact import check_contacts
from .check_discrete import check_discrete
from .check_equality import check_equalities
from .check_passive import check_passive
from .check_row import check_rows
from .check_tendon import check_tendons
from .fold import folded
from .model_names import element_name, member_name


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
# With fewer iterations the active set at the end is often not that of the solution: CG with 20 has
# worst errors of 4e-2 where 50 give 1e-4.
_MIN_ITERATIONS = {"iterations": 4, "ls_iterations": 4}
_MAX_TOLERANCE = 1e-5
_MIN_ITERATIONS_CG = {"iterations": 100, "ls_iterations": 4}
_MAX_TOLERANCE_CG = 1e-6
_MAX_LS_TOLERANCE = 0.1


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
    if mjm.opt.ls_tolerance > _MAX_LS_TOLERANCE:
        yield (
            f"option ls_tolerance = {mjm.opt.ls_tolerance:g}: the adjoint needs a converged "
            f"solver, set it to <= {_MAX_LS_TOLERANCE:g}"
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
            yield f"{element_name(mjm, element, i)} has {what}: {advice}"
    for field, (element, enum, accepted, advice) in _TYPES.items():
        for i, value in enumerate(getattr(mjm, field)):
            if value not in [int(enum.__members__[k]) for k in accepted]:
                name, kind = element_name(mjm, element, i), member_name(enum, value)
                yield f"{name} has {field} {kind}: {advice}"
    for size, element in _EMPTY.items():
        for i in range(getattr(mjm, size)):
            yield f"{element_name(mjm, element, i)}: has no adjoint, remove it"
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
    check_actuators,
    check_passive,
    check_tendons,
    check_equalities,
    check_rows,
    check_contacts,
    check_discrete,
    _callbacks,
)


def _public(struct: object) -> set[str]:
    return {name for name in dir(struct) if not name.startswith("_")}


def _shown(value: np.ndarray, accepted: tuple) -> str:
    """A scalar option as its enumeration names it, a vector as numbers."""
    if hasattr(accepted[0], "name"):
        return member_name(type(accepted[0]), value[0])
    return str(value[0]) if value.size == 1 else str(value.tolist())
