"""Refuses, by name, every feature of a model whose derivative is not computed.

A wrong or silently zero gradient must be impossible, so whatever is not known to be right is
refused: enumerations and flags are compared with the values that are supported, and a field of
`MjModel` that this file does not know, as a newer MuJoCo may bring, is refused unless it is zero.
`check_model` looks at the whole compiled model and reports everything it found in one message.

Harmless, hence accepted: visual elements, sites, sensors other than geom distances, keyframes, user
data, tendons that measure only, and mocap bodies (their pose is a constant and gets no gradient).
"""

from collections import defaultdict
from collections.abc import Iterator

import mujoco
import numpy as np


class UnsupportedFeature(ValueError):
    """The model holds something that has no adjoint here; the message lists all of it."""


def check_model(mjm: mujoco.MjModel) -> None:
    """Raise `UnsupportedFeature` with every element of `mjm` that can't be differentiated."""
    found = [problem for check in _CHECKS for problem in check(mjm)]
    if not found:
        return
    name = mjm.names[: mjm.names.index(b"\0")].decode()
    count = f"{len(found)} feature{'s'[: len(found) > 1]}"
    head = f"model '{name}' has {count} without a gradient in diffenvs:"
    raise UnsupportedFeature("\n  - ".join([head, *found]))


_JOINT, _GEOM = mujoco.mjtJoint, mujoco.mjtGeom
_DISABLE, _ENABLE = mujoco.mjtDisableBit, mujoco.mjtEnableBit

_MAX_DENSE_NV = 60  # mujoco_warp has no dense Jacobian for larger models
_MIN_ITERATIONS = 4  # with fewer, the active set at the end is often not that of the solution
_MAX_TOLERANCE = 1e-5
# Rows of a pyramid grow like 1 / friction^2 against the rest of the Hessian; in single precision
# so does the gradient's error: 1e-3 at 0.1, 1e-1 at 0.02.
_MIN_PYRAMID_FRICTION = 0.1


def _pairs(names: str) -> set[frozenset[mujoco.mjtGeom]]:
    """Kinds of geoms that may touch, from `kind-kind kind-kind ...`."""
    kinds = {k.removeprefix("mjGEOM_").lower(): v for k, v in _GEOM.__members__.items()}
    return {frozenset(kinds[kind] for kind in pair.split("-")) for pair in names.split()}


_SIMPLE_PAIRS = _pairs(
    "plane-sphere plane-capsule plane-box sphere-sphere sphere-capsule capsule-capsule"
)
_PAIRS = _SIMPLE_PAIRS | _pairs(
    """plane-ellipsoid plane-cylinder plane-mesh sphere-ellipsoid sphere-cylinder sphere-box
    sphere-mesh capsule-ellipsoid ellipsoid-ellipsoid ellipsoid-cylinder ellipsoid-box
    ellipsoid-mesh"""
)
# Faces and edges on both sides, which are clipped against each other.
_MANIFOLD_PAIRS = _pairs(
    """capsule-cylinder capsule-box capsule-mesh cylinder-cylinder cylinder-box cylinder-mesh
    box-box box-mesh mesh-mesh"""
)

# field of opt: (values accepted, what to do instead)
_OPTIONS = {
    "integrator": (
        (
            mujoco.mjtIntegrator.mjINT_EULER,
            mujoco.mjtIntegrator.mjINT_RK4,
            mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
        ),
        "set integrator to Euler, RK4 or implicitfast",
    ),
    "solver": ((mujoco.mjtSolver.mjSOL_NEWTON,), "set solver to Newton"),
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
    "density": ((0,), "set density to 0: forces of a fluid have no adjoint"),
    "viscosity": ((0,), "set viscosity to 0: forces of a fluid have no adjoint"),
    "wind": ((0,), "set wind to 0: forces of a fluid have no adjoint"),
}
_OPTIONS_FREE = set(
    """ccd_iterations ccd_tolerance disableactuator disableflags enableflags gravity impratio
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
    "body_gravcomp": ("body", 0, "gravity compensation", "set gravcomp to 0"),
    "body_plugin": ("body", -1, "a plugin", "remove the plugin"),
    "jnt_stiffnesspoly": ("joint", 0, "polynomial stiffness", "use a linear stiffness"),
    "jnt_springyield": ("joint", 0, "a spring that yields", "set springyield to 0"),
    "jnt_plasticadr": ("joint", -1, "a plastic spring", "set springyield to 0"),
    "jnt_actfrclimited": (
        "joint",
        0,
        "actuatorfrcrange",
        "set actuatorfrclimited to false and limit the actuator by forcerange",
    ),
    "dof_dampingpoly": ("dof", 0, "polynomial damping", "use a linear damping"),
    "dof_frictionloss": ("dof", 0, "frictionloss", "set frictionloss to 0, use damping"),
    "geom_plugin": ("geom", -1, "a plugin", "remove the plugin"),
    "geom_surfacevel": ("geom", 0, "a surface velocity", "set surfacevel to 0"),
    "geom_adhesion": ("geom", 0, "adhesion", "set adhesion to 0"),
    "pair_adhesion": ("pair", 0, "adhesion", "set adhesion to 0"),
    "pair_solreffriction": ("pair", 0, "solreffriction", "leave solreffriction out"),
    "tendon_stiffness": ("tendon", 0, "stiffness", "move the spring to a joint"),
    "tendon_stiffnesspoly": ("tendon", 0, "polynomial stiffness", "move the spring to a joint"),
    "tendon_springyield": ("tendon", 0, "a spring that yields", "set springyield to 0"),
    "tendon_plasticadr": ("tendon", -1, "a plastic spring", "set springyield to 0"),
    "tendon_damping": ("tendon", 0, "damping", "move the damping to a joint"),
    "tendon_dampingpoly": ("tendon", 0, "polynomial damping", "move the damping to a joint"),
    "tendon_frictionloss": ("tendon", 0, "frictionloss", "set frictionloss to 0"),
    "tendon_armature": ("tendon", 0, "armature", "move the armature to a joint"),
    "tendon_limited": ("tendon", 0, "a limit", "limit the joints instead"),
    "tendon_actfrclimited": ("tendon", 0, "actuatorfrcrange", "remove actuatorfrcrange"),
    "actuator_plugin": ("actuator", -1, "a plugin", "remove the plugin"),
    "actuator_damping": ("actuator", 0, "damping", "set the damping of its joint instead"),
    "actuator_dampingpoly": (
        "actuator",
        0,
        "polynomial damping",
        "set the damping of its joint instead",
    ),
    "actuator_armature": ("actuator", 0, "armature", "set the armature of its joint instead"),
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
    "actuator_trntype": ("actuator", mujoco.mjtTrn, ("mjTRN_JOINT",), "drive a joint instead"),
    "actuator_dyntype": ("actuator", mujoco.mjtDyn, ("mjDYN_NONE",), "set dyntype to none"),
    "actuator_gaintype": (
        "actuator",
        mujoco.mjtGain,
        ("mjGAIN_FIXED", "mjGAIN_AFFINE"),
        "set gaintype to fixed or affine",
    ),
    "actuator_biastype": (
        "actuator",
        mujoco.mjtBias,
        ("mjBIAS_NONE", "mjBIAS_AFFINE"),
        "set biastype to none or affine",
    ),
}

# Sizes that must vanish.
_EMPTY = {"neq": "equality", "nflex": "flex", "nplugin": "plugin"}

# Fields of the elements that move or touch something, besides those of the tables above.
_FIELDS_FREE = set(
    """actuator_acc0 actuator_actadr actuator_actearly actuator_actlimited actuator_actnum
    actuator_actrange actuator_biasprm actuator_cranklength actuator_ctrladr actuator_ctrllimited
    actuator_ctrlrange actuator_ctrlspec actuator_dynprm actuator_forcelimited actuator_forcerange
    actuator_gainprm actuator_gear actuator_group actuator_historyadr actuator_length0
    actuator_lengthrange actuator_outadr actuator_trnid actuator_user body_bvhadr body_bvhnum
    body_conaffinity body_contype body_dofadr body_dofnum body_geomadr body_geomnum body_inertia
    body_invweight0 body_ipos body_iquat body_jntadr body_jntnum body_margin body_mass body_mocapid
    body_parentid body_pos body_quat body_rootid body_sameframe body_simple body_subtreemass
    body_treeid body_user body_weldid dof_M0 dof_Madr dof_armature dof_bodyid dof_damping
    dof_invweight0 dof_jntid dof_length dof_parentid dof_simplenum dof_solimp dof_solref dof_treeid
    exclude_signature flg_adhesion flg_gravcomp flg_surfacevel geom_aabb geom_bodyid
    geom_castshadow geom_conaffinity geom_condim geom_contype geom_dataid geom_fluid geom_friction
    geom_gap geom_group geom_margin geom_matid geom_pos geom_priority geom_quat geom_rbound
    geom_rgba geom_sameframe geom_size geom_solimp geom_solmix geom_solref geom_type geom_user
    jnt_actgravcomp jnt_actfrcrange jnt_actuatorid jnt_axis jnt_bodyid jnt_dofadr jnt_group
    jnt_limited jnt_margin jnt_pos jnt_qposadr jnt_range jnt_solimp jnt_solref jnt_stiffness
    jnt_user pair_dim pair_friction pair_gap pair_geom1 pair_geom2 pair_margin pair_signature
    pair_solimp pair_solref paths qpos0 qpos_spring signature tendon_actfrcrange
    tendon_actuatorid tendon_adr tendon_group tendon_invweight0 tendon_length0 tendon_lengthspring
    tendon_margin tendon_matid tendon_num tendon_range tendon_rgba tendon_solimp_fri
    tendon_solimp_lim tendon_solref_fri tendon_solref_lim tendon_treeid tendon_treenum tendon_type
    tendon_user tendon_width tree_bodyadr tree_bodynum tree_dofadr tree_dofnum tree_sleep_policy
    names names_map""".split()
)
# Elements that exert no force (or, for flex_ and eq_, must not exist), sizes and derived indices.
_PREFIXES_FREE = tuple(
    """bvh_ cam_ efm eq_ flex flexedge_ hfield_ key_ light_ map mat_ mesh_ n name_ numeric_ oct_
    plugin_ sensor_ site_ skin_ ten_J tex_ text_ tuple_ wrap_ B_ D_ M_""".split()
)


def _options(mjm: mujoco.MjModel) -> Iterator[str]:
    for field, (accepted, advice) in _OPTIONS.items():
        value = np.atleast_1d(getattr(mjm.opt, field))
        if not np.isin(value, [int(a) for a in accepted]).all():
            yield f"option {field} = {_shown(value, accepted)}: {advice}"
    if mjm.opt.jacobian == mujoco.mjtJacobian.mjJAC_DENSE and mjm.nv > _MAX_DENSE_NV:
        yield f"option jacobian = dense with nv = {mjm.nv}: set jacobian to auto"
    for field in ("iterations", "ls_iterations"):
        if getattr(mjm.opt, field) < _MIN_ITERATIONS:
            yield (
                f"option {field} = {getattr(mjm.opt, field)}: the adjoint needs a converged "
                f"solver, set it to >= {_MIN_ITERATIONS}"
            )
    if mjm.opt.tolerance > _MAX_TOLERANCE:
        yield (
            f"option tolerance = {mjm.opt.tolerance:g}: the adjoint needs a converged solver, "
            f"set it to <= {_MAX_TOLERANCE:g}"
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
    known = _FIELDS_FREE | set(_ONLY) | set(_TYPES)
    for field in _public(mjm) - known:
        value = getattr(mjm, field)
        if not field.startswith(_PREFIXES_FREE) and isinstance(value, np.ndarray | int | float):
            if np.any(value):
                yield f"field {field} of MjModel: unknown to diffenvs, leave it at 0"
    if mjm.nv == 0:
        yield "the model has no degree of freedom: add a joint"


def _joints_and_actuators(mjm: mujoco.MjModel) -> Iterator[str]:
    for i, kind in enumerate(mjm.jnt_type):
        if kind in (int(_JOINT.mjJNT_BALL), int(_JOINT.mjJNT_FREE)) and mjm.jnt_stiffness[i]:
            yield f"{_name(mjm, 'joint', i)} (ball or free) has a spring: set its stiffness to 0"
    disabled = int(mjm.opt.disableactuator)
    scalar = (int(_JOINT.mjJNT_HINGE), int(_JOINT.mjJNT_SLIDE))
    for i in range(mjm.nactuator):
        target, kind = mjm.actuator_trnid[i, 0], mjm.actuator_trntype[i]
        if kind == int(mujoco.mjtTrn.mjTRN_JOINT) and mjm.jnt_type[target] not in scalar:
            joint = _name(mjm, "joint", target)
            yield (
                f"{_name(mjm, 'actuator', i)} drives {joint}, which is free or ball: "
                "drive hinge or slide joints"
            )
        if _reads_unclamped_ctrl(mjm, i):
            yield (
                f"{_name(mjm, 'actuator', i)} has a velocity gain and a ctrlrange under "
                "implicitfast, where mujoco_warp takes the gain at the unclamped control: set "
                "integrator to Euler, gainprm[2] to 0 or ctrllimited to false"
            )
        if mjm.actuator_group[i] in range(31) and disabled >> int(mjm.actuator_group[i]) & 1:
            yield (
                f"{_name(mjm, 'actuator', i)} is disabled by option actuatorgroupdisable, which "
                "mujoco_warp ignores: remove the actuator"
            )


def _reads_unclamped_ctrl(mjm: mujoco.MjModel, i: int) -> bool:
    """A case where the step of mujoco_warp is not that of MuJoCo."""
    affine = mjm.actuator_gaintype[i] == int(mujoco.mjtGain.mjGAIN_AFFINE)
    clamped = not mjm.opt.disableflags & int(_DISABLE.mjDSBL_CLAMPCTRL)
    ctrl = mjm.actuator_ctrladr[i] if mjm.actuator_ctrlnum[i] else 0
    return bool(
        mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        and affine
        and mjm.actuator_gainprm[i, 2]
        and clamped
        and mjm.actuator_ctrllimited[ctrl]
    )


def _contacts(mjm: mujoco.MjModel) -> Iterator[str]:
    partners = defaultdict(list)
    accepted = _PAIRS | _MANIFOLD_PAIRS
    for a, b in colliding_pairs(mjm):
        if _kinds(mjm, a, b) not in accepted:
            first, second = (a, b) if mjm.geom_type[a] >= mjm.geom_type[b] else (b, a)
            partners[first].append(second)
    for geom, others in partners.items():
        with_ = ", ".join(_geom(mjm, other) for other in sorted(others))
        yield (
            f"{_geom(mjm, geom)} can collide with {with_}: replace it by spheres, capsules or "
            "ellipsoids, or rule the contact out by contype, conaffinity or <exclude>"
        )
    yield from _slippery(mjm)
    distances = ("mjSENS_GEOMDIST", "mjSENS_GEOMNORMAL", "mjSENS_GEOMFROMTO")
    refused = [int(mujoco.mjtSensor.__members__[k]) for k in distances]
    for i in np.flatnonzero(np.isin(mjm.sensor_type, refused)).tolist():
        yield f"{_name(mjm, 'sensor', i)} adds geom pairs to the collision list: remove it"


def _slippery(mjm: mujoco.MjModel) -> Iterator[str]:
    """Pairs whose pyramid of friction is too flat for single precision."""
    if mjm.opt.cone != mujoco.mjtCone.mjCONE_PYRAMIDAL:
        return
    least = _MIN_PYRAMID_FRICTION * float(np.sqrt(mjm.opt.impratio))
    explicit = {
        (min(a, b), max(a, b)): i
        for i, (a, b) in enumerate(zip(mjm.pair_geom1, mjm.pair_geom2, strict=True))
    }
    for a, b in colliding_pairs(mjm):
        i = explicit.get((a, b))
        if i is not None:
            condim, friction = mjm.pair_dim[i], mjm.pair_friction[i, :2].min()
        else:
            priority = mjm.geom_priority[[a, b]]
            ruling = [(a, b)[k] for k in np.flatnonzero(priority == priority.max())]
            condim, friction = mjm.geom_condim[ruling].max(), mjm.geom_friction[ruling, 0].max()
        if condim > 1 and friction < least:
            yield (
                f"{_geom(mjm, a)} and {_geom(mjm, b)} have a sliding friction of {friction:g}: "
                f"raise it to {least:g}, set cone to elliptic, or set condim to 1"
            )


def _callbacks(mjm: mujoco.MjModel) -> Iterator[str]:
    del mjm
    for name in ("passive", "control", "contactfilter", "act_dyn", "act_gain", "act_bias"):
        if getattr(mujoco, f"get_mjcb_{name}")() is not None:
            yield (
                f"callback mjcb_{name} is installed, which mujoco_warp never calls: "
                f"mujoco.set_mjcb_{name}(None)"
            )


_CHECKS = (_options, _flags, _fields, _joints_and_actuators, _contacts, _callbacks)


def colliding_pairs(mjm: mujoco.MjModel) -> list[tuple[int, int]]:
    """Pairs of geoms (a < b) that MuJoCo's filters let touch, and those of <pair> elements.

    Two geoms are tested if the masks of one admit the other, their bodies are not welded together,
    at least one of them moves, they are not parent and child (unless that filter is disabled; the
    world is nobody's parent here) and no <exclude> names their bodies.
    """
    off = _DISABLE.mjDSBL_CONSTRAINT | _DISABLE.mjDSBL_CONTACT
    if mjm.opt.disableflags & int(off):
        return []
    a, b = np.triu_indices(mjm.ngeom, k=1)
    body_a, body_b = mjm.geom_bodyid[a], mjm.geom_bodyid[b]
    admitted = (mjm.geom_contype[a] & mjm.geom_conaffinity[b]) != 0
    admitted |= (mjm.geom_contype[b] & mjm.geom_conaffinity[a]) != 0
    weld_a, weld_b = mjm.body_weldid[body_a], mjm.body_weldid[body_b]
    moving = (mjm.body_dofnum[weld_a] > 0) | (mjm.body_dofnum[weld_b] > 0)
    keep = admitted & (weld_a != weld_b) & moving
    if not mjm.opt.disableflags & int(_DISABLE.mjDSBL_FILTERPARENT):
        parent = mjm.body_weldid[mjm.body_parentid[mjm.body_weldid]]
        related = (parent[body_a] == weld_b) | (parent[body_b] == weld_a)
        keep &= ~(related & (weld_a != 0) & (weld_b != 0))
    keep &= ~np.isin((body_a << 16) + body_b, mjm.exclude_signature)
    pairs = set(zip(a[keep].tolist(), b[keep].tolist(), strict=True))
    explicit = zip(mjm.pair_geom1.tolist(), mjm.pair_geom2.tolist(), strict=True)
    return sorted(pairs | {(min(p), max(p)) for p in explicit})


def has_shapes(mjm: mujoco.MjModel) -> bool:
    """Whether any geoms collide that are not as simple as spheres and capsules."""
    return any(_kinds(mjm, a, b) not in _SIMPLE_PAIRS for a, b in colliding_pairs(mjm))


def has_manifolds(mjm: mujoco.MjModel) -> bool:
    """Whether any geoms collide whose contacts come from clipping their faces."""
    return any(_kinds(mjm, a, b) in _MANIFOLD_PAIRS for a, b in colliding_pairs(mjm))


def _kinds(mjm: mujoco.MjModel, a: int, b: int) -> frozenset[mujoco.mjtGeom]:
    return frozenset((_GEOM(mjm.geom_type[a]), _GEOM(mjm.geom_type[b])))


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
