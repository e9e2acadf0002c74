"""Kernels of the environments' bookkeeping: start states, time limit, autoreset, and its adjoint.

All run one thread per world, unless they say otherwise, and none has a generated adjoint: what they
do to a gradient is written down in `finish_step_vjp` and `join_step_vjp`. A world that is reset
receives a start state that depends on nothing before it, so its cotangent ends there. It is cut
with a selection, never with a product: 0 * NaN is NaN, and the worlds that are reset are those that
may have diverged.
"""

import warp as wp

wp.set_module_options({"enable_backward": False})

NEXT_STEP = wp.constant(0)
SAME_STEP = wp.constant(1)
DISABLED = wp.constant(2)


@wp.func
def start_rng(seed: int, episode: int) -> wp.uint32:
    """Random state of an episode's start: it depends on nothing else."""
    # Hashed twice, so that neighbouring seeds do not share their episodes with a shift.
    rng = wp.rand_init(seed)
    return wp.rand_init(wp.randi(rng), episode)


@wp.kernel
def reset_worlds(
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
    """Write the initial state plus noise, uniform (0) or normal (1), into worlds of the mask."""
    world = wp.tid()
    if not mask_in[world]:
        return
    rng = start_rng(seed_in[world], episode_in[world])
    for i in range(qpos_out.shape[1]):
        noise = wp.where(qpos_noise == 0, wp.randf(rng, -1.0, 1.0), wp.randn(rng))
        qpos_out[world, i] = init_qpos_in[i] + noise_scale * noise
    for i in range(qvel_out.shape[1]):
        noise = wp.where(qvel_noise == 0, wp.randf(rng, -1.0, 1.0), wp.randn(rng))
        qvel_out[world, i] = init_qvel_in[i] + noise_scale * noise
        qacc_warmstart_out[world, i] = 0.0
    for i in range(act_out.shape[1]):
        act_out[world, i] = 0.0


@wp.kernel
def write_start(
    # In:
    mask_in: wp.array[wp.bool],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    act_in: wp.array2d[float],
    # Out:
    qpos_out: wp.array2d[float],
    qvel_out: wp.array2d[float],
    act_out: wp.array2d[float],
    qacc_warmstart_out: wp.array2d[float],
):
    """Put worlds of the mask into a given state, with a cold start of the solver."""
    world = wp.tid()
    if not mask_in[world]:
        return
    for i in range(qpos_out.shape[1]):
        qpos_out[world, i] = qpos_in[world, i]
    for i in range(qvel_out.shape[1]):
        qvel_out[world, i] = qvel_in[world, i]
        qacc_warmstart_out[world, i] = 0.0
    for i in range(act_out.shape[1]):
        act_out[world, i] = act_in[world, i]


@wp.kernel
def mark_reset(
    # In:
    mask_in: wp.array[wp.bool],
    reseed_in: wp.array[wp.bool],
    new_seed_in: wp.array[int],
    # Out:
    seed_io: wp.array[int],
    episode_io: wp.array[int],
    elapsed_out: wp.array[int],
    pending_out: wp.array[wp.bool],
    cut_out: wp.array[wp.bool],
):
    """Begin a new episode in the worlds in the mask, the first of its seed or the next one."""
    world = wp.tid()
    if not mask_in[world]:
        return
    if reseed_in[world]:
        seed_io[world] = new_seed_in[world]
        episode_io[world] = 0
    else:
        episode_io[world] = episode_io[world] + 1
    elapsed_out[world] = 0
    pending_out[world] = False
    cut_out[world] = True


@wp.kernel
def begin_step(
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    act_in: wp.array2d[float],
    qacc_warmstart_in: wp.array2d[float],
    # Out:
    cut_io: wp.array[wp.bool],
    qpos_out: wp.array2d[float],
    qvel_out: wp.array2d[float],
    act_out: wp.array2d[float],
    qacc_warmstart_out: wp.array2d[float],
    cut_out: wp.array[wp.bool],
):
    """Keep the state from which a recorded step starts, and which worlds a reset put there."""
    world = wp.tid()
    for i in range(qpos_in.shape[1]):
        qpos_out[world, i] = qpos_in[world, i]
    for i in range(qvel_in.shape[1]):
        qvel_out[world, i] = qvel_in[world, i]
        qacc_warmstart_out[world, i] = qacc_warmstart_in[world, i]
    for i in range(act_in.shape[1]):
        act_out[world, i] = act_in[world, i]
    cut_out[world] = cut_io[world]
    cut_io[world] = False


@wp.kernel
def finish_step(
    mode: int,
    max_steps: int,
    # In:
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    act_in: wp.array2d[float],
    qacc_warmstart_in: wp.array2d[float],
    # Out:
    reward_io: wp.array[float],
    terminated_io: wp.array[wp.bool],
    pending_io: wp.array[wp.bool],
    elapsed_io: wp.array[int],
    episode_io: wp.array[int],
    misused_io: wp.array[int],
    truncated_out: wp.array[wp.bool],
    reset_out: wp.array[wp.bool],
    qpos_out: wp.array2d[float],
    qvel_out: wp.array2d[float],
    act_out: wp.array2d[float],
    qacc_warmstart_out: wp.array2d[float],
):
    """Apply the time limit, decide which worlds are reset within this step, move the state on.

    A pending world is done and waits for its reset: for the next step in mode NEXT_STEP, for the
    user in mode DISABLED, where stepping it is counted as misuse. `max_steps` 0 is no limit.
    """
    world = wp.tid()
    reset = bool(False)
    truncated = bool(False)
    if mode == NEXT_STEP and pending_io[world]:
        reset = True
        pending_io[world] = False
        terminated_io[world] = False
        reward_io[world] = 0.0
    else:
        if pending_io[world]:
            wp.atomic_add(misused_io, 0, 1)
        elapsed_io[world] = elapsed_io[world] + 1
        truncated = max_steps > 0 and elapsed_io[world] >= max_steps
        done = terminated_io[world] or truncated
        if mode == SAME_STEP:
            reset = done
        else:
            pending_io[world] = done
    if reset:
        elapsed_io[world] = 0
        episode_io[world] = episode_io[world] + 1
    truncated_out[world] = truncated
    reset_out[world] = reset
    for i in range(qpos_in.shape[1]):
        qpos_out[world, i] = qpos_in[world, i]
    for i in range(qvel_in.shape[1]):
        qvel_out[world, i] = qvel_in[world, i]
        qacc_warmstart_out[world, i] = qacc_warmstart_in[world, i]
    for i in range(act_in.shape[1]):
        act_out[world, i] = act_in[world, i]


@wp.kernel
def show_start(
    # In:
    mask_in: wp.array[wp.bool],
    nstate_info: int,
    keep_step_info: bool,
    start_obs_in: wp.array2d[float],
    start_info_in: wp.array2d[float],
    step_obs_in: wp.array2d[float],
    step_info_in: wp.array2d[float],
    # Out:
    obs_out: wp.array2d[float],
    info_out: wp.array2d[float],
):
    """Show what is seen of a start state for worlds reset, what the step returned for the others.

    One thread per world and entry of obs and info, first those of obs.
    """
    world, i = wp.tid()
    reset = mask_in[world]
    nobs = obs_out.shape[1]
    if i < nobs:
        obs_out[world, i] = wp.where(reset, start_obs_in[world, i], step_obs_in[world, i])
        return
    i -= nobs
    value = step_info_in[world, i]
    if reset:
        if i < nstate_info:
            value = start_info_in[world, i]
        elif not keep_step_info:
            value = 0.0
    info_out[world, i] = value


@wp.kernel
def keep_step(
    # In:
    number_in: wp.array[int],
    qpos_in: wp.array2d[float],
    qvel_in: wp.array2d[float],
    act_in: wp.array2d[float],
    qacc_warmstart_in: wp.array2d[float],
    action_in: wp.array2d[float],
    reset_in: wp.array[wp.bool],
    cut_in: wp.array[wp.bool],
    # Out:
    rows_out: wp.array3d[float],
    flags_out: wp.array2d[wp.vec2ub],
):
    """Pack what a step started from, and which worlds it reset and cut, into row `number`.

    One thread per world and column: qpos, qvel, act, qacc_warmstart, action.
    """
    world, i = wp.tid()
    number = number_in[0]
    if i == 0:
        reset = wp.where(reset_in[world], wp.uint8(1), wp.uint8(0))
        cut = wp.where(cut_in[world], wp.uint8(1), wp.uint8(0))
        flags_out[number, world] = wp.vec2ub(reset, cut)
    qvel = qpos_in.shape[1]
    act = qvel + qvel_in.shape[1]
    qacc_warmstart = act + act_in.shape[1]
    action = qacc_warmstart + qacc_warmstart_in.shape[1]
    if i < qvel:
        rows_out[number, world, i] = qpos_in[world, i]
    elif i < act:
        rows_out[number, world, i] = qvel_in[world, i - qvel]
    elif i < qacc_warmstart:
        rows_out[number, world, i] = act_in[world, i - act]
    elif i < action:
        rows_out[number, world, i] = qacc_warmstart_in[world, i - qacc_warmstart]
    else:
        rows_out[number, world, i] = action_in[world, i - action]


@wp.kernel
def recall_step(
    # In:
    number_in: wp.array[int],
    rows_in: wp.array3d[float],
    flags_in: wp.array2d[wp.vec2ub],
    # Out:
    qpos_out: wp.array2d[float],
    qvel_out: wp.array2d[float],
    act_out: wp.array2d[float],
    qacc_warmstart_out: wp.array2d[float],
    action_out: wp.array2d[float],
    reset_out: wp.array[wp.bool],
    cut_out: wp.array[wp.bool],
):
    """Unpack row `number` of what `keep_step` packed."""
    world, i = wp.tid()
    number = number_in[0]
    if i == 0:
        flags = flags_in[number, world]
        reset_out[world] = flags[0] != wp.uint8(0)
        cut_out[world] = flags[1] != wp.uint8(0)
    qvel = qpos_out.shape[1]
    act = qvel + qvel_out.shape[1]
    qacc_warmstart = act + act_out.shape[1]
    action = qacc_warmstart + qacc_warmstart_out.shape[1]
    value = rows_in[number, world, i]
    if i < qvel:
        qpos_out[world, i] = value
    elif i < act:
        qvel_out[world, i - qvel] = value
    elif i < qacc_warmstart:
        act_out[world, i - act] = value
    elif i < action:
        qacc_warmstart_out[world, i - qacc_warmstart] = value
    else:
        action_out[world, i - action] = value


@wp.kernel
def finish_step_vjp(
    # In:
    reset_in: wp.array[wp.bool],
    adj_next_qpos_in: wp.array2d[float],
    adj_next_qvel_in: wp.array2d[float],
    adj_next_act_in: wp.array2d[float],
    adj_obs_in: wp.array2d[float],
    adj_final_obs_in: wp.array2d[float],
    # Out:
    adj_qpos_out: wp.array2d[float],
    adj_qvel_out: wp.array2d[float],
    adj_act_out: wp.array2d[float],
    adj_step_obs_out: wp.array2d[float],
    adj_prev_qpos_out: wp.array2d[float],
    adj_prev_qvel_out: wp.array2d[float],
    adj_prev_act_out: wp.array2d[float],
    adj_direct_action_out: wp.array2d[float],
):
    """Take the cotangents of what a step returns to what its outputs kernel and physics computed.

    The next state is the state after the step, or a start state: then nothing comes back. The
    same holds for `obs`; `final_obs` is the observation of the state after the step in any case.
    What the outputs kernel reads of the state before the step and of the action begins at zero.
    """
    world = wp.tid()
    reset = reset_in[world]
    for i in range(adj_qpos_out.shape[1]):
        adj_qpos_out[world, i] = wp.where(reset, 0.0, adj_next_qpos_in[world, i])
        adj_prev_qpos_out[world, i] = 0.0
    for i in range(adj_qvel_out.shape[1]):
        adj_qvel_out[world, i] = wp.where(reset, 0.0, adj_next_qvel_in[world, i])
        adj_prev_qvel_out[world, i] = 0.0
    for i in range(adj_act_out.shape[1]):
        adj_act_out[world, i] = wp.where(reset, 0.0, adj_next_act_in[world, i])
        adj_prev_act_out[world, i] = 0.0
    for i in range(adj_direct_action_out.shape[1]):
        adj_direct_action_out[world, i] = 0.0
    for i in range(adj_step_obs_out.shape[1]):
        adj_obs = wp.where(reset, 0.0, adj_obs_in[world, i])
        adj_step_obs_out[world, i] = adj_final_obs_in[world, i] + adj_obs


@wp.kernel
def join_step_vjp(
    # In:
    cut_in: wp.array[wp.bool],
    adj_prev_qpos_in: wp.array2d[float],
    adj_prev_qvel_in: wp.array2d[float],
    adj_prev_act_in: wp.array2d[float],
    adj_direct_action_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
    adj_act_io: wp.array2d[float],
    adj_action_io: wp.array2d[float],
):
    """Add what the outputs kernel reads of the start of the step to what the physics reads of it.

    A world in `cut` started this step from a state that `reset` wrote: nothing goes back past it.
    """
    world = wp.tid()
    cut = cut_in[world]
    for i in range(adj_qpos_io.shape[1]):
        total = adj_qpos_io[world, i] + adj_prev_qpos_in[world, i]
        adj_qpos_io[world, i] = wp.where(cut, 0.0, total)
    for i in range(adj_qvel_io.shape[1]):
        total = adj_qvel_io[world, i] + adj_prev_qvel_in[world, i]
        adj_qvel_io[world, i] = wp.where(cut, 0.0, total)
    for i in range(adj_act_io.shape[1]):
        total = adj_act_io[world, i] + adj_prev_act_in[world, i]
        adj_act_io[world, i] = wp.where(cut, 0.0, total)
    for i in range(adj_action_io.shape[1]):
        adj_action_io[world, i] = adj_action_io[world, i] + adj_direct_action_in[world, i]


@wp.kernel
def accumulate_kept(
    fresh_in: wp.array[wp.bool], x_in: wp.array2d[float], sum_io: wp.array2d[float]
):
    """Add an array to another in the worlds that are not fresh."""
    world, i = wp.tid()
    if not fresh_in[world]:
        sum_io[world, i] = sum_io[world, i] + x_in[world, i]
