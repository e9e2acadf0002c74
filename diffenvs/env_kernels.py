"""Kernels of the environments' bookkeeping: start states, time limit, autoreset, and its adjoint.

All run one thread per world and none has a generated adjoint: what they do to a gradient is
written down in `finish_step_vjp` and `join_step_vjp`. A world that is reset receives a start state
that depends on nothing before it, so its cotangent ends there. It is cut with a selection, never
with a product: 0 * NaN is NaN, and the worlds that are reset are those that may have diverged.
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
    # Out:
    obs_out: wp.array2d[float],
    info_out: wp.array2d[float],
):
    """Put what is seen of a start state in place of what the step returned, for worlds reset."""
    world = wp.tid()
    if not mask_in[world]:
        return
    for i in range(obs_out.shape[1]):
        obs_out[world, i] = start_obs_in[world, i]
    for i in range(info_out.shape[1]):
        if i < nstate_info:
            info_out[world, i] = start_info_in[world, i]
        elif not keep_step_info:
            info_out[world, i] = 0.0


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
):
    """Take the cotangents of what a step returns to what its outputs kernel and physics computed.

    The next state is the state after the step, or a start state: then nothing comes back. The
    same holds for `obs`; `final_obs` is the observation of the state after the step in any case.
    """
    world = wp.tid()
    reset = reset_in[world]
    for i in range(adj_qpos_out.shape[1]):
        adj_qpos_out[world, i] = wp.where(reset, 0.0, adj_next_qpos_in[world, i])
    for i in range(adj_qvel_out.shape[1]):
        adj_qvel_out[world, i] = wp.where(reset, 0.0, adj_next_qvel_in[world, i])
    for i in range(adj_act_out.shape[1]):
        adj_act_out[world, i] = wp.where(reset, 0.0, adj_next_act_in[world, i])
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
