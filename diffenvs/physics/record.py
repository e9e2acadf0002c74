"""What one physics step retains for its adjoint.

A record is a view of the simulator's `Data` per substep: the arrays named here belong to the
record, all others are scratch that the next step overwrites. The simulator writes straight into
the record, so that retaining costs no copies.
"""

import dataclasses
import itertools

import mujoco
import mujoco_warp as mjw
import warp as wp

from . import solver_hessian
from .inputs import Inputs
from .workspace import Flags

# of mujoco_warp.Data; what the adjoint reads, in the shapes that `mujoco_warp.Data` documents
DATA_FIELDS = (
    "qpos",  # before the substep
    "qvel",
    "act",
    "act_dot",
    "ctrl",
    "qacc_warmstart",
    "qacc",
    "ne",  # rows of equalities, of friction losses, of limits: they come in this order,
    "nf",
    "nl",
    "nefc",  # then contacts
    "subtree_com",
    "cdof",
    "cdof_dot",
    "cinert",
    "cvel",
    "geom_xpos",
    "geom_xmat",
    "M",
    "actuator_length",
    "actuator_velocity",
    "actuator_force",
)
# flag of the model: what is retained in addition where it is set
FEATURE_FIELDS = {
    "fluid": ("xmat",),
    "free_bodies": ("xmat",),
    "tendon": ("ten_J", "ten_length", "ten_velocity"),
    "spatial_tendon": ("site_xpos",),
    "tendon_wrap": ("ten_wrapadr", "wrap_obj", "wrap_xpos"),
    "site_actuation": ("site_xpos", "site_xmat"),
    "actuator_force_limit": ("qfrc_actuator",),
    "discrete": ("qH", "crb", "xmat"),
    "body_equality": ("xpos", "xquat"),  # connect and weld
}
CONTACT_FIELDS = (
    "dist",
    "pos",
    "frame",
    "includemargin",
    "friction",
    "solref",
    "solimp",
    "dim",
    "adhesion",
    "geom",
)
CONTACT_FEATURE_FIELDS = {"elliptic": ("solreffriction",)}
EFC_FIELDS = ("id", "D", "force")
EFC_FEATURE_FIELDS = {"row_types": ("type",)}

RK4_NODES = (0.5, 0.5, 1.0)  # of the second to the fourth stage
RK4_WEIGHTS = (1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0)


def data_fields(flags: Flags, inputs: Inputs) -> tuple[str, ...]:
    """`DATA_FIELDS` and those that only some models or inputs need."""
    given = inputs.given()
    extra = [*given]
    extra += ["xipos"] if "xfrc_applied" in given else []
    extra += ["xmat"] if {"mocap_pos", "mocap_quat"} & given.keys() else []
    return tuple(dict.fromkeys([*_needed(flags, DATA_FIELDS, FEATURE_FIELDS), *extra]))


def _needed(
    flags: Flags, always: tuple[str, ...], features: dict[str, tuple[str, ...]]
) -> tuple[str, ...]:
    extra = [names for flag, names in features.items() if getattr(flags, flag)]
    return tuple(dict.fromkeys(itertools.chain(always, *extra)))


@dataclasses.dataclass
class RungeKutta4:
    """What RK4 adds to a substep, which is itself the first of the four stages.

    Attributes:
        stages: the second to the fourth.
        rates: rate of the positions in each of the four, (nworld, nv); see `rungekutta4_vjp`.
        rate_mean, qacc_mean: weighted means over the stages, (nworld, nv).
        act_dot_mean: the same of the activations' rate, (nworld, na).
    """

    stages: list["Substep"]
    rates: list[wp.array]
    rate_mean: wp.array
    qacc_mean: wp.array
    act_dot_mean: wp.array


@dataclasses.dataclass
class Substep:
    """One substep: the view of Data, and the solver's last Hessian, factor and residual."""

    d: mjw.Data
    solver_h: wp.array  # (nworld, nv_pad, nv_pad), upper triangle
    solver_hfactor: wp.array  # (nworld, nv_pad, nv_pad) for nv > 32, else (nworld, 0, 0)
    solver_Jaref: wp.array  # (nworld, njmax)
    system_M: wp.array | None = None  # (nworld, nC): M + h E, where E is not diagonal
    rungekutta4: RungeKutta4 | None = None
    # of `d`, `d.contact` and `d.efc`, that belong to the record:
    fields: tuple[str, ...] = ()
    contact_fields: tuple[str, ...] = ()
    efc_fields: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()  # fields of Inputs that the step is given

    def arrays(self) -> list[wp.array]:
        """All that it retains."""
        found = [getattr(self.d, name) for name in self.fields]
        found += [getattr(self.d.contact, name) for name in self.contact_fields]
        found += [getattr(self.d.efc, name) for name in self.efc_fields]
        found += [self.solver_h, self.solver_hfactor, self.solver_Jaref]
        if self.system_M is not None:
            found.append(self.system_M)
        if self.rungekutta4 is not None:
            rk = self.rungekutta4
            found += [*rk.rates, rk.rate_mean, rk.qacc_mean, rk.act_dot_mean]
            found += [array for stage in rk.stages for array in stage.arrays()]
        return found


@dataclasses.dataclass
class Record:
    """One step of `nstep` substeps.

    Attributes:
        substeps: what each substep retains.
        inputs: the inputs of the step, shared by its substeps.
        qpos_next, qvel_next: state after the last substep, (nworld, nq) and (nworld, nv).
        filled: whether a step has been recorded.
    """

    substeps: list[Substep]
    inputs: Inputs
    qpos_next: wp.array
    qvel_next: wp.array
    filled: bool = False

    def nbytes(self) -> int:
        """Bytes that this record holds on its device."""
        arrays = [self.qpos_next, self.qvel_next]
        for s in self.substeps:
            arrays += s.arrays()
        return sum(a.capacity for a in {a.ptr: a for a in arrays if a.ptr}.values())


def make_substep(m: mjw.Model, flags: Flags, d: mjw.Data, solver, inputs: Inputs) -> Substep:
    """Allocates one substep; `inputs` are shared by the substeps of a step."""
    first = _make_stage(flags, d, solver, inputs)
    if flags.implicit_matrix:
        first.system_M = wp.zeros_like(d.M)
    if m.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        stages = [_make_stage(flags, d, solver, inputs) for _ in RK4_NODES]
        for stage in stages:  # the solver of every stage starts where the first one did
            stage.d.qacc_warmstart = first.d.qacc_warmstart
        rates = [first.d.qvel, *(wp.zeros_like(first.d.qvel) for _ in RK4_NODES)]
        first.rungekutta4 = RungeKutta4(
            stages=stages,
            rates=rates,
            rate_mean=wp.zeros_like(first.d.qvel),
            qacc_mean=wp.zeros_like(first.d.qvel),
            act_dot_mean=wp.zeros_like(first.d.act),
        )
    return first


def _make_stage(flags: Flags, d: mjw.Data, solver, inputs: Inputs) -> Substep:
    def own(struct, names):
        # clones: the simulator sets the poses of static bodies and geoms once, at allocation
        return {name: wp.clone(getattr(struct, name)) for name in names}

    fields = data_fields(flags, inputs)
    contact_fields = _needed(flags, CONTACT_FIELDS, CONTACT_FEATURE_FIELDS)
    efc_fields = _needed(flags, EFC_FIELDS, EFC_FEATURE_FIELDS)
    view = dataclasses.replace(
        d,
        **(own(d, fields) | inputs.given()),
        contact=dataclasses.replace(d.contact, **own(d.contact, contact_fields)),
        efc=dataclasses.replace(d.efc, **own(d.efc, efc_fields)),
    )
    return Substep(
        d=view,
        fields=fields,
        contact_fields=contact_fields,
        efc_fields=efc_fields,
        inputs=tuple(inputs.given()),
        **solver_hessian.make_retained(solver),
    )
