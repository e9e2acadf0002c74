"""DiffWalker2d-v0: a planar two-legged robot walks along x. The task is Gymnasium's Walker2d-v5.

Action (6): torques of thigh, leg, foot of the right and of the left leg in units of 100 N m, in
[-1, 1]. The motors clamp what lies outside; the control cost does not.

Observation (17):

    0     height of the torso                               m
    1     pitch of the torso                                rad
    2:5   thigh, leg, foot joint of the right leg           rad
    5:8   thigh, leg, foot joint of the left leg            rad
    8:10  velocity of the torso along x, z, clipped to 10   m/s
    10:17 velocities of 1:8, clipped to 10                  rad/s

`exclude_current_positions_from_observation=False` puts x (m) in front.

Reward: reward_forward (x velocity over the step, m/s, times forward_reward_weight)
+ reward_survive (healthy_reward while healthy) + reward_ctrl (-ctrl_cost_weight * |action|^2).
Terminates when unhealthy: height outside healthy_z_range (m) or pitch outside healthy_angle_range
(rad); all bounds are exclusive. Start: the reference configuration plus
U(-1, 1) * reset_noise_scale on qpos and qvel. An episode is truncated after 1000 steps of 0.008 s.

Differences from Walker2d-v5. The integrator is implicitfast (one force evaluation per 0.002 s
instead of the four of RK4; integrator="rk4" is that of v5). No gradient: the survive reward and
termination are steps; clipped velocities; beyond [-1, 1] an action reaches the reward through its
cost only.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class Walker2dParams:
    """Parameters of the reward and of termination."""

    dt: float  # s
    init_height: float  # m
    forward_reward_weight: float  # per m/s
    ctrl_cost_weight: float
    healthy_reward: float
    healthy_z_range: wp.vec2  # m
    healthy_angle_range: wp.vec2  # rad
    terminate_when_unhealthy: wp.bool
    exclude_current_positions_from_observation: wp.bool


@wp.kernel
def walker2d_outputs(
    p: Walker2dParams,
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
        obs_out[world, nq - skip + i] = wp.clamp(qvel_in[world, i], -10.0, 10.0)
    height = qpos_in[world, 1]
    pitch = qpos_in[world, 2]
    healthy = height > p.healthy_z_range[0] and height < p.healthy_z_range[1]
    healthy = healthy and pitch > p.healthy_angle_range[0] and pitch < p.healthy_angle_range[1]

    x_velocity = (qpos_in[world, 0] - qpos_prev_in[world, 0]) / p.dt
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]

    forward = p.forward_reward_weight * x_velocity
    survive = wp.where(healthy, p.healthy_reward, 0.0)
    ctrl = -p.ctrl_cost_weight * effort
    reward_out[world] = forward + survive + ctrl
    terminated_out[world] = p.terminate_when_unhealthy and not healthy

    info_out[world, 0] = qpos_in[world, 0]
    info_out[world, 1] = height - p.init_height
    info_out[world, 2] = x_velocity
    info_out[world, 3] = forward
    info_out[world, 4] = ctrl
    info_out[world, 5] = survive


class Walker2d(Task):
    """See the module docstring."""

    gymnasium = "Walker2d-v5"
    v5 = {"integrator": "rk4"}
    xml = "walker2d.xml"
    frame_skip = 4
    kernel = walker2d_outputs
    params = Walker2dParams
    skipped_qpos = 1
    state_info = ("x_position", "z_distance_from_origin")
    step_info = ("x_velocity", "reward_forward", "reward_ctrl", "reward_survive")
    camera = {"distance": 4.0, "trackbodyid": 2, "type": 1, "elevation": -20.0}
    defaults = {
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 1e-3,
        "healthy_reward": 1.0,
        "healthy_z_range": (0.8, 2.0),
        "healthy_angle_range": (-1.0, 1.0),
        "terminate_when_unhealthy": True,
        "exclude_current_positions_from_observation": True,
        "reset_noise_scale": 5e-3,
    }

    def derived(self) -> dict[str, float]:
        """Add the height of the torso at the start."""
        return super().derived() | {"init_height": float(self.init_qpos[1])}
