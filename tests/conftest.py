"""What several test files share: environments, which are costly to make, and conversions."""

import gymnasium as gym
import numpy as np
import pytest
import warp as wp

import diffenvs  # noqa: F401  (registers the environments)

CARTPOLE, HOPPER = "DiffCartPoleSwingUp-v0", "DiffHopper-v0"


@pytest.fixture(scope="session")
def make():
    """Make a vector environment, or hand out the one that was made with the same arguments.

    Whoever gets it calls `reset(seed=...)` first, after which nothing of earlier use is left. `key`
    tells apart environments that a test needs twice.
    """
    made = {}

    def make(id, num_envs=3, key=0, **kwargs):
        name = (id, num_envs, key, repr(sorted(kwargs.items())))
        if name not in made:
            made[name] = gym.make_vec(id, num_envs=num_envs, **kwargs)
        return made[name]

    yield make
    for envs in made.values():
        envs.close()


@pytest.fixture
def vector(make):
    """`make`, and reset with seed 0."""

    def make_and_reset(id, num_envs=3, **kwargs):
        envs = make(id, num_envs, **kwargs)
        envs.reset(seed=0)
        return envs

    return make_and_reset


@pytest.fixture(scope="session")
def single():
    """Give the single environment of an id, without wrappers; `reset(seed=...)` it first."""
    made = {}

    def make(id, key=0, **kwargs):
        name = (id, key, repr(sorted(kwargs.items())))
        if name not in made:
            made[name] = gym.make(id, **kwargs).unwrapped
        return made[name]

    yield make
    for env in made.values():
        env.close()


@pytest.fixture
def actions():
    """Function that gives random actions, (steps, num_envs, nu) float32, by a seed."""

    def draw(envs, steps, seed=0):
        rng = np.random.default_rng(seed)
        shape = (steps, *envs.action_space.shape)
        return rng.uniform(-1.0, 1.0, shape).astype(np.float32)

    return draw


@pytest.fixture
def rng():
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


def to_numpy(value):
    """Copy an output of any kind into a NumPy array."""
    if isinstance(value, wp.array):
        return value.numpy().copy()
    if type(value).__module__.startswith("torch"):
        return value.detach().cpu().numpy().copy()
    return np.array(value)


@pytest.fixture(scope="session", name="to_numpy")
def _to_numpy():
    """The function, as a fixture."""
    return to_numpy


@pytest.fixture(scope="session")
def assert_same():
    """Function that asserts that two runs of the same computation gave the same numbers.

    On the CPU they are equal bit for bit. On CUDA stock mujoco_warp hands out contact rows by
    atomics, so sums are rounded in another order in every run; that is amplified from step to step.
    """
    cuda = wp.get_preferred_device().is_cuda

    def check(value, reference, what=""):
        value, reference = to_numpy(value), to_numpy(reference)
        if cuda and value.dtype.kind == "f":
            scale = np.abs(reference).max(initial=1.0)
            np.testing.assert_allclose(value, reference, rtol=1e-3, atol=1e-3 * scale, err_msg=what)
        else:
            np.testing.assert_array_equal(value, reference, err_msg=what)

    return check
