"""What a task's outputs kernel may read of a step, as arrays on the device, and their cotangents.

    qpos, qvel, act                 the state after the step; with `_prev`: before it
    action                          as it was given
    xpos, xipos, site_xpos, subtree_com, cinert, cvel
                                    kinematics of the state after the step; with `_prev`: before it
    qfrc_actuator, qfrc_constraint, cfrc_ext
                                    forces of the last physics step within the step

under MuJoCo's names. Kinematics are computed from the qpos and qvel of the state itself. Forces are
those with which the last physics step accelerated; in a state to which no step led, after a reset
or `set_state`, they are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import warp as wp

from diffenvs.physics import FORCES, Physics, State
from diffenvs.physics.kinematics import FIELDS as KINEMATICS
from diffenvs.physics.kinematics import Kinematics

PREV = "_prev"
STATES = ("qpos", "qvel", "act")
_BOTH = (*STATES, *KINEMATICS)
READABLE = (*_BOTH, *(field + PREV for field in _BOTH), *FORCES, "action")


class StepFields:
    """Computes the fields that a task reads, and takes their cotangents to state and forces.

    Args:
        fields: All that the task's kernel has arguments for, of `READABLE`.
        active: Those of them that the kernel looks at. The others have no columns.
        physics: The worlds.
    """

    def __init__(self, fields: Sequence[str], active: Iterable[str], physics: Physics) -> None:
        active = set(active)
        self.forces = tuple(field for field in FORCES if field in active)
        """Forces that the physics has to give."""
        wanted = {"": [], PREV: []}
        self._empty: dict[str, wp.array] = {}
        for field in fields:
            name, suffix = field.removesuffix(PREV), PREV if field.endswith(PREV) else ""
            if name in (*STATES, "action"):
                continue
            if field not in active:
                dtype, _ = (KINEMATICS | FORCES)[name]
                shape = (physics.nworld, 0)
                self._empty[field] = wp.zeros(shape, dtype=dtype, device=physics.device)
            elif name in KINEMATICS:
                wanted[suffix].append(name)
        self._kinematics = {
            suffix: Kinematics(physics.m, physics.nworld, names)
            for suffix, names in wanted.items()
            if names
        }
        self._prev_covered = set(wanted[PREV]) <= set(wanted[""])

    def launch(self, prev: State, state: State, action: wp.array, forces: Any) -> dict[str, Any]:
        """Compute the fields of the step from `prev` to `state`; return all arrays by name."""
        found = {suffix: kinematics.values for suffix, kinematics in self._kinematics.items()}
        for suffix, kinematics in self._kinematics.items():
            if suffix and prev is state and self._prev_covered:
                found[suffix] = found[""]  # no step was made: both are the same
                continue
            of = prev if suffix else state
            kinematics.launch(of.qpos, of.qvel)
        return self._by_name(found, prev, state, action, forces)

    def zero_adj(self, prev: State, state: State, action: wp.array, forces: Any) -> dict[str, Any]:
        """Begin with cotangents of zero; return those of all fields by name, to accumulate into.

        Args:
            prev: Cotangents of the state before the step, left as they are, as are
            state: those of the state after it, and
            action: that of the action.
            forces: Cotangents of the forces.
        """
        for name in self.forces:
            getattr(forces, name).zero_()
        for kinematics in self._kinematics.values():
            kinematics.zero_adj()
        found = {suffix: kinematics.adj for suffix, kinematics in self._kinematics.items()}
        return self._by_name(found, prev, state, action, forces)

    def launch_vjp(self, prev: State, state: State, adj_prev: State, adj_state: State) -> None:
        """Add the cotangents of the kinematics to those of the states, after `launch`."""
        for suffix, kinematics in self._kinematics.items():
            of, adj = (prev, adj_prev) if suffix else (state, adj_state)
            kinematics.launch_vjp(of.qpos, of.qvel, adj.qpos, adj.qvel)

    def _by_name(
        self,
        kinematics: dict[str, dict[str, wp.array]],
        prev: State,
        state: State,
        action: wp.array,
        forces: Any,
    ) -> dict[str, Any]:
        arrays = {"action": action}
        for field in STATES:
            arrays |= {field: getattr(state, field), field + PREV: getattr(prev, field)}
        for suffix, found in kinematics.items():
            arrays |= {field + suffix: array for field, array in found.items()}
        return arrays | {name: getattr(forces, name) for name in self.forces} | self._empty
