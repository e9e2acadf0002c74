"""The implicit solve of the adjoint: `H mu = adj_qacc` with the retained Hessian of the solver.

In:  `solver_h` (upper triangle of H), or `solver_hfactor` (U with H = U^T U) where the solver's
     blocked path kept it (nv > 32); `adj_qacc` (nworld, nv).
Out: `mu` (nworld, nv).

One thread per world factors H and solves; where there is a factor, a tile of threads per world
solves. Derivation: `DERIVATION.md`, section 1.
"""

import functools

import warp as wp

from .cholesky import MODULE_OPTIONS, cholesky

wp.set_module_options({"enable_backward": False})

_BLOCK_DIM = 32


@functools.cache
def _solve_vjp(nv: int) -> wp.Kernel:
    """Kernel for one size, of which its types are."""
    matrix, vector, factor, solve = cholesky(nv)

    @wp.kernel(module="unique", enable_backward=False, module_options=MODULE_OPTIONS)
    def kernel(
        # Record:
        solver_h_in: wp.array3d[float],
        # In:
        adj_qacc_in: wp.array2d[float],
        # Out:
        mu_out: wp.array2d[float],
    ):
        worldid = wp.tid()
        h = matrix()
        rhs = vector()
        for i in range(nv):
            rhs[i] = adj_qacc_in[worldid, i]
            for j in range(i + 1):
                h[i, j] = solver_h_in[worldid, j, i]
        mu = solve(factor(h), rhs)
        for i in range(nv):
            mu_out[worldid, i] = mu[i]

    return kernel


@functools.cache
def _factored_solve_vjp(nv: int) -> wp.Kernel:
    """Kernel for one size; tile shapes are part of its type."""

    @wp.kernel(module="unique", enable_backward=False)
    def kernel(
        # Record:
        solver_hfactor_in: wp.array3d[float],
        # In:
        adj_qacc_in: wp.array2d[float],
        # Out:
        mu_out: wp.array2d[float],
    ):
        worldid = wp.tid()
        factor = wp.tile_load(solver_hfactor_in[worldid], shape=(nv, nv))
        rhs = wp.tile_load(adj_qacc_in[worldid], shape=nv)
        wp.tile_store(mu_out[worldid], wp.tile_cholesky_solve(factor, rhs, fill_mode="upper"))

    return kernel


def solve_vjp(
    nv: int, solver_h: wp.array, solver_hfactor: wp.array, adj_qacc: wp.array, mu: wp.array
) -> None:
    """mu = H^-1 adj_qacc, all worlds."""
    nworld = adj_qacc.shape[0]
    if solver_hfactor.shape[1] > 0:
        wp.launch_tiled(
            _factored_solve_vjp(nv),
            dim=[nworld],
            inputs=[solver_hfactor, adj_qacc],
            outputs=[mu],
            block_dim=_BLOCK_DIM,
        )
        return
    wp.launch(
        _solve_vjp(nv),
        dim=nworld,
        inputs=[solver_h, adj_qacc],
        outputs=[mu],
        block_dim=_BLOCK_DIM,  # small blocks, so that few worlds are spread over the device
    )
