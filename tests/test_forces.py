"""The forces of the last physics substep, and their cotangents, against C MuJoCo."""

import check_models
import mujoco
import numpy as np
import pytest
import warp as wp
from test_step_vjp import load_gymnasium

from diffenvs.physics import Forces, Physics, UnsupportedFeature
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy import play
from diffenvs.physics.forces import FORCES

NUM_STATES = 16


def stepped(mjm, states, nstep=1, recorded=False, names=FORCES):
    """Forces of `Physics` after `nstep` substeps from each of these states."""
    physics = Physics(mjm, len(states.qpos), nstep=nstep)
    state, out = physics.make_state(), physics.make_state()
    for name in ("qpos", "qvel", "act"):
        if getattr(state, name).size:
            getattr(state, name).assign(np.float32(getattr(states, name)))
    ctrl = wp.array(np.float32(states.ctrl), dtype=float, device=physics.device)
    record = physics.make_record() if recorded else None
    forces = physics.make_forces(names)
    physics.launch_step(state, ctrl, out, record, forces)
    physics.check_overflow()
    return {name: array.numpy() for name, array in forces.given().items()}


def expected(mjm, states, nstep=1):
    """The same of C MuJoCo."""
    mjm = fd.converged(mjm)
    data = mujoco.MjData(mjm)
    found = {name: [] for name in FORCES}
    for q, v, act, ctrl in zip(*states[:4], strict=True):
        mujoco.mj_resetData(mjm, data)
        data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = q, v, act, ctrl
        for _ in range(nstep):
            mujoco.mj_step(mjm, data)
        mujoco.mj_rnePostConstraint(mjm, data)
        for name in FORCES:
            found[name].append(getattr(data, name).copy())
    return {name: np.array(values) for name, values in found.items()}


def touching(mjm, nstep=1):
    """States of random play, in three of four of which contacts press."""
    states, _ = play(mjm, 5 * NUM_STATES, seed=1)
    pressed = expected(mjm, states, nstep)["cfrc_ext"].any(axis=(1, 2))
    least = 3 * NUM_STATES // 4
    assert pressed.sum() >= least, "too few contacts"
    chosen = [*np.flatnonzero(pressed)[:least], *np.flatnonzero(~pressed)[: NUM_STATES - least]]
    return fd.States(*(x[chosen] for x in states))


@pytest.mark.parametrize(
    ("name", "integrator", "cone", "nstep"),
    [
        ("ant", "euler", "pyramidal", 1),
        ("ant", "implicitfast", "elliptic", 3),
        ("ant", "rk4", "elliptic", 1),
        ("humanoid", "euler", "pyramidal", 1),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_forces_vs_mujoco(name, integrator, cone, nstep, recorded):
    """Forces are those of `mj_step` and `mj_rnePostConstraint`, with and without a record."""
    mjm = load_gymnasium(name, integrator, cone)
    states = touching(mjm, nstep)
    forces, exact = stepped(mjm, states, nstep, recorded), expected(mjm, states, nstep)
    for name in FORCES:
        # single precision places a body to about 1e-7 m, and contacts are 1e-3 m deep
        atol = 1e-4 * np.abs(exact[name]).max()
        np.testing.assert_allclose(forces[name], exact[name], rtol=0, atol=atol)
    assert not forces["cfrc_ext"][:, 0].any()


def test_forces_not_asked_for():
    """A force that was not asked for stays None, and the others are the same without it."""
    mjm = load_gymnasium("ant", "euler", "pyramidal")
    states = touching(mjm)
    alone = stepped(mjm, states, names=("qfrc_constraint",))
    assert list(alone) == ["qfrc_constraint"]
    np.testing.assert_array_equal(alone["qfrc_constraint"], stepped(mjm, states)["qfrc_constraint"])
    assert Forces().given() == {}


def test_forces_refused_by_name():
    """A name that is not that of a force is refused, with those that there are."""
    physics = Physics(check_models.build())
    with pytest.raises(ValueError, match="no force 'cfrc_int'; there are qfrc_actuator, qfrc_con"):
        physics.make_forces(("cfrc_int",))


SPATIAL = """
<tendon><spatial name="t" limited="true" range="0 1" stiffness="2"><site site="here"/>
<site site="on"/></spatial></tendon>
<actuator><motor name="pull" tendon="t"/><motor name="jet" site="on"/></actuator>"""
COMPENSATED = dict(joint='actuatorgravcomp="true"', body='gravcomp="1"')
MOTOR = '<actuator><motor name="m" joint="h"/></actuator>'
CONNECT = '<equality><connect name="c" body1="link" anchor="0 0 0"/></equality>'
MASSLESS = '<body name="hand" mocap="true"><geom size="0.1" mass="0"/></body>'

# (what the model is built of, force, part of the message)
REFUSED = [
    (dict(option='integrator="discrete"'), "qfrc_actuator", "discrete: set integrator to Euler"),
    (dict(extra=CONNECT), "cfrc_ext", "cfrc_ext: equality 'c' acts on bodies; remove it"),
    (dict(world=MASSLESS), "cfrc_ext", "body 'hand' is a mocap body without mass; give one of"),
    (dict(geom='adhesion="3"'), "qfrc_constraint", "geoms adhere; set adhesion of all geoms"),
    (
        dict(extra=MOTOR, **COMPENSATED),
        "qfrc_actuator",
        "joint 'h' counts gravity compensation as actuation; set actuatorgravcomp to false",
    ),
    (
        dict(geom='/><site name="on"', extra=SPATIAL),
        "qfrc_actuator",
        "'pull' acts on a spatial tendon; .*'jet' acts on a site; let it drive a joint",
    ),
    (
        dict(geom='/><site name="on"', extra=SPATIAL),
        "qfrc_constraint",
        "tendon 't' is spatial and constrained; use a fixed tendon",
    ),
    (
        dict(geom='/><site name="on"', extra=SPATIAL),
        "cfrc_ext",
        "tendon 't' is spatial and pulls at bodies; use a fixed tendon",
    ),
]


@pytest.mark.parametrize(("parts", "name", "message"), REFUSED)
def test_forces_refused(parts, name, message):
    """A force without a gradient is refused by the element that is in the way; others are not."""
    physics = Physics(check_models.build(**parts))
    with pytest.raises(UnsupportedFeature, match=f"(?s){message}"):
        physics.make_forces((name,))
    assert physics.make_forces(()).given() == {}
