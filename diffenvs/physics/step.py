"""The differentiable step: stock mujoco_warp stages in order, and their adjoint in reverse."""

import dataclasses
import weakref
from collections.abc import Callable

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from . import private, solver_hessian, tangent
from .check import check_model
from .contact_refine import refine_contacts
from .fold import folded
from .forces import Forces, check_forces, launch_forces, make_forces
from .forces_vjp import ForceWorkspace, force_cotangent
from .inputs import (
    Inputs,
    as_inputs,
    check_arrays,
    check_cotangents,
    check_mocap,
    copy_inputs,
    make_inputs,
)
from .record import RK4_NODES, RK4_WEIGHTS, Record, Substep, make_substep
from .sizes import most_contacts, most_rows
from .tape import StagedStep, TapedStep, active_tape, find_staged, paused_tape
from .vjp import substep_vjp
from .workspace import Cotangent, Flags, Workspace

_OVERFLOW = {
    mjw.OverflowType.NEFC: "constraint rows do not fit; raise njmax (now {p.d.njmax} per world)",
    mjw.OverflowType.NJMAX_NNZ: "the sparse constraint Jacobian does not fit; raise njmax"
    " (now {p.d.njmax} per world)",
    mjw.OverflowType.BROADPHASE: "candidate contacts do not fit; raise nconmax (now {p.nconmax} per"
    " world, shared by all worlds)",
    mjw.OverflowType.NARROWPHASE: "contacts do not fit; raise nconmax (now {p.nconmax} per world,"
    " shared by all worlds)",
    mjw.OverflowType.CCD: "pairs of convex geoms do not fit; raise nconmax (now {p.nconmax} per"
    " world, shared by all worlds)",
    mjw.OverflowType.EPA_HORIZON: "the search for the depth of two convex geoms ran out of memory;"
    " use meshes of fewer faces",
}
_RK4 = mujoco.mjtIntegrator.mjINT_RK4
_STATE_FIELDS = ("qpos", "qvel", "act", "qacc_warmstart")


@dataclasses.dataclass
class State:
    """State of `nworld` worlds, float32 arrays on one device.

    Attributes:
        qpos: positions, (nworld, nq).
        qvel: velocities, (nworld, nv).
        act: actuator activations, (nworld, na).
        qacc_warmstart: where the solver starts, (nworld, nv). The solver converges from anywhere,
            so it carries no gradient; it is part of the state because it decides the last bits.
    """

    qpos: wp.array
    qvel: wp.array
    act: wp.array
    qacc_warmstart: wp.array

    def arrays(self) -> tuple[wp.array, ...]:
        """All arrays, in the order of the fields."""
        return self.qpos, self.qvel, self.act, self.qacc_warmstart

    def differentiable(self) -> tuple[wp.array, ...]:
        """The arrays that carry a gradient."""
        return self.qpos, self.qvel, self.act


class Physics:
    """Batched differentiable physics of one model on stock mujoco_warp.

    Args:
        mjm: the compiled model; it is not changed.
        nworld: number of worlds.
        device: a Warp device or its name; None takes Warp's preferred device.
        nstep: physics steps per call of `step` with the control held (frame skip).
        nconmax: contacts to allocate per world; the sum over worlds is shared by all. By default
            every contact that the model can have, up to 64.
        njmax: constraint rows to allocate per world. By default enough for `nconmax` contacts, up
            to 192 rows, but in any case for all equalities, friction losses and limits and 64
            rows of contacts.

    Raises:
        UnsupportedFeature: the model has elements without an adjoint; the message names them all.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        mjm: mujoco.MjModel,
        nworld: int = 1,
        device=None,
        *,
        nstep: int = 1,
        nconmax: int | None = None,
        njmax: int | None = None,
    ):
        check_model(mjm)
        sizes = {"nworld": nworld, "nstep": nstep, "nconmax": nconmax, "njmax": njmax}
        for name, value in sizes.items():
            if value is None and name.endswith("max"):
                continue
            if not isinstance(value, int | np.integer) or value is True or value < 1:
                raise ValueError(f"Physics: {name} is {value!r}; it must be an integer, at least 1")
        self.mjm = mjm
        self.nworld = nworld
        self.nstep = nstep
        self.device = wp.get_device(device)
        self.nq, self.nv, self.na, self.nu = mjm.nq, mjm.nv, mjm.na, mjm.nu
        with wp.ScopedDevice(self.device):
            model = folded(solver_hessian.newton_model(mjm))
            self.m = mjw.put_model(model)
            self.m.opt.warn_overflow = 0  # check_overflow raises instead
            self.nconmax = most_contacts(mjm, self.m) if nconmax is None else nconmax
            if njmax is None:
                njmax = most_rows(mjm, self.nconmax)
            self.d = mjw.make_data(model, nworld, nconmax=self.nconmax, njmax=njmax)
            self._solver = solver_hessian.Solver(self.m, self.d, mjm.opt.solver)
            self._flags = Flags.of(model, self.m.body_freeadr.size)
            ctx = self._solver.ctx
            own_stages = (
                not self._solver.has_hessian  # stock RK4 would take Newton in place of CG
                or _reads_body_velocity(self.m)
                or self._flags.curved
            )
            if mjm.opt.integrator == _RK4 and own_stages:
                ctrl = wp.zeros((nworld, self.nu), dtype=float)
                inputs = Inputs(ctrl)
                self._scratch = make_substep(self.m, self._flags, self.d, self._solver, inputs)
            else:
                self._scratch = Substep(self.d, ctx.h, ctx.hfactor, ctx.Jaref)
            self._workspace = Workspace(self.m, self.d, self._flags)
        self._force_workspace: ForceWorkspace | None = None
        self._unchecked = 0  # steps since the last look at overflows
        self._staged: list[StagedStep] = []  # of `step` without a tape
        self._free: list[StagedStep] = []  # of `step` on tapes that are gone

    def make_state(self, requires_grad: bool = False) -> State:
        """The model's reference configuration `qpos0` at rest, in all worlds."""

        def full(values: np.ndarray, grad: bool) -> wp.array:
            batch = np.tile(np.asarray(values, dtype=np.float32), (self.nworld, 1))
            return wp.array(batch, dtype=float, device=self.device, requires_grad=grad)

        return State(
            qpos=full(self.mjm.qpos0, requires_grad),
            qvel=full(np.zeros(self.nv), requires_grad),
            act=full(np.zeros(self.na), requires_grad),
            qacc_warmstart=full(np.zeros(self.nv), False),
        )

    def make_inputs(self, requires_grad: bool = False) -> Inputs:
        """All inputs: no control, no forces, mocap bodies as the model has them, in all worlds.

        A field that is set to None costs nothing, see `Inputs`.
        """
        with wp.ScopedDevice(self.device):
            return make_inputs(self, requires_grad)

    def make_record(self, inputs: Inputs | None = None) -> Record:
        """Memory for what one recorded step of `nstep` substeps retains.

        Args:
            inputs: has the fields that the step will be given; None for the control alone.

        Raises:
            UnsupportedFeature: mocap poses are given, and one of them has no gradient.
        """
        with wp.ScopedDevice(self.device):
            ctrl = wp.zeros((self.nworld, self.nu), dtype=float)
            given = {} if inputs is None else inputs.given()
            if "mocap_pos" in given or "mocap_quat" in given:
                check_mocap(self.mjm)
            others = {name: wp.clone(getattr(self.d, name)) for name in given if name != "ctrl"}
            self._workspace.make_inputs(self.d, others)
            held = Inputs(ctrl, **others)
            return Record(
                substeps=[
                    make_substep(self.m, self._flags, self.d, self._solver, held)
                    for _ in range(self.nstep)
                ],
                inputs=held,
                qvel_next=wp.zeros((self.nworld, self.nv), dtype=float),
                qpos_next=wp.zeros((self.nworld, self.nq), dtype=float),
            )

    def make_forces(self, names: tuple[str, ...]) -> Forces:
        """Memory for forces of the last substep, or for their cotangents.

        Args:
            names: of fields of `Forces`; the others stay None and cost nothing.

        Raises:
            ValueError: a name is not that of a force.
            UnsupportedFeature: a force has no gradient in this model; the message says why.
        """
        check_forces(self.mjm, self._flags, names)
        if not names:
            return Forces()
        with wp.ScopedDevice(self.device):
            if self._force_workspace is None:
                self._force_workspace = ForceWorkspace(self.m, self.d, self._workspace)
            self._force_workspace.names.update(names)
            return make_forces(self.m, self.nworld, names)

    def launch_step(
        self,
        state: State,
        ctrl: wp.array | Inputs,
        state_out: State,
        record: Record | None = None,
        forces: Forces | None = None,
    ) -> None:
        """Launches one step. No allocation that outlives it, no host read: it can be captured.

        Args:
            state: the state before; not changed.
            ctrl: controls, (nworld, nu), or all inputs.
            state_out: receives the state after.
            record: receives what `launch_step_vjp` needs; None to step without an adjoint.
            forces: by `make_forces`; receives the forces of the last substep.
        """
        m, inputs = self.m, as_inputs(ctrl)
        if record is None:
            substeps = [_with_inputs(self._scratch, inputs)] * self.nstep
        else:
            substeps = record.substeps
        with wp.ScopedDevice(self.device), paused_tape():
            _copy_state(substeps[0].d, state)
            if record is not None:
                copy_inputs(record.inputs, inputs, "Physics.launch_step")
            for i, s in enumerate(substeps):
                _forward(m, self._flags, s, self._solver, retain=record is not None)
                if s.system_M is not None:
                    mjw.deriv_smooth_vel(m, s.d, s.system_M)
                after = state_out if i + 1 == self.nstep else substeps[i + 1].d
                if after is not s.d:
                    _copy_state(after, s.d)
                fields = {name: getattr(after, name) for name in _STATE_FIELDS}
                into = dataclasses.replace(s.d, **fields)
                if s.rungekutta4 is not None:
                    _rungekutta4(m, self._flags, s, into, self._solver)
                else:
                    _INTEGRATE[int(m.opt.integrator)](m, into)
            if forces is not None:
                launch_forces(m, self._flags, substeps[-1], forces)
            if record is not None:
                wp.copy(record.qpos_next, state_out.qpos)
                wp.copy(record.qvel_next, state_out.qvel)
                record.filled = True

    def launch_step_vjp(
        self,
        record: Record,
        adj_state_out: State,
        adj_state: State,
        adj_ctrl: wp.array | Inputs,
        adj_forces: Forces | None = None,
    ) -> None:
        """Launches the adjoint of a recorded step; it can be captured, and repeated.

        Args:
            record: filled by `launch_step`.
            adj_state_out: cotangents of the state after, in the shapes of the state; only read.
            adj_state: overwritten with the cotangents of the state before. That of `qpos` is the
                gradient by the components of `qpos` (orthogonal to each quaternion).
            adj_ctrl: overwritten with the cotangent of the control, (nworld, nu), or with those of
                all inputs that the record was made for.
            adj_forces: by `make_forces`; cotangents of the forces of the last substep.

        Raises:
            RuntimeError: the record holds no step yet.
            ValueError: it was made without one of the inputs, an array has another shape, dtype or
                device, or the two states share one.
        """
        if not record.filled:
            raise RuntimeError("Physics.launch_step_vjp: this record holds no step yet")
        m, adj_inputs = self.m, as_inputs(adj_ctrl)
        check_cotangents(self, record, adj_state_out, adj_state, adj_inputs)
        # the adjoint works on the caller's own arrays
        after, before = self._workspace.adj_ends
        after = dataclasses.replace(after, qvel=adj_state_out.qvel, act=adj_state_out.act)
        own = {"qvel": adj_state.qvel, "act": adj_state.act} | adj_inputs.given()
        before = dataclasses.replace(before, **own)
        joints, dim = [m.jnt_type, m.jnt_qposadr, m.jnt_dofadr], (self.nworld, m.njnt)
        with wp.ScopedDevice(self.device), paused_tape():
            given = [*joints, record.qpos_next, adj_state_out.qpos]
            wp.launch(tangent.tangent_from_gradient, dim=dim, inputs=given, outputs=[after.qpos])
            self._launch_vjp(record, after, before, adj_forces)
            found = [*joints, record.substeps[0].d.qpos, before.qpos]
            wp.launch(
                tangent.gradient_from_tangent, dim=dim, inputs=found, outputs=[adj_state.qpos]
            )

    def launch_tangent_vjp(
        self,
        record: Record,
        seed: Callable[[Cotangent], None],
        result: Callable[[Cotangent], None],
        adj_forces: Forces | None = None,
    ) -> None:
        """The adjoint of a recorded step, cotangents of qpos in tangent form, (nworld, nv).

        Args:
            record: filled by `launch_step`.
            seed: launches what writes the cotangents of (qpos, qvel, act) after the step.
            result: launches what reads those of (qpos, qvel, act, inputs) before it.
            adj_forces: see `launch_step_vjp`.
        """
        after, before = self._workspace.adj_ends
        with wp.ScopedDevice(self.device), paused_tape():
            seed(after)
            self._launch_vjp(record, after, before, adj_forces)
            result(before)

    def _launch_vjp(
        self, record: Record, after: Cotangent, before: Cotangent, adj_forces: Forces | None
    ) -> None:
        """Overwrites `before`; `after` is only read."""
        ws, forces = self._workspace, force_cotangent(adj_forces, self._force_workspace)
        before.zero_inputs(record.inputs.given())
        between = [before.with_state(adj) for adj in ws.adj_between]
        qvel_next = record.qvel_next
        for i, s in reversed(list(enumerate(record.substeps))):
            adj = between[i % 2] if i else before
            substep_vjp(self.m, self._flags, s, ws, qvel_next, after, adj, forces)
            qvel_next, after, forces = s.d.qvel, adj, None

    def check_overflow(self, copies: int = 1) -> None:
        """Raises if contacts or constraint rows did not fit in any step since the last call.

        Reads the device. The message counts `copies` successive worlds as one.

        Raises:
            RuntimeError: names what did not fit, the worlds, and the argument to raise.
        """
        self._unchecked = 0
        overflow = self.d.overflow.numpy()
        bits = int(np.bitwise_or.reduce(overflow, initial=0))
        if not bits & sum(int(b) for b in _OVERFLOW):
            return
        worlds = np.unique(np.flatnonzero(overflow) // copies)
        self.d.overflow.zero_()
        what = [text.format(p=self) for bit, text in _OVERFLOW.items() if bits & bit]
        raise RuntimeError(f"Physics: in worlds {worlds[:8].tolist()}: " + "; ".join(what))

    def watch_overflow(self, steps: int = 1) -> None:
        """Calls `check_overflow` now and then: on the CPU always, on CUDA every 64 steps.

        Args:
            steps: how many were made; 0 asks for a look if there was none since the last step.
        """
        self._unchecked += steps
        if self._unchecked and (steps == 0 or self.device.is_cpu or self._unchecked >= 64):
            self.check_overflow()

    def step(self, state: State, ctrl: wp.array | Inputs) -> State:
        """Advances all worlds by `nstep` physics steps, as a replayed graph.

        On an active `wp.Tape` the step records its adjoint, so `tape.backward()` accumulates into
        the gradients of `state.qpos`, `state.qvel`, `state.act` and the inputs that require one.

        Args:
            state: the state before; not changed.
            ctrl: controls, (nworld, nu), float32, on the device of this object; or `Inputs`.

        Returns:
            The state after, in new arrays (requiring a gradient on an active tape).

        Raises:
            ValueError: an array has another shape, dtype or device.
            RuntimeError: contacts or constraint rows did not fit. On CUDA, where looking waits for
                the device, by `tape.backward()` or within 64 steps; see `check_overflow`.
        """
        inputs = as_inputs(ctrl)
        check_arrays(self, state, inputs, "Physics.step", "state")
        tape = active_tape()
        out = self.make_state(requires_grad=tape is not None)
        with wp.ScopedDevice(self.device), paused_tape():
            if tape is None:
                staged = find_staged(self._staged, inputs)
                if staged is None:
                    staged = StagedStep(self, inputs, recorded=False)
                    self._staged.append(staged)
                staged.step(state, inputs, out)
                self.watch_overflow()
                return out
            staged = find_staged(self._free, inputs)
            if staged is None:
                staged = StagedStep(self, inputs, recorded=True)
            else:
                self._free.remove(staged)
            staged.step(state, inputs, out)
            self.watch_overflow()
        taped = TapedStep(self, staged, (state, inputs, out))
        weakref.finalize(taped, self._free.append, staged)
        arrays = (*state.differentiable(), *inputs.given().values(), *out.differentiable())
        tape.record_func(taped.backward, [a for a in arrays if a.requires_grad and a.size > 0])
        return out


def _with_inputs(s: Substep, inputs: Inputs) -> Substep:
    """The same substep, that reads these inputs."""
    rk = s.rungekutta4
    if rk is not None:
        rk = dataclasses.replace(rk, stages=[_with_inputs(stage, inputs) for stage in rk.stages])
    d = dataclasses.replace(s.d, **inputs.given())
    return dataclasses.replace(s, d=d, rungekutta4=rk)


def _copy_state(target, source) -> None:
    """Between a State and a Data, which share the names of the fields."""
    for name in _STATE_FIELDS:
        to, given = getattr(target, name), getattr(source, name)
        if to.size > 0 and to.ptr != given.ptr:
            wp.copy(to, given)


def _forward(m: mjw.Model, flags: Flags, s: Substep, solver, retain: bool) -> None:
    """`mujoco_warp.forward` without sensors, energy and sleep; the Hessian is kept if `retain`."""
    d = s.d
    if _reads_body_velocity(m) or flags.curved:
        mjw.kinematics(m, d)
    if _reads_body_velocity(m):
        mjw.com_pos(m, d)
        mjw.com_vel(m, d)
    if flags.curved:
        mjw.collision(m, d)
        refine_contacts(m, d)
        opt = dataclasses.replace(m.opt, run_collision_detection=False)  # the contacts are there
        m = dataclasses.replace(m, opt=opt)
    mjw.fwd_position(m, d, factorize=False)
    mjw.fwd_velocity(m, d)
    mjw.fwd_actuation(m, d)
    mjw.fwd_acceleration(m, d, factorize=True)
    if retain:
        solver_hessian.solve_and_retain(m, d, solver, s.solver_h, s.solver_hfactor, s.solver_Jaref)
    else:
        solver_hessian.solve(d, solver)
    if m.opt.integrator == mujoco.mjtIntegrator.mjINT_DISCRETE and m.body_freeadr.size > 0:
        private.discrete_free_gyro(m, d, d.qacc, d.qacc, False)


def _reads_body_velocity(m: mjw.Model) -> bool:
    """Whether `fwd_position` reads `cvel` and `cdof_dot`, for the rows of connect and weld.

    Only `fwd_velocity`, which comes later, computes them. Stock mujoco_warp hence takes those of an
    earlier step, also in its `rungekutta4`; we compute them first, as MuJoCo does.
    """
    return m.eq_connect_adr.size + m.eq_wld_adr.size > 0


_INTEGRATE = {
    int(mujoco.mjtIntegrator.mjINT_EULER): mjw.euler,
    int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST): mjw.implicit,
    int(mujoco.mjtIntegrator.mjINT_RK4): mjw.rungekutta4,
    int(mujoco.mjtIntegrator.mjINT_DISCRETE): mjw.discrete,
}


def _rungekutta4(m: mjw.Model, flags: Flags, s: Substep, into: mjw.Data, solver) -> None:
    """`mujoco_warp.rungekutta4` with every stage on memory of its own; see `rungekutta4_vjp`."""
    d, rk = s.d, s.rungekutta4
    assert rk is not None
    act_dot_mean = rk.act_dot_mean if m.na else None
    for array in (rk.rate_mean, rk.qacc_mean, rk.act_dot_mean):
        array.zero_()

    def accumulate(i: int, stage: mjw.Data) -> None:
        weight = RK4_WEIGHTS[i]
        private.rk_accumulate(
            m, stage, weight, rk.rates[i], rk.rate_mean, rk.qacc_mean, act_dot_mean
        )

    accumulate(0, d)
    previous = d
    for i, stage in enumerate(rk.stages, start=1):
        node, here = RK4_NODES[i - 1], stage.d
        displaced = dataclasses.replace(previous, qpos=here.qpos, qvel=here.qvel, act=here.act)
        private.rk_perturb_state(m, displaced, node, d.qpos, d.qvel, rk.rates[i - 1], d.act)
        _forward(m, flags, stage, solver, retain=True)
        private.watch_overflow(m, here)
        wp.launch(
            private.rk_correct_velocity,
            dim=(d.nworld, m.njnt),
            inputs=[m.opt.timestep, m.jnt_type, m.jnt_dofadr, here.qvel, rk.rates[i - 1], node],
            outputs=[rk.rates[i]],
        )
        accumulate(i, here)
        previous = here
    into = dataclasses.replace(into, act_dot=rk.act_dot_mean)
    private.advance(m, into, rk.qacc_mean, rk.rate_mean)
    wp.copy(into.qacc_warmstart, previous.qacc)
