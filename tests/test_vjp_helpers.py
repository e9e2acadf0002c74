"""The functions that the adjoint's kernels share, against MuJoCo's own numbers and closed forms."""

import mujoco
import numpy as np
import pytest
import warp as wp

from diffenvs.physics import constraint_vjp, spatial, tangent
from diffenvs.physics.cholesky import LARGEST
from diffenvs.physics.solve_vjp import solve_vjp

NUM = 64


@wp.kernel
def _kbip(
    disableflags: int,
    timestep: float,
    solref_in: wp.array[wp.vec2],
    solimp_in: wp.array[spatial.vec5],
    pos_in: wp.array[float],
    out: wp.array[wp.vec4],
):
    i = wp.tid()
    out[i] = constraint_vjp.kbip(disableflags, timestep, solref_in[i], solimp_in[i], pos_in[i])


@wp.kernel
def _rotations(
    r_in: wp.array[wp.vec3],
    x_in: wp.array[wp.vec3],
    rotated_out: wp.array[wp.vec3],
    jacobian_out: wp.array[wp.vec3],
):
    i = wp.tid()
    rotated_out[i] = spatial.rotate_by(r_in[i], x_in[i])
    jacobian_out[i] = spatial.right_jacobian_transposed(r_in[i], x_in[i])


@wp.kernel
def _dualities(
    z_in: wp.array[wp.spatial_vector],
    y_in: wp.array[wp.spatial_vector],
    x_in: wp.array[wp.spatial_vector],
    left_out: wp.array[float],
    right_out: wp.array[float],
):
    i = wp.tid()
    left_out[i] = wp.dot(x_in[i], spatial.motion_cross(z_in[i], y_in[i]))
    right_out[i] = -wp.dot(y_in[i], spatial.force_cross(z_in[i], x_in[i]))


def test_kbip_vs_c_mujoco():
    """Stiffness, damping, impedance and its slope are those of C MuJoCo, in all their branches."""
    rng = np.random.default_rng(0)
    shapes = (0.02, 0.1, 0.3, 1.0, 3.0)  # depth in units of the width: both halves and past it
    solref, solimp, depth = [], [], []
    for i in range(NUM):
        direct = i % 4 == 3
        standard = [rng.uniform(0.001, 0.05), rng.uniform(0.5, 2)]
        solref.append([-800.0, -30.0] if direct else standard)
        width = rng.uniform(0.01, 0.05)
        power = (1.0, 2.0, 3.5)[i % 3]
        dmin = 0.9 if i % 8 == 7 else rng.uniform(0, 0.8)
        solimp.append([dmin, 0.9, width, rng.uniform(0.2, 0.8), power])
        depth.append(width * shapes[i % 5])
    bodies = "".join(
        f'<body><joint type="slide" limited="true" range="0 9" solreflimit="{r[0]} {r[1]}"'
        f' solimplimit="{" ".join(map(str, s))}"/><geom size="0.1"/></body>'
        for r, s in zip(solref, solimp, strict=True)
    )
    mjm = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    mjm.opt.disableflags = int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    data = mujoco.MjData(mjm)
    data.qpos[:] = -np.array(depth)
    mujoco.mj_forward(mjm, data)
    assert data.nefc == NUM
    expected = data.efc_KBIP.reshape(NUM, 4)
    assert (expected[:, 3] != 0).sum() > NUM // 3

    out = wp.zeros(NUM, dtype=wp.vec4)
    wp.launch(
        _kbip,
        dim=NUM,
        inputs=[
            int(mjm.opt.disableflags),
            float(mjm.opt.timestep),
            wp.array(np.float32(solref), dtype=wp.vec2),
            wp.array(np.float32(solimp), dtype=spatial.vec5),
            wp.array(np.float32(data.qpos), dtype=float),
        ],
        outputs=[out],
    )
    scale = np.maximum(np.abs(expected), 1e-3)
    assert (np.abs(out.numpy() - expected) / scale).max() < 1e-4


def test_rotations_vs_quaternions():
    """Exp(r) x and the right Jacobian, by MuJoCo's quaternions, small angles too."""
    rng = np.random.default_rng(1)
    r = rng.normal(size=(NUM, 3)) * np.geomspace(1e-6, 2.5, NUM)[:, None]
    x = rng.normal(size=(NUM, 3))
    rotated, jacobian = wp.zeros(NUM, dtype=wp.vec3), wp.zeros(NUM, dtype=wp.vec3)
    wp.launch(
        _rotations,
        dim=NUM,
        inputs=[wp.array(np.float32(r), dtype=wp.vec3), wp.array(np.float32(x), dtype=wp.vec3)],
        outputs=[rotated, jacobian],
    )

    def exp(r):
        quat = np.array([1.0, 0, 0, 0])
        mujoco.mju_quatIntegrate(quat, r, 1.0)
        return quat

    eps = 1e-6
    for i in range(NUM):
        want = np.zeros(3)
        mujoco.mju_rotVecQuat(want, x[i], exp(r[i]))
        assert np.abs(rotated.numpy()[i] - want).max() < 2e-6
        columns = []
        for e in np.eye(3):
            diff = np.zeros(3)
            mujoco.mju_subQuat(diff, exp(r[i] + eps * e), exp(r[i] - eps * e))
            columns.append(diff / (2 * eps))
        # columns are Jr e, so their products with x are Jr^T x; subQuat is in the body frame
        assert np.abs(jacobian.numpy()[i] - np.array(columns) @ x[i]).max() < 1e-5


def test_motion_and_force_cross_are_dual():
    """X . (Z x Y) = -Y . (Z x* X): the identity that sums over subtrees rest on."""
    rng = np.random.default_rng(2)
    z, y, x = (
        wp.array(np.float32(rng.normal(size=(NUM, 6))), dtype=wp.spatial_vector) for _ in range(3)
    )
    left, right = wp.zeros(NUM, dtype=float), wp.zeros(NUM, dtype=float)
    wp.launch(_dualities, dim=NUM, inputs=[z, y, x], outputs=[left, right])
    assert np.abs(left.numpy()).min() > 1e-4
    assert np.abs(left.numpy() - right.numpy()).max() < 1e-5


def test_gradient_and_tangent_are_inverse():
    """tangent -> gradient -> tangent gives the tangent back, for quaternions of unit norm."""
    mjm = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom size='1'/></body><body><joint type='slide'/>"
        "<joint type='ball'/><geom size='1'/></body></worldbody></mujoco>"
    )
    rng = np.random.default_rng(3)
    qpos = rng.normal(size=(NUM, mjm.nq))
    for adr in (3, 8):
        qpos[:, adr : adr + 4] /= np.linalg.norm(qpos[:, adr : adr + 4], axis=1, keepdims=True)
    given = rng.normal(size=(NUM, mjm.nv)).astype(np.float32)
    joints = [wp.array(a, dtype=int) for a in (mjm.jnt_type, mjm.jnt_qposadr, mjm.jnt_dofadr)]
    gradient = wp.zeros((NUM, mjm.nq), dtype=float)
    back = wp.zeros((NUM, mjm.nv), dtype=float)
    q = wp.array(np.float32(qpos), dtype=float)
    dim = (NUM, mjm.njnt)
    wp.launch(
        tangent.gradient_from_tangent,
        dim=dim,
        inputs=[*joints, q, wp.array(given, dtype=float)],
        outputs=[gradient],
    )
    wp.launch(tangent.tangent_from_gradient, dim=dim, inputs=[*joints, q, gradient], outputs=[back])
    assert np.abs(back.numpy() - given).max() < 1e-5
    # and the gradient is the one that moves along the tangent: g . dq = l . dtheta
    step = rng.normal(size=mjm.nv) * 1e-4
    for i in range(NUM):
        moved = qpos[i].copy()
        mujoco.mj_integratePos(mjm, moved, step, 1.0)
        slope = gradient.numpy()[i] @ (moved - qpos[i])
        assert abs(slope - given[i] @ step) < 1e-6


@pytest.mark.parametrize("n", [1, LARGEST])
def test_solve_vs_numpy(n):
    """The Hessian's upper triangle is read, and nothing else: the rest may hold anything."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(NUM, n, n))
    hessian = half @ half.transpose(0, 2, 1) + np.eye(n)
    rhs = rng.normal(size=(NUM, n))
    held = np.full((NUM, n + 2, n + 2), np.nan, dtype=np.float32)
    held[:, :n, :n] = np.where(np.triu(np.ones((n, n))), hessian, np.nan)
    mu = wp.zeros((NUM, n), dtype=float)
    none = wp.zeros((NUM, 0, 0), dtype=float)
    solve_vjp(n, wp.array(held, dtype=float), none, wp.array(np.float32(rhs), dtype=float), mu)
    left = np.einsum("wij,wj->wi", hessian, mu.numpy().astype(float)) - rhs
    scale = np.linalg.norm(hessian, axis=(1, 2)) * np.linalg.norm(mu.numpy(), axis=1)
    assert (np.linalg.norm(left, axis=1) / scale).max() < 1e-6
