"""Rows of a contact in the basis of its frame: what their forces leave on its velocities.

A contact has six coordinates: the relative velocity of the two bodies along `(n, e2, e3)` at its
point, then their relative rotation about the three. A pyramidal cone has rows `n +- friction_k
e_k`, an elliptic one a row per coordinate, coupled where the contact slides.

In:  the record's `D`, `force`, `Jaref` of the rows, `y = J mu` and `v = J qvel` in the basis of the
     frame, and the coefficients of `constraint_vjp`.
Out: `Rows`, by which `contact_vjp` makes wrenches.

Derivation: `DERIVATION.md`, section 1.
"""

import warp as wp

from .constraint_vjp import RowCoefficients, position_cotangent
from .spatial import vec5, vec6

wp.set_module_options({"enable_backward": False})


@wp.struct
class Rows:
    """Coefficients of one contact in the basis of its frame."""

    mu: vec6  # of J mu: -f
    a: vec6  # of J qacc: g
    v: vec6  # of J qvel: b g
    kappa: float  # of the distance


@wp.func
def row_count(elliptic: bool, dim: int) -> int:
    """How many rows a contact has."""
    if elliptic:
        return dim
    return wp.max(1, 2 * (dim - 1))


@wp.func
def in_frame(n: wp.vec3, e2: wp.vec3, e3: wp.vec3, d: wp.vec3, w: wp.vec3) -> vec6:
    """A relative velocity and rotation in the basis of a contact's frame."""
    return vec6(
        wp.dot(n, d), wp.dot(e2, d), wp.dot(e3, d), wp.dot(n, w), wp.dot(e2, w), wp.dot(e3, w)
    )


@wp.func
def pyramidal_rows(
    dim: int,
    friction: vec5,
    first: int,
    D: wp.array[float],
    force: wp.array[float],
    Jaref: wp.array[float],
    y: vec6,
    v: vec6,
    c: RowCoefficients,
    adhesion: float,
) -> Rows:
    """Rows `n +- friction_k e_k`, active where the residual is negative (dim 1: the normal)."""
    rows = Rows()
    nrow = row_count(False, dim)
    for i in range(nrow):
        k = i // 2 + 1
        mu_k = float(0.0)
        if dim > 1:
            mu_k = friction[k - 1] * (1.0 - 2.0 * float(i & 1))
        if Jaref[first + i] < 0.0:
            y_row = y[0]
            v_row = v[0]
            if dim > 1:
                y_row += mu_k * y[k]
                v_row += mu_k * v[k]
            f = force[first + i]
            g = D[first + i] * y_row
            gw = c.vel * g
            rows.mu[0] -= f
            rows.a[0] += g
            rows.v[0] += gw
            if dim > 1:
                rows.mu[k] -= mu_k * f
                rows.a[k] += mu_k * g
                rows.v[k] += mu_k * gw
            # adhesion adds to aref its share of the force divided by D
            rows.kappa += position_cotangent(c, v_row, g, y_row * (f - adhesion / float(nrow)))
    return rows


@wp.func
def elliptic_rows(
    dim: int,
    friction: vec5,
    impratio_invsqrt: float,
    first: int,
    D: wp.array[float],
    force: wp.array[float],
    Jaref: wp.array[float],
    y: vec6,
    v: vec6,
    c: RowCoefficients,
    adhesion: float,
) -> Rows:
    """Normal and friction rows, coupled by the cone where the contact slides."""
    rows = Rows()
    mu = friction[0] * impratio_invsqrt
    scale = vec6(0.0)
    scale[0] = mu
    tangent2 = float(0.0)
    for k in range(1, dim):
        scale[k] = friction[k - 1]
        u = Jaref[first + k] * scale[k]
        tangent2 += u * u
    normal = Jaref[first] * mu
    tangent = wp.sqrt(tangent2)

    if normal >= mu * tangent:
        return rows
    g = vec6(0.0)
    if mu * normal + tangent <= 0.0:
        for k in range(dim):
            g[k] = D[first + k] * y[k]
    else:
        # Hessian of the squared distance to the cone, applied to scaled y
        dm = D[first] / (mu * mu * (1.0 + mu * mu))
        ty = float(0.0)
        for k in range(1, dim):
            ty += Jaref[first + k] * scale[k] / tangent * (scale[k] * y[k])
        curvature = -dm * (normal - mu * tangent) * mu / tangent
        g[0] = scale[0] * dm * (scale[0] * y[0] - mu * ty)
        for k in range(1, dim):
            t = Jaref[first + k] * scale[k] / tangent
            along = dm * mu * (mu * ty - scale[0] * y[0])
            g[k] = scale[k] * (t * along + curvature * (scale[k] * y[k] - t * ty))
    yf = float(0.0)
    for k in range(dim):
        f = force[first + k]
        rows.mu[k] = -f
        rows.a[k] = g[k]
        rows.v[k] = wp.where(k > 0, c.vel_friction, c.vel) * g[k]
        yf += y[k] * f
    rows.kappa = position_cotangent(c, v[0], g[0], yf - adhesion * g[0] / D[first])
    return rows
