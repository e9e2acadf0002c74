"""A small model with every passive force of joints and bodies, and states in which they act.

    swing    hinge and slide on a ball joint: springs and dampers with polynomials, gravity
             compensation, partly through an actuated joint
    float    a free joint with a spring and a polynomial damper, a body welded to it
    brick    a second free body, whose inertia is along its axes

All move in a fluid with wind.
"""

import feature_models
import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States

PASSIVE = """
<mujoco model="passive">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" density="60" viscosity="3" wind="0.6 -0.4 0.3"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <body name="swing" gravcomp="0.4">
      <joint name="ball" type="ball" pos="0.01 0 0.02" stiffness="3 1 0.5" damping="0.1 0.05 0.02"
             armature="0.02"/>
      <geom type="box" size="0.1 0.04 0.06" pos="0.06 0.02 0" euler="0.3 0.2 0.1" mass="0.8"/>
      <body name="arm" pos="0.2 0 0.03" gravcomp="1.2">
        <joint name="hinge" axis="0.2 1 0.1" stiffness="4 -1 2" springref="0.3"
               damping="0.3 0.2 0.1" actuatorgravcomp="true"/>
        <joint name="slide" type="slide" axis="0.3 0.1 1" stiffness="60 50 900" damping="2 1 3"/>
        <geom type="capsule" size="0.03 0.1" pos="0.08 0.03 0.02" euler="0.4 1 0.2" mass="0.5"/>
      </body>
    </body>
    <body name="float" pos="1 0 0">
      <joint name="float" type="free" stiffness="0.8 0.3 0.2" damping="0.01 0.02 0.01"/>
      <geom type="box" size="0.1 0.06 0.03" pos="0.02 0.01 0" euler="0.3 0.2 0.1" mass="0.7"/>
      <body name="fin" pos="0.1 0.05 0" euler="0.5 0.3 0.2" gravcomp="0.7">
        <geom type="box" size="0.02 0.07 0.04" mass="0.3"/>
      </body>
    </body>
    <body name="brick" pos="2 0 0">
      <freejoint/>
      <geom type="box" size="0.1 0.06 0.03" mass="0.7"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="hinge" gear="0.5" ctrlrange="-1 1"/>
    <position joint="slide" kp="50" kv="1"/>
  </actuator>
</mujoco>"""


def load(integrator: str = "euler") -> mujoco.MjModel:
    """Compile the model; under discrete a fluid needs an inertia that couples all joints."""
    xml = PASSIVE
    if integrator == "discrete":
        xml = xml.replace(
            "<freejoint/>\n      <geom", '<freejoint/>\n      <geom pos="0.01 0.02 0"'
        )
    mjm = mujoco.MjModel.from_xml_string(xml)
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    return mjm


def states(mjm: mujoco.MjModel, n: int, seed: int = 0) -> States:
    """Joints displaced at random from where their springs rest; nothing touches."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows: list[list] = []
    for _ in range(n):
        mujoco.mj_resetData(mjm, data)
        scale = np.where(mjm.jnt_type[mjm.dof_jntid] == mujoco.mjtJoint.mjJNT_SLIDE, 0.1, 0.6)
        mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * scale, 1.0)
        data.qpos[:] = data.qpos.astype(np.float32)
        data.qvel[:] = rng.normal(size=mjm.nv).astype(np.float32)
        data.ctrl[:] = rng.uniform(-1.0, 1.0, mjm.nu).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        parts = (data.qpos, data.qvel, data.act, data.ctrl, data.qacc)
        rows.append([*(part.copy() for part in parts), 0])
    return States(*(np.array(part) for part in zip(*rows, strict=True)))
