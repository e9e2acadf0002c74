"""The part of `check` that concerns constraint rows: where mujoco_warp has others than MuJoCo."""

from collections.abc import Iterator

import mujoco
import numpy as np

from .model_names import element_name

_SCALAR = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))

# field: element
_SOLREF = {
    "jnt_solref": "joint",
    "dof_solref": "dof",
    "geom_solref": "geom",
    "pair_solref": "pair",
    "pair_solreffriction": "pair",
    "eq_solref": "equality",
    "tendon_solref_lim": "tendon",
    "tendon_solref_fri": "tendon",
}


def check_rows(mjm: mujoco.MjModel) -> Iterator[str]:
    """Limits that overlap, and reference values in a mixture of formats."""
    scalar = np.isin(mjm.jnt_type, _SCALAR)
    for element, limited, bounds, margin in (
        ("joint", scalar & (mjm.jnt_limited != 0), mjm.jnt_range, mjm.jnt_margin),
        ("tendon", mjm.tendon_limited != 0, mjm.tendon_range, mjm.tendon_margin),
    ):
        overlap = limited & (np.diff(bounds, axis=1).ravel() < 2 * margin)
        for i in np.flatnonzero(overlap).tolist():
            yield (
                f"{element_name(mjm, element, i)} is less than two margins from limit to limit, "
                "where both act in MuJoCo and one does in mujoco_warp: reduce margin"
            )
    for field, element in _SOLREF.items():
        direct = getattr(mjm, field) <= 0
        for i in np.flatnonzero(direct[:, 0] != direct[:, 1]).tolist():
            yield (
                f"{element_name(mjm, element, i)} has {field} "
                f"{getattr(mjm, field)[i].tolist()}, which MuJoCo replaces by the default and "
                "mujoco_warp does not: make both positive, or none"
            )
