"""A tree that is one free body: its gyroscopic force, which some integrators treat implicitly.

In the frame of the body, with rotation `R`, angular velocity `w`, mass offset `m s` and inertia
`I` about the joint, the force is `c = [R w x (w x m s); w x I w]`, and

    dc/dv = [0, -R ([w x m s] + [w] [m s]); 0, [w] I - [I w]]

a 6 x 6 matrix that is not symmetric. Derivation: `DERIVATION.md`, section 6.
"""

import warp as wp

from .spatial import mat66, vec6

wp.set_module_options({"enable_backward": False})


@wp.struct
class FreeBody:
    """What its gyroscopic force depends on, in the frame of the body."""

    rot: wp.mat33
    omega: wp.vec3
    ms: wp.vec3
    inertia: wp.mat33


@wp.func
def inertia_block(
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    M_colind: wp.array[int],
    M: wp.array[float],
    adr: int,
) -> mat66:
    """The block of M of the six dofs from `adr`."""
    m = mat66(0.0)
    for r in range(6):
        start = M_rowadr[adr + r]
        for k in range(M_rownnz[adr + r]):
            c = M_colind[start + k] - adr
            m[r, c] = M[start + k]
            m[c, r] = M[start + k]
    return m


@wp.func
def free_body(m: mat66, rot: wp.mat33, armature: wp.vec3, omega: wp.vec3) -> FreeBody:
    """Read off the inertia matrix, from whose rotations the armature is taken."""
    coupling = wp.mat33(0.0)
    inertia = wp.mat33(0.0)
    for r in range(3):
        for c in range(3):
            coupling[r, c] = m[r, 3 + c]
            inertia[r, c] = m[3 + r, 3 + c]
        inertia[r, r] -= armature[r]
    k33 = -(wp.transpose(rot) @ coupling)
    out = FreeBody()
    out.rot = rot
    out.omega = omega
    out.ms = wp.vec3(k33[2, 1], k33[0, 2], k33[1, 0])
    out.inertia = inertia
    return out


@wp.func
def gyroscopic_derivative(f: FreeBody) -> mat66:
    """`dc/dv`."""
    lin = -(f.rot @ (wp.skew(wp.cross(f.omega, f.ms)) + wp.skew(f.omega) @ wp.skew(f.ms)))
    gyro = wp.skew(f.omega) @ f.inertia - wp.skew(f.inertia @ f.omega)
    out = mat66(0.0)
    for r in range(3):
        for c in range(3):
            out[r, 3 + c] = lin[r, c]
            out[3 + r, 3 + c] = gyro[r, c]
    return out


@wp.func
def gyroscopic_derivative_vjp(f: FreeBody, w: vec6, a: vec6) -> vec6:
    """Derivative of `w^T (dc/dv) a` in the rotation (first three) and in the angular velocity."""
    y = wp.transpose(f.rot) @ wp.vec3(w[0], w[1], w[2])
    wr = wp.vec3(w[3], w[4], w[5])
    t = wp.vec3(a[3], a[4], a[5])
    force = wp.cross(t, wp.cross(f.omega, f.ms)) + wp.cross(f.omega, wp.cross(t, f.ms))
    dq = wp.cross(force, y)
    dv = (
        wp.cross(f.ms, wp.cross(y, t))
        + wp.cross(wp.cross(t, f.ms), y)
        + f.inertia @ wp.cross(wr, t)
        + wp.cross(f.inertia @ t, wr)
    )
    return vec6(dq[0], dq[1], dq[2], dv[0], dv[1], dv[2])


@wp.func
def solve6(a: mat66, b: vec6) -> vec6:
    """Solves `a x = b` by elimination with partial pivoting."""
    x = b
    for col in range(6):
        pivot = int(col)
        for r in range(col + 1, 6):
            if wp.abs(a[r, col]) > wp.abs(a[pivot, col]):
                pivot = r
        if pivot != col:
            for c in range(6):
                swap = a[col, c]
                a[col, c] = a[pivot, c]
                a[pivot, c] = swap
            swap_x = x[col]
            x[col] = x[pivot]
            x[pivot] = swap_x
        for r in range(col + 1, 6):
            f = a[r, col] / a[col, col]
            for c in range(6):
                a[r, c] -= f * a[col, c]
            x[r] -= f * x[col]
    for k in range(6):
        r = 5 - k
        s = x[r]
        for c in range(r + 1, 6):
            s -= a[r, c] * x[c]
        x[r] = s / a[r, r]
    return x
