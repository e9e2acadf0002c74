"""Small models that hold every supported feature, and states in which the features act.

Where possible one model holds several features, so that few shapes of kernels are compiled:

    arm       hinge, slide and ball joints, several in one body, in two trees: springs, damping,
              armature, limits of every kind, off-centre inertia; motor, position, velocity and
              affine actuators with clamps of ctrl and force; tips that touch a tilted plane
    landing   sphere, capsule and box, each free, on a tilted plane; margin, gap, direct solref,
              damping and armature of a free joint, a <pair> with anisotropic friction
    cluster   free sphere, capsule and dumb-bell among each other and against a mocap capsule:
              sphere-sphere, sphere-capsule and capsule-capsule between two moving bodies
    fist      links of one floating tree that touch each other; a body welded to its parent
    crawler   a jointed spine with legs on a plane, nv = 40: the blocked Cholesky factor
    long      the same with nv = 64: the sparse Jacobian
"""

import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States, contact_rich_states, has_steep_capsule

INTEGRATORS = {
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
}
CONES = {
    "pyramidal": mujoco.mjtCone.mjCONE_PYRAMIDAL,
    "elliptic": mujoco.mjtCone.mjCONE_ELLIPTIC,
}

_SOFT = """
  <default>
    <geom solref="0.02 0.9" solimp="0.8 0.97 0.03 0.4 2" friction="0.8 0.02 0.01"/>
    <joint solreflimit="0.02 0.9" solimplimit="0.8 0.97 0.05 0.4 2"/>
    <default class="ghost"><geom contype="0" conaffinity="0"/></default>
    <default class="tip"><geom contype="0" conaffinity="1"/></default>
  </default>"""

ARM = f"""
<mujoco model="arm">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004"/>{_SOFT}
  <worldbody>
    <geom name="slope" type="plane" size="5 5 0.1" euler="0.12 -0.1 0.3" conaffinity="0"/>
    <body name="upper" pos="0 0 0.42">
      <joint name="shoulder" axis="0 1 0" range="-0.7 0.5" damping="0.3" stiffness="4"
             armature="0.02"/>
      <geom class="ghost" type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" mass="1"/>
      <body name="fore" pos="0.3 0 0">
        <joint name="elbow" axis="1 1 0" pos="0 0.02 0" damping="0.2" springref="0.2"
               ref="0.3" stiffness="3"/>
        <joint name="stretch" type="slide" axis="0.2 0.3 1" damping="3" stiffness="80"
               armature="0.1" range="-0.05 0.06" margin="0.01"/>
        <geom class="ghost" type="box" pos="0.14 0.05 0.03" size="0.15 0.03 0.05" mass="0.7"
              euler="0.3 0.1 0.5"/>
        <body name="hand" pos="0.3 0.1 0">
          <joint name="wrist" axis="0 1 0.4" damping="0.1" armature="0.03" range="-0.5 0.5"/>
          <joint name="palm" type="ball" pos="0.02 0 0.05" damping="0.2" armature="0.02"
                 range="0 0.4"/>
          <geom class="tip" name="hand" type="capsule" fromto="0 0 -0.1 0.1 0.08 -0.2" size="0.05"
                mass="0.6"/>
        </body>
      </body>
    </body>
    <body name="bob" pos="-0.5 0.2 0.7">
      <joint name="socket" type="ball" damping="0.05" armature="0.01"/>
      <geom class="ghost" type="capsule" fromto="0 0 0 0.1 0.05 -0.3" size="0.03" mass="0.5"/>
      <body name="ball" pos="0.1 0.05 -0.3">
        <joint name="swing" axis="0 1 0" pos="0 0 0.02" damping="0.02" armature="0.01"/>
        <geom class="tip" name="ball" type="sphere" pos="0.05 0 -0.3" size="0.08" mass="0.4"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="shoulder" gear="8" ctrlrange="-0.7 0.7"/>
    <position joint="elbow" kp="20" kv="2" ctrlrange="-1 1" forcerange="-4 6"/>
    <velocity joint="stretch" kv="3" gear="1.5"/>
    <general joint="wrist" gaintype="affine" gainprm="4 1 0.5" biastype="affine"
             biasprm="0.3 -5 -0.4"/>
    <general joint="wrist" gaintype="fixed" gainprm="3" forcerange="-1.5 1.5" gear="-2"/>
    <general joint="swing" gaintype="affine" gainprm="2 0.5" biastype="none"
             ctrlrange="-0.6 0.8"/>
  </actuator>
</mujoco>"""

LANDING = f"""
<mujoco model="landing">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004"/>{_SOFT}
  <worldbody>
    <geom name="slope" type="plane" size="5 5 0.1" euler="0.2 0.15 0.3" margin="0.01"
          conaffinity="0"/>
    <body name="sphere" pos="-0.5 0 0.2">
      <freejoint name="sphere"/>
      <geom class="tip" name="sphere" type="sphere" size="0.1" mass="1" gap="0.004"/>
      <body pos="0.02 0.01 -0.01" euler="0.5 0.1 0.2">
        <geom class="ghost" type="box" size="0.03 0.08 0.04" pos="0.01 0 0" mass="0.4"/>
      </body>
    </body>
    <body name="capsule" pos="0 0 0.3">
      <joint name="capsule" type="free" damping="0.1" armature="0.05"/>
      <geom class="tip" name="capsule" type="capsule" size="0.07 0.15" pos="0.02 0.03 -0.05"
            mass="1" solref="-900 -25"/>
    </body>
    <body name="box" pos="0.5 0 0.3">
      <freejoint name="box"/>
      <geom class="tip" name="box" type="box" size="0.1 0.14 0.08" pos="0.03 -0.02 0.01"
            euler="0.2 0.5 0.1" mass="1"/>
    </body>
  </worldbody>
</mujoco>"""

ANISOTROPIC = LANDING.replace(
    "</mujoco>",
    """
  <contact>
    <pair geom1="slope" geom2="sphere" condim="4" friction="0.5 1.1 0.03 0.01 0.02"/>
    <pair geom1="slope" geom2="box" condim="6" friction="1 0.4 0.02 0.03 0.01" margin="0.005"/>
  </contact>
</mujoco>""",
)

CLUSTER = f"""
<mujoco model="cluster">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" gravity="0 0 -2"/>{_SOFT}
  <worldbody>
    <body name="anchor" mocap="true" pos="0.02 0.12 -0.1" euler="0.4 0.2 0.1">
      <geom name="anchor" type="capsule" size="0.05 0.1"/>
    </body>
    <body name="sphere">
      <freejoint name="sphere"/>
      <geom name="sphere" type="sphere" size="0.1" pos="0.02 0 0.03" mass="1"/>
      <geom class="ghost" type="box" size="0.03 0.06 0.04" pos="0 0.03 0" mass="0.3"/>
    </body>
    <body name="capsule">
      <freejoint name="capsule"/>
      <geom name="capsule" type="capsule" size="0.07 0.15" pos="0.03 0.02 -0.05" mass="1"/>
    </body>
    <body name="bell">
      <joint name="bell" type="free" damping="0.05"/>
      <geom name="bar" type="capsule" fromto="-0.12 0 0 0.12 0.02 0.01" size="0.04" mass="0.5"
            solref="0.03 1" priority="1"/>
      <geom name="knob" type="sphere" size="0.09" pos="0.16 0.02 0.01" mass="0.6" solmix="2"/>
    </body>
  </worldbody>
</mujoco>"""


FIST = f"""
<mujoco model="fist">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" gravity="0 0 -2"/>{_SOFT}
  <worldbody>
    <body name="palm">
      <joint name="root" type="free" damping="0.05"/>
      <geom name="palm" type="capsule" fromto="-0.05 0 0 0.2 0.03 0" size="0.06" mass="0.8"/>
      <body name="middle" pos="0.3 0.03 0">
        <joint name="knuckle" type="ball" pos="-0.02 0 0.01" damping="0.05" armature="0.01"/>
        <geom class="ghost" type="box" size="0.06 0.02 0.03" pos="0.05 0 0.01" mass="0.3"/>
        <body name="finger" pos="0.12 0 0" euler="0.2 0.1 0.3">
          <joint name="bend" axis="0.1 0.2 1" range="-2.9 2.9" damping="0.05" armature="0.01"/>
          <joint name="slide" type="slide" axis="1 0.1 0" range="-0.02 0.02" stiffness="100"
                 damping="1" armature="0.02"/>
          <geom name="finger" type="capsule" fromto="0.04 0 0 0.16 0.02 0.03" size="0.04"
                mass="0.4"/>
          <body name="nail" pos="0.2 0.02 0.02" euler="0.4 0.3 0.1">
            <geom name="nail" type="sphere" pos="0.02 0 0.01" size="0.06" mass="0.2"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="bend" gear="0.5" ctrlrange="-1 1"/>
    <position joint="slide" kp="50" kv="1"/>
  </actuator>
</mujoco>"""


def crawler(segments: int) -> str:
    """A spine of `segments` + 1 bodies, each with two legs of two hinges; nv = 10 + 6 segments."""

    def legs(i: int) -> str:
        return "".join(
            f"""
      <body name="thigh{i}{side}" pos="0 {sign * 0.1} 0">
        <joint name="hip{i}{side}" axis="0 0 1" range="-0.5 0.5" damping="0.3" armature="0.02"/>
        <geom class="ghost" type="capsule" fromto="0 0 0 0.02 {sign * 0.12} 0" size="0.03"
              mass="0.3"/>
        <body pos="0.02 {sign * 0.12} 0">
          <joint name="knee{i}{side}" axis="1 0.1 0" range="-0.6 0.6" damping="0.2" stiffness="6"
                 armature="0.02"/>
          <geom class="ghost" type="capsule" fromto="0 0 0 0.01 {sign * 0.03} -0.13" size="0.02"
                mass="0.2"/>
          <geom class="tip" type="sphere" pos="0.01 {sign * 0.03} -0.16" size="0.03" mass="0.05"/>
        </body>
      </body>"""
            for side, sign in (("l", 1), ("r", -1))
        )

    def segment(i: int) -> str:
        return f"""
    <body name="segment{i}" pos="-0.18 0 0">
      <joint name="yaw{i}" axis="0 0 1" range="-0.4 0.4" damping="0.4" stiffness="5"
             armature="0.02"/>
      <joint name="pitch{i}" axis="0 1 0" range="-0.4 0.4" damping="0.4" stiffness="5"
             armature="0.02"/>
      <geom class="ghost" type="capsule" fromto="0 0 0 -0.16 0 0.01" size="0.05" mass="0.6"/>
      {legs(i)}{segment(i + 1) if i < segments else ""}
    </body>"""

    motors = "".join(
        f'<motor joint="{joint}{i}{side}" gear="3" ctrlrange="-1 1"/>'
        for i in range(segments + 1)
        for joint in ("hip", "knee")
        for side in "lr"
    )
    return f"""
<mujoco model="crawler">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004"/>{_SOFT}
  <worldbody>
    <geom name="floor" type="plane" size="5 5 0.1" euler="0.05 -0.03 0" conaffinity="0"/>
    <body name="head" pos="0 0 0.2">
      <freejoint name="root"/>
      <geom class="ghost" type="capsule" fromto="0.05 0 0 -0.16 0 0.01" size="0.05" mass="0.8"/>
      {legs(0)}{segment(1)}
    </body>
  </worldbody>
  <actuator>{motors}</actuator>
</mujoco>"""


MODELS = {
    "arm": ARM,
    "landing": LANDING,
    "anisotropic": ANISOTROPIC,
    "cluster": CLUSTER,
    "fist": FIST,
    "crawler": crawler(5),
    "long": crawler(9),
}


def load(
    name: str,
    integrator: str = "euler",
    cone: str = "pyramidal",
    condim: int | None = None,
    impratio: float = 1.0,
) -> mujoco.MjModel:
    """Compile a feature model; `condim`, if given, is set on all of its geoms."""
    mjm = mujoco.MjModel.from_xml_string(MODELS[name])
    mjm.opt.integrator, mjm.opt.cone = INTEGRATORS[integrator], CONES[cone]
    mjm.opt.impratio = impratio
    if condim is not None:
        mjm.geom_condim[:] = condim
    return mjm


def states(mjm: mujoco.MjModel, n: int, seed: int = 0) -> States:
    """Sample n states of a feature model, contacts in at least half of them.

    Crawlers are played with random controls. Otherwise joints are set at random, some past their
    limits, and free bodies one by one where they touch what is there; steep capsules are left out
    (see `has_steep_capsule`). Part of the controls exceed their range.
    """
    rng = np.random.default_rng(seed)
    if mjm.nv > 32:
        found = contact_rich_states(mjm, n, seed, restart=120, max_speed=30.0)
        ctrl = found.ctrl * rng.uniform(0.8, 1.6, found.ctrl.shape)
        return found._replace(ctrl=ctrl.astype(np.float32).astype(float))
    data = mujoco.MjData(mjm)
    rows: list[list] = []
    while len(rows) < n:
        mujoco.mj_resetData(mjm, data)
        free = mjm.jnt_qposadr[mjm.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
        data.qpos[free] = 100.0 + 10.0 * np.arange(len(free))  # out of each other's way
        for joint in range(mjm.njnt):
            _place(mjm, data, joint, rng)
        data.qvel[:] = (rng.normal(size=mjm.nv) * 0.7).astype(np.float32)
        data.ctrl[:] = rng.uniform(-1.3, 1.3, mjm.nu).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        touching = data.ncon > 0 and data.contact.dist.min() > -0.03
        if has_steep_capsule(mjm, data):
            continue
        if touching or (data.ncon == 0 and len(rows) % 4 == 0):
            parts = (data.qpos, data.qvel, data.act, data.ctrl, data.qacc)
            rows.append([*(x.copy() for x in parts), data.ncon])
    return States(*(np.array(x) for x in zip(*rows, strict=True)))


def _place(mjm: mujoco.MjModel, data: mujoco.MjData, joint: int, rng: np.random.Generator) -> None:
    """Draw one joint at random; a free body is drawn until it touches something, but not deeply."""
    kind, adr = mujoco.mjtJoint(mjm.jnt_type[joint]), mjm.jnt_qposadr[joint]
    low, high = mjm.jnt_range[joint] if mjm.jnt_limited[joint] else (-1.5, 1.5)
    if kind == mujoco.mjtJoint.mjJNT_BALL:
        turn = rng.normal(size=3)
        turn *= rng.uniform(0, 1.1 * abs(high)) / np.linalg.norm(turn)
        quat = np.array([1.0, 0, 0, 0])
        mujoco.mju_quatIntegrate(quat, turn, 1.0)
        data.qpos[adr : adr + 4] = quat.astype(np.float32)
    elif kind != mujoco.mjtJoint.mjJNT_FREE:
        margin = 0.1 * (high - low)
        data.qpos[adr] = np.float32(rng.uniform(low - margin, high + margin))
    while kind == mujoco.mjtJoint.mjJNT_FREE:
        quat = rng.normal(size=4)
        pos = rng.normal(size=3) * 0.3 + data.mocap_pos.sum(axis=0)
        data.qpos[adr : adr + 7] = np.array([*pos, *(quat / np.linalg.norm(quat))], np.float32)
        if mjm.ntree == 1:
            return
        mujoco.mj_kinematics(mjm, data)
        mujoco.mj_collision(mjm, data)
        if data.ncon == 0 or data.contact.dist.min() < -0.03:
            continue
        bodies = mjm.geom_bodyid[data.contact.geom]
        if (bodies == mjm.jnt_bodyid[joint]).any():
            return
