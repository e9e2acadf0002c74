"""The part of `check` that concerns contacts: which geoms may touch, and which can."""

from collections import defaultdict
from collections.abc import Iterator

import mujoco
import numpy as np

from .model_names import element_name, geom_name

_GEOM, _DISABLE = mujoco.mjtGeom, mujoco.mjtDisableBit

# Rows of a pyramid grow like 1 / friction^2 against the rest of the Hessian; in single precision
# so does the gradient's error: 1e-3 at 0.1, 1e-1 at 0.02.
_MIN_PYRAMID_FRICTION = 0.1
# The search for closest points must converge; MuJoCo's own values are 35 and 1e-6.
_MIN_CCD_ITERATIONS = 20
_MAX_CCD_TOLERANCE = 1e-5


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

# Of these, pairs without a closed form.
_SEARCHED_PAIRS = (_PAIRS | _MANIFOLD_PAIRS) - _pairs(
    """plane-sphere plane-capsule plane-box plane-ellipsoid plane-cylinder plane-mesh sphere-sphere
    sphere-capsule sphere-cylinder sphere-box capsule-capsule capsule-box box-box"""
)


def check_contacts(mjm: mujoco.MjModel) -> Iterator[str]:
    """What of the model's contacts has no derivative."""
    partners = defaultdict(list)
    accepted = _PAIRS | _MANIFOLD_PAIRS
    for a, b in colliding_pairs(mjm):
        if _kinds(mjm, a, b) not in accepted:
            first, second = (a, b) if mjm.geom_type[a] >= mjm.geom_type[b] else (b, a)
            partners[first].append(second)
    for geom, others in partners.items():
        with_ = ", ".join(geom_name(mjm, other) for other in sorted(others))
        yield (
            f"{geom_name(mjm, geom)} can collide with {with_}: replace it by spheres, capsules or "
            "ellipsoids, or rule the contact out by contype, conaffinity or <exclude>"
        )
    if mjm.opt.disableflags & int(_DISABLE.mjDSBL_NATIVECCD) and has_searched(mjm):
        yield (
            "option disableflags, mjDSBL_NATIVECCD with geoms whose contact is searched, which "
            "mujoco_warp does in one way only: clear the flag"
        )
    yield from _slippery(mjm)
    if has_shapes(mjm):
        for field, bad, advice in (
            ("ccd_iterations", mjm.opt.ccd_iterations < _MIN_CCD_ITERATIONS, _MIN_CCD_ITERATIONS),
            ("ccd_tolerance", mjm.opt.ccd_tolerance > _MAX_CCD_TOLERANCE, _MAX_CCD_TOLERANCE),
        ):
            if bad:
                yield (
                    f"option {field} = {getattr(mjm.opt, field):g}: contacts are not found to "
                    f"their precision, set it to {advice:g}"
                )
    distances = ("mjSENS_GEOMDIST", "mjSENS_GEOMNORMAL", "mjSENS_GEOMFROMTO")
    refused = [int(mujoco.mjtSensor.__members__[k]) for k in distances]
    for i in np.flatnonzero(np.isin(mjm.sensor_type, refused)).tolist():
        yield f"{element_name(mjm, 'sensor', i)} adds geom pairs to the collision list: remove it"


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
                f"{geom_name(mjm, a)} and {geom_name(mjm, b)} have a sliding friction of "
                f"{friction:g}: raise it to {least:g}, set cone to elliptic, or set condim to 1"
            )


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


def has_searched(mjm: mujoco.MjModel) -> bool:
    """Whether any geoms collide for which MuJoCo has no closed form, but a general algorithm."""
    return any(_kinds(mjm, a, b) in _SEARCHED_PAIRS for a, b in colliding_pairs(mjm))


def has_curved(mjm: mujoco.MjModel) -> bool:
    """Whether any geoms collide whose closest points are searched, not known in closed form."""
    kinds = {_kinds(mjm, a, b) for a, b in colliding_pairs(mjm)}
    single = bool(mjm.opt.disableflags & int(_DISABLE.mjDSBL_MULTICCD))
    return any(
        _GEOM.mjGEOM_PLANE not in pair
        and (
            _GEOM.mjGEOM_ELLIPSOID in pair
            or (single and _GEOM.mjGEOM_CYLINDER in pair and _GEOM.mjGEOM_SPHERE not in pair)
        )
        for pair in kinds
    )


def _kinds(mjm: mujoco.MjModel, a: int, b: int) -> frozenset[mujoco.mjtGeom]:
    return frozenset((_GEOM(mjm.geom_type[a]), _GEOM(mjm.geom_type[b])))
