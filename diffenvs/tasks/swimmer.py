"""DiffSwimmer-v0: three links swim along x in a viscous fluid. The task is Gymnasium's Swimmer-v5.

Action (2): torques of the joints to the middle and to the last link in units of 150 N m, in
[-1, 1]. The motors clamp what lies outside; the control cost does not.

Observation (8):

    0    heading of the first link                          rad
    1:3  joints to the middle and to the last link          rad
    3:5  velocity of the front link's origin along x, y     m/s
    5:8  velocities of 0:3                                  rad/s

`exclude_current_positions_from_observation=False` puts x and y (m) in front.

Reward: reward_forward (x velocity over the step, m/s, times forward_reward_weight) + reward_ctrl
(-ctrl_cost_weight * |action|^2). Never terminates. Start: the reference configuration plus
U(-1, 1) * reset_noise_scale on qpos and qvel. An episode is truncated after 1000 steps of 0.04 s.

Differences from Swimmer-v5. The integrator is implicitfast (one force evaluation per 0.01 s
instead of the four of RK4; integrator="rk4" is that of v5). Nothing collides, so the step is smooth
except where a joint reaches a limit. No gradient: beyond [-1, 1] an action reaches the reward
through its cost only.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class SwimmerParams:
    """Parameters of the reward."""

    dt: float  # s
    forward_reward_weight: float  # per m/s
    ctrl_cost_weight: float
    exclude_current_positions_from_observation: wp.bool


@wp.kernel
def swimmer_outputs(
    p: SwimmerParams,
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
    skip = wp.where(p.exclude_current_positions_from_observation, 2, 0)
    for i in range(nq):
        if i >= skip:
            obs_out[world, i - skip] = qpos_in[world, i]
    for i in range(qvel_in.shape[1]):
        obs_out[world, nq - skip + i] = qvel_in[world, i]

    x_velocity = (qpos_in[world, 0] - qpos_prev_in[world, 0]) / p.dt
    y_velocity = (qpos_in[world, 1] - qpos_prev_in[world, 1]) / p.dt
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]

    forward = p.forward_reward_weight * x_velocity
    ctrl = -p.ctrl_cost_weight * effort
    reward_out[world] = forward + ctrl
    terminated_out[world] = False

    info_out[world, 0] = qpos_in[world, 0]
    info_out[world, 1] = qpos_in[world, 1]
    info_out[world, 2] = wp.length(wp.vec2(qpos_in[world, 0], qpos_in[world, 1]))
    info_out[world, 3] = x_velocity
    info_out[world, 4] = y_velocity
    info_out[world, 5] = forward
    info_out[world, 6] = ctrl


class Swimmer(Task):
    """See the module docstring."""

    gymnasium = "Swimmer-v5"
    v5 = {"integrator": "rk4"}
    xml = "swimmer.xml"
    frame_skip = 4
    kernel = swimmer_outputs
    params = SwimmerParams
    skipped_qpos = 2
    state_info = ("x_position", "y_position", "distance_from_origin")
    step_info = ("x_velocity", "y_velocity", "reward_forward", "reward_ctrl")
    camera = {"distance": 5.0, "trackbodyid": 1, "type": 1}
    defaults = {
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 1e-4,
        "exclude_current_positions_from_observation": True,
        "reset_noise_scale": 0.1,
    }
