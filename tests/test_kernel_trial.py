"""The trial of the outputs kernel: every fault is refused by name, and what is in bounds is not."""

import itertools

import gymnasium as gym
import pytest
import warp as wp

import diffenvs
from diffenvs.kernel_trial import try_kernel
from diffenvs.task import Task
from diffenvs.vector_env import load_task

TASKS = {id: load_task(task) for id, (task, _) in diffenvs.TASKS.items()}


@wp.struct
class FaultyParams:
    """What is wrong with the kernel, and how far away."""

    fault: int
    offset: int  # beyond the last column


NONE, REWARD, SOMETIMES, FLAG, COLUMN, SUM, INPUT, ACTION, OBS, INFO, ROW = range(11)
SITE, FORCES, BOUND, WORLD, LATE = range(11, 16)


@wp.kernel
def faulty_outputs(
    p: FaultyParams,
    # In:
    qpos_in: wp.array2d[float],
    action_in: wp.array2d[float],
    site_xpos_in: wp.array2d[wp.vec3],
    cfrc_ext_in: wp.array2d[wp.spatial_vector],
    # Out:
    obs_out: wp.array2d[float],
    reward_out: wp.array[float],
    terminated_out: wp.array[wp.bool],
    info_out: wp.array2d[float],
):
    """A kernel with one fault, or none."""
    world = wp.tid()
    angle = qpos_in[world, 1]
    obs_out[world, 0] = qpos_in[world, 0]
    if p.fault == SUM:
        obs_out[world, 1] += angle
    elif p.fault != COLUMN:
        obs_out[world, 1] = angle
    if p.fault != REWARD and (p.fault != SOMETIMES or wp.abs(angle) < 0.05):
        reward_out[world] = wp.cos(angle) + action_in[world, 0]
    if p.fault != FLAG:
        terminated_out[world] = False
    info_out[world, 0] = angle
    info_out[world, 1] = 1.0
    if p.fault == INPUT:
        qpos_in[world, 1] = 0.0
    if p.fault == ACTION:
        obs_out[world, 1] = action_in[world, p.offset]
    if p.fault == OBS:
        obs_out[world, 2 + p.offset] = angle
    if p.fault == INFO:
        info_out[world, 2 + p.offset] = angle
    if p.fault == ROW:
        reward_out[world + 1] = angle
    if p.fault == SITE:
        obs_out[world, 1] = wp.clamp(site_xpos_in[world, 0][2], -1.0, 1.0)
    if p.fault == FORCES:
        obs_out[world, 1] = cfrc_ext_in[world, 1][0]
    if p.fault == BOUND:
        terminated_out[world] = action_in[world, 1] > 1.0
    if p.fault == WORLD:
        reward_out[world] = qpos_in[0, 1]
    if p.fault == LATE:
        reward_out[world] = reward_out[world] + obs_out[world, 0]


class Faulty(Task):
    """A cart-pole whose kernel has the fault that is asked for."""

    xml = "cartpole_swingup.xml"
    frame_skip = 4
    kernel = faulty_outputs
    reads = ("qpos", "action", "site_xpos", "cfrc_ext")
    reads_if = {"cfrc_ext": ("force_weight",)}
    params = FaultyParams
    obs_dim = 2
    state_info = ("angle",)
    step_info = ("one",)
    defaults = {"fault": NONE, "offset": 0, "force_weight": 0.0}


@pytest.mark.parametrize(
    ("fault", "offset", "message"),
    [
        (REWARD, 0, "does not write reward_out: every entry is written in every state"),
        (SOMETIMES, 0, "does not write reward_out in some states: every entry is written in"),
        (FLAG, 0, "does not write terminated_out: every entry is written in every state"),
        (COLUMN, 0, "does not write column 1 of obs_out: .* has 2 columns. That is `obs_dim`, or"),
        (SUM, 0, "computes column 1 of obs_out from what stood there before, .* not `\\+=`"),
        (INPUT, 0, "writes into qpos_in, which the step still needs. A kernel writes into its"),
        (ACTION, 7, r"computes obs_out from numbers outside of the columns or of the world of "
         r"action_in \(nu=1\)\. A thread reads the row of its world"),
        (OBS, 0, "writes outside of obs_out, into column 2: .* which has 2 columns. .*`obs_dim`"),
        (OBS, 400, "writes outside of obs_out, into column 402: "),
        (INFO, 0, "writes outside of info_out, into column 2: .* state_info, then step_info: "
         "angle, one; name one for each"),
        (INFO, -5, "writes outside of info_out, into column -1: "),
        (ROW, 0, "writes outside of reward_out: .* own world, which has one entry"),
        (SITE, 0, r"computes obs_out from numbers .* of site_xpos_in \(nsite=0\)"),
        (FORCES, 0, r"computes obs_out .* of cfrc_ext_in \(none while force_weight is False or 0"),
        (BOUND, 0, r"computes terminated_out from numbers .* of action_in \(nu=1\)"),
        (WORLD, 0, r"computes reward_out from numbers .* of qpos_in \(nq=2\)"),
    ],
)  # fmt: skip
def test_faults_are_refused(fault, offset, message):
    """What a kernel must not do is named, with the array, the column and the model's sizes."""
    sizes = r".*\(the model has nq=2, nv=2, na=0, nu=1, nbody=3, nsite=0\)"
    with pytest.raises(
        ValueError, match="Faulty: its outputs kernel faulty_outputs " + message
    ) as e:
        try_kernel(Faulty(fault=fault, offset=offset), wp.get_device())
    e.match(sizes)


@pytest.mark.parametrize("fault", [NONE, LATE])
def test_right_kernels_pass(fault):
    """A kernel without a fault passes, and one that reads an output after it wrote it."""
    try_kernel(Faulty(fault=fault), wp.get_device())


@pytest.mark.parametrize("id", TASKS)
def test_all_variants_pass(id):
    """Every task passes with every combination of its flags, choices and costs of contacts."""
    task = TASKS[id]
    options = {name: (False, True) for name, x in task.defaults.items() if isinstance(x, bool)}
    options |= task.choices
    costs = [
        name for name in task.defaults if name in ("contact_cost_weight", "impact_cost_weight")
    ]
    options |= {name: (0.0, 1e-3) for name in costs}
    for values in itertools.product(*options.values()):
        try_kernel(task(**dict(zip(options, values, strict=True))), wp.get_device())


CART = """<mujoco><worldbody><body name="cart"><joint type="slide" axis="1 0 0"/>
<geom size=".1" mass="1"/></body></worldbody></mujoco>"""


def test_robots_of_other_sizes():
    """A robot that has less than the kernel reads is refused; one that has enough is not."""
    message = (
        r"InvertedDoublePendulum: .*qpos_in \(nq=1\).* site_xpos_in \(nsite=0\).* nu=0, nbody=2"
    )
    with pytest.raises(ValueError, match=message):
        gym.make_vec("DiffInvertedDoublePendulum-v0", num_envs=2, xml_file=CART)
    try_kernel(TASKS["DiffSwimmer-v0"](xml_file="half_cheetah.xml"), wp.get_device())
