"""Gradients of closed loops of 32 steps by their actions, against float64 differences."""

import dataclasses

import mujoco
import numpy as np
import pytest
from test_step_vjp import load_gymnasium

from diffenvs.physics import finite_diff as fd
from diffenvs.physics import rollout_accuracy as rollouts
from diffenvs.physics.accuracy import play

NUM_STATES = 24  # play as in test_step_vjp.py
HORIZON = 32


@pytest.mark.parametrize(
    ("name", "cone", "n"),
    [
        ("hopper", "pyramidal", 4),
        ("half_cheetah", "pyramidal", 3),
        ("ant", "elliptic", 2),
        pytest.param("humanoid", "pyramidal", 2, marks=pytest.mark.slow),
    ],
)
def test_rollout_gradient_vs_differences(name, cone, n):
    """Where one smooth function is differentiated, both gradients of the loop are the same.

    `rollout_accuracy` says what is compared, and where.
    """
    mjm = load_gymnasium(name, "euler", cone)
    states, _ = play(mjm, NUM_STATES, seed=1)
    touching = np.argsort(-states.ncon, kind="stable")[:n]
    found = rollouts.rollout_accuracy(mjm, fd.States(*(x[touching] for x in states)), HORIZON)
    assert np.linalg.norm(found.free, axis=(1, 2)).min() > 1e-3
    assert found.failures() == [], found.summary()
    assert found.followed_counts.sum() + found.free_counts.sum() >= n, found.summary()


def test_failures():
    """A gradient that is off, turned or not a number is seen, only where it counts."""
    rng = np.random.default_rng(0)
    oracle, yes = rng.normal(size=(3, 4, 2)), np.array([True, True, False])
    good = rollouts.RolloutAccuracy(oracle, oracle, oracle, yes, yes, steep=~yes)
    assert good.failures() == []
    assert good.summary()["free"] == {
        "compared": 2,
        "of": 3,
        "steep": 1,
        "those": [0, 0, 0, pytest.approx(0, abs=1e-15)],
        "all": [0, 0, 0, pytest.approx(0, abs=1e-15)],
    }
    ours = oracle.copy()
    ours[2] *= -1
    assert dataclasses.replace(good, ours=ours).failures() == []
    for spoilt in (-1.0, 1.02, np.nan, 0.0):
        ours = oracle.copy()
        ours[1] *= spoilt
        assert len(dataclasses.replace(good, ours=ours).failures()) == 2
    none = dataclasses.replace(good, free_counts=~yes & yes, followed_counts=~yes & yes)
    assert none.failures() == ["no rollout compares"]


def test_steep_capsules_do_not_count():
    """An ant stands on steep capsules; with pyramidal cones such a rollout is set aside."""
    mjm = load_gymnasium("ant", "euler", "pyramidal")
    knees = (1.2, -1.2, -1.2, 1.2)
    run = rollouts._Rollout(mjm, rollouts.make_loop(mjm, 1, 1).world(0), 1)
    states = np.zeros((61, mjm.nq + mjm.nv))
    states[:, 2], states[:, 3], states[:, 8:15:2] = np.linspace(0.3, 0.9, 61), 1, knees
    steep = [run.is_steep(x) for x in states]
    assert any(steep)
    assert not steep[-1]
    mjm.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    assert not any(run.is_steep(x) for x in states)


def test_ctrl_vjp():
    """The policy's own derivative, against central differences."""
    mjm = load_gymnasium("hopper", "euler", "pyramidal")
    loop = rollouts.make_loop(mjm, 2, 3)
    rng = np.random.default_rng(0)
    x, adj = rng.normal(size=mjm.nq + mjm.nv), rng.normal(size=mjm.nu)
    action = loop.actions[0, 0]
    assert np.abs((loop.ctrl(100 * x, action) - loop.center) / loop.half).max() < 1
    step = 1e-6 * np.eye(len(x))
    expected = [adj @ (loop.ctrl(x + h, action) - loop.ctrl(x - h, action)) / 2e-6 for h in step]
    np.testing.assert_allclose(loop.ctrl_vjp(x, adj), expected, rtol=1e-6, atol=1e-9)
