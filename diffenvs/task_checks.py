"""What a task class states, checked when the class is defined: each refusal says what is accepted.

A Warp kernel and its struct take what they are given, so a mistake here would show as a wrong
number or a missing gradient, and far away from the class.
"""

from __future__ import annotations

import inspect
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import warp as wp

from diffenvs.step_fields import READABLE

if TYPE_CHECKING:
    from diffenvs.task import Task

OUTPUTS = ("obs_out", "reward_out", "terminated_out", "info_out")
NOISE = {"uniform": 0, "normal": 1}
_REQUIRED = ("xml", "frame_skip", "kernel", "params", "defaults")


def check_task_class(cls: type[Task]) -> None:
    """Refuse a class whose attributes contradict its kernel, its struct or each other.

    Raises:
        TypeError: Says which attribute of which class, and what it may be.
    """
    name = cls.__name__
    missing = [attribute for attribute in _REQUIRED if not hasattr(cls, attribute)]
    if missing:
        raise TypeError(f"{name} lacks {missing}; every task has {list(_REQUIRED)}")
    if not isinstance(cls.kernel, wp.Kernel):
        raise TypeError(f"{name}: kernel is a function with @wp.kernel, not {cls.kernel!r}")
    if not hasattr(cls.params, "vars"):
        raise TypeError(f"{name}: params is a class with @wp.struct, not {cls.params!r}")
    _check_names(cls)
    unknown = [field for field in cls.reads if field not in READABLE]
    if unknown:
        raise TypeError(
            f"{name} reads {unknown}, which the adjoint of a step cannot start from; a task reads "
            f"from {list(READABLE)}"
        )
    wanted = ["p", *(f"{field}_in" for field in cls.reads), *OUTPUTS]
    found = list(inspect.signature(cls.kernel.func).parameters)
    if found != wanted:
        raise TypeError(
            f"the outputs kernel of {name} has the arguments {found}; its `reads` asks for {wanted}"
        )
    noise = cls.reset_noise
    if not isinstance(noise, tuple) or len(noise) != 2 or not set(noise) <= set(NOISE):
        raise TypeError(
            f"{name}: reset_noise is a pair, for qpos and qvel, of {list(NOISE)}, not {noise!r}"
        )
    for keyword, default in cls.defaults.items():
        _check_default(cls, keyword, default)


def _check_names(cls: type[Task]) -> None:
    """Refuse what should be a tuple of names and is not, and names that occur twice."""
    tuples = {name: getattr(cls, name) for name in ("reads", "state_info", "step_info")}
    tuples |= {f"reads_if[{field!r}]": names for field, names in cls.reads_if.items()}
    tuples |= {f"choices[{keyword!r}]": names for keyword, names in cls.choices.items()}
    for attribute, names in tuples.items():
        if not isinstance(names, tuple | list) or not all(isinstance(x, str) for x in names):
            hint = f"; one name is ({names!r},), with the comma" if isinstance(names, str) else ""
            raise TypeError(f"{cls.__name__}: {attribute} is a tuple of names, not {names!r}{hint}")
    info = (*cls.state_info, *cls.step_info)
    for what, names in {"reads": cls.reads, "state_info and step_info": info}.items():
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise TypeError(f"{cls.__name__}: {what} name {twice} more than once")
    for field, keywords in cls.reads_if.items():
        unknown = [keyword for keyword in keywords if keyword not in cls.defaults]
        if field not in cls.reads or unknown:
            raise TypeError(
                f"{cls.__name__}: reads_if[{field!r}] is for a field of `reads`, "
                f"{list(cls.reads)}, and lists keywords of `defaults`, {list(cls.defaults)}; not "
                f"{list(keywords)}"
            )


def is_number(value: Any) -> bool:
    """Say whether a value is a real number, which neither a flag nor NaN is."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)


def is_integer(value: Any) -> bool:
    """Say whether a value is an integer, which a flag is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_range(value: Any) -> bool:
    """Say whether a value is a tuple of two numbers, the lower one first."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(is_number(x) for x in value):
        return False
    return bool(value[0] <= value[1])


def field_type(cls: type[Task], keyword: str) -> Any:
    """Return the Warp type of the field of `params` that a keyword fills; None if none does."""
    return cls.params.vars[keyword].type if keyword in cls.params.vars else None


def _check_default(cls: type[Task], keyword: str, default: Any) -> None:
    """Refuse a default of an unknown kind, or that its field of the struct does not take."""
    dtype = field_type(cls, keyword)
    if keyword in cls.choices:
        if default not in cls.choices[keyword]:
            accepted = f"one of its choices, {list(cls.choices[keyword])}"
            raise TypeError(
                f"{cls.__name__}: the default of {keyword} is {accepted}, not {default!r}"
            )
        fits = wp.types.type_is_int(dtype)
        wanted = "an int field: the place of the choice"
    elif isinstance(default, bool):
        fits, wanted = dtype is wp.bool, "a wp.bool field"
    elif is_range(default):
        fits, wanted = dtype is wp.vec2, "a wp.vec2 field"
    elif is_integer(default):
        fits = wp.types.type_is_int(dtype) or wp.types.type_is_float(dtype)
        wanted = "an int or a float field"
    elif is_number(default):
        fits, wanted = wp.types.type_is_float(dtype), "a float field"
    else:
        raise TypeError(
            f"{cls.__name__}: the default of {keyword} is True or False, a number, a tuple of two "
            f"numbers (low, high), or one of its `choices`, not {default!r}"
        )
    if dtype is not None and not fits:
        raise TypeError(
            f"{cls.__name__}: the default {default!r} of {keyword} asks for {wanted} of the struct "
            f"{cls.params.key}, where it is of type {dtype.__name__}"
        )
