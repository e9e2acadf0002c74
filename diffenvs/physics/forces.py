"""The forces of the last physics substep, as outputs of a step beside its state.

They are what MuJoCo holds in its `Data` after `mj_step` and `mj_rnePostConstraint`: forces of the
state *before* the last substep, and for RK4 of the last of its four stages.

    cfrc_ext of a body = sum over its contacts of +-wrench(pos - com, force, torque) + xfrc_applied

with `com` the centre of mass of the body's tree, + for the second geom of a contact, and the row of
the world left at 0. The adjoint is `forces_vjp`; derivation: `DERIVATION.md`, section 13.
"""

import dataclasses
from collections.abc import Callable, Iterator

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from .check import UnsupportedFeature
from .model_names import element_name
from .record import Substep
from .spatial import vec5, vec6, wrench
from .workspace import Flags

wp.set_module_options({"enable_backward": False})

_TRN = mujoco.mjtTrn

FORCES = {
    # name: (dtype, size of the model that gives its columns)
    "qfrc_actuator": (float, "nv"),
    "qfrc_constraint": (float, "nv"),
    "cfrc_ext": (wp.spatial_vector, "nbody"),
}


@dataclasses.dataclass
class Forces:
    """Forces of `nworld` worlds; a field that is None is not computed. See `Physics.make_forces`.

    Attributes:
        qfrc_actuator: generalized forces of all actuators, float (nworld, nv).
        qfrc_constraint: generalized forces of all constraints, float (nworld, nv).
        cfrc_ext: torque, then force, of contacts and `xfrc_applied` on each body, in world axes and
            about the centre of mass of the body's tree, `wp.spatial_vector` (nworld, nbody). The
            row of the world is 0.
    """

    qfrc_actuator: wp.array | None = None
    qfrc_constraint: wp.array | None = None
    cfrc_ext: wp.array | None = None

    def given(self) -> dict[str, wp.array]:
        """The arrays that are not None, by name."""
        arrays = {name: getattr(self, name) for name in FORCES}
        return {name: array for name, array in arrays.items() if array is not None}


def make_forces(m: mjw.Model, nworld: int, names: tuple[str, ...]) -> Forces:
    """Memory for the forces with these names."""
    arrays = {}
    for name in names:
        dtype, size = FORCES[name]
        arrays[name] = wp.zeros((nworld, getattr(m, size)), dtype=dtype)
    return Forces(**arrays)


def check_forces(mjm: mujoco.MjModel, flags: Flags, names: tuple[str, ...]) -> None:
    """Raises unless all of these forces have a gradient.

    Raises:
        ValueError: a name is not that of a force.
        UnsupportedFeature: lists all that has no gradient.
    """
    for name in names:
        if name not in FORCES:
            raise ValueError(f"Physics: there is no force '{name}'; there are {', '.join(FORCES)}")
    found = [f"{name}: {why}" for name in names for why in _REFUSED[name](mjm, flags)]
    if names and flags.discrete:
        found.insert(0, "integrator discrete: set integrator to Euler, RK4 or implicitfast")
    if found:
        head = "Physics: forces of this model without a gradient in diffenvs:"
        raise UnsupportedFeature("\n  - ".join([head, *found]))


def _actuator(mjm: mujoco.MjModel, flags: Flags) -> Iterator[str]:
    for i in range(mjm.nu if flags.actuation else 0):
        kind, target = mjm.actuator_trntype[i], mjm.actuator_trnid[i, 0]
        tendon = kind == _TRN.mjTRN_TENDON and _is_spatial(mjm, target)
        if tendon or kind == _TRN.mjTRN_SITE:
            where = "a spatial tendon" if tendon else "a site"
            name = element_name(mjm, "actuator", i)
            yield f"{name} acts on {where}; let it drive a joint or a fixed tendon"
    if flags.gravcomp:
        for i in np.flatnonzero(mjm.jnt_actgravcomp).tolist():
            name = element_name(mjm, "joint", i)
            yield f"{name} counts gravity compensation as actuation; set actuatorgravcomp to false"


def _constraint(mjm: mujoco.MjModel, flags: Flags) -> Iterator[str]:
    tied = mjm.eq_type == int(mujoco.mjtEq.mjEQ_TENDON)
    constrained = mjm.tendon_limited.astype(bool) | (mjm.tendon_frictionloss > 0)
    constrained[np.union1d(mjm.eq_obj1id[tied], mjm.eq_obj2id[tied])] = True
    for i in np.flatnonzero(constrained).tolist():
        if _is_spatial(mjm, i):
            name = element_name(mjm, "tendon", i)
            yield f"{name} is spatial and constrained; use a fixed tendon"
    if mjm.flg_adhesion:
        yield "geoms adhere; set adhesion of all geoms and pairs to 0"


def _external(mjm: mujoco.MjModel, flags: Flags) -> Iterator[str]:
    if flags.body_equality:
        kinds = (int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD))
        for i in np.flatnonzero(np.isin(mjm.eq_type, kinds)).tolist():
            name = element_name(mjm, "equality", i)
            yield f"{name} acts on bodies; remove it, or read qfrc_constraint"
    for i in range(mjm.ntendon if flags.spatial_tendon else 0):
        if _is_spatial(mjm, i):
            name = element_name(mjm, "tendon", i)
            yield f"{name} is spatial and pulls at bodies; use a fixed tendon"
    for i in np.flatnonzero((mjm.body_mocapid >= 0) & (mjm.body_subtreemass == 0)).tolist():
        name = element_name(mjm, "body", i)
        yield f"{name} is a mocap body without mass; give one of its geoms a mass"


_REFUSED: dict[str, Callable[[mujoco.MjModel, Flags], Iterator[str]]] = {
    "qfrc_actuator": _actuator,
    "qfrc_constraint": _constraint,
    "cfrc_ext": _external,
}


def _is_spatial(mjm: mujoco.MjModel, tendon: int) -> bool:
    return mjm.tendon_type[tendon] == mujoco.mjtTendon.mjTENDON_SPATIAL


@wp.kernel
def _cfrc_ext(
    # Model:
    nbody: int,
    body_rootid: wp.array[int],
    geom_bodyid: wp.array[int],
    # Data:
    ne_in: wp.array[int],
    nf_in: wp.array[int],
    nl_in: wp.array[int],
    nefc_in: wp.array[int],
    xfrc_applied_in: wp.array2d[wp.spatial_vector],
    xipos_in: wp.array2d[wp.vec3],
    subtree_com_in: wp.array2d[wp.vec3],
    contact_pos_in: wp.array[wp.vec3],
    contact_frame_in: wp.array[wp.mat33],
    contact_friction_in: wp.array[vec5],
    contact_dim_in: wp.array[int],
    contact_adhesion_in: wp.array[float],
    contact_geom_in: wp.array[wp.vec2i],
    efc_id_in: wp.array2d[int],
    efc_force_in: wp.array2d[float],
    # In:
    elliptic: bool,
    # Out:
    cfrc_ext_out: wp.array2d[wp.spatial_vector],
):
    """Contacts in the order of their rows, one world per thread: repeatable sums."""
    worldid = wp.tid()
    cfrc_ext_out[worldid, 0] = wp.spatial_vector()
    for bodyid in range(1, nbody):
        xfrc = xfrc_applied_in[worldid, bodyid]
        cfrc_ext_out[worldid, bodyid] = wrench(
            xipos_in[worldid, bodyid] - subtree_com_in[worldid, body_rootid[bodyid]],
            wp.vec3(xfrc[0], xfrc[1], xfrc[2]),
            wp.vec3(xfrc[3], xfrc[4], xfrc[5]),
        )
    nefc = wp.min(nefc_in[worldid], efc_force_in.shape[1])
    efcid = ne_in[worldid] + nf_in[worldid] + nl_in[worldid]
    while efcid < nefc:
        conid = efc_id_in[worldid, efcid]
        dim = contact_dim_in[conid]
        first = efcid
        if elliptic:
            efcid += dim
        else:
            efcid += wp.max(1, 2 * (dim - 1))
        if efcid > nefc:
            # a contact cut off by njmax; the overflow is reported by Physics.check_overflow
            continue

        f = vec6(0.0)
        if elliptic or dim == 1:
            for k in range(dim):
                f[k] = efc_force_in[worldid, first + k]
        else:
            for k in range(1, dim):
                plus = efc_force_in[worldid, first + 2 * k - 2]
                minus = efc_force_in[worldid, first + 2 * k - 1]
                f[0] += plus + minus
                f[k] = contact_friction_in[conid][k - 1] * (plus - minus)
        f[0] -= contact_adhesion_in[conid]

        axes = wp.transpose(contact_frame_in[conid])
        force = axes @ wp.vec3(f[0], f[1], f[2])
        torque = axes @ wp.vec3(f[3], f[4], f[5])
        for side in range(2):
            bodyid = geom_bodyid[contact_geom_in[conid][side]]
            if bodyid > 0:
                com = subtree_com_in[worldid, body_rootid[bodyid]]
                sign = 2.0 * float(side) - 1.0
                x = wrench(contact_pos_in[conid] - com, force, torque)
                cfrc_ext_out[worldid, bodyid] += sign * x


def launch_forces(m: mjw.Model, flags: Flags, s: Substep, forces: Forces) -> None:
    """Fills the given forces from what the last substep left in its Data."""
    d = s.d if s.rungekutta4 is None else s.rungekutta4.stages[-1].d
    for name in ("qfrc_actuator", "qfrc_constraint"):
        array = getattr(forces, name)
        if array is not None:
            wp.copy(array, getattr(d, name))
    if forces.cfrc_ext is None:
        return
    wp.launch(
        _cfrc_ext,
        dim=d.nworld,
        inputs=[
            m.nbody,
            m.body_rootid,
            m.geom_bodyid,
            d.ne,
            d.nf,
            d.nl,
            d.nefc,
            d.xfrc_applied,
            d.xipos,
            d.subtree_com,
            d.contact.pos,
            d.contact.frame,
            d.contact.friction,
            d.contact.dim,
            d.contact.adhesion,
            d.contact.geom,
            d.efc.id,
            d.efc.force,
            flags.elliptic,
        ],
        outputs=[forces.cfrc_ext],
    )
