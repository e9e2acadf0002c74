"""How many contacts and constraint rows to make room for, where the caller does not say."""

import mujoco
import mujoco_warp as mjw
import numpy as np

_GEOM = mujoco.mjtGeom
# pairs that may touch in several points; all others touch in one
_PAIR_CONTACTS = {
    (_GEOM.mjGEOM_PLANE, _GEOM.mjGEOM_CAPSULE): 2,
    (_GEOM.mjGEOM_PLANE, _GEOM.mjGEOM_CYLINDER): 4,
    (_GEOM.mjGEOM_PLANE, _GEOM.mjGEOM_BOX): 8,
    (_GEOM.mjGEOM_PLANE, _GEOM.mjGEOM_MESH): 4,
    (_GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_CAPSULE): 2,
    (_GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_CYLINDER): 2,
    (_GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_BOX): 2,
    (_GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_MESH): 2,
    (_GEOM.mjGEOM_CYLINDER, _GEOM.mjGEOM_CYLINDER): 4,
    (_GEOM.mjGEOM_CYLINDER, _GEOM.mjGEOM_BOX): 4,
    (_GEOM.mjGEOM_CYLINDER, _GEOM.mjGEOM_MESH): 4,
    (_GEOM.mjGEOM_BOX, _GEOM.mjGEOM_BOX): 8,
    (_GEOM.mjGEOM_BOX, _GEOM.mjGEOM_MESH): 4,
    (_GEOM.mjGEOM_MESH, _GEOM.mjGEOM_MESH): 4,
}
# of a world; more would take memory that models with many pairs of geoms never use
_CONTACTS = 64
_ROWS = 192
_CONTACT_ROWS = 64  # at least, beside all rows that are not of contacts


def most_contacts(mjm: mujoco.MjModel, m: mjw.Model) -> int:
    """The most contacts that a world of this model can have, within `_CONTACTS`."""
    ncon = 0
    for g1, g2 in m.nxn_geom_pair_filtered.numpy():
        pair = sorted((int(mjm.geom_type[g1]), int(mjm.geom_type[g2])))
        ncon += _PAIR_CONTACTS.get((_GEOM(pair[0]), _GEOM(pair[1])), 1)
    return min(max(ncon, 1), _CONTACTS)


def most_rows(mjm: mujoco.MjModel, ncon: int) -> int:
    """The most constraint rows that a world with `ncon` contacts can have.

    Those of contacts are bounded; all equalities, friction losses and limits fit.
    """
    dim = int(max([1, *mjm.geom_condim, *mjm.pair_dim]))
    elliptic = mjm.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
    nrow = dim if elliptic or dim == 1 else 2 * (dim - 1)
    limits = mjm.jnt_limited.sum() + mjm.tendon_limited.sum()
    losses = np.sum(mjm.dof_frictionloss > 0) + np.sum(mjm.tendon_frictionloss > 0)
    per_equality = {mujoco.mjtEq.mjEQ_CONNECT: 3, mujoco.mjtEq.mjEQ_WELD: 6}
    active = mjm.eq_type[mjm.eq_active0.astype(bool)]
    equalities = sum(per_equality.get(mujoco.mjtEq(kind), 1) for kind in active)
    fixed = int(equalities + losses + limits)
    return max(min(fixed + ncon * nrow, max(_ROWS, fixed + _CONTACT_ROWS)), 1)
