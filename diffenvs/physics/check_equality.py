"""The part of `check` that concerns equality constraints."""

from collections.abc import Iterator

import mujoco
import numpy as np

from .model_names import element_name

_MAX_AUTO_DENSE_NV = 32  # above, jacobian = auto means sparse to mujoco_warp


def check_equalities(mjm: mujoco.MjModel) -> Iterator[str]:
    """Rows of bodies without joints, whose weight mujoco_warp takes from the parent if sparse."""
    mode = mjm.opt.jacobian
    if mode == mujoco.mjtJacobian.mjJAC_DENSE or (
        mode == mujoco.mjtJacobian.mjJAC_AUTO and mjm.nv <= _MAX_AUTO_DENSE_NV
    ):
        return
    on_bodies = (int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD))
    for i in np.flatnonzero(np.isin(mjm.eq_type, on_bodies)).tolist():
        bodies = np.array([mjm.eq_obj1id[i], mjm.eq_obj2id[i]])
        if mjm.eq_objtype[i] == int(mujoco.mjtObj.mjOBJ_SITE):
            bodies = mjm.site_bodyid[bodies]
        for body in bodies.tolist():
            if mjm.body_weldid[body] not in (0, body):
                yield (
                    f"{element_name(mjm, 'equality', i)} holds {element_name(mjm, 'body', body)}, "
                    "which has no joint, with a sparse jacobian, where mujoco_warp takes the "
                    "weight of the parent: set jacobian to dense (nv <= 60), or hold the parent"
                )
