"""DiffCartPoleSwingUp-v0: swing a hanging pole up and balance it, by pushing its cart.

Action (1): force on the cart in units of 10 N, in [-1, 1]. The motor clamps what lies outside; the
control cost does not.

Observation (5):

    0    position of the cart               m
    1:3  cosine and sine of the pole's angle (0 is upright)
    3    velocity of the cart               m/s
    4    angular velocity of the pole       rad/s

Reward, in [0, 1] less small costs, 1 at rest with the pole upright in the middle of the rail:
reward_upright (upright_weight * (1 + cos(angle)) / 2) + reward_position
(-position_cost_weight * x^2) + reward_velocity (-velocity_cost_weight * (angular velocity)^2)
+ reward_ctrl (-ctrl_cost_weight * action^2). Never terminates. Start: hanging, plus
N(0, 1) * reset_noise_scale on qpos and qvel. An episode is truncated after 250 steps of 0.04 s.

The reward is smooth everywhere, and so is the step except at the ends of the rail (+-1.8 m). No
gradient: beyond [-1, 1] an action reaches the reward through its cost only.
"""

import warp as wp

from diffenvs.task import Task


@wp.struct
class CartPoleSwingUpParams:
    """Parameters of the reward."""

    upright_weight: float
    position_cost_weight: float  # per m^2
    velocity_cost_weight: float  # per (rad/s)^2
    ctrl_cost_weight: float


@wp.kernel
def cartpole_swingup_outputs(
    p: CartPoleSwingUpParams,
    # In:
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
    x = qpos_in[world, 0]
    angle = qpos_in[world, 1]
    angular_velocity = qvel_in[world, 1]
    obs_out[world, 0] = x
    obs_out[world, 1] = wp.cos(angle)
    obs_out[world, 2] = wp.sin(angle)
    obs_out[world, 3] = qvel_in[world, 0]
    obs_out[world, 4] = angular_velocity

    upright = p.upright_weight * 0.5 * (1.0 + wp.cos(angle))
    position = -p.position_cost_weight * x * x
    velocity = -p.velocity_cost_weight * angular_velocity * angular_velocity
    ctrl = -p.ctrl_cost_weight * action_in[world, 0] * action_in[world, 0]
    reward_out[world] = upright + position + velocity + ctrl
    terminated_out[world] = False

    info_out[world, 0] = x
    info_out[world, 1] = angle
    info_out[world, 2] = upright
    info_out[world, 3] = position
    info_out[world, 4] = velocity
    info_out[world, 5] = ctrl


class CartPoleSwingUp(Task):
    """See the module docstring."""

    xml = "cartpole_swingup.xml"
    frame_skip = 4
    kernel = cartpole_swingup_outputs
    reads = ("qpos", "qvel", "action")
    params = CartPoleSwingUpParams
    obs_dim = 5
    state_info = ("x_position", "angle")
    step_info = ("reward_upright", "reward_position", "reward_velocity", "reward_ctrl")
    init_key = "hanging"
    reset_noise = ("normal", "normal")
    camera = {"distance": 4.5, "lookat": (0.0, 0.0, 1.3), "elevation": -10.0, "azimuth": 90.0}
    defaults = {
        "upright_weight": 1.0,
        "position_cost_weight": 0.1,
        "velocity_cost_weight": 0.001,
        "ctrl_cost_weight": 0.01,
        "reset_noise_scale": 0.05,
    }
