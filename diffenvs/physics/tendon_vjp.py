"""Adjoint of tendons: what the forces along a tendon leave on its length, and that on joints.

A tendon has a length `L(q)`, and `J = dL/dq` takes joint vectors to rates of length: `J qvel` is
`ten_velocity`. Every force along a tendon (spring, damper, limit, friction loss, equality,
actuator) enters `phi` through `L` and through `J` times the joint vectors `mu, qacc, qvel` and the
integrator's pair `w, z`. So each term first leaves its coefficients,

    x_ten_mu, x_ten_a, x_ten_v, x_ten_w, x_ten_z = d phi / d (J mu), ...,    x_ten_length = dphi/dL

and `tendon_vjp` carries their sums to the joints. For a fixed tendon `J` is constant:

    adj_qpos -= x_ten_length J,   adj_qvel -= x_ten_v J

That of a spatial tendon changes: `spatial_tendon_vjp` carries all but the length. Springs and
dampers are here. With the stiffness `K(L)` and damping `B(V)` of the tendon, the derivatives of its
(polynomial) force `F`,

    x_ten_mu -= F,   x_ten_length += K (J mu),   x_ten_v += B (J mu)

and under implicitfast, whose system holds `h B J^T J` (`integrator_vjp`), with `e = qacc - z`

    x_ten_w += h B (J e),   x_ten_a += h B (J w),   x_ten_z -= h B (J w)
    x_ten_v += h B' (J w)(J e)

In:  `mu, w, z` (nv); the record's `ten_J`, `ten_length`, `ten_velocity`.
Out: `tendon_fields` fills `ten_mu, ten_a, ten_w, ten_z` and clears `x_ten_*`, all (nworld,
     ntendon); `tendon_vjp` accumulates in `adj_qpos` and `adj_qvel`.

Derivation: `DERIVATION.md`, section 9.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .passive_vjp import damping_curvature, damping_derivative, spring_derivative
from .record import Substep
from .spatial_tendon_vjp import spatial_tendon_vjp
from .workspace import TENDON_FIELDS, Cotangent, Flags, Workspace

wp.set_module_options({"enable_backward": False})

_FIXED = wp.constant(int(mujoco.mjtTendon.mjTENDON_FIXED))


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
def _tendon_passive_vjp(
    # Model:
    opt_timestep: wp.array[float],
    tendon_stiffness: wp.array2d[float],
    tendon_stiffnesspoly: wp.array2d[wp.vec2],
    tendon_damping: wp.array2d[float],
    tendon_dampingpoly: wp.array2d[wp.vec2],
    tendon_lengthspring: wp.array2d[wp.vec2],
    # Record:
    ten_length_in: wp.array2d[float],
    ten_velocity_in: wp.array2d[float],
    # In:
    with_spring: bool,
    with_damper: bool,
    with_implicit: bool,
    ten_mu_in: wp.array2d[float],
    ten_a_in: wp.array2d[float],
    ten_w_in: wp.array2d[float],
    ten_z_in: wp.array2d[float],
    # Out:
    x_ten_mu_io: wp.array2d[float],
    x_ten_a_io: wp.array2d[float],
    x_ten_v_io: wp.array2d[float],
    x_ten_w_io: wp.array2d[float],
    x_ten_z_io: wp.array2d[float],
    x_ten_length_io: wp.array2d[float],
):
    """Spring, with a dead band, and damper of one tendon."""
    worldid, tenid = wp.tid()
    mu = ten_mu_in[worldid, tenid]
    if with_spring:
        k = tendon_stiffness[worldid % tendon_stiffness.shape[0], tenid]
        poly = tendon_stiffnesspoly[worldid % tendon_stiffnesspoly.shape[0], tenid]
        band = tendon_lengthspring[worldid % tendon_lengthspring.shape[0], tenid]
        length = ten_length_in[worldid, tenid]
        x = float(0.0)
        if length > band[1]:
            x = length - band[1]
        elif length < band[0]:
            x = length - band[0]
        elif band[0] < band[1]:
            k = 0.0  # slack: the force does not change with length
        x_ten_mu_io[worldid, tenid] += x * (k + x * (poly[0] + x * poly[1]))
        x_ten_length_io[worldid, tenid] += spring_derivative(k, poly, x) * mu
    if with_damper:
        b = tendon_damping[worldid % tendon_damping.shape[0], tenid]
        poly = tendon_dampingpoly[worldid % tendon_dampingpoly.shape[0], tenid]
        v = ten_velocity_in[worldid, tenid]
        s = wp.abs(v)
        x_ten_mu_io[worldid, tenid] += v * (b + s * (poly[0] + s * poly[1]))
        damping = damping_derivative(b, poly, v)
        x_ten_v_io[worldid, tenid] += damping * mu
        if with_implicit:
            h = opt_timestep[worldid % opt_timestep.shape[0]]
            w = ten_w_in[worldid, tenid]
            e = ten_a_in[worldid, tenid] - ten_z_in[worldid, tenid]
            x_ten_w_io[worldid, tenid] += h * damping * e
            x_ten_a_io[worldid, tenid] += h * damping * w
            x_ten_z_io[worldid, tenid] -= h * damping * w
            x_ten_v_io[worldid, tenid] += h * damping_curvature(poly, v) * w * e


@wp.kernel
def _tendon_vjp(
    # Model:
    tendon_type: wp.array[int],
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
            if tendon_type[tenid] == _FIXED:
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


def tendon_passive_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace) -> None:
    """Adjoint of the springs and dampers of tendons."""
    d = s.d
    wp.launch(
        _tendon_passive_vjp,
        dim=(d.nworld, m.ntendon),
        inputs=[
            m.opt.timestep,
            m.tendon_stiffness,
            m.tendon_stiffnesspoly,
            m.tendon_damping,
            m.tendon_dampingpoly,
            m.tendon_lengthspring,
            d.ten_length,
            d.ten_velocity,
            flags.spring,
            flags.damper,
            flags.implicitfast and flags.implicit_damping,
            ws.ten_mu,
            ws.ten_a,
            ws.ten_w,
            ws.ten_z,
        ],
        outputs=[
            ws.x_ten_mu,
            ws.x_ten_a,
            ws.x_ten_v,
            ws.x_ten_w,
            ws.x_ten_z,
            ws.x_ten_length,
        ],
    )


def tendon_vjp(m: mjw.Model, flags: Flags, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Carries all that lies on the tendons to the joints, that of spatial ones to the bodies."""
    d = s.d
    if flags.spatial_tendon:
        spatial_tendon_vjp(m, flags, s, ws)
    wp.launch(
        _tendon_vjp,
        dim=d.nworld,
        inputs=[
            m.tendon_type,
            m.ten_J_rownnz,
            m.ten_J_rowadr,
            m.ten_J_colind,
            d.ten_J,
            ws.x_ten_v,
            ws.x_ten_length,
        ],
        outputs=[adj.qpos, adj.qvel],
    )
