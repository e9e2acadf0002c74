"""Everything discrete about a step of C MuJoCo: equal signatures mean one smooth piece.

    signature = the geoms of all contacts, the constraint rows and their zones, the geoms and sites
                that tendons wrap, and the side of every clamp

The zone of a row follows from its residual J qacc - aref: `efc_state` of C MuJoCo 4.0 is stale
where constraint islands are used. RK4 looks at four states in one step, of which `mj_step` shows
none as it was solved; they are made here from the same formulas.

Not seen: which feature of a geom touches (the end or the side of a capsule), where an impedance
saturates, and the pieces of a muscle's curves. There the derivative jumps but not the force; three
widths of differences tell (`finite_diff.Transition.vjp_error`).
"""

import mujoco
import numpy as np

_ELLIPTIC = int(mujoco.mjtConstraint.mjCNSTR_CONTACT_ELLIPTIC)
_ROUNDING = 1e-12  # a scaled sum of forces equals its limit up to rounding


class Stepper:
    """Steps one model and says on which smooth piece each step was."""

    def __init__(self, mjm: mujoco.MjModel):
        self.mjm = mjm
        self._rk4 = mjm.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
        self._stage = mujoco.MjData(mjm)
        joint = mujoco.mjtJoint
        turning = np.isin(mjm.jnt_type, [int(joint.mjJNT_FREE), int(joint.mjJNT_BALL)])
        first = mjm.jnt_dofadr + 3 * (mjm.jnt_type == int(joint.mjJNT_FREE))
        self._rotations = first[turning][:, None] + np.arange(3)
        self._elliptic = mjm.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
        # Of every clamp: which elements it clamps, and where.
        self._ctrl = _clamp(mjm.actuator_ctrllimited[: mjm.nu], mjm.actuator_ctrlrange[: mjm.nu])
        self._force = _clamp(mjm.actuator_forcelimited, mjm.actuator_forcerange)
        joints, ranges = _clamp(mjm.jnt_actfrclimited, mjm.jnt_actfrcrange)
        self._joint = mjm.jnt_dofadr[joints], ranges
        self._tendon = _clamp(mjm.tendon_actfrclimited, mjm.tendon_actfrcrange)
        slack = mjm.tendon_lengthspring[:, 0] < mjm.tendon_lengthspring[:, 1]
        stiff = (mjm.tendon_stiffness != 0) | mjm.tendon_stiffnesspoly.any(axis=1)
        self._spring = _clamp(slack & stiff, mjm.tendon_lengthspring)
        pulls = mjm.actuator_trntype == int(mujoco.mjtTrn.mjTRN_TENDON)
        self._pulling = [
            np.flatnonzero(pulls & (mjm.actuator_trnid[:, 0] == i)) for i in self._tendon[0]
        ]
        acts = [
            (act, i)
            for i in np.flatnonzero(mjm.actuator_actlimited)
            for act in mjm.actuator_actadr[i] + np.arange(mjm.actuator_actnum[i])
        ]
        acts, owners = np.array(acts, int).reshape(-1, 2).T
        self._act = acts, mjm.actuator_actrange[owners].T
        muscles = np.flatnonzero(mjm.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_MUSCLE))
        self._muscles = mjm.actuator_actadr[muscles], mjm.actuator_ctrladr[muscles]

    def step(self, data: mujoco.MjData, watched: bool = True) -> list:
        """Advance `data` by one step; the signature of all its forward passes if `watched`."""
        if not watched:
            mujoco.mj_step(self.mjm, data)
            return []
        act = data.act.copy()
        if self._rk4:
            signature = [self._forces(stage) for stage in self._stages(data)]
            mujoco.mj_step(self.mjm, data)
        else:
            mujoco.mj_step(self.mjm, data)
            signature = [self._forces(data)]
        return [*signature, self._activations(data, act)]

    def _stages(self, data):
        """The four forward passes of a step of RK4 from `data`."""
        mjm, s = self.mjm, self._stage
        mujoco.mj_copyData(s, mjm, data)
        velocity = data.qvel.copy()
        for fraction in (0.0, 0.5, 0.5, 1.0):
            if fraction > 0:
                width, previous = fraction * mjm.opt.timestep, velocity
                s.qpos[:] = data.qpos
                mujoco.mj_integratePos(mjm, s.qpos, previous, width)
                s.qvel[:] = data.qvel + width * s.qacc
                s.act[:] = data.act + width * s.act_dot
                velocity = _turning_rates(self._rotations, s.qvel, previous, width)
            mujoco.mj_forward(mjm, s)
            yield s

    def _forces(self, data):
        """All that is discrete about the last forward pass in `data`."""
        found = [data.contact.geom, data.efc_type, data.efc_id, self._zones(data)]
        for (which, limits), x in (
            (self._ctrl, data.ctrl),
            (self._force, data.actuator_force),
            (self._joint, data.qfrc_actuator),
            (self._spring, data.ten_length),
        ):
            if which.size > 0:
                found.append(_side(x[which], limits))
        if self._pulling:
            force = np.array([data.actuator_force[i].sum() for i in self._pulling])
            found.append(_side(force, self._tendon[1]))
        if self.mjm.nwrap > 0:
            found += [data.ten_wrapnum, data.wrap_obj]
        return [x.tobytes() for x in found]

    def _activations(self, data, act):
        """Sides of the clamps of the new activations; of muscles also whether they tighten."""
        found = [_side(data.act[self._act[0]], self._act[1])]
        adr, ctrl = self._muscles
        if adr.size > 0:
            found += [data.ctrl[ctrl].clip(0, 1) > act[adr], _side(act[adr], np.array([[0], [1]]))]
        return [x.tobytes() for x in found]

    def _zones(self, data):
        """The zone of every constraint row; equality rows have one zone."""
        residual = data.efc_J.reshape(-1, self.mjm.nv) @ data.qacc - data.efc_aref
        zone = (residual < 0).astype(int)
        zone[: data.ne] = 0
        if data.nf > 0:
            rows = slice(data.ne, data.ne + data.nf)
            limit = data.efc_frictionloss[rows] / data.efc_D[rows]
            zone[rows] = np.sign(residual[rows]) * (abs(residual[rows]) >= limit)
        if self._elliptic:
            types = data.efc_type
            for contact in data.contact:
                row, dim = contact.efc_address, contact.dim
                if row >= 0 and types[row] == _ELLIPTIC:
                    zone[row : row + dim] = cone_zone(residual[row : row + dim], contact)
        return zone


def cone_zone(residual: np.ndarray, contact: mujoco.MjContact) -> int:
    """0 the contact lets go, 1 all rows quadratic (it sticks), 2 on the cone (it slides)."""
    normal = residual[0] * contact.mu
    tangent = np.linalg.norm(residual[1:] * contact.friction[: contact.dim - 1])
    if normal >= contact.mu * tangent:
        return 0
    return 1 if contact.mu * normal + tangent <= 0 else 2


def _clamp(limited, ranges):
    """Indices of the limited elements, and their limits as two rows."""
    which = np.flatnonzero(limited)
    return which, ranges[which].T


def _side(x, limits):
    """-1 at or below the lower limit, 1 at or above the upper one, else 0."""
    low, high = limits
    margin = _ROUNDING * (high - low)
    return (x >= high - margin).astype(int) - (x <= low + margin)


def _turning_rates(rotations, qvel, rate, width):
    """Rates of the rotation vectors `width * rate` of free and ball joints at the velocity qvel.

    r' = w + r × w / 2 + c r × (r × w), c = (1 - |r|/2 cot(|r|/2)) / |r|^2; `rotations`, (n, 3), are
    the dofs of these joints, all others turn as they are.
    """
    rates = qvel.copy()
    r, w = width * rate[rotations], qvel[rotations]
    xx = (r * r).sum(axis=1, keepdims=True)
    half = np.sqrt(np.maximum(xx, 1e-4)) / 2
    c = np.where(xx > 1e-4, (1 - half / np.tan(half)) / (4 * half**2), 1 / 12 + xx / 720)
    cross = r[:, [1, 2, 0]] * w[:, [2, 0, 1]] - r[:, [2, 0, 1]] * w[:, [1, 2, 0]]
    twice = r * (r * w).sum(axis=1, keepdims=True) - xx * w
    rates[rotations] = w + cross / 2 + c * twice
    return rates
