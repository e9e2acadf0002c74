"""Two robots: a humanoid with hands, feet and toes, and an arm that holds something.

    humanoid    41 dofs: a free torso, waist, neck, arms with wrists and two-finger hands, legs with
                ankles and toes; 1.65 m and about 60 kg
    gripper     6 hinges, two fingers on slides, and a free object between them on a table: 14 dofs

Both have the keyframe `home`: the humanoid stands with bent knees, the gripper holds its object.
"""

import mujoco
import numpy as np

from diffenvs.physics.accuracy_tool import CONES, INTEGRATORS

_DEFAULTS = """
  <default>
    <geom solref="0.015 1" solimp="0.85 0.97 0.005 0.5 2" friction="0.9 0.02 0.001"
          contype="0" conaffinity="0" density="900" rgba="0.72 0.75 0.8 1"/>
    <joint damping="1" armature="0.02" solreflimit="0.02 1" solimplimit="0.9 0.97 0.01 0.5 2"/>
    <default class="touch"><geom contype="0" conaffinity="1" rgba="0.25 0.28 0.33 1"/></default>
    <default class="hand"><joint damping="0.05" armature="0.003"/></default>
  </default>"""


def _actuators(joints: dict[str, float], kind: str) -> str:
    """One actuator per joint, by its strength in Nm (N).

    `motor`; `position`: a servo, the stiffer the stronger; `servo`: the same with a filtered
    command, hence with an activation.
    """
    lines = []
    for joint, strength in joints.items():
        if kind == "motor":
            lines.append(f'<motor name="{joint}" joint="{joint}" gear="{strength}"/>')
            continue
        constant = ' timeconst="0.03"' if kind == "servo" else ""
        lines.append(
            f'<position name="{joint}" joint="{joint}" kp="{4 * strength}" kv="{strength / 5}" '
            f'inheritrange="1" forcerange="-{strength} {strength}"{constant}/>'
        )
    return "\n    ".join(lines)


def _hand(side: str, sign: int) -> tuple[str, dict[str, float]]:
    joints = {f"wrist_{axis}_{side}": 4.0 for axis in ("pitch", "roll")}
    joints |= {f"{finger}_{side}": 1.0 for finger in ("thumb", "fingers")}
    xml = f"""
          <body name="hand_{side}" pos="0 0 -0.24">
            <joint class="hand" name="wrist_pitch_{side}" axis="0 1 0" range="-1 1"/>
            <joint class="hand" name="wrist_roll_{side}" axis="1 0 0" range="-0.6 0.6"/>
            <geom type="box" size="0.014 0.035 0.04" pos="0 0 -0.045"/>
            <body name="thumb_{side}" pos="0.02 {-sign * 0.025} -0.03">
              <joint class="hand" name="thumb_{side}" axis="{sign} 0 0" range="-0.3 1.2"/>
              <geom class="touch" name="thumb_{side}" type="capsule"
                    fromto="0 0 -0.01 0.01 {-sign * 0.01} -0.06" size="0.011"/>
            </body>
            <body name="fingers_{side}" pos="0 0 -0.09">
              <joint class="hand" name="fingers_{side}" axis="0 1 0" range="-1.4 0.2"/>
              <geom class="touch" name="fingers_{side}" type="capsule"
                    fromto="0 -0.02 -0.04 0 0.02 -0.04" size="0.014"/>
            </body>
          </body>"""
    return xml, joints


def _arm(side: str, sign: int, hands: bool) -> tuple[str, dict[str, float]]:
    hand, joints = _hand(side, sign) if hands else ("", {})
    own = {f"shoulder_{axis}_{side}": 40.0 for axis in ("pitch", "roll", "yaw")}
    xml = f"""
      <body name="upper_arm_{side}" pos="0 {sign * 0.2} 0.33">
        <joint name="shoulder_pitch_{side}" axis="0 1 0" range="-2.5 1"/>
        <joint name="shoulder_roll_{side}" axis="{sign} 0 0" range="-0.2 1.8"/>
        <joint name="shoulder_yaw_{side}" axis="0 0 1" range="-1 1"/>
        <geom type="capsule" fromto="0 {sign * 0.02} -0.02 0 {sign * 0.02} -0.25" size="0.045"/>
        <body name="forearm_{side}" pos="0 {sign * 0.02} -0.29">
          <joint name="elbow_{side}" axis="0 1 0" range="-2.3 0"/>
          <geom type="capsule" fromto="0 0 -0.01 0 0 -0.21" size="0.035"/>
          {hand}
        </body>
      </body>"""
    return xml, own | {f"elbow_{side}": 30.0} | joints


def _leg(side: str, sign: int, feet: str) -> tuple[str, dict[str, float]]:
    sole = {
        "box": '<geom class="touch" name="foot_{0}" type="box" size="0.085 0.045 0.02" '
        'pos="0.035 0 -0.06"/>',
        "capsule": '<geom class="touch" name="foot_{0}" type="capsule" size="0.025" '
        'fromto="-0.05 -0.02 -0.055 0.11 -0.025 -0.055"/>'
        '<geom class="touch" name="side_{0}" type="capsule" size="0.025" '
        'fromto="-0.05 0.02 -0.055 0.11 0.025 -0.055"/>',
        "sphere": "".join(
            f'<geom class="touch" type="sphere" size="0.03" pos="{x} {y} -0.05"/>'
            for x in (-0.05, 0.11)
            for y in (-0.03, 0.03)
        ),
    }[feet].format(side)
    joints = {f"hip_{axis}_{side}": 120.0 for axis in ("yaw", "roll", "pitch")}
    joints |= {f"knee_{side}": 150.0, f"toes_{side}": 10.0}
    joints |= {f"ankle_{axis}_{side}": 60.0 for axis in ("pitch", "roll")}
    xml = f"""
      <body name="thigh_{side}" pos="0 {sign * 0.1} -0.06">
        <joint name="hip_yaw_{side}" axis="0 0 1" range="-0.6 0.6" damping="3"/>
        <joint name="hip_roll_{side}" axis="{sign} 0 0" range="-0.4 0.7" damping="3"/>
        <joint name="hip_pitch_{side}" axis="0 1 0" range="-1.9 0.5" damping="3"/>
        <geom type="capsule" fromto="0 0 -0.03 0 0 -0.36" size="0.065"/>
        <body name="shin_{side}" pos="0 0 -0.4">
          <joint name="knee_{side}" axis="0 1 0" range="0 2.4" damping="3"/>
          <geom class="touch" name="knee_{side}" type="capsule" fromto="0 0 -0.03 0 0 -0.34"
                size="0.05"/>
          <body name="foot_{side}" pos="0 0 -0.39">
            <joint name="ankle_pitch_{side}" axis="0 1 0" range="-0.8 0.8"/>
            <joint name="ankle_roll_{side}" axis="1 0 0" range="-0.4 0.4"/>
            {sole}
            <body name="toes_{side}" pos="0.13 0 -0.06">
              <joint name="toes_{side}" axis="0 1 0" range="-0.8 0.3" damping="0.3" stiffness="5"/>
              <geom class="touch" name="toes_{side}" type="capsule"
                    fromto="0.03 -0.03 0 0.03 0.03 0" size="0.02"/>
            </body>
          </body>
        </body>
      </body>"""
    return xml, joints


def humanoid_xml(*, feet: str = "box", hands: bool = True, actuators: str = "position") -> str:
    """A humanoid of 41 dofs, 33 without hands.

    Args:
        feet: `box`, `capsule` (two along each sole) or `sphere` (four).
        hands: whether it has wrists, thumbs and fingers.
        actuators: `motor`, `position` or `servo`, see `_actuators`.
    """
    joints = {f"waist_{axis}": 80.0 for axis in ("yaw", "pitch", "roll")}
    joints |= {"neck_yaw": 5.0, "neck_pitch": 5.0}
    limbs = ""
    for side, sign in (("left", 1), ("right", -1)):
        arm, arm_joints = _arm(side, sign, hands)
        limbs += arm
        joints |= arm_joints
    legs = ""
    for side, sign in (("left", 1), ("right", -1)):
        leg, leg_joints = _leg(side, sign, feet)
        legs += leg
        joints |= leg_joints
    xml = f"""
<mujoco model="humanoid41">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" integrator="implicitfast"/>{_DEFAULTS}
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.6 0.7 0.8" rgb2="0.1 0.1 0.15"
             width="64" height="64"/>
    <texture name="tiles" type="2d" builtin="checker" rgb1="0.35 0.37 0.4" rgb2="0.28 0.3 0.33"
             width="128" height="128"/>
    <material name="tiles" texture="tiles" texrepeat="10 10" reflectance="0.1"/>
  </asset>
  <worldbody>
    <light pos="0 -2 4" dir="0 0.4 -1" directional="true"/>
    <geom name="floor" type="plane" size="10 10 0.1" contype="1" material="tiles"/>
    <body name="pelvis" pos="0 0 0.95">
      <freejoint name="root"/>
      <geom type="capsule" fromto="0 -0.08 0 0 0.08 0" size="0.09"/>
      {legs}
      <body name="torso" pos="0 0 0.1">
        <joint name="waist_yaw" axis="0 0 1" range="-0.8 0.8" damping="3"/>
        <joint name="waist_pitch" axis="0 1 0" range="-0.4 0.9" damping="3"/>
        <joint name="waist_roll" axis="1 0 0" range="-0.4 0.4" damping="3"/>
        <geom class="touch" name="chest" type="capsule" fromto="0 -0.08 0.25 0 0.08 0.25"
              size="0.12"/>
        <geom type="capsule" fromto="0 -0.05 0.08 0 0.05 0.08" size="0.1"/>
        <body name="head" pos="0 0 0.42">
          <joint name="neck_yaw" axis="0 0 1" range="-1 1"/>
          <joint name="neck_pitch" axis="0 1 0" range="-0.5 0.7"/>
          <geom class="touch" name="head" type="sphere" size="0.1" pos="0.01 0 0.1"/>
        </body>
        {limbs}
      </body>
    </body>
  </worldbody>
  <actuator>
    {_actuators(joints, actuators)}
  </actuator>
</mujoco>"""
    bent = {"hip_pitch": -0.35, "knee": 0.7, "ankle_pitch": -0.35, "shoulder_roll": 0.2}
    return _with_home(xml, bent | {"elbow": -0.6}, height=0.881)


def gripper_xml(
    *,
    fingers: str = "free",
    fingertips: str = "capsule",
    object: str = "capsule",
    actuators: str = "position",
) -> str:
    """An arm of 6 hinges with a gripper, and a free object in its grasp above a table.

    Args:
        fingers: `free`: each has its own actuator; `equality`: a joint equality makes the second
            follow the first, which is driven; `tendon`: a fixed tendon of both is driven, and
            another one, with a stiff spring, keeps them symmetric.
        fingertips: `capsule`, `sphere` or `box`.
        object: `capsule`, `sphere` or `box`.
        actuators: of the arm; `motor`, `position` or `servo`, see `_actuators`.
    """
    tip = {
        "capsule": 'type="capsule" fromto="-0.02 {0} 0.06 0.02 {0} 0.06" size="0.012"',
        "sphere": 'type="sphere" pos="0 {0} 0.06" size="0.015"',
        "box": 'type="box" pos="0 {0} 0.055" size="0.012 0.012 0.02"',
    }[fingertips]
    load = {
        "capsule": 'type="capsule" size="0.022 0.03"',
        "sphere": 'type="sphere" size="0.028"',
        "box": 'type="box" size="0.022 0.022 0.03"',
    }[object]
    pull = 'kp="400" kv="8" ctrlrange="0 0.05" forcerange="-20 20"'
    extra = {
        "free": f"""
  <actuator>
    <position name="finger_left" joint="finger_left" {pull}/>
    <position name="finger_right" joint="finger_right" {pull}/>
  </actuator>""",
        "equality": f"""
  <equality><joint joint1="finger_right" joint2="finger_left" solref="0.01 1"/></equality>
  <actuator><position name="fingers" joint="finger_left" {pull}/></actuator>""",
        "tendon": f"""
  <tendon>
    <fixed name="both"><joint joint="finger_left" coef="0.5"/>
      <joint joint="finger_right" coef="0.5"/></fixed>
    <fixed name="even" stiffness="3000" damping="20" springlength="0">
      <joint joint="finger_left" coef="1"/><joint joint="finger_right" coef="-1"/></fixed>
  </tendon>
  <actuator><position name="fingers" tendon="both" {pull}/></actuator>""",
    }[fingers]
    hinges = {"base": 60.0, "shoulder": 60.0, "elbow": 40.0, "forearm": 12.0, "wrist": 12.0}
    arm = _actuators(hinges | {"flange": 8.0}, actuators)
    xml = f"""
<mujoco model="gripper">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>{_DEFAULTS}
  <worldbody>
    <light pos="0 -1 3" dir="0 0.3 -1" directional="true"/>
    <geom name="table" type="plane" size="2 2 0.1" contype="1" rgba="0.45 0.4 0.35 1"/>
    <body name="base" pos="0 0 0.05">
      <joint name="base" axis="0 0 1" range="-2.8 2.8" armature="0.1"/>
      <geom type="cylinder" size="0.07 0.05"/>
      <body name="upper" pos="0 0 0.1">
        <joint name="shoulder" axis="0 1 0" range="-1.8 1.8" armature="0.1" damping="2"/>
        <geom type="capsule" fromto="0 0 0 0 0 0.38" size="0.05"/>
        <body name="fore" pos="0 0 0.4">
          <joint name="elbow" axis="0 1 0" range="-0.3 2.6" armature="0.1" damping="2"/>
          <geom type="capsule" fromto="0 0 0.02 0 0 0.2" size="0.04"/>
          <body name="roll" pos="0 0 0.22">
            <joint name="forearm" axis="0 0 1" range="-2.8 2.8" damping="0.5"/>
            <geom type="capsule" fromto="0 0 0.02 0 0 0.12" size="0.035"/>
            <body name="wrist" pos="0 0 0.15">
              <joint name="wrist" axis="0 1 0" range="-1.9 1.9" damping="0.5"/>
              <geom type="capsule" fromto="0 0 0 0 0 0.05" size="0.03"/>
              <body name="flange" pos="0 0 0.07">
                <joint name="flange" axis="0 0 1" range="-3 3" damping="0.3"/>
                <geom type="box" size="0.025 0.06 0.015" pos="0 0 0.02"/>
                <body name="finger_left" pos="0 0.012 0.03">
                  <joint class="hand" name="finger_left" type="slide" axis="0 1 0" damping="4"
                         range="0 0.05" armature="0.05"/>
                  <geom type="box" size="0.01 0.006 0.03" pos="0 0.006 0.03"/>
                  <geom class="touch" name="tip_left" {tip.format(0.003)} contype="2"/>
                </body>
                <body name="finger_right" pos="0 -0.012 0.03">
                  <joint class="hand" name="finger_right" type="slide" axis="0 -1 0" damping="4"
                         range="0 0.05" armature="0.05"/>
                  <geom type="box" size="0.01 0.006 0.03" pos="0 -0.006 0.03"/>
                  <geom class="touch" name="tip_right" {tip.format(-0.003)} contype="2"/>
                </body>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="object" pos="0.5 0 0.3">
      <freejoint name="object"/>
      <geom name="object" {load} class="touch" conaffinity="3" density="500" condim="4"
            friction="1 0.01 0.001" rgba="0.8 0.35 0.2 1"/>
    </body>
  </worldbody>
  <actuator>
    {arm}
  </actuator>{extra}
</mujoco>"""
    # reaching forward and down, the fingers closed on the object
    pose = {
        "shoulder": 0.5,
        "elbow": 1.2,
        "wrist": 0.9,
        "finger": {"sphere": 0.0275}.get(object, 0.0185),
    }
    return _with_home(xml, pose, held="object")


def _with_home(xml: str, pose: dict, height: float = 0.0, held: str = "") -> str:
    """Add the keyframe `home`; names in `pose` are joints, with or without their side."""
    mjm = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(mjm)
    for i in range(mjm.njnt):
        name = mjm.joint(i).name
        value = pose.get(name, pose.get(name.removesuffix("_left").removesuffix("_right"), 0.0))
        if mjm.jnt_type[i] != mujoco.mjtJoint.mjJNT_FREE:
            data.qpos[mjm.jnt_qposadr[i]] = value
        elif height:
            data.qpos[mjm.jnt_qposadr[i] + 2] = height
    mujoco.mj_kinematics(mjm, data)
    if held:
        joint = mjm.joint(held)
        tips = [data.geom(f"tip_{side}").xpos for side in ("left", "right")]
        adr = joint.qposadr[0]
        data.qpos[adr : adr + 3] = np.mean(tips, axis=0)
        data.qpos[adr + 3 : adr + 7] = data.body("flange").xquat
    ctrl = np.zeros(mjm.nu)
    for i in range(mjm.nu):
        if mjm.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_AFFINE:  # a servo holds its pose
            is_joint = mjm.actuator_trntype[i] == mujoco.mjtTrn.mjTRN_JOINT
            adr = mjm.jnt_qposadr[mjm.actuator_trnid[i, 0]] if is_joint else 0
            pulls = mjm.actuator(i).name.startswith("finger")  # with all their force
            ctrl[i] = 0.0 if held and pulls else data.qpos[adr]

    def text(x):
        return " ".join(f"{v:.6g}" for v in x)

    act = f' act="{text(ctrl[: mjm.na])}"' if mjm.na else ""
    key = f'<key name="home" qpos="{text(data.qpos)}" ctrl="{text(ctrl)}"{act}/>'
    return xml.replace("</mujoco>", f"  <keyframe>{key}</keyframe>\n</mujoco>")


def load(xml: str, integrator: str | None = None, cone: str | None = None) -> mujoco.MjModel:
    """Compile a robot, with its own integrator and cone or with others."""
    mjm = mujoco.MjModel.from_xml_string(xml)
    if integrator is not None:
        mjm.opt.integrator = INTEGRATORS[integrator]
    if cone is not None:
        mjm.opt.cone = CONES[cone]
    return mjm
