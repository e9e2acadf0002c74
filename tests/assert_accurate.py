"""The assertion that most tests of the adjoint make."""

import numpy as np

from diffenvs.physics.accuracy import measure


def assert_accurate(mjm, states, *, compared=0.8, idle=(), **options):
    """Assert the accuracy that the project promises, in every state that counts.

    Args:
        mjm: the model.
        states: the states.
        compared: fraction of the states that must be away from kinks.
        idle: inputs that must have no influence at all; all others must have one in every state.
        **options: see `measure`.
    """
    found = measure(mjm, states, **options)
    text = f"set aside {(~found.trusted).sum()} of {len(found.trusted)}\n{found.errors}"
    assert found.failures(set_aside=1.0) == [], text
    assert found.trusted.mean() >= compared, text
    for name, expected in found.oracle.items():
        if name in idle:
            assert np.isnan(found.errors[name]).all(), text
            assert not found.ours[name].any()
        elif expected.shape[1] > 0:
            assert np.linalg.norm(expected, axis=1).min() > 1e-6, "nothing to compare"
    return found
