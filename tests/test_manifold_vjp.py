"""Clipped contacts of boxes, capsules on boxes and meshes, against central differences."""

import manifold_models
import numpy as np
import pytest

from diffenvs.physics.accuracy import MEDIAN, WORST, measure

NUM_STATES = 16
NUM_COMPARED = 12
SAME_STEP = 1e-4  # where the next states of the two simulators differ more, so do their contacts


@pytest.mark.parametrize(
    ("name", "nativeccd", "resting", "condim", "elliptic"),
    [
        ("pile", False, True, 3, False),
        ("pile", False, False, 4, True),
        ("pile", True, True, 3, False),
        ("pile", True, False, 3, True),
        ("rack", True, True, 3, False),
        ("grip", False, True, 3, True),
        ("grip", True, True, 3, False),
    ],
)
def test_manifold_vjp_vs_central_differences(name, nativeccd, resting, condim, elliptic):
    """The VJP follows corners, clipped edges and clipped faces as C MuJoCo's contacts do."""
    mjm, oracle = manifold_models.load(name, nativeccd, condim, elliptic)
    states = manifold_models.states(oracle, NUM_STATES, seed=1, resting=resting)
    found = measure(mjm, states, oracle=oracle)
    same = found.step_error < SAME_STEP
    keep = found.trusted & same
    text = f"{(~found.trusted).sum()} at kinks, in {(~same).sum()} the contacts differ"
    assert keep.sum() >= (NUM_COMPARED if not nativeccd else NUM_COMPARED // 2), text
    for name in ("qpos", "qvel"):
        errors = found.errors[name][keep]
        assert np.linalg.norm(found.oracle[name][keep], axis=1).min() > 1e-6, "nothing to compare"
        assert np.median(errors) <= MEDIAN, f"{name} {errors}\n{text}"
        assert errors.max() <= WORST, f"{name} {errors}\n{text}"
