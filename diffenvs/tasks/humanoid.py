"""DiffHumanoid-v0: a person walks along x. The task is that of Gymnasium's Humanoid-v5.

Action (17): torques of abdomen_y, _z, _x, right_hip_x, _z, _y, right_knee, left_hip_x, _z, _y,
left_knee, right_shoulder1, _2, right_elbow, left_shoulder1, _2, left_elbow in [-0.4, 0.4], in units
of 100 N m (hip_y 300, knees 200, arms 25). The motors clamp what lies outside; the control cost
does not.

Observation (45):

    0      height of the torso                                                   m
    1:5    orientation of the torso, quaternion (w, x, y, z)
    5:22   joints, in the order of the action but abdomen_z before abdomen_y     rad
    22:25  velocity of the torso, world axes                                     m/s
    25:28  angular velocity of the torso, its own axes                           rad/s
    28:45  joint velocities, in the order of 5:22                                rad/s

Behind them, each if include_<name>_in_observation=True, of the 13 bodies or 17 joints in turn:

    cinert (130)        inertia xx, yy, zz, xy, xz, yz (kg m^2), mass times place (kg m), mass (kg)
    cvel (78)           angular velocity (rad/s), velocity (m/s)
    qfrc_actuator (17)  joint torques of the motors, in the order of 5:22        N m
    cfrc_ext (78)       torque (N m) and force (N) of the contacts

cinert, cvel and cfrc_ext are in world axes, about the centre of mass of the robot. The first three
follow from the entries before them and from the action, so by default they are left out; contact
forces do not, and are left out as well. Forces are 0 at the start of an episode. All four,
contact_cost_weight=5e-7 and integrator="rk4" make it Humanoid-v5, with its 348 entries.
exclude_current_positions_from_observation=False puts x and y (m) in front.

Reward: reward_forward (x velocity of the centre of mass over the step, m/s, times
forward_reward_weight) + reward_survive (healthy_reward while healthy) + reward_ctrl
(-ctrl_cost_weight * |action|^2) + reward_contact (-contact_cost_weight * |cfrc_ext|^2, the cost
clipped to contact_cost_range). Terminates when unhealthy: the height of the torso is not within
healthy_z_range (m). Start: the reference configuration plus U(-1, 1) on qpos and qvel, times
reset_noise_scale. An episode is truncated after 1000 steps of 0.015 s.

Differences from Humanoid-v5. The integrator is implicitfast (one force evaluation per 0.003 s
instead of the four of RK4) and the solver Newton instead of PGS. Centre of mass, cinert and cvel
are those of the state, where v5 has them one stage of the integrator older, and the contact cost is
off. The tendons of the model, which transmit nothing, are not in info. No gradient: the survive
reward and termination are steps; a contact cost outside its range is constant, and contact forces
jump where a contact begins; beyond +-0.4 an action reaches the reward through its cost only.
"""

import warp as wp

from diffenvs.physics import vec10
from diffenvs.task import Task


@wp.struct
class HumanoidParams:
    """Parameters of the reward and of termination."""

    dt: float  # s
    forward_reward_weight: float  # per m/s
    ctrl_cost_weight: float
    contact_cost_weight: float  # per N^2
    contact_cost_range: wp.vec2
    healthy_reward: float
    healthy_z_range: wp.vec2  # m
    terminate_when_unhealthy: wp.bool
    exclude_current_positions_from_observation: wp.bool
    include_cfrc_ext_in_observation: wp.bool


@wp.func
def observe_body(
    world: int,
    exclude_xy: bool,
    include_cfrc_ext: bool,
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    cinert_in: wp.array2d[vec10],
    cvel_in: wp.array2d[wp.spatial_vector],
    qfrc_actuator_in: wp.array2d[float],
    cfrc_ext_in: wp.array2d[wp.spatial_vector],
    # Out:
    obs_out: wp.array2d[float],
):
    """Write the observation; of `cinert`, `cvel` and `qfrc_actuator` the columns that are there."""
    skip = wp.where(exclude_xy, 2, 0)
    qvel_at = qpos_in.shape[1] - skip
    cinert_at = qvel_at + qvel_in.shape[1]
    cvel_at = cinert_at + 10 * wp.max(cinert_in.shape[1] - 1, 0)
    qfrc_actuator_at = cvel_at + 6 * wp.max(cvel_in.shape[1] - 1, 0)
    cfrc_ext_at = qfrc_actuator_at + wp.max(qfrc_actuator_in.shape[1] - 6, 0)
    for i in range(qpos_in.shape[1]):
        if i >= skip:
            obs_out[world, i - skip] = qpos_in[world, i]
    for i in range(qvel_in.shape[1]):
        obs_out[world, qvel_at + i] = qvel_in[world, i]
    for body in range(1, cinert_in.shape[1]):
        cinert = cinert_in[world, body]
        for k in range(10):
            obs_out[world, cinert_at + 10 * (body - 1) + k] = cinert[k]
    for body in range(1, cvel_in.shape[1]):
        cvel = cvel_in[world, body]
        for k in range(6):
            obs_out[world, cvel_at + 6 * (body - 1) + k] = cvel[k]
    for i in range(6, qfrc_actuator_in.shape[1]):
        obs_out[world, qfrc_actuator_at + i - 6] = qfrc_actuator_in[world, i]
    if include_cfrc_ext:
        for body in range(1, cfrc_ext_in.shape[1]):
            cfrc_ext = cfrc_ext_in[world, body]
            for k in range(6):
                obs_out[world, cfrc_ext_at + 6 * (body - 1) + k] = cfrc_ext[k]


@wp.func
def sum_of_squares(world: int, cfrc_ext_in: wp.array2d[wp.spatial_vector]) -> float:
    """Sum the squares of all entries of `cfrc_ext`; zero if there are none."""
    total = float(0.0)
    for body in range(1, cfrc_ext_in.shape[1]):
        total += wp.dot(cfrc_ext_in[world, body], cfrc_ext_in[world, body])
    return total


@wp.kernel
def humanoid_outputs(
    p: HumanoidParams,
    # In:
    subtree_com_prev_in: wp.array2d[wp.vec3],
    subtree_com_in: wp.array2d[wp.vec3],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    action_in: wp.array2d[float],
    cinert_in: wp.array2d[vec10],
    cvel_in: wp.array2d[wp.spatial_vector],
    qfrc_actuator_in: wp.array2d[float],
    cfrc_ext_in: wp.array2d[wp.spatial_vector],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """Observation, reward, termination and info of one step."""
    world = wp.tid()
    observe_body(
        world,
        p.exclude_current_positions_from_observation,
        p.include_cfrc_ext_in_observation,
        qpos_in,
        qvel_in,
        cinert_in,
        cvel_in,
        qfrc_actuator_in,
        cfrc_ext_in,
        obs_out,
    )
    height = qpos_in[world, 2]
    healthy = height > p.healthy_z_range[0] and height < p.healthy_z_range[1]

    # World row: the centre of mass of everything.
    velocity = (subtree_com_in[world, 0] - subtree_com_prev_in[world, 0]) / p.dt
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]
    contact_cost = p.contact_cost_weight * sum_of_squares(world, cfrc_ext_in)

    forward = p.forward_reward_weight * velocity[0]
    survive = wp.where(healthy, p.healthy_reward, 0.0)
    ctrl = -p.ctrl_cost_weight * effort
    contact = -wp.clamp(contact_cost, p.contact_cost_range[0], p.contact_cost_range[1])
    reward_out[world] = forward + survive + ctrl + contact
    terminated_out[world] = p.terminate_when_unhealthy and not healthy

    info_out[world, 0] = qpos_in[world, 0]
    info_out[world, 1] = qpos_in[world, 1]
    info_out[world, 2] = wp.length(wp.vec2(qpos_in[world, 0], qpos_in[world, 1]))
    info_out[world, 3] = velocity[0]
    info_out[world, 4] = velocity[1]
    info_out[world, 5] = survive
    info_out[world, 6] = forward
    info_out[world, 7] = ctrl
    info_out[world, 8] = contact


class Humanoid(Task):
    """See the module docstring."""

    gymnasium = "Humanoid-v5"
    v5 = {
        "integrator": "rk4",
        "contact_cost_weight": 5e-7,
        "include_cinert_in_observation": True,
        "include_cvel_in_observation": True,
        "include_qfrc_actuator_in_observation": True,
        "include_cfrc_ext_in_observation": True,
    }
    xml = "humanoid.xml"
    frame_skip = 5
    kernel = humanoid_outputs
    reads = (
        "subtree_com_prev",
        "subtree_com",
        "qpos",
        "qvel",
        "action",
        "cinert",
        "cvel",
        "qfrc_actuator",
        "cfrc_ext",
    )
    reads_if = {
        "cinert": ("include_cinert_in_observation",),
        "cvel": ("include_cvel_in_observation",),
        "qfrc_actuator": ("include_qfrc_actuator_in_observation",),
        "cfrc_ext": ("include_cfrc_ext_in_observation", "contact_cost_weight"),
    }
    params = HumanoidParams
    skipped_qpos = 2
    state_info = ("x_position", "y_position", "distance_from_origin")
    step_info = (
        "x_velocity",
        "y_velocity",
        "reward_survive",
        "reward_forward",
        "reward_ctrl",
        "reward_contact",
    )
    camera = {"distance": 3.5, "elevation": -15.0, "trackbodyid": 1, "type": 1}
    defaults = {
        "forward_reward_weight": 1.25,
        "ctrl_cost_weight": 0.1,
        "contact_cost_weight": 0.0,
        "contact_cost_range": (-float("inf"), 10.0),
        "healthy_reward": 5.0,
        "healthy_z_range": (1.0, 2.0),
        "terminate_when_unhealthy": True,
        "reset_noise_scale": 0.01,
        "exclude_current_positions_from_observation": True,
        "include_cinert_in_observation": False,
        "include_cvel_in_observation": False,
        "include_qfrc_actuator_in_observation": False,
        "include_cfrc_ext_in_observation": False,
    }

    def observation_size(self) -> int:
        """Length of the observation: that of the state, and what the keywords include."""
        bodies = self.mjm.nbody - 1
        sizes = {
            "cinert": 10 * bodies,
            "cvel": 6 * bodies,
            "qfrc_actuator": self.mjm.nv - 6,
            "cfrc_ext": 6 * bodies,
        }
        included = [f for f in sizes if self.parameters[f"include_{f}_in_observation"]]
        return super().observation_size() + sum(sizes[f] for f in included)
