"""The implicit solve of the adjoint: `H mu = adj_qacc` with the retained Hessian of the solver.

In:  `solver_h` (upper triangle of H), or `solver_hfactor` (U with H = U^T U) where the solver's
     blocked path kept it (nv > 32); `adj_qacc` (nworld, nv).
Out: `mu` (nworld, nv).

One tile of threads per world. Derivation: `DERIVATION.md`, section 1.
"""

import functools

import warp as wp

wp.set_module_options({"enable_backward": False})

_BLOCK_DIM = 32


@functools.cache
def _solve_vjp(nv: int, has_factor: bool) -> wp.Kernel:
    """Kernel for one size; tile shapes are part of its type."""

    @wp.kernel(module="unique", enable_backward=False)
    def kernel(
        # Record:
        solver_in: wp.array3d[float],
        # In:
        adj_qacc_in: wp.array2d[float],
        # Out:
        mu_out: wp.array2d[float],
    ):
        worldid = wp.tid()
        factor = wp.tile_load(solver_in[worldid], shape=(nv, nv))
        if wp.static(not has_factor):
            wp.tile_cholesky_inplace(factor, fill_mode="upper")
        rhs = wp.tile_load(adj_qacc_in[worldid], shape=nv)
        wp.tile_store(mu_out[worldid], wp.tile_cholesky_solve(factor, rhs, fill_mode="upper"))

    return kernel


def solve_vjp(
    nv: int, solver_h: wp.array, solver_hfactor: wp.array, adj_qacc: wp.array, mu: wp.array
) -> None:
    """mu = H^-1 adj_qacc, all worlds."""
    has_factor = solver_hfactor.shape[1] > 0
    wp.launch_tiled(
        _solve_vjp(nv, has_factor),
        dim=[adj_qacc.shape[0]],
        inputs=[solver_hfactor if has_factor else solver_h, adj_qacc],
        outputs=[mu],
        block_dim=_BLOCK_DIM,
    )
