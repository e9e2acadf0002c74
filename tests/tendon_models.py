"""Models whose tendons and joints have springs, dampers, limits, friction losses and armature.

`arm` is a shoulder with an elbow and a ball wrist on one branch and a thumb on the other. A fixed
tendon runs within a branch, one across branches, two are tied together by an equality. A spatial
tendon with armature runs through sites and pulleys, one wraps around a sphere and a cylinder, and
an equality ties one to a fixed tendon. The tip may touch a tilted plane.
"""

import mujoco
import numpy as np

from diffenvs.physics.finite_diff import States, has_steep_capsule

_SOFT = 'solreflimit="0.02 0.9" solimplimit="0.8 0.97 0.05 0.4 2"'
_FRICTION = 'solreffriction="0.03 0.8" solimpfriction="0.7 0.95 0.05 0.4 2"'

ARM = f"""
<mujoco model="tendon arm">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004"/>
  <default>
    <joint armature="0.02" damping="0.1" {_SOFT} {_FRICTION}/>
    <tendon {_SOFT} {_FRICTION}/>
    <geom contype="0" conaffinity="0" solref="0.02 0.9" solimp="0.8 0.97 0.03 0.4 2"/>
    <equality solref="0.03 0.9" solimp="0.7 0.95 0.1 0.4 2"/>
  </default>
  <worldbody>
    <geom name="slope" type="plane" size="5 5 0.1" euler="0.12 -0.1 0.3" contype="1"/>
    <site name="ceiling" pos="0.1 0.05 0.9"/>
    <site name="wall" pos="-0.3 0.1 0.5"/>
    <body name="upper" pos="0 0 0.42">
      <joint name="shoulder" axis="0 1 0" frictionloss="0.4"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.04" mass="1"/>
      <geom name="ball" size="0.09" pos="0.27 0.02 0.05" mass="0.1"/>
      <site name="beside" pos="0.27 0.02 0.2"/>
      <site name="upper" pos="0.12 0.03 0.06"/>
      <body name="fore" pos="0.3 0 0">
        <joint name="elbow" axis="1 1 0" pos="0 0.02 0" frictionloss="0.3"/>
        <geom type="box" pos="0.14 0.05 0.03" size="0.15 0.03 0.05" mass="0.7" euler="0.3 0.1 0.5"/>
        <geom name="rod" type="cylinder" size="0.07 0.2" pos="0.2 0.05 0.1" euler="1.2 0.3 0.2"
              mass="0.1"/>
        <site name="fore" pos="0.1 0.02 0.08"/>
        <body name="hand" pos="0.3 0.1 0">
          <joint name="wrist" type="ball" pos="0.02 0 0.05" frictionloss="0.7"/>
          <geom type="capsule" fromto="0 0 -0.1 0.1 0.08 -0.2" size="0.05" mass="0.6"
                conaffinity="1"/>
          <site name="hand" pos="0.05 0.02 -0.1"/>
        </body>
      </body>
      <body name="thumb" pos="0.2 -0.1 0">
        <joint name="thumb" axis="0 0.3 1" frictionloss="4"/>
        <joint name="slide" type="slide" axis="1 0.1 0" frictionloss="20"/>
        <geom type="capsule" fromto="0 0 0 0.2 -0.05 0.02" size="0.03" mass="0.4"/>
        <site name="thumb" pos="0.15 -0.03 0.05"/>
      </body>
    </body>
  </worldbody>
  <tendon>
    <fixed name="branch" stiffness="5 3 2" springlength="-0.2 0.3" damping="0.3 0.1 0.05"
           frictionloss="2" armature="0.03" range="-0.6 0.7" margin="0.05">
      <joint joint="elbow" coef="-0.7"/>
      <joint joint="shoulder" coef="1"/>
    </fixed>
    <fixed name="across" stiffness="4" damping="0.5" frictionloss="3" armature="0.02"
           range="-0.5 0.5">
      <joint joint="elbow" coef="0.8"/>
      <joint joint="thumb" coef="1.2"/>
    </fixed>
    <spatial name="muscle" stiffness="10 7 5" springlength="1.3 1.5" damping="0.8 0.3 0.2"
             frictionloss="4" armature="0.4" range="1.2 1.6" margin="0.05">
      <site site="ceiling"/>
      <site site="upper"/>
      <site site="fore"/>
      <pulley divisor="2"/>
      <site site="hand"/>
      <site site="wall"/>
      <pulley divisor="2.5"/>
      <site site="hand"/>
      <site site="ceiling"/>
    </spatial>
    <spatial name="path">
      <site site="thumb"/>
      <site site="hand"/>
      <site site="upper"/>
      <pulley divisor="3"/>
      <site site="thumb"/>
      <site site="wall"/>
    </spatial>
    <spatial name="rope" stiffness="2" springlength="3" damping="0.2 0.1" frictionloss="0.1"
             range="2.9 3.8" margin="0.02">
      <site site="ceiling"/>
      <site site="wall"/>
      <site site="upper"/>
      <geom geom="ball" sidesite="beside"/>
      <site site="hand"/>
      <pulley divisor="2"/>
      <site site="wall"/>
      <geom geom="ball"/>
      <site site="fore"/>
      <pulley divisor="0.5"/>
      <site site="ceiling"/>
      <geom geom="rod"/>
      <site site="hand"/>
    </spatial>
    <fixed name="first"><joint joint="thumb" coef="0.6"/></fixed>
    <fixed name="second">
      <joint joint="shoulder" coef="0.5"/>
      <joint joint="slide" coef="3"/>
    </fixed>
  </tendon>
  <equality>
    <tendon tendon1="first" tendon2="second" polycoef="0.02 0.5 0.3 -0.4 0.2"/>
    <tendon tendon1="second" polycoef="0.1"/>
    <tendon tendon1="path" tendon2="second" polycoef="0 0.3 -0.2"/>
  </equality>
  <actuator><motor joint="elbow" gear="3"/></actuator>
</mujoco>"""

MODELS = {"arm": ARM}


def load(name: str, integrator: str = "mjINT_EULER") -> mujoco.MjModel:
    """Compile a model."""
    mjm = mujoco.MjModel.from_xml_string(MODELS[name])
    mjm.opt.integrator = mujoco.mjtIntegrator.__members__[integrator]
    return mjm


def states(mjm: mujoco.MjModel, n: int, seed: int = 0, speed: float = 0.6) -> States:
    """Sample n states at random; contacts, if any, are not deep (see `has_steep_capsule`, too).

    Friction loss acts in two ways, and the states hold both: at half of them the joints move so
    slowly that friction holds some.
    """
    rng = np.random.default_rng(seed)
    data = mujoco.MjData(mjm)
    rows: list[list] = []
    while len(rows) < n:
        mujoco.mj_resetData(mjm, data)
        mujoco.mj_integratePos(mjm, data.qpos, rng.normal(size=mjm.nv) * 0.5, 1.0)
        data.qvel[:] = rng.normal(size=mjm.nv) * speed * (0.1 if len(rows) % 2 else 1.0)
        data.ctrl[:] = rng.uniform(-1, 1, mjm.nu)
        for name in ("qpos", "qvel", "ctrl"):
            getattr(data, name)[:] = getattr(data, name).astype(np.float32)
        mujoco.mj_forward(mjm, data)
        if has_steep_capsule(mjm, data):
            continue
        if data.ncon == 0 or data.contact.dist.min() > -0.03:
            parts = (data.qpos, data.qvel, data.act, data.ctrl, data.qacc)
            rows.append([*(x.copy() for x in parts), data.ncon])
    return States(*(np.array(x) for x in zip(*rows, strict=True)))
