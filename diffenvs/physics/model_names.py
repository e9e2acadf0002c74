"""How messages name the elements of a model."""

import mujoco


def element_name(mjm: mujoco.MjModel, element: str, i: int) -> str:
    """`joint 'knee'`, or `joint 3 (unnamed)`; a dof goes by the name of its joint."""
    if element == "dof":
        return element_name(mjm, "joint", mjm.dof_jntid[i])
    kind = mujoco.mjtObj.__members__[f"mjOBJ_{element.upper()}"]
    name = mujoco.mj_id2name(mjm, kind, int(i))
    return f"{element} '{name}'" if name else f"{element} {i} (unnamed)"


def geom_name(mjm: mujoco.MjModel, i: int) -> str:
    """`geom 'foot' (box)`."""
    kind = member_name(mujoco.mjtGeom, mjm.geom_type[i]).removeprefix("mjGEOM_").lower()
    return f"{element_name(mjm, 'geom', i)} ({kind})"


def member_name(enum: type, value: int) -> str:
    """The name of a value in an enumeration of MuJoCo."""
    return {int(v): k for k, v in enum.__members__.items()}.get(int(value), f"value {value}")
