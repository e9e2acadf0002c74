"""Steps on a `wp.Tape`: staged memory with captured graphs, handed back with the tape.

A graph works on fixed memory, a functional step on the caller's arrays. So a step copies its inputs
in, replays, and copies its outputs out. A step that is recorded owns a `Record` until its tape is
reset or dropped; then another step uses it again, without capturing or allocating anything.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import warp as wp

from .inputs import Inputs, accumulate_vectors, copy_inputs
from .load import load_kernels, one_at_a_time, paused_collector

if TYPE_CHECKING:
    from .step import Physics, State

wp.set_module_options({"enable_backward": False})


def active_tape() -> wp.Tape | None:
    """The tape that Warp records on; Warp has no public name for it."""
    return wp._src.context.runtime.tape


@contextlib.contextmanager
def paused_tape() -> Iterator[None]:
    """Launches inside are not recorded: the adjoint of a step is its own."""
    runtime = wp._src.context.runtime
    tape, runtime.tape = runtime.tape, None
    try:
        yield
    finally:
        runtime.tape = tape


def captured(device: wp.Device, launches: Callable[[], None]) -> wp.Graph:
    """A graph of the launches. Their kernels are loaded first, which a capture may not do."""
    with one_at_a_time, wp.ScopedDevice(device), paused_tape():
        load_kernels(device, launches)
        return _capture(launches)


def _capture(launches: Callable[[], None]) -> wp.Graph:
    with paused_collector(), wp.ScopedCapture() as capture:
        launches()
    graph = capture.graph
    assert graph is not None
    # CUDA instantiates a graph at its first launch, and refuses if another capture came between
    wp.capture_launch(graph)
    return graph


@wp.kernel
def accumulate(
    # In:
    increment_in: wp.array2d[float],
    # Out:
    grad_io: wp.array2d[float],
):
    """grad += increment."""
    worldid, i = wp.tid()
    grad_io[worldid, i] += increment_in[worldid, i]


def _like(inputs: Inputs) -> Inputs:
    return Inputs(**{name: wp.zeros_like(x) for name, x in inputs.given().items()})


class StagedStep:
    """A captured step on memory of its own, and, if it is recorded, its captured adjoint."""

    def __init__(self, physics: "Physics", inputs: Inputs, recorded: bool):
        # a graph does not keep alive the arrays that it works on
        self._record = record = physics.make_record(inputs) if recorded else None
        self._state, self._state_out = physics.make_state(), physics.make_state()
        self._inputs = _like(inputs)
        self.fields = set(inputs.given())
        launches = [lambda: physics.launch_step(self._state, self._inputs, self._state_out, record)]
        if record is not None:
            self._adj_state, self._adj_state_out = physics.make_state(), physics.make_state()
            self._adj_inputs = _like(inputs)
            self._adj = (*self._adj_state.differentiable(), *self._adj_inputs.given().values())
            launches.append(
                lambda: physics.launch_step_vjp(
                    record, self._adj_state_out, self._adj_state, self._adj_inputs
                )
            )
        physics.watch_overflow(0)
        with one_at_a_time, wp.ScopedDevice(physics.device), paused_tape():
            last = [lambda: self._accumulate(self._adj)] if recorded else []
            load_kernels(physics.device, *launches, *last)
            self._graph, *self._adjoint_graph = map(_capture, launches)
            physics.d.overflow.zero_()  # of the state that happened to be there

    def step(self, state: "State", inputs: Inputs, state_out: "State") -> None:
        """`state, inputs -> state_out`, by replay."""
        for staged, given in zip(self._state.arrays(), state.arrays(), strict=True):
            wp.copy(staged, given)
        copy_inputs(self._inputs, inputs, "Physics.step")
        wp.capture_launch(self._graph)
        for given, staged in zip(state_out.arrays(), self._state_out.arrays(), strict=True):
            wp.copy(given, staged)

    def backward(self, state: "State", inputs: Inputs, state_out: "State") -> None:
        """Adds the cotangents of `state` and `inputs` to their `.grad`, by replay."""
        adj_out = self._adj_state_out.differentiable()
        for staged, given in zip(adj_out, state_out.differentiable(), strict=True):
            wp.copy(staged, given.grad)
        wp.capture_launch(*self._adjoint_graph)
        before = (*state.differentiable(), *inputs.given().values())
        self._accumulate([array.grad for array in before])

    def _accumulate(self, grads: Sequence[wp.array | None]) -> None:
        for adj, grad in zip(self._adj, grads, strict=True):
            if grad is not None and grad.size > 0:
                kernel = accumulate if adj.dtype is wp.float32 else accumulate_vectors
                wp.launch(kernel, dim=grad.shape, inputs=[adj], outputs=[grad])


def find_staged(among: list[StagedStep], inputs: Inputs) -> StagedStep | None:
    """One that was made for the fields that these inputs have."""
    return next((s for s in among if s.fields == inputs.given().keys()), None)


class TapedStep:
    """One recorded step on a tape; lives as long as the tape refers to it."""

    def __init__(self, physics: "Physics", staged: StagedStep, arrays: tuple):
        self._physics, self._staged = physics, staged
        self._arrays = arrays  # state, inputs, state_out

    def backward(self) -> None:
        """Called by `wp.Tape.backward`."""
        with wp.ScopedDevice(self._physics.device), paused_tape():
            self._physics.watch_overflow(0)
            self._staged.backward(*self._arrays)
