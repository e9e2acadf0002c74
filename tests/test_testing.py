"""`check_vector_env`: what it accepts, what it finds, on Gymnasium's environments and on ours."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import HOPPER
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

import diffenvs
from diffenvs.testing import check_vector_env

MODES = list(AutoresetMode)
EARLY = r"truncated by the time limit of 9 steps, counted from its own start, but worlds \[.*\] are"
SAME_STEP, NEXT_STEP, DISABLED = (
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.DISABLED,
)


# On CUDA stock mujoco_warp orders contact rows by atomics, so that two runs are rounded otherwise.
REPEATS = {"tolerance": 1e-3 if wp.get_preferred_device().is_cuda else 0.0, "close": False}


class Walk(gym.vector.VectorEnv):
    """Random starts on a line, moved by the actions; an episode ends outside it, or after 9 steps.

    It keeps the interface in all three modes. The attributes break one rule each.
    """

    shares_memory = ignores_seeds = resets_everything = takes_any_mask = False
    pops_options = uses_action_of_reset = forgets_mask = late = float_flags = False
    shows_final_obs = steps_done_worlds = shows_start_as_final_obs = False
    mask_does_nothing = mask_keeps_clock = mask_keeps_pending = autoreset_keeps_clock = False
    starts = 1.0  # width of the distribution

    def __init__(self, mode=SAME_STEP, num_envs=3):
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": mode}
        self.mode = mode
        self.single_observation_space = gym.spaces.Box(-9, 9, (1,), np.float64)
        self.single_action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.x = np.zeros((num_envs, 1))
        self.elapsed = np.zeros(num_envs, int)
        self.done = np.zeros(num_envs, bool)
        self.rng = [np.random.default_rng() for _ in range(num_envs)]

    def _start(self, mask):
        for world in np.flatnonzero(mask):
            self.x[world] = self.starts * self.rng[world].uniform(-1, 1)
            self.elapsed[world] = 0
            self.done[world] = False

    def _autoreset(self, mask):
        elapsed = self.elapsed.copy()
        self._start(mask)
        if self.autoreset_keeps_clock:
            self.elapsed = elapsed

    def _obs(self):
        return self.x if self.shares_memory else self.x.copy()

    def reset(self, *, seed=None, options=None):
        if isinstance(seed, int):
            seed = [seed + world for world in range(self.num_envs)]
        for world, value in enumerate(seed or []):
            if world == self.num_envs:
                raise ValueError("too many seeds")
            if not self.ignores_seeds:
                self.rng[world] = np.random.default_rng(value)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if not self.takes_any_mask:
            if not isinstance(mask, np.ndarray) or mask.dtype != bool:
                raise TypeError("mask")
            if mask.shape != (self.num_envs,) or not mask.any():
                raise ValueError("mask")
        partial = "reset_mask" in (options or {})
        if self.pops_options and options:
            options.pop("reset_mask", None)
        elapsed, done = self.elapsed.copy(), self.done.copy()
        if not (partial and self.mask_does_nothing):
            self._start(np.ones(self.num_envs, bool) if self.resets_everything else mask)
        if partial and self.mask_keeps_clock:
            self.elapsed = elapsed
        if partial and self.mask_keeps_pending:
            self.done = done
        return self._obs(), {"x": self.x[:, 0].copy(), "_x": np.array(mask)}

    def step(self, actions):
        fresh = self.done.copy()
        if self.mode is DISABLED and not self.steps_done_worlds:
            assert not fresh.any()
        reward = np.where(fresh, 0.0, 1.0)
        self._autoreset(fresh & (self.mode is NEXT_STEP))
        moved = np.ones(self.num_envs, bool) if self.uses_action_of_reset else ~fresh
        self.x[moved] += 0.3 * actions[moved]
        self.elapsed[~fresh] += 1
        terminated = (np.abs(self.x[:, 0]) > 1.2) & ~fresh
        truncated = (self.elapsed >= (10 if self.late else 9)) & ~fresh
        self.done = terminated | truncated
        info = {}
        if self.mode is SAME_STEP and self.done.any():
            final, ended = self.x.copy(), self.done.copy()
            self._autoreset(ended)
            if self.shows_start_as_final_obs:
                final = self.x + 1e-3
            info = {"final_obs": final, "final_info": {"x": final[:, 0]}}
            info |= {"_final_obs": ended, "_final_info": ended}
            if self.forgets_mask:
                del info["_final_obs"]
        obs = info["final_obs"].copy() if info and self.shows_final_obs else self._obs()
        if self.float_flags:
            terminated = terminated.astype(float)
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("mode", MODES)
def test_gymnasiums_cartpole_passes(mode):
    """Gymnasium's SyncVectorEnv passes in every mode; that it changes options has to be allowed."""
    envs = gym.make_vec(
        "CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    with pytest.raises(AssertionError, match="leaves the caller's options as they are"):
        check_vector_env(envs, close=False)
    check_vector_env(envs, keeps_options=False)


@pytest.mark.parametrize("id", ["Blackjack-v1", "FrozenLake-v1"])
def test_spaces_that_are_no_box_pass(id):
    """Discrete spaces and tuples of them, with starts that are always the same or are not."""
    check_vector_env(gym.make_vec(id, 2, vectorization_mode="sync"), keeps_options=False)


def test_native_cartpole_passes_without_the_options():
    """Gymnasium's own vector CartPole has neither masks nor lists of seeds, and says so."""
    envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    check_vector_env(envs, reset_mask=False, seed_list=False)
    with pytest.raises(AssertionError, match=r"reset takes a seed per world \(or give seed_list=F"):
        check_vector_env(envs)
    with pytest.raises(AssertionError, match="a reset_mask that is a list raises a TypeError"):
        check_vector_env(envs, seed_list=False)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("id", diffenvs.TASKS)
def test_our_environments_pass(id, mode, make):
    """Every id in every mode; what ends the episodes is the time limit."""
    envs = make(id, autoreset_mode=mode.name, max_episode_steps=4)
    check_vector_env(envs, num_steps=10, **REPEATS)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_our_hopper_passes_where_it_falls(mode, make):
    """Worlds that end at different times, before the limit: each is reset by itself."""
    envs = make(HOPPER, autoreset_mode=mode.name, max_episode_steps=30)
    check_vector_env(envs, **REPEATS)


@pytest.mark.parametrize("arrays", ["torch", "warp"])
def test_our_environments_pass_with_device_arrays(arrays, make):
    """Tensors and Warp arrays: the actions are converted, the outputs are looked at as they are."""
    envs = make(HOPPER, arrays=arrays, max_episode_steps=7)
    given = {
        "torch": lambda x: torch.tensor(x, device=wp.device_to_torch(envs.device)),
        "warp": lambda x: wp.array(x, dtype=float, device=envs.device),
    }
    check_vector_env(envs, num_steps=16, to_actions=given[arrays], **REPEATS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_walk_passes(mode, num_envs):
    """The environment that is broken below is in order when it is not broken."""
    check_vector_env(Walk(mode, num_envs), max_episode_steps=9)


@pytest.mark.parametrize(
    ("mode", "fault", "message"),
    [
        (SAME_STEP, "shares_memory", r"what reset\(\) returned is not changed by a later call"),
        (SAME_STEP, "ignores_seeds", r"reset\(seed=0\) starts as it did before"),
        (SAME_STEP, "resets_everything", r"leaves the observation of world 1, which is not in the"),
        (SAME_STEP, "takes_any_mask", "a reset_mask that is a list raises a TypeError, but nothi"),
        (SAME_STEP, "pops_options", r"options as they are, but they became \{\} \(keeps_options=F"),
        (NEXT_STEP, "uses_action_of_reset", r"NEXT_STEP ignores the action.*step \d+ changed obs"),
        (SAME_STEP, "forgets_mask", r"info\['_final_obs'\] is \[.*True.*\], not None"),
        (SAME_STEP, "late", r"time limit of 9 steps ends an episode, but worlds \[.*\] go on"),
        (SAME_STEP, "float_flags", r"terminated is an array of shape \(3,\) and dtype bool, but"),
        (SAME_STEP, "shows_final_obs", r"obs of a world that ended is that of its next episode"),
        (SAME_STEP, "shows_start_as_final_obs", r"info\['final_obs'\] that of its end, but they"),
        *(
            (mode, "mask_does_nothing", r"shows the start of another episode of world 0, which is")
            for mode in (SAME_STEP, NEXT_STEP)
        ),
        *((mode, "mask_keeps_clock", EARLY) for mode in MODES),
        (NEXT_STEP, "mask_keeps_pending", "a masked reset of world 0, which had ended, stands for"),
        (SAME_STEP, "autoreset_keeps_clock", EARLY),
        (NEXT_STEP, "autoreset_keeps_clock", EARLY),
        (DISABLED, "steps_done_worlds", r"with DISABLED stepping a done world is an error, but"),
    ],
)
def test_broken_environments_are_caught(mode, fault, message):
    """Each fault is found, and the message says what it is."""
    envs = Walk(mode)
    setattr(envs, fault, True)
    with pytest.raises(AssertionError, match=r"^Walk\(num_envs=3\): .*" + message):
        check_vector_env(envs, max_episode_steps=9)


def test_masked_reset_that_does_nothing_is_caught_where_starts_are_the_same():
    """Where all episodes start at one place a masked reset has to lead there."""
    envs = Walk(SAME_STEP)
    envs.starts = 0.0
    check_vector_env(envs, max_episode_steps=9)
    envs.mask_does_nothing = True
    message = (
        r"shows the start of an episode, \[-?0\.\], of world 0, .* but it is \[-?0\.\d+\] after"
    )
    with pytest.raises(AssertionError, match=message):
        check_vector_env(envs, max_episode_steps=9)


def test_truncation_before_the_limit_has_to_be_allowed():
    """Episodes that something else than the known limit truncates are an error, unless allowed."""
    message = r"the time limit of 20 steps.*after \[9.*\(only_limit_truncates=False allows it\)"
    with pytest.raises(AssertionError, match=message):
        check_vector_env(Walk(), max_episode_steps=20)
    check_vector_env(Walk(), max_episode_steps=20, only_limit_truncates=False)


def test_times_of_the_clock_in_info_are_ignored():
    """What RecordEpisodeStatistics measures differs from run to run; other names may not."""

    def recorded():
        envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")
        return gym.wrappers.vector.RecordEpisodeStatistics(envs)

    check_vector_env(recorded(), keeps_options=False)
    with pytest.raises(
        AssertionError, match=r"with the same seed and actions step \d+ gives the sa"
    ):
        check_vector_env(recorded(), keeps_options=False, ignore_info=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"autoreset_mode": "SameStep"}}, "is an AutoresetMode, not 'SameStep'"),
        (
            {"metadata": {"autoreset_mode": DISABLED}},
            r"with DISABLED stepping a done world is an e",
        ),
        (
            {"metadata": {"autoreset_mode": NEXT_STEP}},
            r"NEXT_STEP the step after the end.*reward 0",
        ),
        ({"num_envs": 2}, r"observation_space is Box\(-9.0, 9.0, \(2, 1\).*, not Box.*\(3, 1\)"),
        ({"render_mode": "ascii"}, r"render_mode is None or one of .* \[\], not 'ascii'"),
        ({"single_action_space": None}, "single_action_space is a Space, not None"),
    ],
)
def test_wrong_declarations_are_caught(change, message):
    """What is declared is checked by itself and by what the environment then does."""
    envs = Walk()
    for name, value in change.items():
        setattr(envs, name, value)
    with pytest.raises(AssertionError, match=r"^Walk\(.*\): .*" + message):
        check_vector_env(envs)


def test_shared_observations_of_gymnasium_are_caught():
    """SyncVectorEnv(copy=False) returns the same array in every step."""
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, copy=False)
    with pytest.raises(AssertionError, match="is not changed by a later call"):
        check_vector_env(envs, keeps_options=False)


def test_too_few_steps_are_no_pass():
    """Where no episode ends the autoreset mode cannot be checked, and that is said."""
    with pytest.raises(
        AssertionError, match=r"no episode ended within num_steps=2 .*max_episode_st"
    ):
        check_vector_env(Walk(), num_steps=2)


def test_what_is_no_vector_env_is_refused():
    """A single environment is not one."""
    with pytest.raises(AssertionError, match=r"is a gymnasium\.vector\.VectorEnv, not <class"):
        check_vector_env(gym.make("CartPole-v1"))


def test_render_is_checked():
    """With a render mode there is a picture per world."""
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    envs.metadata = copy.copy(envs.metadata)
    envs.render_mode = "rgb_array"
    envs.render = lambda: ()
    with pytest.raises(AssertionError, match=r"render\(\) returns a sequence of 2 pict"):
        check_vector_env(envs, keeps_options=False)
