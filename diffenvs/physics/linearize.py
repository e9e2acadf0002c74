"""Batched matrices of the discrete dynamics, in the convention of `mujoco.mjd_transitionFD`.

One adjoint gives one row of the matrices of every world. A GPU takes hardly longer for thousands
of worlds than for a hundred, so there each state is simulated in several worlds, each of which
gives rows of its own. (The contact kernels hand out memory in the order of arrival, so stepping one
world per state and copying what it retains would be more than a copy.)
"""

import math

import mujoco
import numpy as np
import warp as wp

from .check import check_model
from .mirror import Mirror
from .step import Physics
from .tape import captured, paused_tape
from .workspace import Cotangent

wp.set_module_options({"enable_backward": False})

_CACHE_SIZE = 4
# worlds that a GPU steps in hardly more time than a few; 256 states of Ant or Humanoid were fastest
# on an H100 with 3,584 and 5,888
_FULL = 6144


@wp.kernel
def _spread(
    # In:
    copies: int,
    x_in: wp.array2d[float],
    # Out:
    qpos_out: wp.array2d[float],
    qvel_out: wp.array2d[float],
    act_out: wp.array2d[float],
    ctrl_out: wp.array2d[float],
):
    """Puts each row of (qpos, qvel, act, ctrl) into `copies` successive worlds."""
    worldid, i = wp.tid()
    value = x_in[worldid // copies, i]
    qvel_adr = qpos_out.shape[1]
    act_adr = qvel_adr + qvel_out.shape[1]
    ctrl_adr = act_adr + act_out.shape[1]
    if i < qvel_adr:
        qpos_out[worldid, i] = value
    elif i < act_adr:
        qvel_out[worldid, i - qvel_adr] = value
    elif i < ctrl_adr:
        act_out[worldid, i - act_adr] = value
    else:
        ctrl_out[worldid, i - ctrl_adr] = value


@wp.kernel
def _seed(
    # In:
    first: int,
    copies: int,
    # Out:
    adj_qpos_out: wp.array2d[float],
    adj_qvel_out: wp.array2d[float],
    adj_act_out: wp.array2d[float],
):
    """The cotangent that picks one output of (dq, qvel, act), in each copy the next one."""
    worldid, i = wp.tid()
    nv = adj_qvel_out.shape[1]
    value = wp.where(first + worldid % copies == i, 1.0, 0.0)
    if i < nv:
        adj_qpos_out[worldid, i] = value
    elif i < 2 * nv:
        adj_qvel_out[worldid, i - nv] = value
    else:
        adj_act_out[worldid, i - 2 * nv] = value


@wp.kernel
def _store_rows(
    # In:
    first: int,
    copies: int,
    adj_qpos_in: wp.array2d[float],
    adj_qvel_in: wp.array2d[float],
    adj_act_in: wp.array2d[float],
    adj_ctrl_in: wp.array2d[float],
    # Out:
    AB_out: wp.array3d[float],
):
    worldid, col = wp.tid()
    row = first + worldid % copies
    n = AB_out.shape[1]
    if row >= n:
        return
    nv = adj_qvel_in.shape[1]
    value = float(0.0)
    if col < nv:
        value = adj_qpos_in[worldid, col]
    elif col < 2 * nv:
        value = adj_qvel_in[worldid, col - nv]
    elif col < n:
        value = adj_act_in[worldid, col - 2 * nv]
    else:
        value = adj_ctrl_in[worldid, col - n]
    AB_out[worldid // copies, row, col] = value


def filling_copies(n: int, nstate: int) -> int:
    """Worlds per state, for as few adjoints of n rows as a full GPU allows."""
    most = max(1, _FULL // nstate)
    adjoints = math.ceil(n / most)
    return math.ceil(n / adjoints)


class Linearizer:
    """`linearize` for one model, number of states and device, captured into one graph.

    Args:
        mjm: the compiled model.
        nstate: number of states.
        device: a Warp device or its name; None takes Warp's preferred device.
        nconmax, njmax: see `Physics`.
        copies: worlds per state. None takes as many as fill the device without making its step much
            longer: one on the CPU, up to one per row on a GPU.
    """

    def __init__(
        self,
        mjm: mujoco.MjModel,
        nstate: int,
        device=None,
        *,
        nconmax: int | None = None,
        njmax: int | None = None,
        copies: int | None = None,
    ):
        check_model(mjm)
        n = 2 * mjm.nv + mjm.na
        if copies is None:
            copies = 1 if wp.get_device(device).is_cpu else filling_copies(n, nstate)
        self._copies = copies
        self.physics = p = Physics(mjm, nstate * copies, device, nconmax=nconmax, njmax=njmax)
        self._state, self._state_out = p.make_state(), p.make_state()
        self._record = p.make_record()
        self._ctrl = wp.zeros((p.nworld, p.nu), dtype=float, device=p.device)
        self._x = Mirror((nstate, p.nq + p.nv + p.na + p.nu), float, p.device)
        self._AB = Mirror((nstate, n, n + p.nu), float, p.device)
        self._graph = captured(p.device, self._launch)
        p.d.overflow.zero_()  # of the state that happened to be there

    def _launch(self) -> None:
        p, state, AB = self.physics, self._state, self._AB.array
        wp.launch(
            _spread,
            dim=(p.nworld, self._x.array.shape[1]),
            inputs=[self._copies, self._x.array],
            outputs=[state.qpos, state.qvel, state.act, self._ctrl],
        )
        p.launch_step(state, self._ctrl, self._state_out, self._record)
        n = AB.shape[1]
        for first in range(0, n, self._copies):

            def seed(adj: Cotangent, first: int = first) -> None:
                wp.launch(
                    _seed,
                    dim=(p.nworld, n),
                    inputs=[first, self._copies],
                    outputs=[adj.qpos, adj.qvel, adj.act],
                )

            def result(adj: Cotangent, first: int = first) -> None:
                wp.launch(
                    _store_rows,
                    dim=(p.nworld, n + p.nu),
                    inputs=[first, self._copies, adj.qpos, adj.qvel, adj.act, adj.ctrl],
                    outputs=[AB],
                )

            p.launch_tangent_vjp(self._record, seed, result)

    def __call__(
        self, qpos: np.ndarray, qvel: np.ndarray, act: np.ndarray, ctrl: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) at the given states, float64 arrays of single precision."""
        np.concatenate((qpos, qvel, act, ctrl), axis=1, out=self._x.host)
        with wp.ScopedDevice(self.physics.device), paused_tape():
            self._x.upload()
            wp.capture_launch(self._graph)
            AB = self._AB.fetch()
            self.physics.check_overflow(self._copies)
        n = AB.shape[1]
        return AB[..., :n].astype(np.float64), AB[..., n:].astype(np.float64)


_cache: list[tuple[tuple, np.ndarray, Linearizer]] = []  # the latest last


def linearize(
    mjm: mujoco.MjModel,
    qpos: np.ndarray,
    qvel: np.ndarray,
    ctrl: np.ndarray,
    act: np.ndarray | None = None,
    device=None,
    *,
    nconmax: int | None = None,
    njmax: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Linearizes one physics step about n states at once, exactly (no finite differences).

    With `x = (dq, qvel, act)`, `dq` the tangent displacement of `qpos` (world translation and
    body-frame rotation for free joints), the step is `dx_next = A dx + B dctrl`, the convention of
    `mujoco.mjd_transitionFD`. The graphs of the last few (model, n, device) are kept, so that calls
    in a loop only replay.

    Args:
        mjm: the compiled model.
        qpos: positions, (n, nq).
        qvel: velocities, (n, nv).
        ctrl: controls, (n, nu).
        act: activations, (n, na); may be left out where na is 0.
        device: a Warp device or its name; None takes Warp's preferred device.
        nconmax: contacts to allocate per state, see `Physics`.
        njmax: constraint rows to allocate per state, see `Physics`.

    Returns:
        A, (n, 2 nv + na, 2 nv + na), and B, (n, 2 nv + na, nu); float64 arrays that are as exact as
        single precision allows.

    Raises:
        UnsupportedFeature: the model has elements without an adjoint.
        TypeError: an array is not one of real numbers.
        ValueError: an array has another shape, or is not finite.
        RuntimeError: contacts or constraint rows did not fit; the message names the states.
    """
    n = np.shape(qpos)[0] if np.ndim(qpos) == 2 else 0
    act = np.zeros((n, mjm.na)) if act is None else act
    given = {
        "qpos": (qpos, mjm.nq),
        "qvel": (qvel, mjm.nv),
        "act": (act, mjm.na),
        "ctrl": (ctrl, mjm.nu),
    }
    arrays = []
    for name, (values, width) in given.items():
        if n == 0 or np.shape(values) != (n, width):
            raise ValueError(
                f"linearize: {name} has shape {np.shape(values)}; it must be (n, {width}), with"
                " the same n >= 1 for all"
            )
        dtype = np.asarray(values).dtype
        if dtype.kind not in "fiu":
            raise TypeError(f"linearize: {name} is an array of real numbers, not of dtype {dtype}")
        with np.errstate(over="ignore"):  # what does not fit becomes inf, and is refused
            arrays.append(np.asarray(values, dtype=np.float32))
        if not np.isfinite(arrays[-1]).all():
            raise ValueError(f"linearize: {name} is not finite")
    return _linearizer(mjm, n, device, nconmax, njmax)(*arrays)


def _linearizer(mjm: mujoco.MjModel, n: int, device, nconmax, njmax) -> Linearizer:
    """One that was made for the same, or a new one. A model may be changed in place."""
    model = np.zeros(math.ceil(mujoco.mj_sizeModel(mjm) / 8), np.uint64)  # compared in words
    mujoco.mj_saveModel(mjm, None, model.view(np.uint8)[: mujoco.mj_sizeModel(mjm)])
    key = (n, wp.get_device(device).alias, nconmax, njmax)
    for i, (known_key, known_model, _) in enumerate(_cache):
        if known_key == key and np.array_equal(known_model, model):
            _cache.append(_cache.pop(i))
            return _cache[-1][2]
    while len(_cache) >= _CACHE_SIZE:  # before the next one takes memory
        _cache.pop(0)
    _cache.append((key, model, Linearizer(mjm, n, device, nconmax=nconmax, njmax=njmax)))
    return _cache[-1][2]
