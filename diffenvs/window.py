"""Memory of a window: what each recorded step keeps until its gradient is taken.

A recorded step takes two kinds of memory, and `retain` says how much of it each step has.

* "substeps": a step has a `Slot` with a physics `Record` of its own, in which every substep leaves
  what its adjoint reads. Nothing is computed twice.
* "steps": all steps share one `Slot`. What begins and cuts a step (its start state, its action,
  which worlds were reset) is packed into a row of `KeptSteps`; the adjoint unpacks the row and
  makes the step again, into the one record, before it goes back through it.

A graph is bound to its arrays. With "steps" the arrays are the same for all steps, and the number
of the row lies on the device, so that one graph serves all steps and another all adjoints.
"""

from __future__ import annotations

from typing import NamedTuple

import warp as wp

from diffenvs import env_kernels as kernels
from diffenvs.make_options import count
from diffenvs.physics import Physics
from diffenvs.step_arrays import Slot

RETAIN = ("substeps", "steps")


class Ticket(NamedTuple):
    """Proof that a step was recorded: its number in the window, and the version of that record."""

    number: int
    version: int


class WindowMemory(NamedTuple):
    """Bytes that recorded steps keep on the device, all worlds together.

    Attributes:
        shared: Bytes that are needed once, however long the window is.
        per_step: Bytes for each recorded step.
        allocated: Bytes that are allocated now.
    """

    shared: int
    per_step: int
    allocated: int

    def of(self, steps: int) -> int:
        """Return the bytes of a window of so many steps, without allocating it."""
        return self.shared + count("window_memory.of", "steps", steps, least=0) * self.per_step


class KeptSteps:
    """Rows from which steps can be made again: start state, action, and where resets cut.

    Args:
        name: Of the task.
        physics: The worlds.
        window: Number of rows.
    """

    def __init__(self, name: str, physics: Physics, window: int) -> None:
        self.name = name
        self.device = physics.device
        columns = physics.nq + 2 * physics.nv + physics.na + physics.nu
        self._shape = (window, physics.nworld, columns)
        self._number = wp.zeros(1, dtype=int, device=self.device)
        self._rows: wp.array | None = None
        self._flags: wp.array | None = None

    def choose(self, number: int) -> None:
        """Say which row the next launch or replay keeps or recalls."""
        if self._rows is None:
            steps = self._shape[0]
            try:
                rows = wp.empty(self._shape, dtype=float, device=self.device)
                self._flags = wp.empty(self._shape[:2], dtype=wp.vec2ub, device=self.device)
            except RuntimeError as error:
                raise RuntimeError(
                    f"{self.name}: a window of {steps:,} steps of {self._shape[1]:,} worlds takes "
                    f"{steps * self.nbytes() / 2**30:.1f} GiB on {self.device}, which are not "
                    "there; make window= (or num_envs=) smaller"
                ) from error
            self._rows = rows
        self._number.fill_(number)

    def launch_keep(self, slot: Slot) -> None:
        """Keep the step that `slot` has made."""
        wp.launch(
            kernels.keep_step,
            dim=self._shape[1:],
            inputs=[self._number, *self._of(slot)],
            outputs=[self._rows, self._flags],
            device=self.device,
        )

    def launch_recall(self, slot: Slot) -> None:
        """Put a step that was kept into `slot`, up to where its physics begins."""
        wp.launch(
            kernels.recall_step,
            dim=self._shape[1:],
            inputs=[self._number, self._rows, self._flags],
            outputs=self._of(slot),
            device=self.device,
        )

    @staticmethod
    def _of(slot: Slot) -> list[wp.array]:
        return [*slot.start.arrays(), slot.action, slot.reset, slot.cut]

    def nbytes(self) -> int:
        """Bytes of a row."""
        _, nworld, columns = self._shape
        return nworld * (columns * 4 + 2)

    def allocated(self) -> int:
        """Bytes of all rows, if they are allocated."""
        return 0 if self._rows is None else self._shape[0] * self.nbytes()
