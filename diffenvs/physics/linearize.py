"""Batched matrices of the discrete dynamics, in the convention of `mujoco.mjd_transitionFD`."""

import collections
import hashlib

import mujoco
import numpy as np
import warp as wp

from .step import Physics
from .tape import captured

wp.set_module_options({"enable_backward": False})

_CACHE_SIZE = 4


@wp.kernel
def _seed(
    # In:
    row: int,
    # Out:
    adj_qpos_out: wp.array2d[float],
    adj_qvel_out: wp.array2d[float],
    adj_act_out: wp.array2d[float],
):
    """The cotangent that picks output `row` of (dq, qvel, act)."""
    worldid, i = wp.tid()
    nv = adj_qvel_out.shape[1]
    value = wp.where(row == i, 1.0, 0.0)
    if i < nv:
        adj_qpos_out[worldid, i] = value
    elif i < 2 * nv:
        adj_qvel_out[worldid, i - nv] = value
    else:
        adj_act_out[worldid, i - 2 * nv] = value


@wp.kernel
def _store_row(
    # In:
    row: int,
    adj_qpos_in: wp.array2d[float],
    adj_qvel_in: wp.array2d[float],
    adj_act_in: wp.array2d[float],
    adj_ctrl_in: wp.array2d[float],
    # Out:
    A_out: wp.array3d[float],
    B_out: wp.array3d[float],
):
    worldid, col = wp.tid()
    nv = adj_qvel_in.shape[1]
    n = A_out.shape[2]
    if col < nv:
        A_out[worldid, row, col] = adj_qpos_in[worldid, col]
    elif col < 2 * nv:
        A_out[worldid, row, col] = adj_qvel_in[worldid, col - nv]
    elif col < n:
        A_out[worldid, row, col] = adj_act_in[worldid, col - 2 * nv]
    else:
        B_out[worldid, row, col - n] = adj_ctrl_in[worldid, col - n]


class Linearizer:
    """`linearize` for one model, number of worlds and device, captured into one graph."""

    def __init__(self, mjm: mujoco.MjModel, nworld: int, device=None):
        self.physics = p = Physics(mjm, nworld, device)
        self._state, self._state_out = p.make_state(), p.make_state()
        self._record = p.make_record()
        n = 2 * p.nv + p.na
        with wp.ScopedDevice(p.device):
            self._ctrl = wp.zeros((nworld, p.nu), dtype=float)
            self._A = wp.zeros((nworld, n, n), dtype=float)
            self._B = wp.zeros((nworld, n, p.nu), dtype=float)
        self._graph = captured(p.device, self._launch)

    def _launch(self) -> None:
        p = self.physics
        p.launch_step(self._state, self._ctrl, self._state_out, self._record)
        n = self._A.shape[1]
        for row in range(n):
            p.launch_tangent_vjp(
                self._record,
                seed=lambda adj, row=row: wp.launch(
                    _seed, dim=(p.nworld, n), inputs=[row], outputs=[adj.qpos, adj.qvel, adj.act]
                ),
                result=lambda adj, row=row: wp.launch(
                    _store_row,
                    dim=(p.nworld, n + p.nu),
                    inputs=[row, adj.qpos, adj.qvel, adj.act, adj.ctrl],
                    outputs=[self._A, self._B],
                ),
            )

    def __call__(
        self, qpos: np.ndarray, qvel: np.ndarray, act: np.ndarray, ctrl: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(A, B) at the given states, float64 arrays of single precision."""
        for array, values in (
            (self._state.qpos, qpos),
            (self._state.qvel, qvel),
            (self._state.act, act),
            (self._ctrl, ctrl),
        ):
            if array.size > 0:
                array.assign(np.ascontiguousarray(values, dtype=np.float32))
        self._state.qacc_warmstart.zero_()
        wp.capture_launch(self._graph)
        self.physics.check_overflow()
        return self._A.numpy().astype(np.float64), self._B.numpy().astype(np.float64)


_cache: collections.OrderedDict[tuple, Linearizer] = collections.OrderedDict()


def linearize(
    mjm: mujoco.MjModel,
    qpos: np.ndarray,
    qvel: np.ndarray,
    ctrl: np.ndarray,
    act: np.ndarray | None = None,
    device=None,
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

    Returns:
        A, (n, 2 nv + na, 2 nv + na), and B, (n, 2 nv + na, nu); float64 arrays that are as exact as
        single precision allows.

    Raises:
        UnsupportedFeature: the model has elements without an adjoint.
        ValueError: an array has another shape, or is not finite.
        RuntimeError: contacts or constraint rows did not fit.
    """
    n = np.shape(qpos)[0] if np.ndim(qpos) == 2 else 0
    act = np.zeros((n, mjm.na)) if act is None else act
    given = {
        "qpos": (qpos, mjm.nq),
        "qvel": (qvel, mjm.nv),
        "ctrl": (ctrl, mjm.nu),
        "act": (act, mjm.na),
    }
    for name, (values, width) in given.items():
        if n == 0 or np.shape(values) != (n, width):
            raise ValueError(
                f"linearize: {name} has shape {np.shape(values)}; it must be (n, {width}), with"
                " the same n >= 1 for all"
            )
        if not np.all(np.isfinite(values)):
            raise ValueError(f"linearize: {name} is not finite")

    buffer = np.empty(mujoco.mj_sizeModel(mjm), np.uint8)
    mujoco.mj_saveModel(mjm, None, buffer)
    key = (hashlib.sha256(buffer.tobytes()).digest(), n, str(wp.get_device(device)))
    if key not in _cache:
        while len(_cache) >= _CACHE_SIZE:
            _cache.popitem(last=False)
        _cache[key] = Linearizer(mjm, n, device)
    _cache.move_to_end(key)
    return _cache[key](*(np.asarray(values) for values in (qpos, qvel, act, ctrl)))
