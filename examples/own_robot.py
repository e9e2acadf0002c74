"""A robot of one's own as a task, in one file: a plate catches a ball and rolls it to its middle.

The file has all that a task needs: a model (MJCF), a Warp kernel that turns a step into
observation, reward and termination, and a class that names them. `diffenvs.register` makes it an
environment like any other, with gradients through the contact of ball and plate. A small policy is
then trained by the gradient of 1.6 s of play.

    python examples/own_robot.py

One sees the return rise, how many of 64 balls lie in the middle at the end, and a strip of pictures
of one of them (PNG, where pictures can be drawn).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import warp as wp

import diffenvs
from diffenvs import Task

PLATE = """
<mujoco model="ball_on_plate">
  <compiler angle="radian"/>
  <option timestep="0.01" integrator="implicitfast" cone="elliptic"/>
  <visual>
    <headlight ambient=".4 .4 .4" diffuse=".4 .4 .4" specular="0 0 0"/>
    <global offwidth="640" offheight="640"/>
    <quality shadowsize="2048"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" width="64" height="384"
             rgb1=".96 .97 .99" rgb2=".70 .80 .90"/>
    <material name="plate" rgba=".16 .36 .58 1" specular=".3"/>
    <material name="ring" rgba=".93 .96 .99 1"/>
    <material name="ball" rgba=".93 .55 .20 1" specular=".6" shininess=".6"/>
    <material name="steel" rgba=".45 .50 .56 1"/>
  </asset>
  <worldbody>
    <light directional="true" pos="-1 -2 4" dir=".3 .5 -1" diffuse=".6 .6 .58"/>
    <geom name="post" type="capsule" fromto="0 0 -.5 0 0 -.03" size=".02" material="steel"
          contype="0" conaffinity="0"/>
    <body name="plate">
      <joint name="tilt_x" axis="1 0 0" damping=".05" armature=".01"/>
      <joint name="tilt_y" axis="0 1 0" damping=".05" armature=".01"/>
      <geom name="plate" type="cylinder" size=".3 .01" mass=".5" material="plate"/>
      <geom name="ring" type="cylinder" size=".06 .0102" mass="0" material="ring" contype="0"
            conaffinity="0"/>
    </body>
    <body name="ball" pos="0 0 .12">
      <freejoint/>
      <geom name="ball" type="sphere" size=".04" mass=".1" material="ball" solref=".03 1"/>
    </body>
  </worldbody>
  <actuator>
    <position name="tilt_x" joint="tilt_x" kp="4" kv=".4" ctrlrange="-1 1" gear="4"/>
    <position name="tilt_y" joint="tilt_y" kp="4" kv=".4" ctrlrange="-1 1" gear="4"/>
  </actuator>
</mujoco>
"""
XML = Path(tempfile.gettempdir()) / "diffenvs_ball_on_plate.xml"
XML.write_text(PLATE)
