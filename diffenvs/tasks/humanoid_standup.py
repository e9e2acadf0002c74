"""DiffHumanoidStandup-v0: a person that lies on its back gets up, as in HumanoidStandup-v5.

Action (17) and observation (45, or 348 with all four include_..._in_observation) are those of
DiffHumanoid-v0, `diffenvs.tasks.humanoid`.

Reward: reward_linup (height of the torso, m, over the timestep of 0.003 s) + reward_quadctrl
(-ctrl_cost_weight * |action|^2) + reward_impact (-impact_cost_weight * |cfrc_ext|^2, the cost
clipped to impact_cost_range) + 1. Never terminates. Start: lying, plus U(-1, 1) on qpos and qvel,
times reset_noise_scale. An episode is truncated after 1000 steps of 0.015 s.

Differences from HumanoidStandup-v5. The integrator is implicitfast (one force evaluation per
0.003 s instead of the four of RK4) and the solver Newton instead of PGS; by default the observation
is that of the state alone, and impact_cost_weight is 0: all four includes, impact_cost_weight=5e-7
and integrator="rk4" make it HumanoidStandup-v5. cinert and cvel are those of the state, where v5
has them one stage of the integrator older. uph_cost_weight, which v5 takes and does not use, can
only be 1. The tendons of the model, which transmit nothing, are not in info. No gradient: an
impact cost outside its range is constant, and contact forces jump where a contact begins; beyond
+-0.4 an action reaches the reward through its cost only.
"""

import warp as wp

from diffenvs.physics import vec10
from diffenvs.tasks.humanoid import Humanoid, observe_body, sum_of_squares


@wp.struct
class HumanoidStandupParams:
    """Parameters of the reward."""

    timestep: float  # s, of the physics
    init_height: float  # m
    ctrl_cost_weight: float
    impact_cost_weight: float  # per N^2
    impact_cost_range: wp.vec2
    exclude_current_positions_from_observation: wp.bool
    include_cfrc_ext_in_observation: wp.bool


@wp.kernel
def humanoid_standup_outputs(
    p: HumanoidStandupParams,
    # In:
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
    effort = float(0.0)
    for i in range(action_in.shape[1]):
        effort += action_in[world, i] * action_in[world, i]
    impact_cost = p.impact_cost_weight * sum_of_squares(world, cfrc_ext_in)

    linup = height / p.timestep
    ctrl = -p.ctrl_cost_weight * effort
    impact = -wp.clamp(impact_cost, p.impact_cost_range[0], p.impact_cost_range[1])
    reward_out[world] = linup + ctrl + impact + 1.0
    terminated_out[world] = False

    info_out[world, 0] = qpos_in[world, 0]
    info_out[world, 1] = qpos_in[world, 1]
    info_out[world, 2] = height - p.init_height
    info_out[world, 3] = linup
    info_out[world, 4] = ctrl
    info_out[world, 5] = impact


class HumanoidStandup(Humanoid):
    """See the module docstring."""

    gymnasium = "HumanoidStandup-v5"
    v5 = {
        "integrator": "rk4",
        "impact_cost_weight": 5e-7,
        "include_cinert_in_observation": True,
        "include_cvel_in_observation": True,
        "include_qfrc_actuator_in_observation": True,
        "include_cfrc_ext_in_observation": True,
    }
    xml = "humanoid_standup.xml"
    kernel = humanoid_standup_outputs
    reads = ("qpos", "qvel", "action", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    reads_if = Humanoid.reads_if | {
        "cfrc_ext": ("include_cfrc_ext_in_observation", "impact_cost_weight")
    }
    params = HumanoidStandupParams
    state_info = ("x_position", "y_position", "z_distance_from_origin")
    step_info = ("reward_linup", "reward_quadctrl", "reward_impact")
    camera = {"distance": 3.0, "elevation": -15.0, "trackbodyid": 1, "type": 1}
    defaults = {
        "ctrl_cost_weight": 0.1,
        "impact_cost_weight": 0.0,
        "impact_cost_range": (-float("inf"), 10.0),
        "reset_noise_scale": 0.01,
        "exclude_current_positions_from_observation": True,
        "include_cinert_in_observation": False,
        "include_cvel_in_observation": False,
        "include_qfrc_actuator_in_observation": False,
        "include_cfrc_ext_in_observation": False,
    }
    refused = {"uph_cost_weight": (1, "HumanoidStandup-v5 takes it and does not use it")}

    def derived(self) -> dict[str, float]:
        """Return the physics timestep (s) and the height at which the torso starts (m)."""
        return {
            "timestep": float(self.mjm.opt.timestep),
            "init_height": float(self.init_qpos[2]),
        }
