"""Errors at the edges: each says who complains, what was given, what is accepted."""

import gymnasium as gym
import numpy as np
import pytest
import warp as wp
from conftest import CARTPOLE, HOPPER

import diffenvs
from diffenvs import numpy_bridge


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"ctrl_cost_wieght": 1}, TypeError, "Hopper has no parameter 'ctrl_cost_wieght'; did"),
        ({"num_envs": 0}, ValueError, "Hopper: num_envs must be an integer >= 1, not 0"),
        ({"window": 0}, ValueError, "Hopper: window must be an integer >= 1, not 0"),
        ({"max_episode_steps": 0}, ValueError, "max_episode_steps must be an integer >= 1, not 0"),
        ({"max_episode_steps": 2.5}, ValueError, "max_episode_steps must be an integer >= 1, not"),
        ({"arrays": "jax"}, ValueError, r"arrays='jax' is not one of \['numpy', 'torch', 'warp'\]"),
        ({"autoreset_mode": "never"}, ValueError, r"autoreset_mode='never' is not one of \['NEXT"),
        ({"device": "tpu"}, ValueError, r"Hopper: device='tpu' is not one of \['c"),
        ({"render_mode": "ascii"}, ValueError, r"render_mode='ascii' is not None or one of \['hum"),
        ({"integrator": "RK4"}, ValueError, r"integrator 'RK4' is not one of \['euler', 'implicit"),
        ({"seed": "a"}, ValueError, "Hopper: a seed is an integer >= 0, not 'a'"),
        ({"seed": -1}, ValueError, "Hopper: a seed is an integer >= 0, not -1"),
        ({"xml_file": ""}, FileNotFoundError, "Hopper: '' is neither a file nor an asset of"),
    ],
)  # fmt: skip
def test_construction_refuses(kwargs, error, message):
    """Arguments of the vector environment are checked when it is made."""
    given = {"task": "diffenvs.tasks.hopper:Hopper", "num_envs": 1} | kwargs
    with pytest.raises(error, match=message):
        diffenvs.DiffVectorEnv(**given)


@pytest.mark.parametrize("kwargs", [{"num_envs": 2}, {"arrays": "torch"}])
def test_single_environment_refuses_vector_keywords(kwargs):
    """Keywords that only make sense for make_vec are refused by make."""
    with pytest.raises(TypeError, match=r"are keywords of gym\.make_vec, not of gym\.make"):
        gym.make(CARTPOLE, **kwargs)


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.zeros((3, 2)), ValueError, r"actions have the shape \(3, 1\), not \(3, 2\)"),
        (np.zeros(3), ValueError, r"actions have the shape \(3, 1\), not \(3,\)"),
        (np.full((3, 1), "a"), TypeError, "actions must be real numbers, not of dtype <U1"),
        (np.zeros((3, 1), complex), TypeError, "actions must be real numbers, not of dtype comp"),
        ([[0.0], [np.nan], [0.0]], ValueError, r"must be finite, but actions\[1, 0\] is nan"),
        ([[0.0], [0.0], [np.inf]], ValueError, r"must be finite, but actions\[2, 0\] is inf"),
    ],
)
def test_wrong_actions_are_refused(actions, error, message, make):
    """Shape, dtype and NaN of NumPy actions; the environment is left as it was."""
    envs = make(CARTPOLE)
    envs.reset(seed=0)
    before = envs.state
    for step in (envs.step, envs.grad_step):
        with pytest.raises(error, match="CartPoleSwingUp: .*" + message):
            step(actions)
    np.testing.assert_array_equal(envs.state.qpos, before.qpos)
    assert envs.rollout.recorded == 0


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.zeros((3, 1)), TypeError, r"actions are a wp\.array of float32 with the shape"),
        (lambda d: wp.zeros((3, 1), dtype=wp.float64, device=d), TypeError, "not of dtype .*float"),
        (lambda d: wp.zeros((2, 1), dtype=float, device=d), ValueError, r"not of shape \(2, 1\)"),
    ],
)  # fmt: skip
def test_wrong_warp_actions_are_refused(actions, error, message, make):
    """Kind, dtype and shape of actions on Warp arrays."""
    envs = make(CARTPOLE, arrays="warp")
    envs.reset(seed=0)
    if callable(actions):
        actions = actions(envs.device)
    with pytest.raises(error, match="CartPoleSwingUp: .*" + message):
        envs.grad_step(actions)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.step(np.zeros((1, 3))), ValueError, r"action has the shape \(3,\), not \(1,"),
        (lambda e: e.step([0, np.nan, 0]), ValueError, r"action must be finite, but action\[1\] "),
        (lambda e: e.step([0, 0, 1e39]), ValueError, r"action must be finite, but action\[2\] "),
        (lambda e: e.grad_step("a"), TypeError, "action must be real numbers, not of dtype"),
        (
            lambda e: e.set_state(np.zeros((1, 6)), np.zeros(6)),
            ValueError,
            r"qpos has the shape \(6,\), not \(1, 6\)",
        ),
        (
            lambda e: e.set_state(np.zeros(6), np.full(6, np.inf)),
            ValueError,
            r"qvel must be finite, but qvel\[0\] is inf",
        ),
        (
            lambda e: e.set_state(np.zeros(6), np.zeros(6), np.zeros(1)),
            ValueError,
            r"act has the shape \(0,\), not \(1,\)",
        ),
        (
            lambda e: e.reset(options={"state": (np.zeros(5), np.zeros(6))}),
            ValueError,
            r"options\['state'\]: qpos has the shape \(6,\), not \(5,\)",
        ),
        (
            lambda e: e.backward(np.zeros((1, 1, 11)), None),
            ValueError,
            r"adj_obs has the shape \(1, 1, 11\); 1 grad_steps ask for \(1, 11\)",
        ),
        (
            lambda e: e.backward(None, 1.0),
            ValueError,
            r"adj_reward has the shape \(\); 1 grad_steps ask for \(1,\)",
        ),
        (
            lambda e: e.backward(None, None, (None, np.zeros(6), None)),
            ValueError,
            r"adj_state.qvel has the shape \(6,\); 1 grad_steps ask for \(1, 6\)",
        ),
        (
            lambda e: e.backward(None, None, (None, None)),
            TypeError,
            r"adj_state is a tuple \(qpos, qvel, act\) of arrays, each of .*, not 2 of them",
        ),
    ],
)  # fmt: skip
def test_single_environment_speaks_of_one_world(call, error, message, single):
    """Shapes and places in messages of one world are those that its user knows, without a batch."""
    env = single(HOPPER)
    env.reset(seed=0)
    env.grad_step(np.zeros(3))
    with pytest.raises(error, match="^Hopper: " + message):
        call(env)


def test_single_environment_without_a_window(single):
    """Without a grad_step there is nothing to differentiate, whatever the cotangents."""
    env = single(HOPPER)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="Hopper: there is nothing to differentiate, no grad_s"):
        env.backward(None, 1.0)


def test_step_before_reset():
    """Nothing can be stepped or set before the first reset."""
    envs = gym.make_vec(CARTPOLE, num_envs=1)
    for call in (
        lambda: envs.step(np.zeros((1, 1))),
        lambda: envs.grad_step(np.zeros((1, 1))),
        lambda: envs.set_state(np.zeros((1, 2)), np.zeros((1, 2))),
        lambda: envs.reset(options={"reset_mask": np.array([True])}),
    ):
        with pytest.raises(gym.error.ResetNeeded, match=r"CartPoleSwingUp: .*reset"):
            call()


def test_wrong_seeds_are_refused(make):
    """A list of seeds has one for each world."""
    with pytest.raises(ValueError, match="seed is a number or 3 of them, not 2"):
        make(CARTPOLE).reset(seed=[1, 2])


def test_wrong_states_are_refused(make):
    """set_state checks shapes."""
    envs = make(CARTPOLE)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"qvel has the shape \(3, 2\), not \(3, 1\)"):
        envs.set_state(np.zeros((3, 2)), np.zeros((3, 1)))


def test_wrong_cotangents_are_refused(make):
    """backward checks the shapes of all cotangents against the window."""
    envs = make(CARTPOLE)
    envs.reset(seed=0)
    envs.grad_step(np.zeros((3, 1)))
    for args, message in (
        (
            (np.zeros((3, 5)), None),
            r"adj_obs has the shape \(3, 5\); 1 grad_steps of 3 worlds ask f",
        ),
        ((None, np.zeros((2, 3))), r"adj_reward has the shape \(2, 3\); 1 grad_steps of 3 worlds"),
        ((None, None, np.zeros(1)), r"adj_final_obs has the shape \(1,\); .* ask for \(1, 3, 5\)"),
        ((None, None, None, (np.zeros(1), None, None)), r"adj_state\.qpos has the shape \(1,\)"),
    ):
        with pytest.raises(ValueError, match="CartPoleSwingUp: " + message):
            envs.backward(*args)


def test_cotangents_that_are_no_arrays_are_refused(make):
    """What NumPy cannot read is named, tensors with a graph of their own among it."""
    torch = pytest.importorskip("torch")
    envs = make(CARTPOLE)
    envs.reset(seed=0)
    envs.grad_step(np.zeros((3, 1)))
    tensor = torch.zeros((1, 3, 5), requires_grad=True)
    for args, message in (
        (("a", None), "adj_obs must be real numbers, not of dtype <U1"),
        (
            (tensor, None),
            "adj_obs must be a NumPy array .*, not <class 'torch.Tensor'>: .*detach",
        ),
        ((None, [[1.0, 2.0], [3.0]]), "adj_reward must be a NumPy array .*, not <class 'list'>"),
        ((None, None, None, 3.0), r"adj_state is a tuple \(qpos, .*, not <class 'float'>"),
        ((None, None, None, (None, None)), r"adj_state is a tuple .*, not 2 of them"),
    ):
        with pytest.raises(TypeError, match="CartPoleSwingUp: " + message):
            envs.backward(*args)


def test_adjoint_before_backward():
    """The adjoint of the initial state is there after backward, not before."""
    envs = gym.make_vec(CARTPOLE, num_envs=1)
    with pytest.raises(RuntimeError, match=r"adj_initial_state is there after backward\(\)"):
        envs.adj_initial_state  # noqa: B018


@pytest.mark.parametrize("arrays", ["numpy", "torch", "warp"])
@pytest.mark.parametrize(("room", "name"), [({"njmax": 1}, "njmax"), ({"nconmax": 1}, "nconmax")])
def test_overflow_is_raised(room, name, arrays):
    """More contacts or rows than memory was set aside for: an error, without being asked."""
    envs = gym.make_vec(HOPPER, num_envs=1, arrays=arrays, **room)
    envs.reset(seed=0)
    qpos = np.float32([[0.0, 0.06, np.pi / 2, 0.0, 0.0, 0.0]])  # lies on the floor
    qvel = np.zeros((1, 6), np.float32)
    kind = {"numpy": lambda x: x, "warp": lambda x: wp.array(x, dtype=float, device=envs.device)}
    if arrays == "torch":
        import torch

        kind["torch"] = lambda x: torch.tensor(x, device=envs._bridge.device)
    envs.set_state(kind[arrays](qpos), kind[arrays](qvel))
    with pytest.raises(RuntimeError, match=f"raise {name}"):
        for _ in range(5 if envs.device.is_cpu else 64):  # on CUDA it looks every 64 steps
            envs.step(kind[arrays](np.zeros((1, 3), np.float32)))


def test_render_without_a_mode(make):
    """render says that the mode belongs into the constructor."""
    with pytest.raises(RuntimeError, match=r"render\(\) needs a render_mode, given when the envir"):
        make(CARTPOLE).render()


def test_state_has_three_fields():
    """The state and its cotangent are the same kind of tuple."""
    assert numpy_bridge.EnvState._fields == ("qpos", "qvel", "act")


def test_step_after_termination():
    """One world that has terminated asks for a reset; reset and set_state satisfy it."""
    env = gym.make(HOPPER, healthy_z_range=(5.0, 6.0)).unwrapped
    env.reset(seed=0)
    action = np.zeros(3, np.float32)
    assert env.step(action)[2]
    for step in (env.step, env.grad_step):
        with pytest.raises(AssertionError, match=r"Hopper: the episode has terminated; call reset"):
            step(action)
    env.reset()
    env.grad_step(action)
    env.set_state(env.init_qpos, env.init_qvel)
    env.step(action)


@pytest.mark.parametrize("arrays", ["torch", "warp"])
def test_empty_reset_mask_on_the_device(arrays, make):
    """A mask without a True is refused for every kind of array."""
    envs = make(CARTPOLE, arrays=arrays)
    envs.reset(seed=0)
    mask = wp.zeros(3, dtype=wp.bool, device=envs.device)
    if arrays == "torch":
        mask = wp.to_torch(mask)
    with pytest.raises(ValueError, match="must have at least one True"):
        envs.reset(options={"reset_mask": mask})
