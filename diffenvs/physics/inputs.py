"""The inputs of a step besides its state: controls, applied forces, poses of mocap bodies."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import warp as wp

from .check import UnsupportedFeature
from .check_contact import colliding_pairs

if TYPE_CHECKING:
    from .record import Record
    from .step import Physics, State

wp.set_module_options({"enable_backward": False})


@dataclasses.dataclass
class Inputs:
    """What drives a step of `nworld` worlds, held constant over its substeps.

    Every field but `ctrl` may be None: forces are then zero, mocap bodies stay where the model has
    them, and nothing is computed for them. Names, dtypes and conventions are those of
    `mujoco_warp.Data`.

    Attributes:
        ctrl: controls, float (nworld, nu).
        qfrc_applied: generalized forces, float (nworld, nv).
        xfrc_applied: force, then torque, in world axes at the centre of mass of each body (its
            `xipos`), `wp.spatial_vector` (nworld, nbody).
        mocap_pos: positions of mocap bodies, `wp.vec3` (nworld, nmocap).
        mocap_quat: their orientations, scalar first and of any norm, `wp.quat` (nworld, nmocap).
            Its gradient is by the four components, orthogonal to the quaternion.
    """

    ctrl: wp.array
    qfrc_applied: wp.array | None = None
    xfrc_applied: wp.array | None = None
    mocap_pos: wp.array | None = None
    mocap_quat: wp.array | None = None

    def given(self) -> dict[str, wp.array]:
        """The arrays that are not None, by name."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


@wp.kernel
def accumulate_vectors(
    # In:
    increment_in: wp.array2d[Any],
    # Out:
    grad_io: wp.array2d[Any],
):
    """grad += increment, of the fields that are not scalars."""
    worldid, i = wp.tid()
    grad_io[worldid, i] += increment_in[worldid, i]


for _dtype in (wp.vec3, wp.quat, wp.spatial_vector):
    wp.overload(accumulate_vectors, [wp.array2d[_dtype], wp.array2d[_dtype]])


def as_inputs(ctrl: wp.array | Inputs) -> Inputs:
    """Where a control is accepted, so are inputs."""
    return ctrl if isinstance(ctrl, Inputs) else Inputs(ctrl)


def make_inputs(physics: "Physics", requires_grad: bool) -> Inputs:
    """No control, no force, mocap bodies where the model has them."""
    mjm, nworld = physics.mjm, physics.nworld

    def zeros(n: int, dtype: type) -> wp.array:
        return wp.zeros((nworld, n), dtype=dtype, requires_grad=requires_grad)

    def poses(values: np.ndarray, dtype: type) -> wp.array:
        mocap = np.flatnonzero(mjm.body_mocapid >= 0)
        ordered = values[mocap[np.argsort(mjm.body_mocapid[mocap])]]
        batch = np.tile(ordered.astype(np.float32), (nworld, 1, 1))
        return wp.array(batch, dtype=dtype, requires_grad=requires_grad)

    inputs = Inputs(
        ctrl=zeros(mjm.nu, float),
        qfrc_applied=zeros(mjm.nv, float),
        xfrc_applied=zeros(mjm.nbody, wp.spatial_vector),
    )
    if mjm.nmocap:
        inputs.mocap_pos = poses(mjm.body_pos, wp.vec3)
        inputs.mocap_quat = poses(mjm.body_quat, wp.quat)
    return inputs


def copy_inputs(target: Inputs, source: Inputs, who: str) -> None:
    """Between inputs that have the same fields."""
    to, given = target.given(), source.given()
    if to.keys() != given.keys():
        raise ValueError(
            f"{who}: the record was made for {', '.join(to)}, not for {', '.join(given)}; make it"
            " by make_record(inputs) with inputs of the same fields"
        )
    for name, array in given.items():
        if array.size > 0:
            wp.copy(to[name], array)


def check_arrays(
    physics: "Physics", state: "State", inputs: Inputs, who: str, state_name: str
) -> None:
    """Raises ValueError if an array has another shape, dtype or device."""
    p, mjm = physics, physics.mjm
    vectors = {"xfrc_applied": wp.spatial_vector, "mocap_pos": wp.vec3, "mocap_quat": wp.quat}
    expected = {
        f"{state_name}.qpos": (state.qpos, p.nq),
        f"{state_name}.qvel": (state.qvel, p.nv),
        f"{state_name}.act": (state.act, p.na),
        f"{state_name}.qacc_warmstart": (state.qacc_warmstart, p.nv),
        "ctrl": (inputs.ctrl, p.nu),
        "qfrc_applied": (inputs.qfrc_applied, p.nv),
        "xfrc_applied": (inputs.xfrc_applied, mjm.nbody),
        "mocap_pos": (inputs.mocap_pos, mjm.nmocap),
        "mocap_quat": (inputs.mocap_quat, mjm.nmocap),
    }
    for name, (array, width) in expected.items():
        if array is None and name not in ("ctrl", *list(expected)[:4]):
            continue
        shape, dtype = (p.nworld, width), vectors.get(name, wp.float32)
        if array is None or not isinstance(array, wp.array):
            kind = type(array).__name__
            raise ValueError(f"{who}: {name} is a {kind}, not a wp.array")
        same = wp.types.types_equal(array.dtype, dtype)
        if array.shape != shape or not same or array.device != p.device:
            raise ValueError(
                f"{who}: {name} is {array.dtype.__name__} {array.shape} on"
                f" {array.device}; it must be {dtype.__name__} {shape} on {p.device}"
            )


def check_cotangents(
    physics: "Physics", record: "Record", adj_out: "State", adj: "State", adj_inputs: Inputs
) -> None:
    """Raises ValueError if the adjoint of the recorded step cannot work on these arrays."""
    who = "Physics.launch_step_vjp"
    for name in adj_inputs.given().keys() - record.inputs.given().keys():
        raise ValueError(
            f"{who}: this record has no cotangent of {name}; make it by make_record(inputs) with"
            " inputs that have this field"
        )
    check_arrays(physics, adj_out, adj_inputs, who, "adj_state_out")
    check_arrays(physics, adj, adj_inputs, who, "adj_state")
    for name in ("qpos", "qvel", "act"):
        array = getattr(adj, name)
        if array.size > 0 and array.ptr == getattr(adj_out, name).ptr:
            raise ValueError(
                f"{who}: adj_state.{name} and adj_state_out.{name} are one array; make two states"
                " by make_state(), the adjoint reads the one while it writes the other"
            )


def check_mocap(mjm: mujoco.MjModel) -> None:
    """Raises UnsupportedFeature with all that keeps poses of mocap bodies from a gradient."""
    found = list(_mocap_problems(mjm))
    if found:
        head = "the poses of mocap bodies have no gradient, leave mocap_pos and mocap_quat out or:"
        raise UnsupportedFeature("\n  - ".join([head, *found]))


def _mocap_problems(mjm: mujoco.MjModel) -> Iterator[str]:
    """Forces of which only what reaches the joints is known, and planes, taken to be at rest."""
    on_mocap = mjm.body_mocapid[mjm.body_rootid] >= 0
    geoms, sites = on_mocap[mjm.geom_bodyid], on_mocap[mjm.site_bodyid]
    is_plane = mjm.geom_type == int(mujoco.mjtGeom.mjGEOM_PLANE)
    touching = sorted({geom for pair in colliding_pairs(mjm) for geom in pair})
    for i in touching:
        if is_plane[i] and geoms[i]:
            yield f"geom '{mjm.geom(i).name}' is a plane on a mocap body: use another shape"

    for i in np.flatnonzero(mjm.tendon_type == int(mujoco.mjtTendon.mjTENDON_SPATIAL)).tolist():
        path = range(mjm.tendon_adr[i], mjm.tendon_adr[i] + mjm.tendon_num[i])
        if any(_holds_mocap(mjm, k, geoms, sites) for k in path):
            yield f"tendon '{mjm.tendon(i).name}' (spatial) is attached to a mocap body: detach it"

    for i in np.flatnonzero(mjm.actuator_trntype == int(mujoco.mjtTrn.mjTRN_SITE)).tolist():
        both = mjm.actuator_trnid[i]
        constant = mjm.actuator_gaintype[i] == int(mujoco.mjtGain.mjGAIN_FIXED)
        constant &= mjm.actuator_biastype[i] == int(mujoco.mjtBias.mjBIAS_NONE)
        if both[1] >= 0 and sites[both].any() and not constant:
            yield (
                f"actuator '{mjm.actuator(i).name}' has a force that depends on the pose of a site "
                "on a mocap body: set gaintype to fixed and biastype to none"
            )


def _holds_mocap(mjm: mujoco.MjModel, k: int, geoms: np.ndarray, sites: np.ndarray) -> bool:
    """Whether a point of a tendon's path belongs to a mocap body, or to what hangs on one."""
    wrap = mujoco.mjtWrap
    if mjm.wrap_type[k] == int(wrap.mjWRAP_SITE):
        return bool(sites[mjm.wrap_objid[k]])
    wraps = (int(wrap.mjWRAP_SPHERE), int(wrap.mjWRAP_CYLINDER))
    return mjm.wrap_type[k] in wraps and bool(geoms[mjm.wrap_objid[k]])
