"""A small model with every equality constraint that has an adjoint, and states that violate them.

    joints and loops   a four-bar linkage closed by a connect between bodies; two fingers coupled by
                       a polynomial, one joint held at a constant
    free bodies        `held` welded to a mocap body (direct solref, torquescale), `tail` welded to
                       `held` with an offset, `tail` connected to the linkage at two sites
    sites and world    a nail on a ball joint welded to a static body at two sites
    inactive           a connect and a joint that exert nothing

The impedance is inside its width at small violations and outside at large ones.
"""

import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States

INTEGRATORS = {
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
}

EQUALITIES = """
<mujoco model="equalities">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004"/>
  <default>
    <geom contype="0" conaffinity="0"/>
    <joint damping="0.1" armature="0.01"/>
    <equality solref="0.02 0.9" solimp="0.7 0.96 0.03 0.4 2"/>
  </default>
  <worldbody>
    <body name="post" pos="0.6 0.3 0.5" euler="0.1 0.2 0.3">
      <site name="wall" pos="0.02 0.01 0.02" euler="0 0.5 -0.7"/>
    </body>
    <body name="hand" mocap="true" pos="-0.3 0.2 0.6" euler="0.3 -0.2 0.5"/>
    <body name="held" pos="-0.2 0.1 0.6" euler="0.1 0.4 0.2">
      <freejoint/>
      <inertial pos="0.02 0.01 -0.01" mass="0.8" diaginertia="0.004 0.006 0.005"/>
    </body>
    <body name="tail" pos="0 0.05 0.5" euler="-0.2 0.1 0.9">
      <freejoint/>
      <inertial pos="-0.01 0.02 0.01" mass="0.5" diaginertia="0.003 0.002 0.004"/>
      <site name="tip" pos="0.06 0.04 0.02" euler="0.2 0.3 0.4"/>
    </body>
    <body name="crank" pos="0 0 0.3">
      <joint name="crank" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0.02 0 0.2" size="0.02" mass="0.4"/>
      <body name="coupler" pos="0.02 0 0.2">
        <joint axis="0 1 0.1"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0.02" size="0.02" mass="0.5"/>
        <site name="middle" pos="0.02 0.1 0.03" euler="0.3 0.1 0.2"/>
        <body name="end" pos="0.3 0 0.02">
          <geom type="sphere" size="0.03" mass="0.1"/>
        </body>
      </body>
    </body>
    <body name="rocker" pos="0.35 0 0.3">
      <joint name="rocker" axis="0.05 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0.02 0.21" size="0.02" mass="0.4"/>
    </body>
    <body name="finger" pos="0.6 0 0.5">
      <joint name="finger" axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0 0 0.2 0" size="0.02" mass="0.3"/>
      <body name="thumb" pos="0 0.2 0">
        <joint name="thumb" axis="0.2 0 1"/>
        <joint name="slide" type="slide" axis="0 1 0.2"/>
        <geom type="capsule" fromto="0 0 0 0.02 0.1 0" size="0.02" mass="0.2"/>
        <body name="nail" pos="0.02 0.1 0">
          <joint type="ball" pos="0 0.01 0"/>
          <geom type="box" size="0.03 0.02 0.01" pos="0.01 0.02 0" mass="0.2"/>
          <site name="nail" pos="0.01 0.02 0.02" euler="0.2 0.5 -0.3"/>
        </body>
      </body>
    </body>
  </worldbody>
  <equality>
    <weld name="grasp" body1="hand" body2="held" torquescale="0.7" solref="-400 -30"/>
    <connect name="loop" body1="end" body2="rocker" anchor="0.01 0.005 0.02"/>
    <joint name="couple" joint1="finger" joint2="thumb" polycoef="0.02 0.7 0.5 -0.4 0.3"/>
    <weld name="offset" body1="held" body2="tail" anchor="0.05 0.02 0.01" torquescale="1.3"/>
    <connect name="ignored" body1="crank" anchor="0.1 0 0" active="false"/>
    <connect name="sites" site1="tip" site2="middle" solref="0.03 0.7"/>
    <joint name="hold" joint1="slide" polycoef="0.01" solimp="0.8 0.95 0.1 0.5 1"/>
    <weld name="site" site1="nail" site2="wall" solimp="0.5 0.9 0.2 0.6 3" torquescale="0.4"/>
    <joint name="off" joint1="crank" joint2="rocker" active="false"/>
  </equality>
  <actuator>
    <motor joint="crank" gear="2"/>
    <position joint="thumb" kp="5" kv="0.2"/>
  </actuator>
</mujoco>"""


def load(integrator: str = "euler") -> mujoco.MjModel:
    """Compile the model."""
    mjm = mujoco.MjModel.from_xml_string(EQUALITIES)
    mjm.opt.integrator = INTEGRATORS[integrator]
    return mjm


def states(mjm: mujoco.MjModel, n: int, seed: int = 0) -> States:
    """Sample n states around qpos0, with violations from far inside to outside of the width."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows = []
    for _ in range(n):
        mujoco.mj_resetData(mjm, data)
        scale = 10.0 ** rng.uniform(-3, -0.7)
        mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * scale, 1.0)
        data.qpos[:] = data.qpos.astype(np.float32)
        data.qvel[:] = (rng.normal(size=mjm.nv) * 0.7).astype(np.float32)
        data.ctrl[:] = rng.uniform(-1, 1, mjm.nu).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        parts = (data.qpos, data.qvel, data.act, data.ctrl, data.qacc)
        rows.append([*(x.copy() for x in parts), data.ne])
    return States(*(np.array(x) for x in zip(*rows, strict=True)))
