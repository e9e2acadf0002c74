"""Arrays of any kind (NumPy, torch, Warp, JAX), alone or in tuples and dicts, as one looks at them.

No array library but NumPy is imported: an array is what has a `dtype`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def to_host(value: Any) -> Any:
    """Return arrays of any kind, in tuples and dicts, as NumPy's; without a copy where possible."""
    if isinstance(value, dict):
        return {key: to_host(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_host(item) for item in value)
    if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "dtype"):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def same(value: Any, wanted: Any, tolerance: float = 0.0) -> bool:
    """Say whether two trees of arrays are equal, with NaN equal to NaN."""
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(
            same(item, wanted[key], tolerance) for key, item in value.items()
        )
    if isinstance(value, tuple | list) and isinstance(wanted, tuple | list):
        return len(value) == len(wanted) and all(
            same(*pair, tolerance) for pair in zip(value, wanted, strict=True)
        )
    a, b = np.asarray(value), np.asarray(wanted)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if a.dtype == object and a.ndim:
        return all(same(*pair, tolerance) for pair in zip(a.flat, b.flat, strict=True))
    if a.dtype.kind in "fc":
        return np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    return bool(np.all(a == b))


def share_memory(value: Any, other: Any) -> bool:
    """Say whether any arrays of two trees lie in the same memory."""
    theirs = _leaves(other)
    return any(np.shares_memory(a, b) for a in _leaves(value) for b in theirs)


def _leaves(value: Any) -> list[np.ndarray]:
    """Return the arrays of a tree that are in the memory of the host."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    if "cpu" not in str(getattr(value, "device", "cpu")):
        return []
    value = to_host(value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [leaf for item in value.flat for leaf in _leaves(item)]
    return [value] if isinstance(value, np.ndarray) and value.size else []
