"""Small systems with a symmetric positive definite matrix, one per thread, in its registers.

A thread that holds a whole matrix in registers needs no other thread and no memory between the
entries, which beats a tile of threads per matrix by far while the registers suffice. A compiler
puts an array into registers only where it has unrolled all loops over it. Warp would unroll them
in the source, which takes long to compile; so the loops are native code that tells the compiler.
"""

import functools
from typing import Any, NamedTuple

import warp as wp

LARGEST = 32  # rows; a larger matrix would spill most of itself from the registers

# native code of Warp cannot be a template: its sizes are constants in front of it
_TRANSPOSED = """
    wp::mat_t<n, n, float> a;
    UNROLL
    for (int i = 0; i < n; ++i) {
        UNROLL
        for (int j = 0; j <= i; ++j) a.data[i][j] = x.data[j * x.shape[1] + i];
    }
    return a;
"""
_GATHERED = """
    wp::mat_t<n, n, float> a;
    UNROLL
    for (int i = 0; i < n; ++i) {
        UNROLL
        for (int j = 0; j <= i; ++j) {
            const int k = address.data[i * n + j];
            const float entry = x.data[k < 0 ? 0 : k];  // read in any case: no branches
            a.data[i][j] = k < 0 ? 0.0f : entry;
        }
    }
    return a;
"""
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
        for (int k = 0; k < i; ++k) {
            UNROLL
            for (int c = 0; c < columns; ++c) x.data[i][c] -= f.data[i][k] * x.data[k][c];
        }
        UNROLL
        for (int c = 0; c < columns; ++c) x.data[i][c] *= f.data[i][i];
    }
    UNROLL
    for (int i = n - 1; i >= 0; --i) {
        UNROLL
        for (int c = 0; c < columns; ++c) x.data[i][c] *= f.data[i][i];
        UNROLL
        for (int k = 0; k < i; ++k) {
            UNROLL
            for (int c = 0; c < columns; ++c) x.data[k][c] -= f.data[i][k] * x.data[i][c];
        }
    }
    return x;
"""
_UNROLL = """
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
"""
# of the kernels that use these: small blocks spread few worlds over the whole device
BLOCK_DIM = 32
# and Warp unrolls their own loops, over rows
MODULE_OPTIONS = {"max_unroll": LARGEST}


class Cholesky(NamedTuple):
    """For systems of n rows: types, and functions for kernels. Arrays are contiguous.

    Of a symmetric or triangular matrix only the lower triangle is read and written.

    Attributes:
        matrix: type of a matrix, (n, n).
        sides: type of right-hand sides and solutions, one a column, (n, columns).
        transposed: the matrix from the upper triangle of an array, (n, n) or larger.
        gathered: the matrix of the entries of an array that stand at the given addresses, (n, n);
            0 where an address is negative.
        factor: `L` with `A = L L^T`; its diagonal holds reciprocals.
        solve: `x` with `L L^T x = b`.
    """

    matrix: Any
    sides: Any
    transposed: Any
    gathered: Any
    factor: Any
    solve: Any


@functools.cache
def cholesky(n: int, columns: int) -> Cholesky:
    """The types and functions for n rows and this number of right-hand sides."""
    matrix = wp.types.matrix(shape=(n, n), dtype=wp.float32)
    sides = wp.types.matrix(shape=(n, columns), dtype=wp.float32)

    def native(source: str) -> str:
        sizes = f"constexpr int n = {n}, columns = {columns};\n"
        return sizes + source.replace("UNROLL", _UNROLL)

    @wp.func_native(native(_TRANSPOSED))
    def transposed(x: wp.array2d[float]) -> matrix: ...

    @wp.func_native(native(_GATHERED))
    def gathered(x: wp.array[float], address: wp.array2d[int]) -> matrix: ...

    @wp.func_native(native(_FACTOR))
    def factor(a: matrix) -> matrix: ...

    @wp.func_native(native(_SOLVE))
    def solve(f: matrix, b: sides) -> sides: ...

    return Cholesky(matrix, sides, transposed, gathered, factor, solve)
