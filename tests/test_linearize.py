"""`linearize`: several worlds per state, what is kept between calls, and what is refused.

Its matrices are compared with `mujoco.mjd_transitionFD` in `test_physics`, on any device.
"""

import actuator_models
import feature_models
import numpy as np
import pytest
from test_step_vjp import load_gymnasium

from diffenvs.physics import finite_diff as fd
from diffenvs.physics import linearize
from diffenvs.physics.linearize import _FULL, Linearizer, _cache, _linearizer, filling_copies

LANDING = feature_models.load("landing", "implicitfast")


def _arrays(states):
    """qpos, qvel, act, ctrl."""
    return [np.float32(array) for array in states[:4]]


@pytest.mark.parametrize("copies", [4, 16])
def test_linearize_vs_central_differences_copies(copies):
    """Whether or not the copies divide the rows, or outnumber them, each row is that of one world.

    The model has activations, contacts are in the next test.
    """
    mjm = actuator_models.load("limb", "euler")
    states = actuator_models.states(mjm, 2)
    n = 2 * mjm.nv + mjm.na
    assert n % 4 > 0 and n < 16
    A, B = Linearizer(mjm, 2, copies=copies)(*_arrays(states))
    exact = fd.converged(mjm)
    for i, (q, v, a, u) in enumerate(zip(*states[:4], strict=True)):
        expected = fd.transition(exact, q, v, u, a)
        np.testing.assert_allclose(A[i], expected.A, atol=1e-4 * np.abs(expected.A).max())
        np.testing.assert_allclose(B[i], expected.B, atol=1e-4 * np.abs(expected.B).max())


def test_linearize_copies_vs_one_world_per_state(assert_same):
    """Contacts are those of the state that a world is a copy of."""
    arrays = _arrays(feature_models.states(LANDING, 6))
    reference = Linearizer(LANDING, 6, copies=1)(*arrays)
    found = Linearizer(LANDING, 6, copies=9)(*arrays)
    for value, expected in zip(found, reference, strict=True):
        assert_same(value, expected)
    assert len(np.unique(found[0][:, LANDING.nv], axis=0)) == 6


def test_filling_copies_fills_the_device():
    """As many as fill it, at least one, and no more than the rows can use."""
    for nstate in (1, 7, 256, 4096, 10**6):
        for n in (28, 46, 2, 331):
            copies = filling_copies(n, nstate)
            assert 1 <= copies <= n
            assert copies == 1 or copies * nstate <= _FULL
            adjoints = -(-n // copies)
            fewer = adjoints - 1
            assert fewer == 0 or -(-n // fewer) * nstate > _FULL
    assert filling_copies(28, 256) == 14


def test_linearize_overflow_names_states():
    """Contacts that do not fit are told of the state, and the argument helps."""
    states = feature_models.states(LANDING, 4)
    touching = np.flatnonzero(states.ncon > 1)
    assert touching.size > 0
    linearizer = Linearizer(LANDING, 4, nconmax=1, copies=3)
    with pytest.raises(RuntimeError, match=r"in worlds \[.*raise nconmax") as error:
        linearizer(*_arrays(states))
    worlds = str(error.value).partition("[")[2].partition("]")[0]
    assert {int(world) for world in worlds.split(",")} <= set(range(4))
    inputs = states.qpos, states.qvel, states.ctrl
    with pytest.raises(RuntimeError, match="raise njmax"):
        linearize(LANDING, *inputs, njmax=2)
    reference = linearize(LANDING, *inputs)[0]
    assert fd.relative_error(linearize(LANDING, *inputs, nconmax=40)[0], reference) < 1e-4


def test_linearize_first_call_does_not_see_the_capture():
    """A graph is captured on a state of zeros, whose contacts are nobody's overflow."""
    mjm = load_gymnasium("ant", "implicitfast", "elliptic")
    lonely = Linearizer(mjm, 1, nconmax=1)
    floating = [mjm.qpos0.copy(), np.zeros(mjm.nv), np.zeros(0), np.zeros(mjm.nu)]
    floating[0][2] = 3.0
    lonely(*(np.float32(x)[None] for x in floating))
    with pytest.raises(RuntimeError, match="raise nconmax"):
        lonely(*(np.zeros_like(x, np.float32)[None] for x in floating))


def test_linearizers_are_kept_by_the_content_of_the_model():
    """A copy of a model finds what was made for it, a change in place does not; few are kept."""
    mjm = load_gymnasium("hopper", "euler", "pyramidal")
    first = _linearizer(mjm, 2, "cpu", None, None)
    same = load_gymnasium("hopper", "euler", "pyramidal")
    assert _linearizer(same, 2, "cpu", None, None) is first
    assert _linearizer(same, 3, "cpu", None, None) is not first
    assert _linearizer(mjm, 2, "cpu", None, None) is first
    mjm.body_mass[2] *= 1.5
    assert _linearizer(mjm, 2, "cpu", None, None) is not first
    assert len(_cache) <= 4
    for nstate in (4, 5, 6):
        _linearizer(mjm, nstate, "cpu", None, None)
    assert len(_cache) == 4
    assert _linearizer(same, 2, "cpu", None, None) is not first


def test_linearize_refuses_what_is_no_number():
    """Objects are refused by name, and so is what single precision cannot hold."""
    good = np.zeros((2, LANDING.nq)), np.zeros((2, LANDING.nv)), np.zeros((2, LANDING.nu))
    with pytest.raises(TypeError, match="linearize: qvel is an array of real numbers, not of"):
        linearize(LANDING, good[0], good[1].astype(object), good[2])
    with pytest.raises(ValueError, match="linearize: qpos is not finite"):
        linearize(LANDING, np.full_like(good[0], 1e300), *good[1:])
