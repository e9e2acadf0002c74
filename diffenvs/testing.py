"""`check_vector_env`: whether a vector environment does what Gymnasium's interface says.

For single environments Gymnasium has `gymnasium.utils.env_checker.check_env`, for vector
environments it has none. This one checks any `gymnasium.vector.VectorEnv`, ours or not::

    from diffenvs.testing import check_vector_env

    check_vector_env(gym.make_vec("MyRobot-v0", num_envs=3, max_episode_steps=20))

It loads neither Warp nor MuJoCo.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import flatten
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from diffenvs.array_trees import same
from diffenvs.checked_env import CheckedEnv, Step


def check_vector_env(
    envs: VectorEnv,
    *,
    seed: int = 0,
    num_steps: int = 200,
    max_episode_steps: int | None = None,
    reset_mask: bool = True,
    keeps_options: bool = True,
    seed_list: bool = True,
    only_limit_truncates: bool = True,
    ignore_info: Collection[str] = ("episode",),
    tolerance: float = 0.0,
    to_actions: Callable[[Any], Any] | None = None,
    close: bool = True,
) -> None:
    """Raise an AssertionError that says who, what and what was expected, if anything is wrong.

    The worlds are stepped with random actions until every one has come to the end of an episode,
    several times over. Checked is

    - what is declared: spaces, of which the batched ones are batches of the single ones;
      `num_envs`; `metadata`, with an `AutoresetMode` as "autoreset_mode"; `render_mode`;
    - what `reset` and `step` return: number, types, dtypes and shapes, observations in their
      space, and an info whose values have a row per world and whose masks "_name" are of bool;
    - that a later call neither changes nor shares memory with what an earlier one returned;
    - seeds: the same seed and actions give the same outputs; another seed and the next episode
      start elsewhere, if starts are random; `seed=[...]` with a seed per world, of which
      `seed=n` stands for n, n + 1, ...; a list of another length is a ValueError;
    - `reset(options={"reset_mask": mask})`: these worlds begin an episode, which is as long as any
      other, and info is masked to them; the others show their last observation and go on as if
      nothing had been; a mask that is no array or not of bool is a TypeError, one of another shape
      or without a True a ValueError, after which all goes on; the caller's options are left as
      they are;
    - the autoreset mode. NEXT_STEP: the step after the end ignores the action, gives reward 0 and
      no flags, unless a masked reset of the world came before it. SAME_STEP: "final_obs" and
      "final_info" with masks that are the worlds that ended; the observation is that of the next
      episode, and where starts are random not always close to "final_obs". DISABLED: a done world
      can be reset by its mask, and stepping it instead is an error (not asked of outputs that are
      on a GPU);
    - the time limit: it truncates an episode neither later nor, if nothing else truncates, earlier
      than that, by the count of its own steps;
    - `render`, if made with a render mode: a picture per world;
    - `close`, twice.

    Args:
        envs: The environment. It is closed afterwards.
        seed: Seed of the first reset and of the actions.
        num_steps: Number of steps within which every world should end an episode.
        max_episode_steps: Time limit; if not given, that with which `gym.make_vec` made it.
        reset_mask: False: it does not know the option, which the base class does not promise.
        keeps_options: False: it may change the caller's options. Gymnasium's SyncVectorEnv and
            AsyncVectorEnv take "reset_mask" out of them.
        seed_list: False: it takes a single number as seed, which is all the base class promises.
        only_limit_truncates: False: not only the time limit truncates its episodes.
        ignore_info: Names in info, at any depth, whose values are not compared between two runs;
            the default is what Gymnasium's RecordEpisodeStatistics adds, with times of the clock.
        tolerance: Relative and absolute tolerance between two runs; 0 is equality bit for bit.
        to_actions: Turns actions of its action space into what `step` takes: tensors of a device.
        close: False: leave it open, and do not check `close`.
    """
    limit = _time_limit(envs) if max_episode_steps is None else max_episode_steps
    env = CheckedEnv(
        envs, to_actions, limit, tolerance, keeps_options, only_limit_truncates, ignore_info
    )
    starts = _starts(env, seed, seed_list)
    actions, steps = _first_run(env, seed, num_steps, reset_mask)
    if env.mode is AutoresetMode.SAME_STEP:
        _final_obs(env, starts, steps)
    _second_run(env, seed, actions, steps, reset_mask)
    if reset_mask:
        _partial_reset(env, seed, actions, steps, starts)
        if env.mode is AutoresetMode.NEXT_STEP:
            _reset_of_done_world(env, seed, actions, steps)
    if envs.render_mode is not None:
        _pictures(env)
    if env.mode is AutoresetMode.DISABLED:
        _stepping_done_worlds(env, seed, actions)
    if close:
        _close(env)


def _starts(env: CheckedEnv, first: int, seed_list: bool) -> list[list[Any]]:
    """Check seeds of reset, and what it accepts.

    Return the rows of three starts: of the seed, of the episode after it, of another seed.
    """
    envs: Any = env.envs
    n = env.n
    obs, _ = env.reset(seed=first)
    following, _ = env.reset()
    other, _ = env.reset(seed=first + n)
    again, _ = env.reset(seed=first, options={})
    env.require_same(again, obs, f"reset(seed={first}) starts as it did before")
    then, _ = env.reset()
    env.require_same(then, following, "the episode after that of a seed is the same one again")
    rows = env.rows(obs)
    if n > 1 and not any(same(rows[0], row) for row in rows[1:]):  # starts are random
        env.require(not same(other, obs), f"seeds {first} and {first + n} start differently")
        env.require(not same(following, obs), "reset() does not start as the last one did")
    starts = [rows, env.rows(following), env.rows(other)]
    if not seed_list:
        return starts
    given = [first + world for world in range(n)]
    try:
        listed, _ = env.reset(seed=given)
    except Exception as error:
        message = f"reset takes a seed per world (or give seed_list=False), but {given} raised"
        raise AssertionError(f"{envs}: {message} {error!r}") from error
    env.require_same(listed, obs, f"reset(seed={first}) is reset(seed={given})")
    env.require_error(
        ValueError,
        lambda: envs.reset(seed=[first] * (n + 1)),
        f"reset(seed=[...]) of {n + 1} seeds raises a ValueError",
    )
    return starts


def _run(
    env: CheckedEnv,
    seed: int,
    actions: list[Any],
    reset_mask: bool,
    before: Callable[[int], Any] | None = None,
) -> list[Step]:
    """Reset and take steps; done worlds are reset where the mode leaves that to the user.

    `before` is called before each step, and may give other actions.
    """
    env.reset(seed=seed)
    steps = []
    for t, given in enumerate(actions):
        if env.done.any() and env.mode is AutoresetMode.DISABLED:
            env.reset(env.done.copy() if reset_mask else None)
        changed = before(t) if before else None
        steps.append(env.step(given if changed is None else changed))
    return steps


def _first_run(
    env: CheckedEnv, seed: int, num_steps: int, reset_mask: bool
) -> tuple[list[Any], list[Step]]:
    """Step until every world has ended an episode, and three steps more: actions and outputs."""
    space = env.envs.action_space
    space.seed(seed)
    actions = [space.sample() for _ in range(num_steps)]
    steps = _run(env, seed, actions, reset_mask)
    done = np.array([step.done for step in steps])
    env.require(
        done.any(),
        f"no episode ended within num_steps={num_steps} random steps, so what happens then cannot "
        "be checked. Make it with a time limit (gym.make_vec(..., max_episode_steps=20)), or allow "
        "more steps",
    )
    if done.any(axis=0).all():
        enough = int(done.argmax(axis=0).max()) + 4
        actions, steps = actions[:enough], steps[:enough]
    return actions, steps


def _final_obs(env: CheckedEnv, starts: list[list[Any]], steps: list[Step]) -> None:
    """SAME_STEP: the end of an episode and the start of the next are not one and the same.

    Where starts differ, an end is far from the start that follows, as other starts are. By chance
    it may be close; that all of several ends are means that one was made from the other.
    """
    typical = np.median([_distance(env, *pair) for pair in zip(*starts[:2], strict=True)])
    apart = [
        _distance(env, env.rows(step.obs)[world], step.info["final_obs"][world])
        for step in steps
        for world in np.flatnonzero(step.done)
    ]
    close = 0.1 * typical if len(apart) >= 3 else 0.0
    env.require(
        typical == 0.0 or not (np.array(apart) <= close).all(),
        "with SAME_STEP obs of a world that ended is that of its next episode and "
        "info['final_obs'] that of its end, but they are always the same, or close to it",
    )


def _distance(env: CheckedEnv, a: Any, b: Any) -> float:
    """How far two observations of one world are apart; in spaces without a norm it is 0 or 1."""
    space = env.envs.single_observation_space
    if not space.is_np_flattenable:
        return float(not same(a, b))
    x, y = (np.asarray(flatten(space, value), dtype=float) for value in (a, b))
    return float(np.linalg.norm(x - y))


def _second_run(
    env: CheckedEnv, seed: int, actions: list[Any], first: list[Step], reset_mask: bool
) -> None:
    """The same seed and actions give the same; NEXT_STEP: whatever a world's reset ignores."""

    def ignored(t: int) -> Any:
        return _mixed(env, actions[t], env.envs.action_space.sample(), env.done)

    message = "with the same seed and actions step {t} gives the same {name}"
    _compare(env, _run(env, seed, actions, reset_mask), first, message)
    if env.mode is AutoresetMode.NEXT_STEP:
        message = "NEXT_STEP ignores the action that follows an end, but step {t} changed {name}"
        _compare(env, _run(env, seed, actions, reset_mask, ignored), first, message)


def _compare(env: CheckedEnv, steps: list[Step], wanted: list[Step], message: str) -> None:
    """Two runs are the same, in all that they returned."""
    for t, pair in enumerate(zip(steps, wanted, strict=True)):
        env.require_same_step(*pair, message.format(t=t, name="{name}"))


def _mixed(env: CheckedEnv, actions: Any, other: Any, mask: np.ndarray) -> Any:
    """Actions, but those of another batch in the worlds of the mask."""
    space, single = env.envs.action_space, env.envs.single_action_space
    pairs = zip(iterate(space, actions), iterate(space, other), mask, strict=True)
    rows = [theirs if masked else ours for ours, theirs, masked in pairs]
    return concatenate(single, rows, create_empty_array(single, env.n))


def _partial_reset(
    env: CheckedEnv,
    seed: int,
    actions: list[Any],
    first: list[Step],
    starts: list[list[Any]],
) -> None:
    """Reset world 0 alone: the others go on as in the first run; wrong masks are refused.

    Later a world is reset just before the time limit, which then is to begin anew.
    """
    n = env.n
    ends = [t for t, step in enumerate(first) if step.done.any()]
    at = min(3, ends[0])
    mask = np.arange(n) == 0
    wrong = {
        "that is a list": (TypeError, [True] * n),
        "of integers": (TypeError, np.ones(n, dtype=int)),
        "of another shape": (ValueError, np.ones(n + 1, dtype=bool)),
        "without a True": (ValueError, np.zeros(n, dtype=bool)),
    }

    before_limit: list[int] = []

    def interrupt(t: int) -> None:
        if t > at and env.limit is not None and not before_limit:
            before_limit.extend(np.flatnonzero(env.elapsed == env.limit - 1)[:1])
            if before_limit:
                env.reset(np.arange(n) == before_limit[0])
        if t != at:
            return
        for what, (error, value) in wrong.items():
            options = {"reset_mask": value}
            env.require_error(
                error,
                lambda options=options: env.envs.reset(options=options),
                f"a reset_mask {what} raises a {error.__name__}",
            )
        _begin(env, mask, starts)

    own_end = [t for t, step in enumerate(first) if step.done[1:].any()]
    until = own_end[0] if own_end else len(first)
    steps = _run(env, seed, actions, True, interrupt)
    for t, (step, wanted) in enumerate(zip(steps[:until], first[:until], strict=True)):
        message = f"worlds that are not in the mask of a reset before step {at} go on: step {t}"
        env.require_same(env.rows(step.obs)[1:], env.rows(wanted.obs)[1:], f"{message}, obs")
        for name in ("reward", "terminated", "truncated"):
            pair = (getattr(step, name)[1:], getattr(wanted, name)[1:])
            env.require_same(*pair, f"{message}, {name}")


def _begin(env: CheckedEnv, mask: np.ndarray, starts: list[list[Any]]) -> None:
    """Reset world 0 by its mask, which shows the start of an episode.

    Its observation changes, if its starts differ from each other, and is the start, if all starts
    are the same. Either may fail by chance where there are few starts, so it has five tries.
    """
    before = env.rows(env.obs)[0]
    start, following = starts[0][0], starts[1][0]
    fixed = all(same(row, rows[0]) for rows in zip(*starts, strict=True) for row in rows)
    for _ in range(5):
        after = env.rows(env.reset(mask)[0])[0]
        if same(after, start, env.tolerance) if fixed else not same(after, before):
            return
    wanted = f"the start of an episode, {start}," if fixed else "the start of another episode"
    env.require(
        not fixed and same(start, following),
        f"reset(options={{'reset_mask': ...}}) shows {wanted} of world 0, which is in the mask, "
        f"but it is {after} after {before}",
    )


def _reset_of_done_world(env: CheckedEnv, seed: int, actions: list[Any], first: list[Step]) -> None:
    """NEXT_STEP: after the masked reset of a world that ended its next step is a real one.

    So it depends on the action, if the first step of an episode does. Two actions mostly show that;
    many are tried, for there are tasks where few actions have an effect.
    """
    end = next(t for t, step in enumerate(first) if step.done.any())
    world = int(first[end].done.argmax())
    mask = np.arange(env.n) == world
    samples = [env.envs.action_space.sample() for _ in range(50)]

    def first_step(action: Any) -> Step:
        return _run(env, seed, [action], True)[0]

    def step_after_reset(action: Any) -> Step:
        def reset(t: int) -> None:
            if t == end + 1:
                env.reset(mask)

        return _run(env, seed, [*actions[: end + 1], action], True, reset)[-1]

    def depends(play: Callable[[Any], Step]) -> bool:
        steps = map(play, samples)
        outputs = ((env.rows(s.obs)[world], s.reward[world], s.done[world]) for s in steps)
        reference = next(outputs)
        return any(not same(other, reference, env.tolerance) for other in outputs)

    env.require(
        not depends(first_step) or depends(step_after_reset),
        f"NEXT_STEP: a masked reset of world {world}, which had ended, stands for its autoreset, "
        "but the step after it ignored the action",
    )


def _stepping_done_worlds(env: CheckedEnv, seed: int, actions: list[Any]) -> None:
    """DISABLED: a done world is not stepped, at the latest when the host next looks."""
    env.reset(seed=seed)
    for given in actions:
        env.step(given)
        if env.done.any():
            break
    try:
        reward = env.envs.step(env.to_actions(actions[-1]))[1]
    except Exception:
        return
    env.require(
        "cpu" not in str(getattr(reward, "device", "cpu")),
        "with DISABLED stepping a done world is an error, but worlds "
        f"{np.flatnonzero(env.done).tolist()} were stepped",
    )


def _pictures(env: CheckedEnv) -> None:
    """One picture per world, or none where they are shown."""
    env.reset()
    frames: Any = env.envs.render()
    if env.envs.render_mode == "human":
        env.require(frames is None, f"render() returns None in mode human, not {frames!r}")
        return
    env.require(
        isinstance(frames, Sequence) and len(frames) == env.n,
        f"render() returns a sequence of {env.n} pictures, not {frames!r}",
    )


def _close(env: CheckedEnv) -> None:
    """Closing twice is allowed."""
    for time in ("once", "twice"):
        try:
            env.envs.close()
        except Exception as error:
            raise AssertionError(f"{env.envs}: close() {time} raised {error!r}") from error


def _time_limit(envs: VectorEnv) -> int | None:
    """Return the limit with which `gym.make_vec` made an environment."""
    spec = envs.spec
    if spec is None:
        return None
    limit = spec.kwargs.get("max_episode_steps", spec.max_episode_steps)
    return None if limit == -1 else limit
