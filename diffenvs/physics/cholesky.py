"""Small systems with a symmetric positive definite matrix, one per thread, in its registers.

A thread that holds a whole matrix in registers needs no other thread and no memory between the
entries, which beats a tile of threads per matrix by far while the registers suffice. A compiler
puts an array into registers only where it has unrolled all loops over it. Warp would unroll them
in the source, which takes long to compile; so the loops are native code that tells the compiler.
"""

import functools

import warp as wp

LARGEST = 32  # rows; a larger matrix would spill most of itself from the registers

# native code of Warp cannot be a template: `n` is a constant in front of it
_FACTOR = """
    auto f = a;
    UNROLL
    for (int i = 0; i < n; ++i) {
        UNROLL
        for (int j = 0; j <= i; ++j) {
            float s = f.data[i][j];
            UNROLL
            for (int k = 0; k < j; ++k) s -= f.data[i][k] * f.data[j][k];
            f.data[i][j] = j < i ? s * f.data[j][j] : 1.0f / wp::sqrt(s);
        }
    }
    return f;
"""
_SOLVE = """
    auto x = b;
    UNROLL
    for (int i = 0; i < n; ++i) {
        UNROLL
        for (int k = 0; k < i; ++k) x.c[i] -= f.data[i][k] * x.c[k];
        x.c[i] *= f.data[i][i];
    }
    UNROLL
    for (int i = n - 1; i >= 0; --i) {
        x.c[i] *= f.data[i][i];
        UNROLL
        for (int k = 0; k < i; ++k) x.c[k] -= f.data[i][k] * x.c[i];
    }
    return x;
"""
_UNROLL = """
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
"""
# for the kernels that use these: their loops are the compiler's to unroll, too
MODULE_OPTIONS = {"max_unroll": 1}


@functools.cache
def cholesky(n: int) -> tuple[type, type, wp.Function, wp.Function]:
    """For systems of n rows: the types of matrix and vector, `factor(A)` and `solve(L, b)`.

    Only the lower triangle of `A` is read, and only that of `L` is meaningful, with `A = L L^T`;
    the diagonal of `L` holds reciprocals.
    """
    matrix = wp.types.matrix(shape=(n, n), dtype=wp.float32)
    vector = wp.types.vector(length=n, dtype=wp.float32)

    def native(source: str) -> str:
        return f"constexpr int n = {n};\n" + source.replace("UNROLL", _UNROLL)

    @wp.func_native(native(_FACTOR))
    def factor(a: matrix) -> matrix: ...

    @wp.func_native(native(_SOLVE))
    def solve(f: matrix, b: vector) -> vector: ...

    return matrix, vector, factor, solve
