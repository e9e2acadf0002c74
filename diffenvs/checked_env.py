"""A vector environment whose every call is checked, for `diffenvs.testing`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from diffenvs.array_trees import same, share_memory, to_host


class Step(NamedTuple):
    """What a step returned, copied to the host."""

    obs: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]

    @property
    def done(self) -> np.ndarray:
        """Worlds whose episode ended."""
        return self.terminated | self.truncated


class CheckedEnv:
    """An environment, and what is known of it: steps of each episode, worlds that are done.

    Args:
        envs: The environment.
        to_actions: Turns actions of its action space into what `step` takes; None: as they are.
        limit: Time limit, or None.
        tolerance: Relative and absolute tolerance between two runs.
        keeps_options: Whether `reset` has to leave the caller's options alone.
        only_limit_truncates: Whether an episode is truncated by nothing else than the limit.
        ignore_info: Names in info whose values may differ between two runs.
    """

    def __init__(
        self,
        envs: VectorEnv,
        to_actions: Callable[[Any], Any] | None,
        limit: int | None,
        tolerance: float,
        keeps_options: bool,
        only_limit_truncates: bool,
        ignore_info: Collection[str],
    ) -> None:
        self.envs = envs
        self.to_actions = to_actions or (lambda actions: actions)
        self.limit = limit
        self.tolerance = tolerance
        self.keeps_options = keeps_options
        self.only_limit_truncates = only_limit_truncates
        self.ignore_info = set(ignore_info)
        self.obs: Any = None
        self.kept: list[tuple[str, Any, Any]] = []  # what was returned: its name, itself, a copy
        self.declaration()

    def require(self, condition: Any, message: str) -> None:
        """Raise an AssertionError that says who, unless the condition holds."""
        if not condition:
            raise AssertionError(f"{self.envs}: {message}")

    def require_same(self, value: Any, wanted: Any, message: str) -> None:
        """Two runs gave the same."""
        self.require(same(value, wanted, self.tolerance), f"{message}: {value}, not {wanted}")

    def require_same_step(self, step: Step, wanted: Step, message: str) -> None:
        """Two runs returned the same in a step, but for the values in info that are ignored."""
        pair = [one._replace(info=self.compared(one.info)) for one in (step, wanted)]
        for name, value, reference in zip(Step._fields, *pair, strict=True):
            self.require_same(value, reference, message.format(name=name))

    def compared(self, info: dict[str, Any]) -> dict[str, Any]:
        """Info, at any depth, with None in place of what may differ between two runs."""
        found = {}
        for name, value in info.items():
            found[name] = self.compared(value) if isinstance(value, dict) else value
        return found | dict.fromkeys(self.ignore_info & info.keys())

    def require_error(self, kind: Any, call: Callable[[], Any], message: str) -> None:
        """A call raises an error of this kind."""
        try:
            call()
        except kind:
            return
        except Exception as error:
            raise AssertionError(f"{self.envs}: {message}, not {error!r}") from error
        raise AssertionError(f"{self.envs}: {message}, but nothing was raised")

    # What is declared

    def declaration(self) -> None:
        """Spaces, number of worlds, metadata."""
        envs = self.envs
        kind = type(envs)
        self.require(isinstance(envs, VectorEnv), f"is a gymnasium.vector.VectorEnv, not {kind}")
        n = getattr(envs, "num_envs", None)
        self.require(isinstance(n, int) and n >= 1, f"num_envs is an integer >= 1, not {n!r}")
        self.n = envs.num_envs
        for what in ("observation", "action"):
            single: Any = getattr(envs, f"single_{what}_space", None)
            batched: Any = getattr(envs, f"{what}_space", None)
            for name, space in ((f"single_{what}_space", single), (f"{what}_space", batched)):
                self.require(isinstance(space, gym.Space), f"{name} is a Space, not {space!r}")
            wanted = batch_space(single, self.n)
            boxes = isinstance(batched, gym.spaces.Box) and isinstance(wanted, gym.spaces.Box)
            # Worlds may have bounds of their own.
            alike = boxes and (batched.shape, batched.dtype) == (wanted.shape, wanted.dtype)
            self.require(alike or batched == wanted, f"{what}_space is {wanted}, not {batched}")
        self.require(isinstance(envs.metadata, dict), f"metadata is a dict, not {envs.metadata!r}")
        mode = envs.metadata.get("autoreset_mode")
        self.require(
            isinstance(mode, AutoresetMode),
            f"metadata['autoreset_mode'] is an AutoresetMode, not {mode!r}",
        )
        self.mode = mode
        known = envs.metadata.get("render_modes", [])
        self.require(
            envs.render_mode is None or envs.render_mode in known,
            f"render_mode is None or one of metadata['render_modes'] {known}, not "
            f"{envs.render_mode!r}",
        )

    # Calls, with what holds for each

    def reset(self, mask: np.ndarray | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset all worlds or those of a mask; return obs and info on the host."""
        what = "reset()" if mask is None else "reset(options={'reset_mask': ...})"
        if mask is not None:
            kwargs["options"] = {"reset_mask": mask.copy()}
        options = kwargs.get("options", {})
        given = copy.deepcopy(options)
        outputs: Any = self.envs.reset(**kwargs)
        pair = isinstance(outputs, tuple) and len(outputs) == 2
        self.require(pair, f"{what} returns a tuple (obs, info), not {outputs!r}")
        obs, info = self.keep(what, outputs)
        self.check_obs(what, obs)
        self.check_info(what, info)
        if mask is None:
            self.elapsed = np.zeros(self.n, dtype=int)
            self.done = np.zeros(self.n, dtype=bool)
        else:
            if self.keeps_options:
                self.require(
                    same(options, given),
                    f"{what} leaves the caller's options as they are, but they became {options} "
                    "(keeps_options=False allows it)",
                )
            self.check_others(what, mask, obs, info)
            self.elapsed[mask] = 0
            self.done[mask] = False
        self.obs = obs
        return obs, info

    def check_others(self, what: str, mask: np.ndarray, obs: Any, info: dict[str, Any]) -> None:
        """A masked reset shows the last observation of other worlds, and has no info of them."""
        before, after = self.rows(self.obs), self.rows(obs)
        for world in np.flatnonzero(~mask):
            message = f"{what} leaves the observation of world {world}, which is not in the mask"
            self.require_same(after[world], before[world], message)
        for name in info:
            if not name.startswith("_") and not mask.all():
                shown = info.get(f"_{name}", np.ones(self.n, dtype=bool))
                self.require(
                    not (shown & ~mask).any(),
                    f"{what} has info of the worlds of the mask {mask.tolist()} alone, but "
                    f"info['_{name}'] is {shown.tolist() if f'_{name}' in info else 'not there'}",
                )

    def step(self, actions: Any) -> Step:
        """Step all worlds; check types, autoreset mode and time limit."""
        resetting = self.done & (self.mode is AutoresetMode.NEXT_STEP)
        outputs = self.envs.step(self.to_actions(actions))
        five = isinstance(outputs, tuple) and len(outputs) == 5
        names = "(obs, reward, terminated, truncated, info)"
        self.require(five, f"step() returns a tuple {names}, not {outputs!r}")
        self.check_columns(outputs)
        step = Step(*self.keep("step()", outputs))
        self.check_obs("step()", step.obs)
        self.check_info("step()", step.info)
        self.require(
            not (step.reward[resetting].any() or step.done[resetting].any()),
            "with NEXT_STEP the step after the end of an episode gives reward 0 and no flags, but "
            f"worlds {np.flatnonzero(resetting).tolist()} got {step.reward[resetting]}, terminated "
            f"{step.terminated[resetting]}, truncated {step.truncated[resetting]}",
        )
        self.elapsed = np.where(resetting, 0, self.elapsed + 1)
        if self.limit is not None:
            late = np.flatnonzero((self.elapsed >= self.limit) & ~step.done).tolist()
            self.require(
                not late,
                f"the time limit of {self.limit} steps ends an episode, but worlds {late} go on "
                f"after {self.elapsed[late].tolist()}",
            )
            early = np.flatnonzero((self.elapsed < self.limit) & step.truncated).tolist()
            self.require(
                not (early and self.only_limit_truncates),
                f"an episode is truncated by the time limit of {self.limit} steps, counted from "
                f"its own start, but worlds {early} are after {self.elapsed[early].tolist()} "
                "(only_limit_truncates=False allows it)",
            )
        self.done = step.done
        if self.mode is AutoresetMode.SAME_STEP:
            self.check_final(step)
            self.elapsed[self.done] = 0
            self.done = np.zeros(self.n, dtype=bool)
        self.obs = step.obs
        return step

    def check_columns(self, outputs: Any) -> None:
        """Reward and flags are arrays with a number per world."""
        kinds = {"reward": "f", "terminated": "b", "truncated": "b"}
        for (name, kind), value in zip(kinds.items(), outputs[1:4], strict=True):
            found = f"a {type(value)}"
            if hasattr(value, "shape") and hasattr(value, "dtype"):
                array = to_host(value)
                if (array.shape, array.dtype.kind) == ((self.n,), kind):
                    continue
                found = f"of shape {array.shape} and dtype {array.dtype}"
            dtype = "a real dtype" if kind == "f" else "dtype bool"
            self.require(
                False, f"{name} is an array of shape ({self.n},) and {dtype}, but it is {found}"
            )

    def check_final(self, step: Step) -> None:
        """SAME_STEP: the terminal observation and info of the worlds that ended."""
        info, space = step.info, self.envs.single_observation_space
        for name in ("final_obs", "final_info"):
            shown = info.get(f"_{name}", np.zeros(self.n, dtype=bool))
            self.require(
                (shown == step.done).all() and (name in info or not step.done.any()),
                f"with SAME_STEP info['{name}'] is of the worlds that ended, so info['_{name}'] is "
                f"{step.done.tolist()}, not {info.get(f'_{name}')!r}",
            )
        for world in np.flatnonzero(step.done):
            final = info["final_obs"][world]
            inside = space.contains(final)
            self.require(inside, f"info['final_obs'][{world}] is in {space}, not {final!r}")

    def check_obs(self, what: str, obs: Any) -> None:
        """Observations are in their space, as a batch and one by one."""
        space, single = self.envs.observation_space, self.envs.single_observation_space
        inside = space.contains(obs) and all(single.contains(row) for row in self.rows(obs))
        self.require(inside, f"obs of {what} is in {space}, not {obs!r}")

    def check_info(self, what: str, info: Any) -> None:
        """Values of info have a row per world, masks are of bool and belong to a value."""
        self.require(isinstance(info, dict), f"info of {what} is a dict, not {info!r}")
        for name, value in info.items():
            if isinstance(value, dict):
                self.check_info(f"{name!r} in info of {what}", value)
                continue
            shape = np.shape(value)
            self.require(
                isinstance(value, np.ndarray) and shape[:1] == (self.n,),
                f"{name!r} in info of {what} is an array of {self.n} rows, not {value!r}",
            )
            if name.startswith("_"):
                self.require(name[1:] in info, f"{name!r} in info of {what} is a mask of nothing")
                self.require(
                    (shape, value.dtype) == ((self.n,), np.bool_),
                    f"{name!r} in info of {what} is a mask of dtype bool and shape ({self.n},), "
                    f"not {value!r}",
                )

    def keep(self, what: str, outputs: Any) -> Any:
        """Copy outputs to the host; check that this call left those of earlier calls alone."""
        for earlier, value, before in self.kept:
            self.require(
                same(to_host(value), before),
                f"what {earlier} returned is not changed by a later call, but {what} changed it",
            )
            shared = share_memory(value, outputs)
            self.require(not shared, f"what {what} returns shares no memory with an earlier call")
        copied = copy.deepcopy(to_host(outputs))
        self.kept = [*self.kept[-1:], (what, outputs, copied)]
        return copied

    def rows(self, obs: Any) -> list[Any]:
        """Observations of the worlds, one by one."""
        return list(iterate(self.envs.observation_space, obs))
