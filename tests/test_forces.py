"""The forces of the last physics substep, and their cotangents, against C MuJoCo."""

import actuator_models
import check_models
import equality_models
import feature_models
import mujoco
import numpy as np
import pytest
import tendon_models
import warp as wp
from test_step_vjp import load_gymnasium

from diffenvs.physics import Forces, Physics, UnsupportedFeature
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy import measure, play
from diffenvs.physics.forces import NAMES

NUM_STATES = 12


def stepped(mjm, states, nstep=1, recorded=False, names=NAMES):
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
    found = {name: [] for name in NAMES}
    for q, v, act, ctrl in zip(*states[:4], strict=True):
        mujoco.mj_resetData(mjm, data)
        data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = q, v, act, ctrl
        for _ in range(nstep):
            mujoco.mj_step(mjm, data)
        mujoco.mj_rnePostConstraint(mjm, data)
        for name in NAMES:
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
    for name in NAMES:
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


def without(xml, integrator, *names):
    """A model without what stands in the way of a force: these elements, and what needs them."""
    spec = mujoco.MjSpec.from_string(xml)
    for element in [*spec.actuators, *spec.equalities, *spec.tendons]:
        targets = [getattr(element, key, "") for key in ("target", "name1", "name2")]
        if {element.name, *targets} & set(names):
            spec.delete(element)
    mjm = spec.compile()
    mjm.opt.integrator = feature_models.INTEGRATORS[integrator]
    return mjm


def gymnasium_model(name, integrator, cone):
    """A model of Gymnasium, mostly in contact."""
    mjm = load_gymnasium(name, integrator, cone)
    return mjm, touching(mjm)


def feature(name, integrator, cone, condim=None):
    """A model of `feature_models`."""
    mjm = feature_models.load(name, integrator, cone, condim)
    return mjm, feature_models.states(mjm, NUM_STATES, seed=1)


def actuators():
    """Actuators of all kinds at joints and fixed tendons, with activations."""
    sites = ("rotor", "hand", "fore")
    mjm = without(
        actuator_models.ARM.replace("{exact}", actuator_models.EXACT), "euler", "sinew", *sites
    )
    return mjm, actuator_models.states(mjm, NUM_STATES)


def limited_actuators():
    """Limits on the sum of the forces at a joint and along a tendon."""
    mjm = without(actuator_models.LIMB, "euler", "rope")
    return mjm, actuator_models.states(mjm, NUM_STATES)


def tendons():
    """Limits and equalities of fixed tendons, friction losses of dofs and tendons."""
    mjm = without(tendon_models.ARM, "implicitfast", "muscle", "path", "rope")
    return mjm, tendon_models.states(mjm, NUM_STATES, seed=1)


def equalities():
    """Equalities of joints, points and orientations."""
    mjm = equality_models.load()
    return mjm, equality_models.states(mjm, NUM_STATES, seed=1)


# what: (model and states, forces that act in it)
VJP = {
    "ant, euler": (lambda: gymnasium_model("ant", "euler", "pyramidal"), NAMES),
    "ant, rk4": (lambda: gymnasium_model("ant", "rk4", "elliptic"), NAMES),
    "arm, implicitfast": (lambda: feature("arm", "implicitfast", "elliptic", 3), NAMES),
    "arm, euler": (lambda: feature("arm", "euler", "pyramidal"), NAMES),
    "landing, condim 1": (lambda: feature("landing", "euler", "pyramidal", 1), NAMES[1:]),
    "landing, condim 6": (lambda: feature("landing", "implicitfast", "elliptic", 6), NAMES[1:]),
    "two moving bodies": (lambda: feature("cluster", "euler", "pyramidal", 4), NAMES[1:]),
    "actuators": (actuators, NAMES[:1]),
    "limited actuators": (limited_actuators, NAMES[:1]),
    "tendons": (tendons, NAMES[:2]),
    "equalities": (equalities, NAMES[:2]),
}


@pytest.mark.parametrize("what", VJP)
def test_forces_vjp_vs_central_differences(what):
    """Every force alone, and all of them with the state, in turn from state to state."""
    make, names = VJP[what]
    mjm, states = make()
    data = mujoco.MjData(mjm)
    sizes = [2 * mjm.nv + mjm.na, *(getattr(data, name).size for name in names)]
    part = np.repeat(np.arange(len(sizes)), sizes)
    cotangents = np.random.default_rng(0).normal(size=(NUM_STATES, len(part)))
    for i, cotangent in enumerate(cotangents):
        alone = i % len(sizes)
        if alone:
            cotangent[part != alone] = 0.0
        else:
            cotangent[part > 0] *= 1e-3  # else the state does not count beside the forces
    found = measure(mjm, states, forces=names, cotangents=cotangents)
    assert found.failures() == [], found.errors
    for name in ("qvel", "ctrl"):
        if found.ours[name].shape[1]:
            assert np.isfinite(found.errors[name]).mean() >= 0.4, "nothing to compare"
