"""DiffInvertedDoublePendulum-v0: balance two poles, one on the other, by pushing their cart.

The task is that of Gymnasium's InvertedDoublePendulum-v5. Action (1): force on the cart in units
of 500 N, in [-1, 1]. The motor clamps what lies outside.

Observation (9):

    0    place of the cart                                           m
    1:3  sines of the angles of the first pole (0 is upright), and of the second against the first
    3:5  cosines of these angles
    5    velocity of the cart, clipped to 10                         m/s
    6:8  velocities of the two angles, clipped to 10                 rad/s
    8    force of the rail's ends on the cart in the last physics
         step, clipped to 10; 0 at the start of an episode           N

Reward: reward_survive (healthy_reward until the episode terminates)
+ distance_penalty (-0.01 * x^2 - (z - 2)^2, where x and z are those of the tip of the second pole,
m, above the rail) + velocity_penalty (-0.001 * v1^2 - 0.005 * v2^2, where v1 and v2 are the
velocities of the two angles, not clipped). Upright, the tip is at z = 1.2.
Terminates when z is not above 1. Start: upright, plus U(-1, 1) on qpos and N(0, 1) on qvel, times
reset_noise_scale. An episode is truncated after 1000 steps of 0.05 s.

Differences from InvertedDoublePendulum-v5. The tip is where the state after the step puts it; in
v5 it is where the last evaluation of the forces had it. The integrator is implicitfast (one force
evaluation per 0.01 s instead of the four of RK4; integrator="rk4" is that of v5). No gradient: the
survive reward and termination are steps; clipped velocities, and the clipped force, which is 0
where the cart does not touch an end of the rail (+-1 m) and nearly always clipped where it does;
actions beyond [-1, 1]. The step is smooth except at these ends.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class InvertedDoublePendulumParams:
    """Parameters of the reward."""

    healthy_reward: float


@wp.kernel
def inverted_double_pendulum_outputs(
    p: InvertedDoublePendulumParams,
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    site_xpos_in: wp.array2d[wp.vec3],
    qfrc_constraint_in: wp.array2d[float],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """Observation, reward, termination and info of one step."""
    world = wp.tid()
    obs_out[world, 0] = qpos_in[world, 0]
    for i in range(2):
        obs_out[world, 1 + i] = wp.sin(qpos_in[world, 1 + i])
        obs_out[world, 3 + i] = wp.cos(qpos_in[world, 1 + i])
    for i in range(3):
        obs_out[world, 5 + i] = wp.clamp(qvel_in[world, i], -10.0, 10.0)
    obs_out[world, 8] = wp.clamp(qfrc_constraint_in[world, 0], -10.0, 10.0)

    tip = site_xpos_in[world, 0]
    v1 = qvel_in[world, 1]
    v2 = qvel_in[world, 2]
    above = tip[2] > 1.0
    survive = wp.where(above, p.healthy_reward, 0.0)
    distance = -0.01 * tip[0] * tip[0] - (tip[2] - 2.0) * (tip[2] - 2.0)
    velocity = -0.001 * v1 * v1 - 0.005 * v2 * v2
    reward_out[world] = survive + distance + velocity
    terminated_out[world] = not above

    info_out[world, 0] = survive
    info_out[world, 1] = distance
    info_out[world, 2] = velocity


class InvertedDoublePendulum(Task):
    """See the module docstring."""

    gymnasium = "InvertedDoublePendulum-v5"
    v5 = {"integrator": "rk4"}
    xml = "inverted_double_pendulum.xml"
    frame_skip = 5
    kernel = inverted_double_pendulum_outputs
    reads = ("qpos", "qvel", "site_xpos", "qfrc_constraint")
    params = InvertedDoublePendulumParams
    obs_dim = 9
    step_info = ("reward_survive", "distance_penalty", "velocity_penalty")
    reset_noise = ("uniform", "normal")
    camera = {"distance": 4.1, "lookat": (0.0, 0.0, 0.4), "elevation": -10.0}
    defaults = {"healthy_reward": 10.0, "reset_noise_scale": 0.1}
