"""Environments that the tests share, and how their numbers are compared."""

from contextlib import suppress

import gymnasium as gym
import numpy as np
import pytest
import warp as wp

import diffenvs  # noqa: F401  registers the ids


def _to_numpy(value) -> np.ndarray:
    """Copy an array of any of the three kinds to the host."""
    if isinstance(value, wp.array):
        return value.numpy().copy()
    if type(value).__module__.startswith("torch"):
        return value.detach().cpu().numpy().copy()
    return np.array(value)


@pytest.fixture(scope="session")
def to_numpy():
    """Function that copies a NumPy, torch or Warp array to the host."""
    return _to_numpy


@pytest.fixture(scope="session")
def assert_same():
    """Function that asserts that two runs of the same computation gave the same numbers.

    On the CPU they are equal bit for bit. On CUDA stock mujoco_warp hands out contact rows by
    atomics, so sums are rounded in another order in every run; that is amplified from step to step.
    """
    cuda = wp.get_preferred_device().is_cuda

    def check(value, reference, what=""):
        value, reference = _to_numpy(value), _to_numpy(reference)
        if cuda and value.dtype.kind == "f":
            scale = np.abs(reference).max(initial=1.0)
            np.testing.assert_allclose(value, reference, rtol=1e-3, atol=1e-3 * scale, err_msg=what)
        else:
            np.testing.assert_array_equal(value, reference, err_msg=what)

    return check


@pytest.fixture(scope="session")
def _made():
    """Cache of environments; all are closed in the end."""
    cache = {}
    yield cache
    for envs in cache.values():
        envs.close()


@pytest.fixture
def vector(_made):
    """Function that gives a vector environment, reset with seed 0; same keywords, same object.

    `key` tells apart environments that a test needs twice.
    """

    def make(id, num_envs=3, key=0, **kwargs):
        name = (id, num_envs, key, tuple(sorted((k, str(v)) for k, v in kwargs.items())))
        if name not in _made:
            _made[name] = gym.make_vec(id, num_envs=num_envs, **kwargs)
        # An earlier test may have left done worlds stepped, which the reset reports once.
        with suppress(AssertionError):
            _made[name].reset(seed=0)
        _made[name].reset(seed=0)
        return _made[name]

    return make


@pytest.fixture
def actions():
    """Function that gives random actions, (steps, num_envs, nu) float32, by a seed."""

    def make(envs, steps, seed=0):
        rng = np.random.default_rng(seed)
        shape = (steps, *envs.action_space.shape)
        return rng.uniform(-1.0, 1.0, shape).astype(np.float32)

    return make
