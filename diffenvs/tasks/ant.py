"""DiffAnt-v0: a four-legged robot runs along x. The task is that of Gymnasium's Ant-v5.

Action (8): torques of hip_4, ankle_4, hip_1, ankle_1, hip_2, ankle_2, hip_3, ankle_3, in units of
150 N m, in [-1, 1]. The motors clamp what lies outside; the control cost does not.

Observation (27):

    0      height of the torso                                  m
    1:5    orientation of the torso, quaternion (w, x, y, z)
    5:13   hip_1, ankle_1, hip_2, ankle_2, hip_3, ..., ankle_4  rad
    13:16  velocity of the torso, world axes                    m/s
    16:19  angular velocity of the torso, its own axes          rad/s
    19:27  joint velocities, in the order of 5:13               rad/s

`exclude_current_positions_from_observation=False` puts x and y (m) in front, and
`include_cfrc_ext_in_observation=True` appends 78 entries: torque (N m) and force (N) of the
contacts on each of the 13 bodies, in world axes and about the centre of mass of the robot, clipped
to contact_force_range.

Reward: reward_forward (x velocity of the torso over the step, m/s, times forward_reward_weight)
+ reward_survive (healthy_reward while healthy) + reward_ctrl (-ctrl_cost_weight * |action|^2)
+ reward_contact (-contact_cost_weight * |contact forces|^2, clipped as in the observation).
Terminates when unhealthy: a number of the state is not finite, or the height is outside
healthy_z_range (m). Start: the reference configuration plus U(-1, 1) on qpos and N(0, 1) on qvel,
times reset_noise_scale. An episode is truncated after 1000 steps of 0.05 s.

Differences from Ant-v5. The integrator is implicitfast (one force evaluation per 0.01 s instead of
the four of RK4). Contact forces are neither in the observation nor in the reward: in random play
96 % of them are zero, and 72 % of the others beyond the range to which v5 clips them, where they
have no gradient; include_cfrc_ext_in_observation=True, contact_cost_weight=5e-4 and
integrator="rk4" make it Ant-v5, with its 105 entries. Velocity and health are those of the state
after the step, where Ant-v5 takes the velocity from kinematics that are one stage old. No gradient:
the survive reward and termination are steps; contact forces beyond their range are constant, and
jump where a contact begins; beyond [-1, 1] an action reaches the reward through its cost only.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class AntParams:
    """Parameters of the reward and of termination."""

    dt: float  # s
    forward_reward_weight: float  # per m/s
    ctrl_cost_weight: float
    contact_cost_weight: float
    contact_force_range: wp.vec2  # N and N m
    healthy_reward: float
    healthy_z_range: wp.vec2  # m
    terminate_when_unhealthy: wp.bool
    exclude_current_positions_from_observation: wp.bool
    include_cfrc_ext_in_observation: wp.bool


@wp.kernel
def ant_outputs(
    p: AntParams,
    # In:
    qpos_prev_in: wp.array2d[float],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    action_in: wp.array2d[float],
    cfrc_ext_in: wp.array2d[wp.spatial_vector],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """Observation, reward, termination and info of one step."""
    world = wp.tid()
    nq = qpos_in.shape[1]
    nv = qvel_in.shape[1]
    skip = wp.where(p.exclude_current_positions_from_observation, 2, 0)
    healthy = bool(True)
    for i in range(nq):
        healthy = healthy and wp.isfinite(qpos_in[world, i])
        if i >= skip:
            obs_out[world, i - skip] = qpos_in[world, i]
    for i in range(nv):
        healthy = healthy and wp.isfinite(qvel_in[world, i])
        obs_out[world, nq - skip + i] = qvel_in[world, i]
    height = qpos_in[world, 2]
    healthy = healthy and height >= p.healthy_z_range[0] and height <= p.healthy_z_range[1]

    x_velocity = (qpos_in[world, 0] - qpos_prev_in[world, 0]) / p.dt
    y_velocity = (qpos_in[world, 1] - qpos_prev_in[world, 1]) / p.dt
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]
    contact_effort = float(0.0)
    for body in range(1, cfrc_ext_in.shape[1]):
        cfrc_ext = cfrc_ext_in[world, body]
        for k in range(6):
            clipped = wp.clamp(cfrc_ext[k], p.contact_force_range[0], p.contact_force_range[1])
            contact_effort += clipped * clipped
            if p.include_cfrc_ext_in_observation:
                obs_out[world, nq - skip + nv + 6 * (body - 1) + k] = clipped

    forward = p.forward_reward_weight * x_velocity
    survive = wp.where(healthy, p.healthy_reward, 0.0)
    ctrl = -p.ctrl_cost_weight * effort
    contact = -p.contact_cost_weight * contact_effort
    reward_out[world] = forward + survive + ctrl + contact
    terminated_out[world] = p.terminate_when_unhealthy and not healthy

    info_out[world, 0] = qpos_in[world, 0]
    info_out[world, 1] = qpos_in[world, 1]
    info_out[world, 2] = wp.length(wp.vec2(qpos_in[world, 0], qpos_in[world, 1]))
    info_out[world, 3] = x_velocity
    info_out[world, 4] = y_velocity
    info_out[world, 5] = forward
    info_out[world, 6] = ctrl
    info_out[world, 7] = contact
    info_out[world, 8] = survive


class Ant(Task):
    """See the module docstring."""

    gymnasium = "Ant-v5"
    v5 = {
        "integrator": "rk4",
        "include_cfrc_ext_in_observation": True,
        "contact_cost_weight": 5e-4,
    }
    xml = "ant.xml"
    frame_skip = 5
    kernel = ant_outputs
    reads = ("qpos_prev", "qpos", "qvel", "action", "cfrc_ext")
    reads_if = {"cfrc_ext": ("include_cfrc_ext_in_observation", "contact_cost_weight")}
    params = AntParams
    skipped_qpos = 2
    state_info = ("x_position", "y_position", "distance_from_origin")
    step_info = (
        "x_velocity",
        "y_velocity",
        "reward_forward",
        "reward_ctrl",
        "reward_contact",
        "reward_survive",
    )
    reset_noise = ("uniform", "normal")
    camera = {"distance": 4.0, "trackbodyid": 1, "type": 1}
    defaults = {
        "forward_reward_weight": 1.0,
        "ctrl_cost_weight": 0.5,
        "contact_cost_weight": 0.0,
        "contact_force_range": (-1.0, 1.0),
        "healthy_reward": 1.0,
        "healthy_z_range": (0.2, 1.0),
        "terminate_when_unhealthy": True,
        "exclude_current_positions_from_observation": True,
        "include_cfrc_ext_in_observation": False,
        "reset_noise_scale": 0.1,
    }
    refused = {"main_body": (1, "the velocity is that of the torso")}

    def observation_size(self) -> int:
        """Length of the observation: that of the state, and of the contact forces if included."""
        included = self.parameters["include_cfrc_ext_in_observation"]
        return super().observation_size() + 6 * (self.mjm.nbody - 1) * included
