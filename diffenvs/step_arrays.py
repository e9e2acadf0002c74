"""Arrays that an environment step works on: its own, its outputs, and their cotangents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import warp as wp

from diffenvs.physics import State
from diffenvs.physics.record import Record


@dataclass
class Slot:
    """Arrays that a step works on; without a record it is the scratch of `step`."""

    start: State
    state: State  # after the physics, before a reset
    action: wp.array
    forces: Any  # of the last physics step, as far as the task reads them
    reset: wp.array  # worlds that were reset within this step
    cut: wp.array  # worlds whose start state was written by a reset
    record: Record | None
    graphs: dict[str, Any] = field(default_factory=dict)

    def nbytes(self) -> int:
        """Bytes of all arrays but `start`, which lies in the record."""
        arrays = [*self.state.arrays(), self.action, self.reset, self.cut]
        arrays += [] if self.forces is None else self.forces.given().values()
        found = sum(array.capacity for array in arrays)
        return found + (0 if self.record is None else self.record.nbytes())


@dataclass
class Outputs:
    """Arrays that one launch of the outputs kernel fills."""

    obs: wp.array
    reward: wp.array
    terminated: wp.array
    info: wp.array

    def __iter__(self):
        return iter((self.obs, self.reward, self.terminated, self.info))


@dataclass
class Adjoint:
    """Cotangents: those of what a step returns come in, those of what it takes go out."""

    # In:
    obs: wp.array
    final_obs: wp.array
    reward: wp.array
    next_state: State
    # Out:
    state: State
    action: wp.array
    # Scratch: cotangents within the step.
    step_obs: wp.array
    step_state: State
    prev: State
    direct_action: wp.array
    forces: Any
