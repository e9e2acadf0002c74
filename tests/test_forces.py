"""The forces of the last physics substep, and their cotangents, against C MuJoCo."""

import actuator_models
import check_models
import equality_models
import feature_models
import mujoco
import numpy as np
import pytest
import tendon_models
import test_inputs
import warp as wp
from test_step_vjp import load_gymnasium

from diffenvs.physics import Forces, Physics, UnsupportedFeature
from diffenvs.physics import finite_diff as fd
from diffenvs.physics.accuracy import measure, play
from diffenvs.physics.forces import FORCES
from diffenvs.physics.tape import captured

NUM_STATES = 12
NAMES = tuple(FORCES)


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


def zero_state(physics):
    """No cotangent of the state after a step."""
    zero = physics.make_state()
    zero.qpos.zero_()
    return zero


def force_of(mjm, data, point, i, nstep, name):
    """A force of C MuJoCo under inputs of all kinds."""
    test_inputs.run(mjm, data, point, i, nstep)
    mujoco.mj_rnePostConstraint(mjm, data)
    return getattr(data, name).copy()


@pytest.mark.parametrize(
    ("force", "removed", "integrator", "cone", "nstep"),
    [
        ("cfrc_ext", ("tray",), "euler", "pyramidal", 2),
        ("cfrc_ext", ("tray",), "rk4", "elliptic", 1),
        ("qfrc_constraint", (), "implicitfast", "pyramidal", 2),
    ],
)
def test_forces_vjp_by_inputs(force, removed, integrator, cone, nstep):
    """Forces, and their cotangents by applied forces and poses of mocap bodies, against MuJoCo."""
    mjm = without(test_inputs.SCENE, integrator, *removed)
    mjm.opt.cone = feature_models.CONES[cone]
    n = 6
    point = test_inputs.sample(mjm, n)
    physics = Physics(mjm, n, nstep=nstep)
    state, inputs = test_inputs.arrays(point, physics)
    record, forces = physics.make_record(inputs), physics.make_forces((force,))
    physics.launch_step(state, inputs, physics.make_state(), record, forces)
    exact, eps = fd.converged(mjm), 1e-6
    data = mujoco.MjData(exact)
    values = getattr(forces, force).numpy()
    for i, value in enumerate(values):
        assert fd.relative_error(value, force_of(exact, data, point, i, nstep, force)) < 1e-4

    cotangents = np.random.default_rng(1).normal(size=values.shape)
    adj, adj_forces = physics.make_inputs(), physics.make_forces((force,))
    getattr(adj_forces, force).assign(cotangents.astype(np.float32))
    physics.launch_step_vjp(record, zero_state(physics), physics.make_state(), adj, adj_forces)
    for name in test_inputs.INPUTS[1:]:  # the control is that of a tree without contacts
        expected = np.zeros_like(point[name])
        for index in np.ndindex(expected.shape):
            sides = []
            for side in (eps, -eps):
                moved = point | {name: point[name].copy()}
                moved[name][index] += side
                sides.append(force_of(exact, data, moved, index[0], nstep, force))
            expected[index] = np.vdot(cotangents[index[0]], sides[0] - sides[1]) / (2 * eps)
        found = getattr(adj, name).numpy().astype(float)
        errors = [fd.relative_error(a, b) for a, b in zip(found, expected, strict=True)]
        assert np.linalg.norm(expected.reshape(n, -1), axis=1).min() > 1e-6
        assert np.median(errors) <= 1e-4, (name, errors)
        assert max(errors) <= 3e-3, (name, errors)


def test_forces_vjp_captured():
    """Graphs replay a step and its adjoint, which reads nothing that another step overwrites."""
    mjm = feature_models.load("arm", "euler", "pyramidal")
    states = feature_models.states(mjm, 4, seed=1)
    physics = Physics(mjm, 4)
    start, state, out, adj_state = (physics.make_state() for _ in range(4))
    state.qpos.assign(np.float32(states.qpos))
    state.qvel.assign(np.float32(states.qvel))
    ctrl, adj_ctrl = (wp.zeros((4, mjm.nu), dtype=float, device=physics.device) for _ in range(2))
    record, forces, adj_forces = physics.make_record(), *(physics.make_forces(NAMES) for _ in "fa")
    for array in adj_forces.given().values():
        array.fill_(1.0)

    def launches():
        physics.launch_step(state, ctrl, out, record, forces)
        physics.launch_step(start, ctrl, out)
        physics.launch_step_vjp(record, start, adj_state, adj_ctrl, adj_forces)

    graph = captured(physics.device, launches)
    results = (*forces.given().values(), adj_state.qpos, adj_state.qvel, adj_ctrl)
    first = [array.numpy().copy() for array in results]
    assert all(values.any() for values in first)
    for array in results:
        array.zero_()
    wp.capture_launch(graph)
    for array, values in zip(results, first, strict=True):
        np.testing.assert_allclose(array.numpy(), values, rtol=1e-3, atol=1e-3)
    # and as if there had been no other step
    physics.launch_step(state, ctrl, out, record, forces)
    physics.launch_step_vjp(record, start, adj_state, adj_ctrl, adj_forces)
    for array, values in zip(results, first, strict=True):
        np.testing.assert_allclose(array.numpy(), values, rtol=1e-3, atol=1e-3)


def test_forces_vjp_without_acting_rows():
    """In the air, and where contacts let go, cotangents of their forces come back as exactly 0."""
    mjm = feature_models.load("landing", "euler", "pyramidal")
    states = feature_models.states(mjm, 2, seed=1)
    heights = mjm.jnt_qposadr + 2
    states.qpos[0, heights] += 5.0
    states.qvel[:] = 0.0
    states.qvel[1, mjm.jnt_dofadr + 2] = 5.0
    physics = Physics(mjm, 2)
    state, adj_state = physics.make_state(), physics.make_state()
    state.qpos.assign(np.float32(states.qpos))
    state.qvel.assign(np.float32(states.qvel))
    ctrl = wp.zeros((2, 0), dtype=float, device=physics.device)
    record, forces, adj = physics.make_record(), *(physics.make_forces(NAMES[1:]) for _ in "fa")
    physics.launch_step(state, ctrl, physics.make_state(), record, forces)
    for array in adj.given().values():
        array.fill_(1.0)
    physics.launch_step_vjp(record, zero_state(physics), adj_state, ctrl, adj)
    nefc = record.substeps[0].d.nefc.numpy()
    assert nefc[0] == 0 < nefc[1]
    assert not forces.cfrc_ext.numpy().any()
    assert not adj_state.qpos.numpy().any()
    assert not adj_state.qvel.numpy().any()


def test_forces_cotangent_unchecked():
    """Cotangents of forces that nobody checked are refused."""
    physics = Physics(check_models.build())
    state = physics.make_state()
    ctrl = wp.zeros((1, 0), dtype=float, device=physics.device)
    record = physics.make_record()
    physics.launch_step(state, ctrl, physics.make_state(), record)
    physics.make_forces(("cfrc_ext",))
    unchecked = Forces(qfrc_constraint=wp.zeros((1, 2), dtype=float, device=physics.device))
    with pytest.raises(ValueError, match="adj_forces has qfrc_constraint; make it by"):
        physics.launch_step_vjp(record, state, physics.make_state(), ctrl, unchecked)
