"""DiffReacher-v0: an arm of two links touches a target. The task is that of Reacher-v5.

Action (2): torques of joint0 and joint1 in units of 200 N m, in [-1, 1]. The motors clamp what
lies outside; the control cost does not.

Observation (10):

    0:2   cosine of joint0, joint1
    2:4   sine of joint0, joint1
    4:6   place of the target, x and y                    m
    6:8   velocity of joint0, joint1                      rad/s
    8:10  from the target to the fingertip, x and y       m

Reward: reward_dist (-reward_dist_weight times the distance of fingertip and target, m)
+ reward_ctrl (-reward_control_weight * |action|^2). Never terminates. Start: both joints U(-1, 1)
* 0.1 rad, at U(-1, 1) * 0.005 rad/s; the target rests at a place that is uniform in the disc of
radius 0.2 m around the root of the arm. An episode is truncated after 50 steps of 0.02 s.

Differences from Reacher-v5. The distance has no derivative where it is zero, so the default,
reward="smooth", takes sqrt(distance^2 + eps^2) - eps, eps = 1 cm, which is at most 1 cm less;
reward="v5" takes the distance, with gradient zero at zero. The integrator is implicitfast (one
force evaluation per 0.01 s instead of the four of RK4; integrator="rk4" is v5's), which moves a
joint by up to 0.02 rad per step more. The fingertip is that of the state after the step; v5's is
that of the last stage of RK4, up to 5e-6 m off in random play, and 6 mm at the limit of joint1.

No gradient: beyond [-1, 1] an action reaches the reward through its cost only. The target has one
(the distance depends on it), but no action moves it.
"""

import warp as wp

from diffenvs.env_kernels import start_rng
from diffenvs.task import Task

SMOOTHING = wp.constant(0.01)
"""Distance (m) at which the reward "smooth" turns from a cone into a parabola."""


@wp.struct
class ReacherParams:
    """Parameters of the reward, and where the bodies are."""

    fingertip: int
    target: int
    reward_dist_weight: float  # per m
    reward_control_weight: float
    reward: int  # index into the choices of the keyword


@wp.kernel
def reacher_outputs(
    p: ReacherParams,
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    xpos_in: wp.array2d[wp.vec3],
    action_in: wp.array2d[float],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """Observation, reward, termination and info of one step."""
    world = wp.tid()
    d = xpos_in[world, p.fingertip] - xpos_in[world, p.target]
    for i in range(2):
        obs_out[world, i] = wp.cos(qpos_in[world, i])
        obs_out[world, 2 + i] = wp.sin(qpos_in[world, i])
        obs_out[world, 4 + i] = qpos_in[world, 2 + i]
        obs_out[world, 6 + i] = qvel_in[world, i]
        obs_out[world, 8 + i] = d[i]

    smooth = wp.sqrt(wp.dot(d, d) + SMOOTHING * SMOOTHING) - SMOOTHING
    # Where the length is zero, Warp gives it the gradient zero.
    distance = wp.where(p.reward == 0, smooth, wp.length(d))
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]
    dist = -p.reward_dist_weight * distance
    ctrl = -p.reward_control_weight * effort
    reward_out[world] = dist + ctrl
    terminated_out[world] = False

    info_out[world, 0] = dist
    info_out[world, 1] = ctrl


@wp.kernel(enable_backward=False)
def reacher_reset(
    # In:
    mask_in: wp.array[wp.bool],
    seed_in: wp.array[int],
    episode_in: wp.array[int],
    init_qpos_in: wp.array[float],
    init_qvel_in: wp.array[float],
    qpos_noise: int,
    qvel_noise: int,
    noise_scale: float,
    # Out:
    qpos_out: wp.array2d[float],
    qvel_out: wp.array2d[float],
    act_out: wp.array2d[float],
    qacc_warmstart_out: wp.array2d[float],
):
    """Write a start into the worlds of the mask: the arm nearly straight, the target at rest."""
    world = wp.tid()
    if not mask_in[world]:
        return
    rng = start_rng(seed_in[world], episode_in[world])
    for i in range(2):
        qpos_out[world, i] = init_qpos_in[i] + wp.randf(rng, -0.1, 0.1)
        qvel_out[world, i] = init_qvel_in[i] + wp.randf(rng, -0.005, 0.005)
    radius = 0.2 * wp.sqrt(wp.randf(rng))
    angle = wp.randf(rng, 0.0, wp.TAU)
    qpos_out[world, 2] = radius * wp.cos(angle)
    qpos_out[world, 3] = radius * wp.sin(angle)
    for i in range(2):
        qvel_out[world, 2 + i] = 0.0
    for i in range(4):
        qacc_warmstart_out[world, i] = 0.0


class Reacher(Task):
    """See the module docstring."""

    gymnasium = "Reacher-v5"
    v5 = {"integrator": "rk4", "reward": "v5"}
    xml = "reacher.xml"
    frame_skip = 2
    kernel = reacher_outputs
    reset_kernel = reacher_reset
    reads = ("qpos", "qvel", "xpos", "action")
    params = ReacherParams
    obs_dim = 10
    step_info = ("reward_dist", "reward_ctrl")
    camera = {"distance": 0.95, "lookat": (0.0, 0.0, 0.0), "elevation": -55.0}
    defaults = {
        "reward_dist_weight": 1.0,
        "reward_control_weight": 1.0,
        "reward": "smooth",
    }
    choices = {"reward": ("smooth", "v5")}

    def derived(self) -> dict[str, float]:
        """Return the bodies whose distance is the reward."""
        return {name: self.mjm.body(name).id for name in ("fingertip", "target")}
