"""The part of `check` that concerns passive forces."""

from collections.abc import Iterator

import mujoco
import numpy as np

from .model_names import element_name, geom_name


def check_passive(mjm: mujoco.MjModel) -> Iterator[str]:
    """Gravity compensation through actuators, and what of a fluid is not covered."""
    disabled = mjm.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
    actuation = mjm.nactuator and not disabled
    if mjm.body_gravcomp.any() and not actuation:
        for i in np.flatnonzero(mjm.jnt_actgravcomp).tolist():
            yield (
                f"{element_name(mjm, 'joint', i)} has actuatorgravcomp, which does nothing where "
                "no actuator is enabled: set actuatorgravcomp to false"
            )
    for field in ("density", "viscosity"):
        if getattr(mjm.opt, field) < 0:
            yield f"option {field} = {getattr(mjm.opt, field):g}: set it to 0 or more"
    if not (mjm.opt.density or mjm.opt.viscosity):
        return
    for i in np.flatnonzero(mjm.geom_fluid.reshape(mjm.ngeom, -1)[:, 0]).tolist():
        yield f"{geom_name(mjm, i)} has fluidshape ellipsoid: set fluidshape to none"
    discrete = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE
    if discrete or mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST:
        for i in _uncoupled_bodies(mjm, but_free=not discrete):
            yield (
                f"{element_name(mjm, 'body', i)} has joints that its inertia does not couple but "
                "the fluid does, which implicitfast and discrete leave out: set integrator to "
                "Euler or RK4"
            )


def _uncoupled_bodies(mjm: mujoco.MjModel, but_free: bool) -> list[int]:
    """Bodies of several dofs with a diagonal inertia, perhaps besides free and ball joints."""
    found = []
    for i in np.flatnonzero(mjm.body_simple).tolist():
        rotations = (int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL))
        first, count = mjm.body_jntadr[i], mjm.body_jntnum[i]
        free = np.isin(mjm.jnt_type[first : first + count], rotations).all()
        if mjm.body_dofnum[i] > 1 and not (but_free and free):
            found.append(i)
    return found
