"""What one physics step retains for its adjoint.

A record is a view of the simulator's `Data` per substep: the arrays named here belong to the
record, all others are scratch that the next step overwrites. The simulator writes straight into
the record, so that retaining costs no copies.
"""

import dataclasses

import mujoco_warp as mjw
import warp as wp

from . import solver_hessian

# of mujoco_warp.Data; what the adjoint reads, in the shapes that `mujoco_warp.Data` documents
DATA_FIELDS = (
    "qpos",  # before the substep
    "qvel",
    "act",
    "ctrl",
    "qacc_warmstart",
    "qacc",
    "nl",  # rows of joint limits
    "nefc",
    "xmat",
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
CONTACT_FIELDS = (
    "dist",
    "pos",
    "frame",
    "includemargin",
    "friction",
    "solref",
    "solreffriction",
    "solimp",
    "dim",
    "geom",
)
EFC_FIELDS = ("id", "D", "force")


@dataclasses.dataclass
class Substep:
    """One substep: the view of Data, and the solver's last Hessian, factor and residual."""

    d: mjw.Data
    solver_h: wp.array  # (nworld, nv_pad, nv_pad), upper triangle
    solver_hfactor: wp.array  # (nworld, nv_pad, nv_pad) for nv > 32, else (nworld, 0, 0)
    solver_Jaref: wp.array  # (nworld, njmax)


@dataclasses.dataclass
class Record:
    """One step of `nstep` substeps.

    Attributes:
        substeps: what each substep retains.
        qpos_next, qvel_next: state after the last substep, (nworld, nq) and (nworld, nv).
        filled: whether a step has been recorded.
    """

    substeps: list[Substep]
    qpos_next: wp.array
    qvel_next: wp.array
    filled: bool = False

    def nbytes(self) -> int:
        """Bytes that this record holds on its device."""
        arrays = [self.qpos_next, self.qvel_next]
        for s in self.substeps:
            arrays += [getattr(s.d, name) for name in DATA_FIELDS]
            arrays += [getattr(s.d.contact, name) for name in CONTACT_FIELDS]
            arrays += [getattr(s.d.efc, name) for name in EFC_FIELDS]
            arrays += [s.solver_h, s.solver_hfactor, s.solver_Jaref]
        return sum(a.capacity for a in {a.ptr: a for a in arrays if a.ptr}.values())


def make_substep(d: mjw.Data, solver_workspace, ctrl: wp.array) -> Substep:
    """Allocates one substep; `ctrl` is shared by the substeps of a step."""

    def own(struct, names):
        # clones: the simulator sets the poses of static bodies and geoms once, at allocation
        return {name: wp.clone(getattr(struct, name)) for name in names}

    view = dataclasses.replace(
        d,
        **(own(d, DATA_FIELDS) | {"ctrl": ctrl}),
        contact=dataclasses.replace(d.contact, **own(d.contact, CONTACT_FIELDS)),
        efc=dataclasses.replace(d.efc, **own(d.efc, EFC_FIELDS)),
    )
    return Substep(d=view, **solver_hessian.make_retained(solver_workspace))
