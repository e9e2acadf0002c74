"""Six-dimensional vectors: twists `[angular; linear]` and wrenches `[torque; force]`.

Both are taken about one point `o` in world axes (here: the current centre of mass of the kinematic
tree, held constant by the adjoint). `linear` is the velocity of the body point that coincides with
`o`. `dot(wrench, twist)` is a power. Symbols and equations are those of `DERIVATION.md`, section 0.
"""

import warp as wp

wp.set_module_options({"enable_backward": False})

vec5 = wp.types.vector(length=5, dtype=wp.float32)
vec6 = wp.types.vector(length=6, dtype=wp.float32)
vec7 = wp.types.vector(length=7, dtype=wp.float32)
vec10 = wp.types.vector(length=10, dtype=wp.float32)
vec12 = wp.types.vector(length=12, dtype=wp.float32)
mat66 = wp.types.matrix(shape=(6, 6), dtype=wp.float32)


@wp.func
def vec3_at(x: wp.array2d[float], worldid: int, i: int) -> wp.vec3:
    """Three numbers of a world from column i."""
    return wp.vec3(x[worldid, i], x[worldid, i + 1], x[worldid, i + 2])


@wp.func
def vec4_at(x: wp.array2d[float], worldid: int, i: int) -> wp.vec4:
    """Four numbers of a world from column i."""
    return wp.vec4(x[worldid, i], x[worldid, i + 1], x[worldid, i + 2], x[worldid, i + 3])


@wp.func
def ang(z: wp.spatial_vector) -> wp.vec3:
    """The angular part of a twist, or the torque of a wrench."""
    return wp.vec3(z[0], z[1], z[2])


@wp.func
def lin(z: wp.spatial_vector) -> wp.vec3:
    """The linear part of a twist, or the force of a wrench."""
    return wp.vec3(z[3], z[4], z[5])


@wp.func
def motion_cross(z: wp.spatial_vector, y: wp.spatial_vector) -> wp.spatial_vector:
    """`Z x Y`: the rate of change of a twist `Y` that moves with the twist `Z`."""
    return wp.spatial_vector(
        wp.cross(ang(z), ang(y)), wp.cross(ang(z), lin(y)) + wp.cross(lin(z), ang(y))
    )


@wp.func
def force_cross(z: wp.spatial_vector, x: wp.spatial_vector) -> wp.spatial_vector:
    """`Z x* X`: the rate of change of a wrench `X` that moves with the twist `Z`."""
    return wp.spatial_vector(
        wp.cross(ang(z), ang(x)) + wp.cross(lin(z), lin(x)), wp.cross(ang(z), lin(x))
    )


@wp.func
def velocity_at(z: wp.spatial_vector, p: wp.vec3) -> wp.vec3:
    """Velocity of the body point at `p`, measured from `o`."""
    return lin(z) + wp.cross(ang(z), p)


@wp.func
def wrench(p: wp.vec3, force: wp.vec3, torque: wp.vec3) -> wp.spatial_vector:
    """The wrench about `o` of a force at `p` (measured from `o`) and a free torque."""
    return wp.spatial_vector(torque + wp.cross(p, force), force)


@wp.func
def inertia_mul(i: vec10, z: wp.spatial_vector) -> wp.spatial_vector:
    """`I Z` for MuJoCo's `cinert`: (xx, yy, zz, xy, xz, yz, mass * offset, mass) about `o`."""
    w = ang(z)
    v = lin(z)
    mc = wp.vec3(i[6], i[7], i[8])
    rot = wp.vec3(
        i[0] * w[0] + i[3] * w[1] + i[4] * w[2],
        i[3] * w[0] + i[1] * w[1] + i[5] * w[2],
        i[4] * w[0] + i[5] * w[1] + i[2] * w[2],
    )
    return wp.spatial_vector(rot + wp.cross(mc, v), i[9] * v - wp.cross(mc, w))


@wp.func
def right_jacobian_transposed(r: wp.vec3, x: wp.vec3) -> wp.vec3:
    """`Jr(r)^T x`, where `Exp(r + dr) = Exp(r) Exp(Jr(r) dr)`."""
    angle2 = wp.dot(r, r)
    # series below 0.03 rad: the closed forms cancel in single precision
    a = 0.5 - angle2 / 24.0
    b = 1.0 / 6.0 - angle2 / 120.0
    if angle2 > 1.0e-3:
        angle = wp.sqrt(angle2)
        half = wp.sin(0.5 * angle)
        a = 2.0 * half * half / angle2
        b = (angle - wp.sin(angle)) / (angle2 * angle)
    rx = wp.cross(r, x)
    return x + a * rx + b * wp.cross(r, rx)


@wp.func
def bortz(x2: float) -> float:
    """`c(x^2) = (1 - (x/2) cot(x/2)) / x^2`, with which `Jr(r)^-1 = 1 + [r]/2 + c(r^2) [r]^2`."""
    if x2 <= 0.3:  # the closed form cancels in single precision
        return 1.0 / 12.0 + x2 * (1.0 / 720.0 + x2 * (1.0 / 30240.0 + x2 / 1209600.0))
    half = 0.5 * wp.sqrt(x2)
    return (1.0 - half / wp.tan(half)) / x2


@wp.func
def inverse_right_jacobian(r: wp.vec3, x: wp.vec3) -> wp.vec3:
    """`Jr(r)^-1 x`; its transpose is `inverse_right_jacobian(-r, x)`."""
    rx = wp.cross(r, x)
    return x + 0.5 * rx + bortz(wp.dot(r, r)) * wp.cross(r, rx)


@wp.func
def rotate_by(r: wp.vec3, x: wp.vec3) -> wp.vec3:
    """`Exp(r) x`: `x` rotated about `r` by `|r|` radians."""
    angle = wp.length(r)
    s = 1.0 - angle * angle / 6.0
    if angle > 1.0e-3:
        s = wp.sin(angle) / angle
    half = 0.5
    if angle > 1.0e-3:
        h = wp.sin(0.5 * angle) / angle
        half = 2.0 * h * h
    rx = wp.cross(r, x)
    return x + s * rx + half * wp.cross(r, rx)
