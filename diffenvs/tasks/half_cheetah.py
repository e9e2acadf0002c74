"""DiffHalfCheetah-v0: a planar two-legged robot runs. The task is Gymnasium's HalfCheetah-v5.

Action (6): torques of back thigh, shin, foot and front thigh, shin, foot in units of 120, 90, 60,
120, 60 and 30 N m, in [-1, 1]. The motors clamp what lies outside; the control cost does not.

Observation (17):

    0      height of the torso above where it is built      m
    1      pitch of the torso                               rad
    2:8    joints, in the order of the action               rad
    8:10   velocity of the torso along x, z                 m/s
    10:17  velocities of 1:8                                rad/s

`exclude_current_positions_from_observation=False` puts x (m) in front.

Reward: reward_forward (x velocity over the step, m/s, times forward_reward_weight) + reward_ctrl
(-ctrl_cost_weight * |action|^2). Never terminates. Start: the reference configuration plus
U(-1, 1) on qpos and N(0, 1) on qvel, times reset_noise_scale. An episode is truncated after 1000
steps of 0.05 s.

Differences from HalfCheetah-v5: none in the task. The integrator is implicitfast, which for this
model takes the same steps as the Euler of v5 (integrator="euler"), to rounding. No gradient:
beyond [-1, 1] an action reaches the reward through its cost only.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class HalfCheetahParams:
    """Parameters of the reward."""

    dt: float  # s
    forward_reward_weight: float  # per m/s
    ctrl_cost_weight: float
    exclude_current_positions_from_observation: wp.bool


@wp.kernel
def half_cheetah_outputs(
    p: HalfCheetahParams,
    # In:
    qpos_prev_in: wp.array2d[float],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    action_in: wp.array2d[float],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """Observation, reward, termination and info of one step."""
    world = wp.tid()
    nq = qpos_in.shape[1]
    skip = wp.where(p.exclude_current_positions_from_observation, 1, 0)
    for i in range(nq):
        if i >= skip:
            obs_out[world, i - skip] = qpos_in[world, i]
    for i in range(qvel_in.shape[1]):
        obs_out[world, nq - skip + i] = qvel_in[world, i]

    x_velocity = (qpos_in[world, 0] - qpos_prev_in[world, 0]) / p.dt
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]

    forward = p.forward_reward_weight * x_velocity
    ctrl = -p.ctrl_cost_weight * effort
    reward_out[world] = forward + ctrl
    terminated_out[world] = False

    info_out[world, 0] = qpos_in[world, 0]
    info_out[world, 1] = x_velocity
    info_out[world, 2] = forward
    info_out[world, 3] = ctrl


class HalfCheetah(Task):
    """See the module docstring."""

    gymnasium = "HalfCheetah-v5"
    v5 = {"integrator": "euler"}
    xml = "half_cheetah.xml"
    frame_skip = 5
    kernel = half_cheetah_outputs
    params = HalfCheetahParams
    skipped_qpos = 1
    state_info = ("x_position",)
    step_info = ("x_velocity", "reward_forward", "reward_ctrl")
    reset_noise = ("uniform", "normal")
    camera = {"distance": 4.0, "trackbodyid": 1, "type": 1}
    defaults = {
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 0.1,
        "exclude_current_positions_from_observation": True,
        "reset_noise_scale": 0.1,
    }
