"""DiffInvertedPendulum-v0: balance a pole by pushing its cart. Gymnasium's InvertedPendulum-v5.

Action (1): force on the cart in units of 100 N, in [-3, 3]. The motor clamps what lies outside.

Observation (4):

    0    place of the cart                       m
    1    angle of the pole (0 is upright)        rad
    2    velocity of the cart                    m/s
    3    angular velocity of the pole            rad/s

Reward, `reward="smooth"` (the default), at most 1 and 1 only at rest, upright, in the middle of the
rail: reward_survive (1 until the episode terminates) + reward_angle (-10 * angle^2, 0.4 less where
the episode ends) + reward_position (-0.1 * x^2) + reward_velocity
(-0.01 * (velocity^2 + (angular velocity)^2)). `reward="v5"`: reward_survive alone; the other terms
are zero.

Terminates when the pole leans by more than 0.2 rad, or a number of the state is not finite. Start:
upright, plus U(-1, 1) * reset_noise_scale on qpos and qvel. An episode is truncated after 1000
steps of 0.04 s.

Differences from InvertedPendulum-v5. The smooth reward: that of v5 is a constant until the end,
and a constant has no gradient. The integrator is implicitfast (one force evaluation per 0.02 s
instead of the four of RK4; integrator="rk4" is that of v5). No gradient: reward_survive, and with
it the whole of `reward="v5"`; termination; actions beyond [-3, 3]. The step is smooth except where
the cart reaches an end of the rail (+-1 m).
"""

import warp as wp

from diffenvs.task import Task

SMOOTH = wp.constant(0)


@wp.struct
class InvertedPendulumParams:
    """Parameters of the reward."""

    reward: int  # index into `choices`


@wp.kernel
def inverted_pendulum_outputs(
    p: InvertedPendulumParams,
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
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
    velocity = qvel_in[world, 0]
    angular_velocity = qvel_in[world, 1]
    obs_out[world, 0] = x
    obs_out[world, 1] = angle
    obs_out[world, 2] = velocity
    obs_out[world, 3] = angular_velocity

    finite = wp.isfinite(x) and wp.isfinite(angle)
    finite = finite and wp.isfinite(velocity) and wp.isfinite(angular_velocity)
    upright = finite and wp.abs(angle) <= 0.2
    survive = wp.where(upright, 1.0, 0.0)
    terminated_out[world] = not upright
    if p.reward == SMOOTH and finite:
        lean = -10.0 * angle * angle
        position = -0.1 * x * x
        speed = -0.01 * (velocity * velocity + angular_velocity * angular_velocity)
        reward_out[world] = survive + lean + position + speed
        info_out[world, 1] = lean
        info_out[world, 2] = position
        info_out[world, 3] = speed
    else:
        reward_out[world] = survive
        for i in range(1, 4):
            info_out[world, i] = 0.0
    info_out[world, 0] = survive


class InvertedPendulum(Task):
    """See the module docstring."""

    gymnasium = "InvertedPendulum-v5"
    v5 = {"integrator": "rk4", "reward": "v5"}
    xml = "inverted_pendulum.xml"
    frame_skip = 2
    kernel = inverted_pendulum_outputs
    reads = ("qpos", "qvel")
    params = InvertedPendulumParams
    obs_dim = 4
    step_info = ("reward_survive", "reward_angle", "reward_position", "reward_velocity")
    camera = {"distance": 2.3, "lookat": (0.0, 0.0, 0.2), "elevation": -10.0}
    choices = {"reward": ("smooth", "v5")}
    defaults = {"reward": "smooth", "reset_noise_scale": 0.01}
