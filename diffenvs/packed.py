"""Arrays in one piece of memory, and what a step gives, by name."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import warp as wp

from diffenvs.physics.mirror import Mirror

_ALIGNMENT = 256  # bytes: as allocations of their own have it on CUDA


class StepOutputs(NamedTuple):
    """What a step gives, as arrays of any kind; `num_envs` rows each.

    The last three belong to autoreset within the step, and are None without.
    """

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any  # (num_envs, columns)
    final_obs: Any = None
    final_info: Any = None
    done: Any = None


class Packed:
    """Arrays in one piece of memory on a device, so that one copy brings all of them to the host.

    Args:
        device: Warp device.
        fields: Name -> (shape, dtype).

    Attributes:
        arrays: The arrays by name, zeros at first. They live as long as this object.
        host: What `fetch` brought, by name; on the CPU the memory of `arrays` itself.
    """

    def __init__(self, device: wp.Device, fields: dict[str, tuple[tuple[int, ...], Any]]) -> None:
        size = 0
        places = {}
        for name, (shape, dtype) in fields.items():
            kind = np.dtype(wp.dtype_to_numpy(dtype))
            places[name] = (size, math.prod(shape) * kind.itemsize, kind)
            size += math.ceil(places[name][1] / _ALIGNMENT) * _ALIGNMENT
        self._memory = Mirror(size, wp.uint8, device)
        start, host = self._memory.array.ptr, self._memory.host
        self.arrays: dict[str, wp.array] = {}
        self.host: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in fields.items():
            offset, nbytes, kind = places[name]
            self.arrays[name] = wp.array(
                ptr=start + offset, shape=shape, dtype=dtype, device=device
            )
            self.host[name] = host[offset : offset + nbytes].view(kind).reshape(shape)

    def fetch(self) -> None:
        """Bring all arrays to `host`, in one copy, and wait for it."""
        self._memory.fetch()
