"""DiffHopper-v0: a one-legged robot hops along x. The task is that of Gymnasium's Hopper-v5.

Action (3): torques of thigh, leg and foot joint in units of 200 N m, in [-1, 1]. The motors clamp
what lies outside; the control cost does not.

Observation (11):

    0     height of the torso                               m
    1     pitch of the torso                                rad
    2:5   thigh, leg, foot joint                            rad
    5:7   velocity of the torso along x, z, clipped to 10   m/s
    7:11  velocities of 1:5, clipped to 10                  rad/s

`exclude_current_positions_from_observation=False` puts x (m) in front.

Reward: reward_forward (x velocity over the step, m/s, times forward_reward_weight)
+ reward_survive (healthy_reward while healthy) + reward_ctrl (-ctrl_cost_weight * |action|^2).
Terminates when unhealthy: height outside healthy_z_range (m), pitch outside healthy_angle_range
(rad), or any other number of the state outside healthy_state_range; all bounds are exclusive.
Start: the reference configuration plus U(-1, 1) * reset_noise_scale on qpos and qvel. An episode
is truncated after 1000 steps of 0.008 s.

Differences from Hopper-v5. The integrator is implicitfast (one force evaluation per 0.002 s
instead of the four of RK4; integrator="rk4" is that of v5). No gradient: the survive
reward and termination are steps; clipped velocities; beyond [-1, 1] an action reaches the reward
through its cost only.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class HopperParams:
    """Parameters of the reward and of termination."""

    dt: float  # s
    init_height: float  # m
    forward_reward_weight: float  # per m/s
    ctrl_cost_weight: float
    healthy_reward: float
    healthy_z_range: wp.vec2  # m
    healthy_angle_range: wp.vec2  # rad
    healthy_state_range: wp.vec2  # m, rad, m/s, rad/s
    terminate_when_unhealthy: wp.bool
    exclude_current_positions_from_observation: wp.bool


@wp.func
def _within(x: float, limits: wp.vec2) -> wp.bool:
    """Say whether x is inside the open interval; NaN is not."""
    return x > limits[0] and x < limits[1]


@wp.kernel
def hopper_outputs(
    p: HopperParams,
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
    healthy = _within(qpos_in[world, 1], p.healthy_z_range)
    healthy = healthy and _within(qpos_in[world, 2], p.healthy_angle_range)
    for i in range(nq):
        if i >= 2:
            healthy = healthy and _within(qpos_in[world, i], p.healthy_state_range)
        if i >= skip:
            obs_out[world, i - skip] = qpos_in[world, i]
    for i in range(qvel_in.shape[1]):
        healthy = healthy and _within(qvel_in[world, i], p.healthy_state_range)
        obs_out[world, nq - skip + i] = wp.clamp(qvel_in[world, i], -10.0, 10.0)

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
    info_out[world, 1] = qpos_in[world, 1] - p.init_height
    info_out[world, 2] = x_velocity
    info_out[world, 3] = forward
    info_out[world, 4] = ctrl
    info_out[world, 5] = survive


class Hopper(Task):
    """See the module docstring."""

    gymnasium = "Hopper-v5"
    v5 = {"integrator": "rk4"}
    xml = "hopper.xml"
    frame_skip = 4
    kernel = hopper_outputs
    params = HopperParams
    skipped_qpos = 1
    state_info = ("x_position", "z_distance_from_origin")
    step_info = ("x_velocity", "reward_forward", "reward_ctrl", "reward_survive")
    camera = {"distance": 3.0, "trackbodyid": 2, "type": 1, "elevation": -20.0}
    defaults = {
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 1e-3,
        "healthy_reward": 1.0,
        "healthy_z_range": (0.7, float("inf")),
        "healthy_angle_range": (-0.2, 0.2),
        "healthy_state_range": (-100.0, 100.0),
        "terminate_when_unhealthy": True,
        "exclude_current_positions_from_observation": True,
        "reset_noise_scale": 5e-3,
    }

    def derived(self) -> dict[str, float]:
        """Add the height of the torso at the start."""
        return super().derived() | {"init_height": float(self.init_qpos[1])}
