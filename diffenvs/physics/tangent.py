"""Cotangents of qpos in its two forms.

Inside the adjoint a cotangent of `qpos` is tangent, of size nv: free and ball joints have three
rotations in the body frame (MuJoCo's convention, `mj_differentiatePos`). Outside, as the gradient
of an array, it has the shape of `qpos`. For a quaternion `q` of any norm, read through `q / |q|`:

    tangent from gradient:  l = (1/2) E(q)^T g        gradient from tangent:  g = 2 E(q) l / |q|^2

where the columns of `E(q)` are `q * i, q * j, q * k` (so that `d q = (1/2) E(q) d theta`).
"""

import mujoco
import warp as wp

wp.set_module_options({"enable_backward": False})

_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))


@wp.kernel
def tangent_from_gradient(
    # Model:
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    # In:
    qpos_in: wp.array2d[float],
    adj_qpos_in: wp.array2d[float],
    # Out:
    tangent_out: wp.array2d[float],
):
    """(nworld, nq) to (nworld, nv), one joint per thread."""
    worldid, jntid = wp.tid()
    q = jnt_qposadr[jntid]
    v = jnt_dofadr[jntid]
    jnttype = jnt_type[jntid]
    if jnttype == _FREE:
        for k in range(3):
            tangent_out[worldid, v + k] = adj_qpos_in[worldid, q + k]
        q += 3
        v += 3
    if jnttype == _FREE or jnttype == _BALL:
        s = qpos_in[worldid, q]
        r = wp.vec3(qpos_in[worldid, q + 1], qpos_in[worldid, q + 2], qpos_in[worldid, q + 3])
        gs = adj_qpos_in[worldid, q]
        g = wp.vec3(
            adj_qpos_in[worldid, q + 1], adj_qpos_in[worldid, q + 2], adj_qpos_in[worldid, q + 3]
        )
        l = 0.5 * (s * g - gs * r - wp.cross(r, g))
        for k in range(3):
            tangent_out[worldid, v + k] = l[k]
    else:
        tangent_out[worldid, v] = adj_qpos_in[worldid, q]


@wp.kernel
def gradient_from_tangent(
    # Model:
    jnt_type: wp.array[int],
    jnt_qposadr: wp.array[int],
    jnt_dofadr: wp.array[int],
    # In:
    qpos_in: wp.array2d[float],
    tangent_in: wp.array2d[float],
    # Out:
    adj_qpos_out: wp.array2d[float],
):
    """(nworld, nv) to (nworld, nq), one joint per thread."""
    worldid, jntid = wp.tid()
    q = jnt_qposadr[jntid]
    v = jnt_dofadr[jntid]
    jnttype = jnt_type[jntid]
    if jnttype == _FREE:
        for k in range(3):
            adj_qpos_out[worldid, q + k] = tangent_in[worldid, v + k]
        q += 3
        v += 3
    if jnttype == _FREE or jnttype == _BALL:
        s = qpos_in[worldid, q]
        r = wp.vec3(qpos_in[worldid, q + 1], qpos_in[worldid, q + 2], qpos_in[worldid, q + 3])
        scale = 2.0 / (s * s + wp.dot(r, r))
        l = scale * wp.vec3(
            tangent_in[worldid, v], tangent_in[worldid, v + 1], tangent_in[worldid, v + 2]
        )
        g = s * l + wp.cross(r, l)
        adj_qpos_out[worldid, q] = -wp.dot(r, l)
        for k in range(3):
            adj_qpos_out[worldid, q + 1 + k] = g[k]
    else:
        adj_qpos_out[worldid, q] = tangent_in[worldid, v]
