"""The solver with the Hessian at its solution kept.

`mujoco_warp.solve` allocates a workspace, iterates, and drops it. `solve_and_retain` runs the same
solver on a workspace whose Hessian `h`, Cholesky factor `hfactor` (nv > 32 only) and residual
`Jaref = J qacc - aref` belong to the caller. At the solution `h` is, in its upper triangle,

    H = M + J^T D_active J  (+ the curvature of elliptic cones that slide).

The integrator `discrete` has M + h B + h^2 K in place of M; its diagonal is that of `Data.qH`.

The CG solver has no Hessian: it is assembled and factored once, at the solution. Model and data
are made for Newton (whose paddings and lists of rows that takes), and only the solver is told that
it is CG.

With Newton and pyramidal cones the solver updates `h` row by row as rows become active or inactive.
Taking a stiff row out again leaves the rounding error of that row behind, which can exceed the
inertia of a light body. `_hessian_error` finds such worlds on the device, by the diagonal that `M`
and the active rows must give, and `h` is assembled anew in those worlds alone.
"""

import copy
import dataclasses

import mujoco
import mujoco_warp as mjw
import warp as wp

from . import private

wp.set_module_options({"enable_backward": False})

_QUADRATIC = wp.constant(int(mujoco.mjtConstraintState.mjCNSTRSTATE_QUADRATIC))
_TOLERANCE = wp.constant(1.0e-5)  # relative, of a diagonal entry: a hundred times single precision
# of the workspace: what CG needs and Newton leaves empty
_CG_ARRAYS = ("Mgrad", "prev_grad", "prev_Mgrad", "beta", "solve_ld_scratch", "tw_diag")


class Solver:
    """The solver's workspace, and the model that it sees.

    Args:
        m: the model as made for the Newton solver.
        d: its data.
        solver: Newton or CG, which is to solve.

    Attributes:
        m: the model with `solver` in its options.
        has_hessian: whether the solver makes one itself; CG does not.
        ctx: workspace of either solver and of the assembly of the Hessian.
    """

    def __init__(self, m: mjw.Model, d: mjw.Data, solver: mujoco.mjtSolver):
        self.m, self.ctx = m, private.create_solver_context(m, d)
        self.has_hessian = solver != mujoco.mjtSolver.mjSOL_CG
        if not self.has_hessian:
            self.m = dataclasses.replace(m, opt=dataclasses.replace(m.opt, solver=int(solver)))
            own = private.create_solver_context(self.m, d)
            arrays = {name: getattr(own, name) for name in _CG_ARRAYS}
            self.ctx = dataclasses.replace(self.ctx, **arrays)


def newton_model(mjm: mujoco.MjModel) -> mujoco.MjModel:
    """The model that mujoco_warp's Model and Data are to be made from."""
    mjm = copy.copy(mjm)
    mjm.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return mjm


def make_retained(solver: Solver) -> dict[str, wp.array]:
    """Fresh arrays for what a record keeps of the workspace."""
    ctx = solver.ctx
    return {
        "solver_h": wp.zeros_like(ctx.h),
        "solver_hfactor": wp.zeros_like(ctx.hfactor),
        "solver_Jaref": wp.zeros_like(ctx.Jaref),
    }


@wp.kernel
def _hessian_error(
    # Model:
    is_sparse: bool,
    M_rownnz: wp.array[int],
    M_rowadr: wp.array[int],
    # Data in:
    nefc_in: wp.array[int],
    M_in: wp.array2d[float],
    efc_J_rownnz_in: wp.array2d[int],
    efc_J_rowadr_in: wp.array2d[int],
    efc_J_colind_in: wp.array3d[int],
    efc_J_in: wp.array3d[float],
    efc_D_in: wp.array2d[float],
    efc_state_in: wp.array2d[int],
    h_in: wp.array3d[float],
    # Out:
    done_out: wp.array[bool],
):
    """done = the diagonal of h is that of M + J^T D_active J, to rounding."""
    worldid, dofid = wp.tid()
    nefc = wp.min(nefc_in[worldid], efc_D_in.shape[1])
    diag = M_in[worldid, M_rowadr[dofid] + M_rownnz[dofid] - 1]
    for efcid in range(nefc):
        if efc_state_in[worldid, efcid] != _QUADRATIC:
            continue
        J = float(0.0)
        if is_sparse:
            adr = efc_J_rowadr_in[worldid, efcid]
            for k in range(adr, adr + efc_J_rownnz_in[worldid, efcid]):
                if efc_J_colind_in[worldid, 0, k] == dofid:
                    J = efc_J_in[worldid, 0, k]
        else:
            J = efc_J_in[worldid, efcid, dofid]
        diag += efc_D_in[worldid, efcid] * J * J
    if wp.abs(h_in[worldid, dofid, dofid] - diag) > _TOLERANCE * diag:
        done_out[worldid] = False


def solve(d: mjw.Data, solver: Solver) -> None:
    """Solves for `d.qacc` like `mujoco_warp.solve`, on a workspace that is reused."""
    private.solve(solver.m, d, solver.ctx)


def solve_and_retain(
    m: mjw.Model,
    d: mjw.Data,
    solver: Solver,
    solver_h: wp.array,
    solver_hfactor: wp.array,
    solver_Jaref: wp.array,
) -> None:
    """Like `solve`, with h, hfactor and Jaref left in the given arrays."""
    ctx = dataclasses.replace(solver.ctx, h=solver_h, hfactor=solver_hfactor, Jaref=solver_Jaref)
    private.solve(solver.m, d, ctx)
    if not solver.has_hessian:
        ctx.done.zero_()
        private.update_gradient(m, d, ctx)
        return
    if not private.use_incremental(m):
        return  # elliptic cones: the solver assembles h anew in every iteration
    ctx.done.fill_(True)
    wp.launch(
        _hessian_error,
        dim=(d.nworld, m.nv),
        inputs=[
            m.is_sparse,
            m.M_rownnz,
            m.M_rowadr,
            d.nefc,
            d.qH if m.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE else d.M,
            d.efc.J_rownnz,
            d.efc.J_rowadr,
            d.efc.J_colind,
            d.efc.J,
            d.efc.D,
            d.efc.state,
            solver_h,
        ],
        outputs=[ctx.done],
    )
    # assembles and factors h where done is False; elsewhere its kernels return at once
    private.update_gradient(m, d, ctx)
