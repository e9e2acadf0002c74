"""The implicit solve of the adjoint: `H mu = adj_qacc` with the retained Hessian of the solver.

In:  `solver_h` (upper triangle of H), or `solver_hfactor` (U with H = U^T U) where the solver's
     blocked path kept it (nv > 32); `adj_qacc` (nworld, nv).
Out: `mu` (nworld, nv).

One thread per world does it all in registers; for more than `cholesky.LARGEST` dofs a tile of
threads does. Derivation: `DERIVATION.md`, section 1.
"""

import functools

import warp as wp

from .cholesky import BLOCK_DIM, LARGEST, MODULE_OPTIONS, cholesky

wp.set_module_options({"enable_backward": False})


@functools.cache
def _solve_vjp(nv: int) -> wp.Kernel:
    """Kernel for one size, of which its types are."""
    c = cholesky(nv, 1)
    sides, transposed, factor, solve = c.sides, c.transposed, c.factor, c.solve

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
        rhs = sides()
        for i in range(nv):
            rhs[i, 0] = adj_qacc_in[worldid, i]
        mu = solve(factor(transposed(solver_h_in[worldid])), rhs)
        for i in range(nv):
            mu_out[worldid, i] = mu[i, 0]

    return kernel


@functools.cache
def _tile_solve_vjp(nv: int, has_factor: bool) -> wp.Kernel:
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
    nworld, has_factor = adj_qacc.shape[0], solver_hfactor.shape[1] > 0
    if nv <= LARGEST and not has_factor:
        wp.launch(
            _solve_vjp(nv),
            dim=nworld,
            inputs=[solver_h, adj_qacc],
            outputs=[mu],
            block_dim=BLOCK_DIM,
        )
        return
    wp.launch_tiled(
        _tile_solve_vjp(nv, has_factor),
        dim=[nworld],
        inputs=[solver_hfactor if has_factor else solver_h, adj_qacc],
        outputs=[mu],
        block_dim=BLOCK_DIM,
    )
