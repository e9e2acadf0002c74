"""Adjoint of tendons: what the forces along a tendon leave on its length, and that on joints.

A tendon has a length `L(q)`, and `J = dL/dq` takes joint vectors to rates of length: `J qvel` is
`ten_velocity`. Every force along a tendon (spring, damper, limit, friction loss, equality,
actuator) enters `phi` through `L` and through `J` times the joint vectors `mu, qacc, qvel` and the
integrator's pair `w, z`. So each term first leaves its coefficients,

    x_ten_mu, x_ten_a, x_ten_v, x_ten_w, x_ten_z = d phi / d (J mu), ...,    x_ten_length = dphi/dL

and `tendon_vjp` carries their sums to the joints. For a fixed tendon `J` is constant:

    adj_qpos -= x_ten_length J,   adj_qvel -= x_ten_v J

In:  `mu, w, z` (nv); the record's `ten_J`, `ten_length`, `ten_velocity`.
Out: `tendon_fields` fills `ten_mu, ten_a, ten_w, ten_z` and clears `x_ten_*`, all (nworld,
     ntendon); `tendon_vjp` accumulates in `adj_qpos` and `adj_qvel`.

Derivation: `DERIVATION.md`, section 8. Not covered: spatial tendons.
"""

import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .workspace import TENDON_FIELDS, Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})


@wp.kernel
def _tendon_fields(
    # Model:
    ten_J_rownnz: wp.array[int],
    ten_J_rowadr: wp.array[int],
    ten_J_colind: wp.array[int],
    # Record:
    qacc_in: wp.array2d[float],
    ten_J_in: wp.array2d[float],
    # In:
    with_pair: bool,
    mu_in: wp.array2d[float],
    w_in: wp.array2d[float],
    z_in: wp.array2d[float],
    # Out:
    ten_mu_out: wp.array2d[float],
    ten_a_out: wp.array2d[float],
    ten_w_out: wp.array2d[float],
    ten_z_out: wp.array2d[float],
    x_ten_mu_out: wp.array2d[float],
    x_ten_a_out: wp.array2d[float],
    x_ten_v_out: wp.array2d[float],
    x_ten_w_out: wp.array2d[float],
    x_ten_z_out: wp.array2d[float],
    x_ten_length_out: wp.array2d[float],
):
    """J times the joint vectors, per tendon."""
    worldid, tenid = wp.tid()
    mu = float(0.0)
    a = float(0.0)
    w = float(0.0)
    z = float(0.0)
    adr = ten_J_rowadr[tenid]
    for k in range(adr, adr + ten_J_rownnz[tenid]):
        dofid = ten_J_colind[k]
        J = ten_J_in[worldid, k]
        mu += J * mu_in[worldid, dofid]
        a += J * qacc_in[worldid, dofid]
        if with_pair:
            w += J * w_in[worldid, dofid]
            z += J * z_in[worldid, dofid]
    ten_mu_out[worldid, tenid] = mu
    ten_a_out[worldid, tenid] = a
    ten_w_out[worldid, tenid] = w
    ten_z_out[worldid, tenid] = z
    x_ten_mu_out[worldid, tenid] = 0.0
    x_ten_a_out[worldid, tenid] = 0.0
    x_ten_v_out[worldid, tenid] = 0.0
    x_ten_w_out[worldid, tenid] = 0.0
    x_ten_z_out[worldid, tenid] = 0.0
    x_ten_length_out[worldid, tenid] = 0.0


@wp.kernel
def _tendon_vjp(
    # Model:
    ten_J_rownnz: wp.array[int],
    ten_J_rowadr: wp.array[int],
    ten_J_colind: wp.array[int],
    # Record:
    ten_J_in: wp.array2d[float],
    # In:
    x_ten_v_in: wp.array2d[float],
    x_ten_length_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
    adj_qvel_io: wp.array2d[float],
):
    """One world per thread: several tendons may share a joint, and the order stays fixed."""
    worldid = wp.tid()
    for tenid in range(x_ten_v_in.shape[1]):
        adr = ten_J_rowadr[tenid]
        for k in range(adr, adr + ten_J_rownnz[tenid]):
            dofid = ten_J_colind[k]
            J = ten_J_in[worldid, k]
            adj_qpos_io[worldid, dofid] -= J * x_ten_length_in[worldid, tenid]
            adj_qvel_io[worldid, dofid] -= J * x_ten_v_in[worldid, tenid]


def tendon_fields(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Fills `ws.ten_*` and clears `ws.x_ten_*`."""
    d = s.d
    wp.launch(
        _tendon_fields,
        dim=(d.nworld, m.ntendon),
        inputs=[
            m.ten_J_rownnz,
            m.ten_J_rowadr,
            m.ten_J_colind,
            d.qacc,
            d.ten_J,
            flags.pair,
            ws.joint_mu,
            ws.joint_w,
            ws.joint_z,
        ],
        outputs=[getattr(ws, name) for name in TENDON_FIELDS],
    )


def tendon_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Carries all that lies on the tendons to the joints."""
    d = s.d
    wp.launch(
        _tendon_vjp,
        dim=d.nworld,
        inputs=[
            m.ten_J_rownnz,
            m.ten_J_rowadr,
            m.ten_J_colind,
            d.ten_J,
            ws.x_ten_v,
            ws.x_ten_length,
        ],
        outputs=[adj.qpos, adj.qvel],
    )
