"""The Hessian that the solver leaves behind, against the one assembled from the constraint rows."""

import dataclasses
import inspect
import pathlib

import feature_models
import mujoco
import mujoco_warp as mjw
import numpy as np
import pytest
import warp as wp
from test_step_vjp import NUM_STATES, check, load_gymnasium

from diffenvs.physics import Physics, private, solver_hessian
from diffenvs.physics.finite_diff import contact_rich_states


def _load(name: str, cone: str, solver: str = "NEWTON") -> mujoco.MjModel:
    load = feature_models.load if name in feature_models.MODELS else load_gymnasium
    mjm = load(name, "implicitfast", cone)
    mjm.opt.solver = mujoco.mjtSolver.__members__[f"mjSOL_{solver}"]
    return mjm


def _recorded(mjm: mujoco.MjModel, n: int, disable: int = 0):
    """n contact-rich worlds after one recorded step, with an option disabled."""
    if mjm.nv > 32:
        states = feature_models.states(mjm, n)
    else:
        states = contact_rich_states(mjm, n, seed=0)
    mjm.opt.disableflags |= disable
    physics = Physics(mjm, n)
    state, out, record = physics.make_state(), physics.make_state(), physics.make_record()
    state.qpos.assign(states.qpos.astype(np.float32))
    state.qvel.assign(states.qvel.astype(np.float32))
    ctrl = wp.array(states.ctrl.astype(np.float32), dtype=float, device=physics.device)
    physics.launch_step(state, ctrl, out, record)
    physics.check_overflow()
    return physics, record


def _inertia(m: mjw.Model, d: mjw.Data, worldid: int) -> np.ndarray:
    """M of one world, dense."""
    M = np.zeros((m.nv, m.nv))
    colind, rownnz, rowadr = m.M_colind.numpy(), m.M_rownnz.numpy(), m.M_rowadr.numpy()
    values = d.M.numpy()[worldid]
    for i in range(m.nv):
        for k in range(rowadr[i], rowadr[i] + rownnz[i]):
            M[i, colind[k]] = M[colind[k], i] = values[k]
    return M


def _jacobian(m: mjw.Model, d: mjw.Data, worldid: int, nefc: int) -> np.ndarray:
    """The constraint rows of one world, dense."""
    if not m.is_sparse:
        return d.efc.J.numpy()[worldid, :nefc, : m.nv].astype(float)
    J = np.zeros((nefc, m.nv))
    for i in range(nefc):
        adr = d.efc.J_rowadr.numpy()[worldid, i]
        k = slice(adr, adr + d.efc.J_rownnz.numpy()[worldid, i])
        J[i, d.efc.J_colind.numpy()[worldid, 0, k]] = d.efc.J.numpy()[worldid, 0, k]
    return J


def _cone_curvature(d: mjw.Data, conid: int, D0: float, r: np.ndarray, mu: float) -> np.ndarray:
    """Second derivative of a contact's cost in its residuals, by differences of its gradient."""
    fri = np.r_[mu, d.contact.friction.numpy()[conid][: len(r) - 1]].astype(float)

    def gradient(r):
        u = r * fri
        normal, tangent = u[0], np.linalg.norm(u[1:])
        gap = normal - mu * tangent
        slope = np.r_[1.0, -mu * u[1:] / tangent]
        return D0 / (mu**2 * (1 + mu**2)) * gap * slope * fri

    eps = 1e-5 * np.linalg.norm(r)
    columns = [(gradient(r + eps * e) - gradient(r - eps * e)) / (2 * eps) for e in np.eye(len(r))]
    return np.array(columns)


def _assembled(physics: Physics, record, worldid: int) -> np.ndarray:
    """M + J^T D_active J, and the curvature of sliding elliptic cones."""
    m, s = physics.m, record.substeps[-1]
    d = s.d
    nefc = int(d.nefc.numpy()[worldid])
    J = _jacobian(m, d, worldid, nefc)
    D, r = d.efc.D.numpy()[worldid, :nefc], s.solver_Jaref.numpy()[worldid, :nefc].astype(float)
    state = d.efc.state.numpy()[worldid, :nefc]
    active = state == int(mujoco.mjtConstraintState.mjCNSTRSTATE_QUADRATIC)
    H = _inertia(m, d, worldid) + J[active].T @ (D[active, None] * J[active])
    i = 0
    while i < nefc:
        if state[i] == int(mujoco.mjtConstraintState.mjCNSTRSTATE_CONE):
            conid = d.efc.id.numpy()[worldid, i]
            rows = slice(i, i + d.contact.dim.numpy()[conid])
            mu = d.contact.friction.numpy()[conid][0] * m.opt.impratio_invsqrt.numpy()[0]
            C = _cone_curvature(d, conid, float(D[i]), r[rows], float(mu))
            H += J[rows].T @ C @ J[rows]
            i = rows.stop
        else:
            i += 1
    return H


def _relative_errors(physics: Physics, record) -> np.ndarray:
    """Of the retained Hessian, per world, in the scale of the diagonal."""
    errors = []
    for worldid in range(physics.nworld):
        H = _assembled(physics, record, worldid)
        h = record.substeps[-1].solver_h.numpy()[worldid][: physics.nv, : physics.nv]
        scale = np.sqrt(np.outer(np.diag(H), np.diag(H)))
        errors.append(np.abs(np.triu(h - H) / scale).max())
    return np.array(errors)


@pytest.mark.parametrize("solver", ["NEWTON", "CG"])
@pytest.mark.parametrize("cone", ["pyramidal", "elliptic"])
@pytest.mark.parametrize("name", ["ant", "crawler"])
def test_retained_hessian_vs_assembled(name, cone, solver):
    """h = M + J^T D_active J at the solution, in every world, for nv on both sides of 32."""
    physics, record = _recorded(_load(name, cone, solver), 40)
    assert (physics.nv > 32) == (name == "crawler")
    nefc = record.substeps[-1].d.nefc.numpy()
    assert (nefc > 4).sum() >= 15
    assert _relative_errors(physics, record).max() < 2e-5


def test_retained_factor_vs_hessian():
    """Above 32 dofs the retained factor U belongs to the retained Hessian: U^T U = H."""
    physics, record = _recorded(feature_models.load("crawler", "implicitfast"), 40)
    s = record.substeps[-1]
    nv = physics.nv
    for worldid in range(physics.nworld):
        U = np.triu(s.solver_hfactor.numpy()[worldid][:nv, :nv].astype(float))
        h = s.solver_h.numpy()[worldid][:nv, :nv].astype(float)
        scale = np.sqrt(np.outer(np.diag(h), np.diag(h)))
        assert np.abs(np.triu(U.T @ U - h) / scale).max() < 2e-5


@pytest.mark.parametrize("solver", ["NEWTON", "CG"])
def test_retained_hessian_without_constraints(solver):
    """Where constraints are disabled, h is the inertia matrix."""
    disable = int(mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)
    physics, record = _recorded(_load("ant", "pyramidal", solver), 40, disable)
    assert not record.substeps[-1].d.nefc.numpy().any()
    assert _relative_errors(physics, record).max() < 1e-6


@pytest.mark.parametrize(("name", "cone"), [("arm", "pyramidal"), ("ant", "elliptic")])
def test_step_vjp_vs_central_differences_cg(name, cone):
    """The adjoint of a step that the CG solver made agrees with central differences."""
    mjm = _load(name, cone, "CG")
    states = feature_models.states if name in feature_models.MODELS else contact_rich_states
    check(mjm, states(mjm, NUM_STATES, seed=1))


def test_recorded_step_equals_step_rk4_cg():
    """All four stages take the CG solver, whether they are recorded or not."""
    mjm = _load("ant", "pyramidal", "CG")
    mjm.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4
    states = contact_rich_states(mjm, 20, seed=0)
    physics = Physics(mjm, 20)
    state, plain, recorded = (physics.make_state() for _ in range(3))
    state.qpos.assign(states.qpos.astype(np.float32))
    state.qvel.assign(states.qvel.astype(np.float32))
    ctrl = wp.array(states.ctrl.astype(np.float32), dtype=float, device=physics.device)
    physics.launch_step(state, ctrl, plain)
    physics.launch_step(state, ctrl, recorded, physics.make_record())
    # the last bits tell CG from Newton; on CUDA rows are ordered by atomics
    rtol = 0 if physics.device.is_cpu else 1e-3
    for given, expected in zip(plain.arrays(), recorded.arrays(), strict=True):
        np.testing.assert_allclose(given.numpy(), expected.numpy(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["ant", "crawler"])
def test_stale_hessian_is_rebuilt(name, monkeypatch):
    """A Hessian that is off in some worlds is recognised on the device and assembled anew there."""
    stock = private.solve
    spoiled = np.arange(40) % 3 == 0

    def spoil(m: mjw.Model, d: mjw.Data, ctx) -> None:
        stock(m, d, ctx)
        h = ctx.h.numpy()
        h[spoiled] *= 1.01
        ctx.h.assign(h)

    monkeypatch.setattr(private, "solve", spoil)
    physics, record = _recorded(_load(name, "pyramidal"), 40)
    assert _relative_errors(physics, record).max() < 2e-5
    # and nothing else is touched
    rebuilt = ~physics._solver.ctx.done.numpy()
    assert rebuilt[spoiled].all()
    assert rebuilt[~spoiled].mean() < 0.2


# the arguments by position, those of kernels as well
ARGUMENTS = {
    "advance": "m d qacc qvel",
    "create_solver_context": "m d inplace_cholesky",
    "discrete_free_gyro": "m d out qacc is_inverse",
    "next_time_builder": "warn_overflow",
    "rk_accumulate": "m d scale qvel_stage qvel_rk qacc_rk act_dot_rk",
    "rk_correct_velocity": "opt_timestep jnt_type jnt_dofadr qvel_in qvel_stage_in scale "
    "qvel_stage_out",
    "rk_perturb_state": "m d scale qpos_t0 qvel_t0 qvel_pos act_t0",
    "solve": "m d ctx compact",
    "update_gradient": "m d ctx compact",
    "use_incremental": "m",
    "next_time_builder(0)": "opt_timestep nefc_in time_in nworld_in naconmax_in njmax_in nacon_in "
    "ncollision_in time_out overflow_out",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_private_arguments_of_mujoco_warp(name):
    """The private functions and kernels take what they are given, in this order."""
    call = name.endswith("(0)")
    function = private.next_time_builder(0) if call else getattr(private, name)
    if isinstance(function, wp.Kernel):
        found = [argument.label for argument in function.adj.args]
    else:
        found = list(inspect.signature(function).parameters)
    assert found == ARGUMENTS[name].split(), f"mujoco_warp's {name} has other arguments"


def test_private_names_of_mujoco_warp():
    """The private names exist with the fields that are used; all are imported by one file."""
    ctx_fields = {f.name for f in dataclasses.fields(mjw._src.types.SolverContext)}
    used = {"h", "hfactor", "Jaref", "done", *solver_hessian._CG_ARRAYS}
    assert used <= ctx_fields, f"SolverContext has no {sorted(used - ctx_fields)}"
    assert {*private.__all__} - {"watch_overflow"} <= ARGUMENTS.keys()
    for path in pathlib.Path(private.__file__).parent.glob("*.py"):
        assert "mujoco_warp._src" not in path.read_text() or path.name == "private.py"
