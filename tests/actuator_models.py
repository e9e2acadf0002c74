"""Models that hold every supported kind of actuator, and states in which they act.

    arm    hinges, a slide, a ball joint in two branches, and a free body: transmissions of every
           kind; gains and biases of every kind; activations of every kind; clamps of control,
           activation and force, `actearly`
    limb   hinges and tendons whose `actuatorfrcrange` clamps the sum of their actuators

States are drawn at random; the accelerations are large.
"""

import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States

INTEGRATORS = {
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
}

ARM = """
<mujoco model="arm">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.01"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <site name="ground" pos="0.1 0.2 0" euler="0.3 0.1 -0.4"/>
    <body name="upper" pos="0 0 0.4">
      <joint name="shoulder" axis="0 1 0" damping="0.3" armature="0.02"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" mass="1"/>
      <body name="fore" pos="0.3 0 0">
        <joint name="elbow" axis="1 1 0" pos="0 0.02 0" damping="0.2"/>
        <joint name="stretch" type="slide" axis="0.2 0.3 1" damping="3" armature="0.1"/>
        <geom type="box" pos="0.14 0.05 0.03" size="0.15 0.03 0.05" mass="0.7"/>
        <site name="fore" pos="0.1 0.02 0.05" euler="0.2 -0.5 0.3"/>
        <body name="hand" pos="0.3 0.1 0">
          <joint name="palm" type="ball" pos="0.02 0 0.05" damping="0.2" armature="0.02"/>
          <geom type="capsule" fromto="0 0 -0.1 0.1 0.08 -0.2" size="0.05" mass="0.6"/>
          <site name="hand" pos="0.05 -0.03 -0.1" euler="-0.4 0.2 0.6"/>
        </body>
      </body>
      <body name="twig" pos="0.2 0 0.1">
        <joint name="twig" axis="0 0.3 1" damping="0.1" armature="0.02"/>
        <geom type="capsule" fromto="0 0 0 0.1 0.1 0.1" size="0.03" mass="0.3"/>
        <site name="twig" pos="0.08 0.1 0.1" euler="0.5 0.3 0.1"/>
      </body>
    </body>
    <body name="drone" pos="-0.5 0.2 0.7">
      <freejoint name="drone"/>
      <geom type="box" pos="0.02 0.03 -0.01" size="0.1 0.14 0.05" mass="0.8"/>
      <site name="rotor" pos="0.1 0.1 0.05" euler="0.3 0.1 0"/>
    </body>
  </worldbody>
  <tendon>
    <fixed name="across">
      <joint joint="elbow" coef="0.8"/>
      <joint joint="twig" coef="1.2"/>
    </fixed>
    <spatial name="sinew">
      <site site="ground"/>
      <site site="fore"/>
      <site site="hand"/>
    </spatial>
  </tendon>
  <actuator>
    <motor name="motor" jointinparent="shoulder" gear="4" ctrlrange="-0.7 0.7"
           damping="0.02 0.01 0.02" armature="0.001"/>
    <muscle name="muscle" joint="elbow" gear="0.7" lengthrange="-1 1" force="8" range="0.75 1.05"
            vmax="1.3" fvmax="1.4" lmin="0.4" lmax="1.6" timeconst="0.03 0.06"/>
    <muscle name="smooth" joint="shoulder" gear="-0.5" lengthrange="-0.8 0.9" scale="50"
            range="0.8 1.3" fpmax="2" tausmooth="0.7" ctrlrange="0.1 0.9"/>
    <intvelocity name="servo" joint="twig" kp="6" kv="0.3" actrange="-0.4 0.4"/>
    <general name="filter" joint="stretch" dyntype="filter" dynprm="0.05" gaintype="affine"
             gainprm="5 2 1" biastype="affine" biasprm="0.2 -8 -0.5" forcerange="-3 3"
             actearly="true"/>
    {exact}
    <general name="early" joint="elbow" dyntype="integrator" gaintype="affine"
             gainprm="3 0.5 0.4" actrange="-0.3 0.5" actearly="true" ctrlrange="-0.9 0.9"/>
    <general name="palm" joint="palm" gear="1 0.5 -0.3" gaintype="affine" gainprm="2 1 0.3"
             biastype="affine" biasprm="0.1 -2 -0.1" damping="0.1 0.03 0.05" armature="0.01"/>
    <position name="palm_in_parent" jointinparent="palm" gear="-0.4 1 0.6" kp="2" kv="0.15"/>
    <position name="across" tendon="across" gear="1.3" kp="2" kv="0.3" forcerange="-2 2"
              damping="0.3" armature="0.02"/>
    <general name="filtered" tendon="across" gear="-0.7" dyntype="filter" dynprm="0.1"
             gaintype="affine" gainprm="2 1" biastype="affine" biasprm="0.1 -1 -0.2"/>
    <muscle name="sinew" tendon="sinew" gear="0.9" lengthrange="0.2 1" force="6" vmax="2.5"
            lmin="0.2" lmax="1.9" timeconst="0.02 0.07"/>
    <motor name="free" joint="drone" gear="1 0.3 2 0.1 -0.2 0.3"/>
    <motor name="free_in_parent" jointinparent="drone" gear="0.5 -1 0.2 0.3 0.1 -0.2"/>
    <motor name="rotor" site="rotor" gear="0.3 0.2 3 0.02 0.01 0.1"/>
    <general name="hand" site="hand" gear="1 2 0.5 0.1 0.3 0.2" dyntype="filter" dynprm="0.1"
             gaintype="affine" gainprm="2 0 0.4" biastype="affine" biasprm="0.1 0 -0.2"/>
    <general name="hand_fore" site="hand" refsite="fore" gear="0.6 0.3 -1 0.5 0.2 0.3"
             gaintype="affine" gainprm="3 1 0.5" biastype="affine" biasprm="0.2 -4 -0.3"/>
    <position name="hand_twig" site="hand" refsite="twig" gear="1 0.4 0.3 0.2 -0.3 0.4" kp="3"/>
    <position name="turn" site="fore" refsite="ground" gear="0 0 0 0.5 0.8 -0.3" kp="2" kv="0.2"/>
    <position name="reach" site="rotor" refsite="ground" gear="1 0.4 0.3 0 0 0" kp="2"/>
  </actuator>
</mujoco>"""
EXACT = """
    <general name="exact" joint="twig" dyntype="filterexact" dynprm="0.02" gainprm="3"
             actlimited="true" actrange="-0.3 0.35" forcerange="-1.2 1.2"/>"""

LIMB = """
<mujoco model="limb">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.01"/>
  <default><geom contype="0" conaffinity="0" type="capsule" size="0.04"/></default>
  <worldbody>
    <body>
      <joint name="hip" axis="0 1 0" actuatorfrcrange="-2 2"/>
      <geom fromto="0 0 0 0.3 0 0" mass="1"/>
      <body pos="0.3 0 0">
        <joint name="knee" axis="0 1 0.3" actuatorfrcrange="-1.5 1"/>
        <geom fromto="0 0 0 0.3 0.1 0" mass="0.5"/>
      </body>
    </body>
    <body pos="0.3 0.1 0">
      <joint name="ankle" axis="0 1 0" armature="0.02"/>
      <geom fromto="0 0 0 0.1 0 0.1" mass="0.3"/>
      <body pos="0.1 0 0.1">
        <joint name="toe" axis="0 1 0.2" armature="0.02"/>
        <geom fromto="0 0 0 0.1 0 0.1" mass="0.1"/>
        <site name="toe" pos="0.1 0 0.1"/>
      </body>
    </body>
    <site name="wall" pos="0.5 -0.2 0.4"/>
  </worldbody>
  <tendon>
    <fixed name="pull" actuatorfrcrange="-0.5 0.8"><joint joint="ankle" coef="1.3"/></fixed>
    <spatial name="rope" actuatorfrcrange="-1 0.5"><site site="toe"/><site site="wall"/></spatial>
  </tendon>
  <actuator>
    <motor joint="hip" gear="2"/>
    <position joint="hip" kp="3" kv="0.2"/>
    <damper joint="knee" kv="0.5" ctrlrange="0 2"/>
    <position joint="knee" kp="3" kv="0.2"/>
    <cylinder joint="knee" timeconst="0.1" area="2"/>
    <position tendon="pull" gear="0.8" kp="1" kv="0.1"/>
    <intvelocity tendon="pull" gear="0.8" kp="2" kv="0.1"/>
    <position tendon="rope" kp="1" kv="0.2" forcerange="-2 0.4"/>
  </actuator>
</mujoco>"""


def load(name: str, integrator: str = "euler") -> mujoco.MjModel:
    """Compile a model."""
    xml = {"arm": ARM, "limb": LIMB}[name]
    mjm = mujoco.MjModel.from_xml_string(
        xml.replace("{exact}", "" if integrator == "rk4" else EXACT)
    )
    mjm.opt.integrator = INTEGRATORS[integrator]
    if integrator == "implicitfast":  # refused together with a velocity gain without activation
        mjm.actuator_ctrllimited[mjm.actuator_gainprm[:, 2] != 0] = False
    return mjm


def states(mjm: mujoco.MjModel, n: int, seed: int = 0) -> States:
    """Sample n states; part of the controls and activations exceed their ranges."""
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows: list[list] = []
    for _ in range(n):
        mujoco.mj_resetData(mjm, data)
        mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * 0.5, 1.0)
        data.qpos[:] = data.qpos.astype(np.float32)
        data.qvel[:] = (rng.normal(size=mjm.nv) * 0.7).astype(np.float32)
        data.act[:] = rng.uniform(-0.3, 0.9, mjm.na).astype(np.float32)
        data.ctrl[:] = rng.uniform(-1.1, 1.1, mjm.nu).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        parts = (data.qpos, data.qvel, data.act, data.ctrl, data.qacc)
        rows.append([*(x.copy() for x in parts), data.ncon])
    return States(*(np.array(x) for x in zip(*rows, strict=True)))
