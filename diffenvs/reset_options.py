"""The options of `reset`, checked: which worlds to reset, and the states in which they begin."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffenvs.array_trees import to_host
from diffenvs.env_state import check_state


def reset_mask(name: str, given: Any, num_envs: int) -> np.ndarray:
    """Return options["reset_mask"] on the host; None is all worlds."""
    if given is None:
        return np.ones(num_envs, dtype=bool)
    what = f"{name}: options['reset_mask']"
    mask = to_host(given)
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{what} must be an array of bool, not {type(given)}")
    if mask.shape != (num_envs,):
        raise ValueError(f"{what} must have the shape ({num_envs},), not {mask.shape}")
    if mask.dtype != np.bool_:
        raise TypeError(f"{what} must be of dtype bool, not {mask.dtype}")
    if not mask.any():
        raise ValueError(f"{what} must have at least one True")
    return mask


def start_state(
    name: str, given: Any, mask: np.ndarray, wanted: dict[str, tuple[int, int]]
) -> tuple[np.ndarray, ...]:
    """Return options["state"] as qpos, qvel, act on the host; `act` left out or None is zero.

    Args:
        name: Who asks, for messages.
        given: The option.
        mask: The worlds that will begin there. Rows of other worlds are not looked at.
        wanted: Shapes of qpos, qvel and act.
    """
    what = f"{name}: options['state']"
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        found = f"{len(given)} of them" if isinstance(given, tuple | list) else type(given)
        raise TypeError(f"{what} is a tuple (qpos, qvel) or (qpos, qvel, act), not {found}")
    qpos, qvel, *rest = (to_host(value) for value in given)
    act = rest[0] if rest and rest[0] is not None else np.zeros(wanted["act"])
    arrays = []
    for field, value in zip(wanted, (qpos, qvel, act), strict=True):
        try:
            arrays.append(np.asarray(value).astype(np.float32, casting="same_kind"))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{what}: {field} is an array of real numbers: {error}") from None
    check_state(what, arrays, wanted)
    for field, array in zip(wanted, arrays, strict=True):
        wrong = ~np.isfinite(array) & mask[:, None]
        if wrong.any():
            index = tuple(np.argwhere(wrong)[0].tolist())
            raise ValueError(f"{what} must be finite, but {field}{list(index)} is {array[index]}")
    return tuple(arrays)


def seeds(name: str, given: Any, num_envs: int) -> list[int | None]:
    """Return a seed per world, of a number (world i has `given + i`), a list, or None."""
    if given is None:
        return [None] * num_envs
    values: list[Any]
    if isinstance(given, bool):
        raise TypeError(f"{name}: seed is a number or {num_envs} of them, not {given!r}")
    if isinstance(given, int | np.integer):
        values = [int(given) + world for world in range(num_envs)]
    else:
        try:
            values = list(given)
        except TypeError:
            raise TypeError(
                f"{name}: seed is a number or {num_envs} of them, not {given!r}"
            ) from None
    if len(values) != num_envs:
        raise ValueError(f"{name}: seed is a number or {num_envs} of them, not {len(values)}")
    for value in values:
        integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and (not integer or value < 0):
            raise ValueError(f"{name}: a seed is an integer >= 0, not {value!r}")
    return [None if value is None else int(value) for value in values]


def fold_seeds(values: list[int | None]) -> np.ndarray:
    """Return 32 bits of every seed: those beyond are folded in, smaller seeds stay as they are."""
    folded = []
    for value in values:
        value = value or 0
        while value >> 32:
            value = (value & 0xFFFFFFFF) ^ (value >> 32)
        folded.append(value)
    return np.array(folded, dtype=np.uint32).view(np.int32)
