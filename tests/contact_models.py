"""A small model in which every kind of geom touches others, and states for chosen pairs of geoms.

Two free bodies, each a rigid cluster of geoms of different kinds, above a tilted plane:

    a   cylinder, ellipsoid, box and mesh
    b   sphere, capsule, ellipsoid, mesh, box and cylinder

Which geoms may touch is set by masks, so that only kernels of these kinds are compiled.
"""

import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States

_GEOMS = {
    "sphere": 'type="sphere" size="0.08"',
    "capsule": 'type="capsule" size="0.05 0.1"',
    "ellipsoid": 'type="ellipsoid" size="0.1 0.14 0.08"',
    "cylinder": 'type="cylinder" size="0.08 0.11"',
    "box": 'type="box" size="0.09 0.12 0.07"',
    "mesh": 'type="mesh" mesh="stone"',
}
_STONE = """0.09 0.02 0.01  -0.08 0.03 -0.02  0.01 0.1 -0.03  -0.02 -0.09 0.02  0.03 0.01 0.11
            0 -0.02 -0.08  0.06 0.06 0.06  -0.05 0.05 0.06  0 0 0"""


def _cluster(name: str, kinds: str) -> str:
    geoms = "".join(
        f'<geom name="{name} {kind}" {_GEOMS[kind]} mass="0.5" euler="{0.3 * i} 0.2 {0.5 * i}"'
        f' pos="{0.3 * np.cos(2.4 * i)} {0.3 * np.sin(2.4 * i)} {0.1 * i - 0.2}"/>'
        for i, kind in enumerate(kinds.split())
    )
    return f'<body name="{name}"><freejoint/>{geoms}</body>'


_XML = f"""
<mujoco model="toys">
  <compiler angle="radian"/>
  <option timestep="0.004" gravity="0 0 -2"/>
  <default>
    <geom solref="0.02 0.9" solimp="0.8 0.97 0.03 0.4 2" friction="0.8 0.02 0.01"/>
  </default>
  <asset><mesh name="stone" vertex="{_STONE}"/></asset>
  <worldbody>
    <geom name="plane" type="plane" size="5 5 0.1" euler="0.2 0.15 0.3"/>
    {_cluster("a", "cylinder ellipsoid box mesh")}
    {_cluster("b", "sphere capsule ellipsoid mesh box cylinder")}
  </worldbody>
</mujoco>"""


def load(pairs: list[tuple[str, str]], cone: str = "pyramidal", condim: int = 3):
    """The model, in which only these pairs of named geoms may touch."""
    mjm = mujoco.MjModel.from_xml_string(_XML)
    mjm.opt.cone = mujoco.mjtCone.__members__[f"mjCONE_{cone.upper()}"]
    mjm.geom_condim[:] = condim
    mjm.geom_contype[:] = mjm.geom_conaffinity[:] = 0
    for bit, (first, second) in enumerate(pairs):
        mjm.geom_contype[mjm.geom(first).id] |= 1 << bit
        mjm.geom_conaffinity[mjm.geom(second).id] |= 1 << bit
    return mjm


def states(mjm: mujoco.MjModel, pairs: list[tuple[str, str]], n: int, seed: int = 0) -> States:
    """For every pair n states in which these two geoms touch and no others."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows = []
    for pair in pairs:
        for i in range(n):
            while not _touch(mjm, data, pair, rng) or not _settle(mjm, data, pair, rng, i % 2):
                pass
            none = np.zeros(0)
            parts = (data.qpos, data.qvel, none, none, data.qacc)
            rows.append([*(x.copy() for x in parts), data.ncon])
    return States(*(np.array(x) for x in zip(*rows, strict=True)))


def _touch(mjm, data, pair, rng) -> bool:
    """Draw poses at random; whether exactly the geoms of the pair touch, but not deeply."""
    mujoco.mj_resetData(mjm, data)
    for body in range(2):
        quat = rng.normal(size=4)
        data.qpos[7 * body + 3 : 7 * body + 7] = quat / np.linalg.norm(quat)
    moved = 7 * (pair[1][0] == "b")
    data.qpos[7 - moved : 10 - moved] = (0, 0, 30)
    mujoco.mj_kinematics(mjm, data)
    first, second = (mjm.geom(name).id for name in pair)
    away = rng.normal(size=3)
    if pair[0] == "plane":
        data.qpos[moved : moved + 3] = (*rng.normal(size=2) * 0.2, rng.uniform(-0.1, 0.8))
    else:
        away *= rng.uniform(0.08, 0.25) / np.linalg.norm(away)
        data.qpos[moved : moved + 3] = data.geom_xpos[first] - data.geom_xpos[second] + away
    return _forward(mjm, data, pair, rng)


def _settle(mjm, data, pair, rng, wanted) -> bool:
    """Let a geom come to lie on the plane, where it touches in several points."""
    if not wanted or pair[0] != "plane":
        return True
    damping = mjm.dof_damping.copy()
    mjm.dof_damping[:] = 0.3
    for _ in range(rng.integers(200, 600)):
        mujoco.mj_step(mjm, data)
    mjm.dof_damping[:] = damping
    return _forward(mjm, data, pair, rng)


def _forward(mjm, data, pair, rng) -> bool:
    data.qpos[:] = data.qpos.astype(np.float32)
    data.qvel[:] = (rng.normal(size=mjm.nv) * 0.7).astype(np.float32)
    mujoco.mj_forward(mjm, data)
    names = {mjm.geom(int(geom)).name for geom in data.contact.geom.ravel()}
    return names == set(pair) and -0.02 < data.contact.dist.min() < 0
