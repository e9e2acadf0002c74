"""DiffPusher-v0: an arm pushes an object to a goal. The task is that of Gymnasium's Pusher-v5.

Action (7): torques (N m) of shoulder pan, shoulder lift, upper arm roll, elbow flex, forearm roll,
wrist flex and wrist roll, in [-2, 2]. The motors clamp what lies outside; the control cost does
not.

Observation (23):

    0:7    joints of the arm, in the order of the action  rad
    7:14   their velocities                               rad/s
    14:17  place of the tips of the arm (its wrist)       m
    17:20  place of the object                            m
    20:23  place of the goal                              m

Reward: reward_near (-reward_near_weight times the distance of object and tips, m) + reward_dist
(-reward_dist_weight times the distance of object and goal, m) + reward_ctrl
(-reward_control_weight * |action|^2). Never terminates. Start: the arm stretched out along x, all
its velocities U(-1, 1) * 0.005 rad/s; the object rests at a place that is uniform in those of
[-0.2, 0.2] x [-0.3, 0] m (x, y) around the goal that are farther than 0.17 m from it. An episode
is truncated after 100 steps of 0.05 s.

Differences from Pusher-v5. Places are those of the state after the step; v5's are 0.01 s old: up to
17 mm off in random play. The integrator is implicitfast, which for this model takes the same steps
as the Euler of v5 (integrator="euler"), to rounding.

No gradient: beyond [-2, 2] an action reaches the reward through its cost only. An action moves the
object only while the arm touches it: until then all of its gradient is that of reward_near and
of its cost. The distances have derivatives everywhere: the goal lies 5 cm below the object, and
the rake and the object keep the wrist away from its centre (at zero they would get zero).
"""

import warp as wp

from diffenvs.env_kernels import start_rng
from diffenvs.task import Task

ARM = wp.constant(7)
"""Joints of the arm; four sliders, of the object and of the goal, follow them."""


@wp.struct
class PusherParams:
    """Parameters of the reward, and where the bodies are."""

    tips_arm: int
    object: int
    goal: int
    reward_near_weight: float  # per m
    reward_dist_weight: float  # per m
    reward_control_weight: float  # per (N m)^2


@wp.kernel
def pusher_outputs(
    p: PusherParams,
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
    tips = xpos_in[world, p.tips_arm]
    object = xpos_in[world, p.object]
    goal = xpos_in[world, p.goal]
    for i in range(ARM):
        obs_out[world, i] = qpos_in[world, i]
        obs_out[world, ARM + i] = qvel_in[world, i]
    for i in range(3):
        obs_out[world, 14 + i] = tips[i]
        obs_out[world, 17 + i] = object[i]
        obs_out[world, 20 + i] = goal[i]

    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]
    near = -p.reward_near_weight * wp.length(object - tips)
    dist = -p.reward_dist_weight * wp.length(object - goal)
    ctrl = -p.reward_control_weight * effort
    reward_out[world] = dist + ctrl + near
    terminated_out[world] = False

    info_out[world, 0] = dist
    info_out[world, 1] = ctrl
    info_out[world, 2] = near


@wp.kernel(enable_backward=False)
def pusher_reset(
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
    """Write a start into the worlds of the mask: the arm as built, the object beside the goal."""
    world = wp.tid()
    if not mask_in[world]:
        return
    rng = start_rng(seed_in[world], episode_in[world])
    for i in range(ARM):
        qpos_out[world, i] = init_qpos_in[i]
        qvel_out[world, i] = init_qvel_in[i] + wp.randf(rng, -0.005, 0.005)
    y, x = float(0.0), float(0.0)
    while x * x + y * y <= 0.17 * 0.17:
        y = wp.randf(rng, -0.3, 0.0)
        x = wp.randf(rng, -0.2, 0.2)
    qpos_out[world, ARM] = y
    qpos_out[world, ARM + 1] = x
    for i in range(2):
        qpos_out[world, ARM + 2 + i] = 0.0
    for i in range(4):
        qvel_out[world, ARM + i] = 0.0
    for i in range(ARM + 4):
        qacc_warmstart_out[world, i] = 0.0


class Pusher(Task):
    """See the module docstring."""

    gymnasium = "Pusher-v5"
    v5 = {"integrator": "euler"}
    xml = "pusher.xml"
    frame_skip = 5
    kernel = pusher_outputs
    reset_kernel = pusher_reset
    reads = ("qpos", "qvel", "xpos", "action")
    params = PusherParams
    obs_dim = 23
    step_info = ("reward_dist", "reward_ctrl", "reward_near")
    camera = {"distance": 2.0, "lookat": (0.25, -0.35, -0.1), "azimuth": 215.0, "elevation": -32.0}
    defaults = {
        "reward_near_weight": 0.5,
        "reward_dist_weight": 1.0,
        "reward_control_weight": 0.1,
    }

    def derived(self) -> dict[str, float]:
        """Return the bodies whose distances are the reward."""
        bodies = {name: self.mjm.body(name).id for name in ("tips_arm", "object", "goal")}
        if self.mjm.nq < ARM + 4:
            raise IndexError(f"{ARM} joints of the arm, two of the object and two of the goal")
        return bodies
