"""The options with which an environment is made, checked."""

from __future__ import annotations

from typing import Any

import warp as wp
from gymnasium.vector import AutoresetMode

from diffenvs import env_kernels as kernels
from diffenvs.task_checks import is_integer

MODES = {
    AutoresetMode.NEXT_STEP: kernels.NEXT_STEP,
    AutoresetMode.SAME_STEP: kernels.SAME_STEP,
    AutoresetMode.DISABLED: kernels.DISABLED,
}


def count(name: str, what: str, value: Any, least: int = 1) -> int:
    """Return a number of things."""
    if not is_integer(value) or value < least:
        raise ValueError(f"{name}: {what} must be an integer >= {least}, not {value!r}")
    return int(value)


def choice(name: str, what: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse what is not one of the strings that are known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: {what}={value!r} is not one of {list(known)}")


def mode(name: str, value: Any) -> AutoresetMode:
    """Return an autoreset mode, given by itself, its name or its value."""
    for known in MODES:
        if value is known or value in (known.name, known.value):
            return known
    names = [known.name for known in MODES]
    raise ValueError(f"{name}: autoreset_mode={value!r} is not one of {names}")


def device(name: str, value: str | None) -> wp.Device:
    """Return the Warp device of this name; None is Warp's default."""
    try:
        return wp.get_device(value)
    except (ValueError, RuntimeError) as error:
        known = [known.alias for known in wp.get_devices()]
        raise ValueError(f"{name}: device={value!r} is not one of {known}") from error
