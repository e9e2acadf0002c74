"""Adjoint of the springs and dampers of joints.

Forward, with the polynomials `k(x) = stiffness + p0 x + p1 x^2` (jnt_stiffnesspoly) and `b(v) =
damping + p0 |v| + p1 v^2` (dof_dampingpoly):

    hinge, slide:    qfrc = -k(x) x,    x = qpos - qpos_spring
    free, position:  qfrc = -k(|x|) x,  x the same, of three components
    ball and free, rotation: qfrc = -k(|x|) x, x the rotation vector from qpos_spring to qpos
    all:             qfrc -= b(qvel) qvel

In:  `mu` (nv), the solution of `H mu = adj_qacc`.
Out: `adj_qpos`, accumulated:

    adj_qpos -= (d(k x)/dx)^T mu

and `B = d(b v)/dv = damping + 2 p0 |v| + 3 p1 v^2` with its derivative, for `actuator_vjp`, which
treats the dampers, and for those of tendons. Derivation: `DERIVATION.md`, section 8.
Not covered: springs that yield.
"""

import mujoco
import mujoco_warp as mjw
import warp as wp

from .record import Substep
from .spatial import inverse_right_jacobian, vec3_at, vec4_at
from .workspace import Cotangent, Workspace

wp.set_module_options({"enable_backward": False})

_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.func
def spring_derivative(stiffness: float, poly: wp.vec2, x: float) -> float:
    """`K`: derivative of the spring force `k(x) x` by `x`."""
    return stiffness + x * (2.0 * poly[0] + 3.0 * poly[1] * x)


@wp.func
def spring_curvature(poly: wp.vec2, x: float) -> float:
    """Derivative of `K` by `x`."""
    return 2.0 * poly[0] + 6.0 * poly[1] * x


@wp.func
def damping_derivative(damping: float, poly: wp.vec2, qvel: float) -> float:
    """`B`: derivative of the damping force `b(v) v` by `v`; `b` depends on `|v|`."""
    return spring_derivative(damping, poly, wp.abs(qvel))


@wp.func
def damping_curvature(poly: wp.vec2, qvel: float) -> float:
    """Derivative of `B` by `v`."""
    return wp.sign(qvel) * spring_curvature(poly, wp.abs(qvel))


@wp.func
def _spring_vjp(stiffness: float, poly: wp.vec2, x: wp.vec3, mu: wp.vec3) -> wp.vec3:
    """`(d(k(|x|) x)/dx)^T mu`, which is symmetric."""
    r = wp.length(x)
    n = wp.normalize(x)
    k = stiffness + r * (poly[0] + r * poly[1])
    rdk = r * (poly[0] + 2.0 * r * poly[1])
    return k * mu + rdk * wp.dot(n, mu) * n


@wp.func
def rotation_between(a: wp.vec4, b: wp.vec4) -> wp.vec3:
    """The rotation vector `x` with `a Exp(x) = b`, at most half a turn."""
    ar = wp.vec3(a[1], a[2], a[3])
    br = wp.vec3(b[1], b[2], b[3])
    s = a[0] * b[0] + wp.dot(ar, br)
    r = a[0] * br - b[0] * ar - wp.cross(ar, br)
    if s < 0.0:
        s = -s
        r = -r
    return 2.0 * wp.atan2(wp.length(r), s) * wp.normalize(r)


@wp.kernel
def _spring_force_vjp(
    # Model:
    qpos_spring: wp.array2d[float],
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    jnt_stiffness: wp.array2d[float],
    jnt_stiffnesspoly: wp.array2d[wp.vec2],
    # Record:
    qpos_in: wp.array2d[float],
    # In:
    mu_in: wp.array2d[float],
    # Out:
    adj_qpos_io: wp.array2d[float],
):
    """Spring of one joint."""
    worldid, jntid = wp.tid()
    stiffness = jnt_stiffness[worldid % jnt_stiffness.shape[0], jntid]
    poly = jnt_stiffnesspoly[worldid % jnt_stiffnesspoly.shape[0], jntid]
    if stiffness == 0.0 and poly[0] == 0.0 and poly[1] == 0.0:
        return
    jnttype = jnt_type[jntid]
    adr = jnt_dofadr[jntid]
    qadr = jnt_qposadr[jntid]
    ref = worldid % qpos_spring.shape[0]
    if jnttype == _FREE:
        x = vec3_at(qpos_in, worldid, qadr) - vec3_at(qpos_spring, ref, qadr)
        dq = _spring_vjp(stiffness, poly, x, vec3_at(mu_in, worldid, adr))
        for k in range(3):
            adj_qpos_io[worldid, adr + k] -= dq[k]
        qadr += 3
        adr += 3
    if jnttype == _FREE or jnttype == _BALL:
        x = rotation_between(vec4_at(qpos_spring, ref, qadr), vec4_at(qpos_in, worldid, qadr))
        dx = _spring_vjp(stiffness, poly, x, vec3_at(mu_in, worldid, adr))
        dq = inverse_right_jacobian(-x, dx)
        for k in range(3):
            adj_qpos_io[worldid, adr + k] -= dq[k]
    else:
        length = qpos_in[worldid, qadr] - qpos_spring[ref, qadr]
        K = spring_derivative(stiffness, poly, length)
        adj_qpos_io[worldid, adr] -= K * mu_in[worldid, adr]


def spring_vjp(m: mjw.Model, s: Substep, ws: Workspace, adj: Cotangent) -> None:
    """Adjoint of the springs of joints."""
    d = s.d
    wp.launch(
        _spring_force_vjp,
        dim=(d.nworld, m.njnt),
        inputs=[
            m.qpos_spring,
            m.jnt_type,
            m.jnt_qposadr,
            m.jnt_dofadr,
            m.jnt_stiffness,
            m.jnt_stiffnesspoly,
            d.qpos,
            ws.joint_mu,
        ],
        outputs=[adj.qpos],
    )
