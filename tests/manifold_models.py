"""Models whose contacts come from clipping faces and edges, and states in which they rest or fall.

    pile    a box, a mesh block and a capsule, each free, on a desk that slides and tilts
    rack    a cylinder on a box, capsules on a mesh and on the cap of a cylinder, each free
    grip    a free box between two pads that are pressed together

mujoco_warp clips box against box as it clips meshes, unless `nativeccd` is disabled; C MuJoCo
always goes by separating axes. Hence `load(..., nativeccd=True)` comes with a second model in which
meshes stand for boxes: in C MuJoCo this one makes the contacts that mujoco_warp makes for boxes.
Without `nativeccd` C MuJoCo has another algorithm for meshes, so there the prism touches nothing.
"""

import re

import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States

_PRISM = " ".join(
    f"{0.11 * np.cos(angle):.4f} {0.11 * np.sin(angle):.4f} {z}"
    for angle in 0.1 + 0.4 * np.pi * np.arange(5)
    for z in (-0.07, 0.07)
)
_SLAB = " ".join(
    f"{0.2 * np.cos(angle):.4f} {0.2 * np.sin(angle):.4f} {z}"
    for angle in 0.1 + 0.4 * np.pi * np.arange(5)
    for z in (-0.05, 0.05)
)
_HEAD = """
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" gravity="0 0 -5"/>
  <default>
    <geom solref="0.02 0.9" solimp="0.8 0.97 0.03 0.4 2" friction="0.8 0.02 0.01" contype="2"
          conaffinity="1"/>
  </default>"""

_DESK = """<body name="desk">
      <joint name="slide" type="slide" axis="1 0.2 0" damping="1"/>
      <joint name="tilt" axis="0.3 1 0.1" damping="0.5" stiffness="20" armature="0.1"/>
      <geom name="left" type="box" pos="-0.8 0 0" size="0.24 0.22 0.05" mass="1" contype="1"
            conaffinity="2"/>"""

PILE = f"""
<mujoco model="pile">{_HEAD}
  <asset><mesh name="prism" vertex="{_PRISM}"/></asset>
  <worldbody>
    {_DESK}
      <geom name="middle" type="box" size="0.22 0.2 0.06" mass="1" contype="1" conaffinity="2"/>
      <geom name="right" type="box" pos="0.8 0 0" size="0.14 0.2 0.05" mass="1" contype="1"
            conaffinity="2"/>
    </body>
    <body name="block">
      <joint name="left" type="free"/>
      <inertial pos="0.01 0 0.02" mass="1" diaginertia="0.012 0.015 0.01"/>
      <geom name="block" type="box" size="0.13 0.16 0.08"/>
    </body>
    <body name="prism">
      <joint name="middle" type="free"/>
      <geom name="prism" type="mesh" mesh="prism" mass="1"/>
    </body>
    <body name="capsule">
      <joint name="right" type="free"/>
      <geom name="capsule" type="capsule" size="0.05 0.18" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="tilt" gear="2"/></actuator>
</mujoco>"""

RACK = f"""
<mujoco model="rack">{_HEAD}
  <asset><mesh name="slab" vertex="{_SLAB}"/></asset>
  <worldbody>
    {_DESK}
      <geom name="middle" type="mesh" mesh="slab" mass="1" contype="1" conaffinity="2"/>
      <geom name="right" type="cylinder" pos="0.8 0 0" size="0.2 0.05" mass="1" contype="1"
            conaffinity="2"/>
    </body>
    <body name="roll">
      <joint name="left" type="free"/>
      <geom name="roll" type="cylinder" size="0.06 0.12" mass="1"/>
    </body>
    <body name="bar">
      <joint name="middle" type="free"/>
      <geom name="bar" type="capsule" size="0.05 0.18" mass="1"/>
    </body>
    <body name="pin">
      <joint name="right" type="free"/>
      <geom name="pin" type="capsule" size="0.04 0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="tilt" gear="2"/></actuator>
</mujoco>"""

GRIP = f"""
<mujoco model="grip">{_HEAD}
  <worldbody>
    <body name="left" pos="-0.12 0 0">
      <joint name="left" type="slide" axis="1 0 0" damping="5"/>
      <geom name="left" type="box" size="0.02 0.09 0.1" mass="0.5" contype="1" conaffinity="2"/>
    </body>
    <body name="right" pos="0.12 0 0">
      <joint name="right" type="slide" axis="-1 0 0" damping="5"/>
      <geom name="right" type="box" size="0.02 0.08 0.09" mass="0.5" contype="1" conaffinity="2"/>
    </body>
    <body name="block">
      <freejoint name="block"/>
      <inertial pos="0 0 0" mass="0.4" diaginertia="0.001 0.0014 0.0012"/>
      <geom name="block" type="box" size="0.1 0.05 0.06"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="left" kp="300"/>
    <position joint="right" kp="300"/>
  </actuator>
</mujoco>"""
MODELS = {"pile": PILE, "rack": RACK, "grip": GRIP}
_ROUND = (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_BOX = re.compile(r'name="(left|right|block)" type="box"( pos="[^"]*")? size="([^"]*)"')


def _with_meshes(xml: str) -> str:
    """Meshes stand for the boxes that touch boxes."""
    meshes = []

    def replace(match: re.Match) -> str:
        name, pos, size = match.groups()
        if name == "right" and "capsule" in xml:
            return match.group()
        size = np.array(size.split(), float)
        corners = size * (2.0 * (np.arange(8)[:, None] >> np.arange(3) & 1) - 1)
        vertex = " ".join(map(str, corners.ravel()))
        meshes.append(f'<mesh name="{name}" vertex="{vertex}"/>')
        return f'name="{name}" type="mesh" mesh="{name}"{pos or ""}'

    xml = _BOX.sub(replace, xml)
    return xml.replace("<worldbody>", f"<asset>{''.join(meshes)}</asset><worldbody>", 1)


def load(
    name: str, nativeccd: bool, condim: int = 3, elliptic: bool = False
) -> tuple[mujoco.MjModel, mujoco.MjModel]:
    """The model, and the model that C MuJoCo must run to make the same contacts."""
    models = [mujoco.MjModel.from_xml_string(MODELS[name])]
    if nativeccd and name != "rack":
        models.append(mujoco.MjModel.from_xml_string(_with_meshes(MODELS[name])))
    for mjm in models:
        mjm.geom_condim[:] = condim
        if elliptic:
            mjm.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        if not nativeccd:
            mjm.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
            meshes = mjm.geom_type == int(mujoco.mjtGeom.mjGEOM_MESH)
            mjm.geom_contype[meshes] = mjm.geom_conaffinity[meshes] = 0
    return models[0], models[-1]


def _turned(quat, axis, angle):
    """`quat` turned in the world about an axis."""
    turn, out = np.zeros(4), np.zeros(4)
    mujoco.mju_axisAngle2Quat(turn, np.asarray(axis, float), angle)
    mujoco.mju_mulQuat(out, turn, quat)
    return out


def _resting(rng, lying: bool) -> np.ndarray:
    """A face or (`lying`) the side down, turned about the vertical, tilted by up to 0.04."""
    quat = np.array([1.0, 0, 0, 0])
    if lying:
        quat = _turned(quat, (0, 1, 0), np.pi / 2)
    quat = _turned(quat, (0, 0, 1), rng.uniform(-np.pi, np.pi))
    angle = rng.uniform(0, 2 * np.pi)
    return _turned(quat, (np.cos(angle), np.sin(angle), 0), 10 ** rng.uniform(-3.5, -1.4))


def _depth(mjm, data, geom) -> float:
    """How deep a geom is in others; 0 if it touches nothing."""
    mujoco.mj_kinematics(mjm, data)
    mujoco.mj_collision(mjm, data)
    mine = (data.contact.geom == geom).any(axis=1)
    return max([0.0, *-data.contact.dist[mine]])


def _pile(mjm, data, rng, resting: bool) -> None:
    data.qpos[:2] = rng.normal(size=2) * (0.5, 0.1)
    for joint in range(2, mjm.njnt):
        adr, body = mjm.jnt_qposadr[joint], mjm.jnt_bodyid[joint]
        geom = mjm.body_geomadr[body]
        mujoco.mj_kinematics(mjm, data)
        desk = mujoco.mj_name2id(mjm, mujoco.mjtObj.mjOBJ_GEOM, mjm.joint(joint).name)
        xpos, desk_xmat = data.geom_xpos[desk].copy(), data.geom_xmat[desk].reshape(3, 3).copy()
        quat = rng.normal(size=4)
        if resting:
            mujoco.mju_mulQuat(quat, data.xquat[1], _resting(rng, mjm.geom_type[geom] in _ROUND))
        place = rng.uniform(-0.14, 0.14, 3)
        up, down = 0.6, 0.0
        depth = rng.uniform(0.001, 0.006)
        for _ in range(40):
            place[2] = (up + down) / 2
            data.qpos[adr : adr + 3] = xpos + desk_xmat @ place
            data.qpos[adr + 3 : adr + 7] = quat / np.linalg.norm(quat)
            up, down = (up, place[2]) if _depth(mjm, data, geom) > depth else (place[2], down)


def _grip(mjm, data, rng) -> None:
    quat = _turned(np.array([1.0, 0, 0, 0]), (1, 0, 0), rng.uniform(-1, 1))
    angle = rng.uniform(0, 2 * np.pi)
    tilt = 10 ** rng.uniform(-3.5, -2)
    data.qpos[5:9] = _turned(quat, (0, np.cos(angle), np.sin(angle)), tilt)
    data.qpos[2:5] = rng.uniform(-0.01, 0.01, 3) * (0.1, 1, 1)
    for joint, sign in ((0, 1), (1, -1)):
        data.qpos[joint] = sign * data.qpos[2] + rng.uniform(0.001, 0.004)


def states(mjm: mujoco.MjModel, n: int, seed: int = 0, resting: bool = True) -> States:
    """Sample n states; `mjm` is the model that C MuJoCo runs."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows: list[list] = []
    while len(rows) < n:
        mujoco.mj_resetData(mjm, data)
        if mjm.nu == 2:
            _grip(mjm, data, rng)
        else:
            data.qpos[mjm.jnt_qposadr[2:] + 2] = 10 * np.arange(1, mjm.njnt - 1)
            _pile(mjm, data, rng, resting)
        data.qpos[:] = data.qpos.astype(np.float32)
        data.qvel[:] = (rng.normal(size=mjm.nv) * 0.5).astype(np.float32)
        data.ctrl[:] = rng.uniform(-1, 1, mjm.nu).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        if data.ncon and data.contact.dist.min() > -0.02:
            parts = (data.qpos, data.qvel, data.act, data.ctrl, data.qacc)
            rows.append([*(x.copy() for x in parts), data.ncon])
    return States(*(np.array(x) for x in zip(*rows, strict=True)))
