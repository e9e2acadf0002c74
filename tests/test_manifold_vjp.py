"""Clipped contacts of boxes, capsules on boxes and meshes, against central differences."""

import manifold_models
import numpy as np
import pytest
import test_step_vjp

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
    errors, drift, trusted = test_step_vjp.vjp_errors(mjm, states, oracle=oracle)
    same = drift < SAME_STEP
    text = f"{(~trusted).sum()} at kinks, in {(~same).sum()} the contacts differ\n{errors}"
    keep = trusted & same
    assert keep.sum() >= (NUM_COMPARED if not nativeccd else NUM_COMPARED // 2), text
    assert np.median(errors[keep], axis=0).max() <= test_step_vjp.MEDIAN, text
    assert errors[keep].max() <= test_step_vjp.WORST, text
