"""The part of `check` that concerns equality constraints."""

from collections.abc import Iterator

import mujoco
import numpy as np

from .check_actuator import path_dofs
from .check_tendon import turned_slides
from .model_names import element_name

_MAX_AUTO_DENSE_NV = 32  # above, jacobian = auto means sparse to mujoco_warp


def check_equalities(mjm: mujoco.MjModel) -> Iterator[str]:
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
            equality = element_name(mjm, "equality", i)
            holds = f"{equality} holds {element_name(mjm, 'body', body)}, which"
            if not dense and mjm.body_weldid[body] not in (0, body):
                yield (
                    f"{holds} has no joint, with a sparse jacobian, where mujoco_warp takes the "
                    "weight of the parent: set jacobian to dense (nv <= 60), or hold the parent"
                )
            if turned_slides(mjm, path_dofs(mjm, body)):
                yield (
                    f"{holds} is moved by a ball joint with a slide after it in the same body: put "
                    "the slide first"
                )
