"""The adjoint reads of the simulator's memory what a record retains, and nothing else.

Whatever else it read would be overwritten by the next step, or by the next substep.
"""

import dataclasses

import actuator_models
import contact_models
import equality_models
import feature_models
import manifold_models
import numpy as np
import passive_models
import pytest
import tendon_models
import warp as wp

from diffenvs.physics import Physics


def _features(name, integrator, cone="pyramidal"):
    mjm = feature_models.load(name, integrator, cone)
    return mjm, feature_models.states(mjm, 24, seed=1)


def _tendons(integrator, jacobian):
    mjm = tendon_models.load("arm", integrator)
    mjm.opt.jacobian = jacobian
    return mjm, tendon_models.states(mjm, 24, seed=1)


def _actuators(name, integrator):
    mjm = actuator_models.load(name, integrator)
    return mjm, actuator_models.states(mjm, 16)


def _equalities(integrator):
    mjm = equality_models.load(integrator)
    return mjm, equality_models.states(mjm, 24, seed=1)


def _passive(integrator):
    mjm = passive_models.load(integrator)
    return mjm, passive_models.states(mjm, 8, seed=1)


def _contacts(cone, condim, pairs, n):
    mjm = contact_models.load(pairs, cone, condim)
    return mjm, contact_models.states(mjm, pairs, n, seed=1)


def _manifolds(name, nativeccd):
    mjm, oracle = manifold_models.load(name, nativeccd, 3, False)
    return mjm, manifold_models.states(oracle, 16, seed=1, resting=True)


ANALYTIC = [
    ("plane", "a cylinder"),
    ("plane", "a ellipsoid"),
    ("plane", "a box"),
    ("plane", "a mesh"),
    ("b sphere", "a cylinder"),
    ("b sphere", "a box"),
    ("b sphere", "a mesh"),
]

# (model and states, whether the record is made for all inputs)
CASES = {
    "arm": (lambda: _features("arm", "euler"), False),
    "arm, discrete": (lambda: _features("arm", "discrete"), False),
    "landing, discrete": (lambda: _features("landing", "discrete"), False),
    "cluster": (lambda: _features("cluster", "implicitfast"), True),
    "long": (lambda: _features("long", "euler"), False),
    "tendons": (lambda: _tendons("mjINT_IMPLICITFAST", 1), False),
    "tendons, rk4": (lambda: _tendons("mjINT_RK4", 0), False),
    "actuators": (lambda: _actuators("arm", "implicitfast"), False),
    "limb": (lambda: _actuators("limb", "euler"), False),
    "equalities": (lambda: _equalities("euler"), True),
    "passive": (lambda: _passive("implicitfast"), True),
    "passive, discrete": (lambda: _passive("discrete"), False),
    "contacts": (lambda: _contacts("elliptic", 6, ANALYTIC, 4), False),
    "curved contacts": (lambda: _contacts("pyramidal", 3, [("b box", "a ellipsoid")], 24), False),
    "clipped contacts": (lambda: _manifolds("rack", True), False),
}


def _launch(physics, states, inputs, record):
    """One recorded step from these states."""
    state, out = physics.make_state(), physics.make_state()
    for name in ("qpos", "qvel", "act", "ctrl"):
        array = inputs.ctrl if name == "ctrl" else getattr(state, name)
        if array.size:
            array.assign(np.float32(getattr(states, name)))
    physics.launch_step(state, inputs, out, record)
    physics.check_overflow()


def _pull_back(physics, inputs, record):
    """The cotangents of state and inputs, all in one array per world."""
    rng = np.random.default_rng(0)
    after, before = physics.make_state(), physics.make_state()
    for name in ("qpos", "qvel", "act"):
        array = getattr(after, name)
        if array.size:
            array.assign(rng.normal(size=array.shape).astype(np.float32))
    given = inputs.given()
    adj = dataclasses.replace(inputs, **{name: wp.zeros_like(a) for name, a in given.items()})
    physics.launch_step_vjp(record, after, before, adj)
    arrays = [before.qpos, before.qvel, before.act, *adj.given().values()]
    return np.hstack([a.numpy().reshape(physics.nworld, -1) for a in arrays if a.size])


def _scratch(physics, record):
    """By name, the arrays of numbers of the simulator that do not belong to the record."""
    retained = {a.ptr for s in record.substeps for a in s.arrays()}
    retained |= {a.ptr for a in record.inputs.given().values()}
    views = [("d", physics.d), ("solver", physics._solver.ctx)]
    for i, s in enumerate(record.substeps):
        stages = [s] + ([] if s.rungekutta4 is None else s.rungekutta4.stages)
        views += [(f"substeps[{i}].d", stage.d) for stage in stages]
    views += [
        (f"{name}.{part}", getattr(d, part))
        for name, d in views
        for part in ("contact", "efc")
        if hasattr(d, part)
    ]
    found = {}
    for name, struct in views:
        for field in dataclasses.fields(struct):
            array = getattr(struct, field.name)
            if isinstance(array, wp.array) and array.size and array.ptr not in retained:
                if array.numpy().dtype.kind in "fiu":
                    found.setdefault(array.ptr, (f"{name}.{field.name}", array))
    return dict(found.values())


def _spoil(array):
    """NaN; integers, which may be indices, become a wrong one that exists."""
    values = array.numpy()
    array.assign(np.full_like(values, np.nan if values.dtype.kind == "f" else 1))


@pytest.mark.parametrize("case", CASES)
def test_adjoint_reads_only_what_is_retained(case):
    """With all other memory of the simulator spoilt the gradient is the same, bit for bit."""
    make, with_inputs = CASES[case]
    mjm, states = make()
    physics = Physics(mjm, len(states.qpos), nstep=2)
    inputs = physics.make_inputs()
    if not with_inputs:
        inputs = dataclasses.replace(
            inputs, qfrc_applied=None, xfrc_applied=None, mocap_pos=None, mocap_quat=None
        )
    record = physics.make_record(inputs)
    _launch(physics, states, inputs, record)
    expected = _pull_back(physics, inputs, record)
    assert np.isfinite(expected).all()
    assert np.abs(expected).max() > 0
    scratch = _scratch(physics, record)
    assert {"d.qfrc_bias", "d.qfrc_smooth", "d.efc.J", "d.efc.state"} <= scratch.keys()
    kept = {name: array.numpy().copy() for name, array in scratch.items()}
    for array in scratch.values():
        _spoil(array)
    if np.array_equal(_pull_back(physics, inputs, record), expected):
        return
    guilty = []
    for name, array in scratch.items():
        for other, values in kept.items():
            scratch[other].assign(values)
        _spoil(array)
        if not np.array_equal(_pull_back(physics, inputs, record), expected):
            guilty.append(name)
    pytest.fail(f"the adjoint reads {guilty}, which the record does not retain")
