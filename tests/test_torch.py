"""Torch tensors: gradients through autograd, agreement with NumPy, life time of windows, errors."""

import copy
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from conftest import CARTPOLE, to_numpy


def _tensors(envs, array):
    return torch.tensor(array, dtype=torch.float32, device=envs.unwrapped._bridge.device)


def _actions(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    return _tensors(envs, rng.uniform(-1, 1, (steps, *envs.action_space.shape)))


def test_policy_gradient_vs_finite_differences(make):
    """The gradient of a closed loop by the parameters of a network is that of the return."""
    envs = make(CARTPOLE, num_envs=4, arrays="torch", max_episode_steps=-1)
    torch.manual_seed(0)
    policy = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    policy.to(envs.unwrapped._bridge.device)

    def total():
        obs, _ = envs.reset(seed=0)
        result = 0.0
        for _ in range(8):
            obs, reward, *_ = envs.grad_step(policy(obs))
            result = result + reward.sum()
        return result

    total().backward()
    weight, step = policy[2].weight, 0.02
    for i in range(8):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[0, i] += sign * step
                sides.append(total().item())
                weight[0, i] -= sign * step
        difference = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(weight.grad[0, i].item(), difference, rtol=2e-2, atol=2e-4)
    assert weight.grad.abs().min() > 1e-4


def test_hooks_on_the_state_act_between_steps(make):
    """The state's tensors are the links of the chain: a hook that cuts one cuts what is before."""
    envs = make(CARTPOLE, arrays="torch")
    envs.reset(seed=0)
    actions = _actions(envs, 3).requires_grad_()
    for t, action in enumerate(actions):
        _, reward, *_ = envs.grad_step(action)
        if t == 1:
            for value in envs.state[:2]:
                value.register_hook(torch.zeros_like)
    reward.sum().backward()
    assert (actions.grad[:2] == 0).all()
    assert (actions.grad[2] != 0).all()


def test_no_grad_and_step_have_no_history(make):
    """Under no_grad, and with step, outputs require no gradient."""
    envs = make(CARTPOLE, arrays="torch")
    envs.reset(seed=0)
    action = _actions(envs, 1)[0].requires_grad_()
    obs, reward, *_ = envs.step(action)
    assert not obs.requires_grad and not reward.requires_grad
    assert not envs.state.qpos.requires_grad
    with torch.no_grad():
        obs, reward, *_ = envs.grad_step(action)
    assert not obs.requires_grad and not envs.state.qpos.requires_grad


def test_inference_mode_is_refused_where_a_gradient_is_asked_for(vector):
    """torch keeps nothing there: grad_step says so, and so does a reset of worlds in a window."""
    envs = vector(CARTPOLE, arrays="torch")
    envs.reset(seed=0)
    (action,) = _actions(envs, 1)
    mask = np.arange(envs.num_envs) == 0
    with torch.inference_mode():
        envs.step(action.clone())
        with pytest.raises(RuntimeError, match=r"grad_step has no gradient under .*inference_mode"):
            envs.grad_step(action)
    envs.grad_step(action)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="a reset of some worlds after"):
        envs.reset(options={"reset_mask": mask})


def test_outputs_are_copies(make):
    """Tensors that were returned do not change with later steps."""
    envs = make(CARTPOLE, arrays="torch")
    returned = [envs.reset(seed=0)[0], *envs.state[:2]]
    for t, action in enumerate(_actions(envs, 4)):
        obs, reward, terminated, truncated, info = (envs.step if t % 2 else envs.grad_step)(action)
        returned += [obs, reward, terminated, truncated, info["final_obs"], envs.state.qpos]
    before = copy.deepcopy([value.detach() for value in returned])
    envs.reset()
    envs.grad_step(_actions(envs, 1)[0])
    for value, kept in zip(returned, before, strict=True):
        assert torch.equal(value, kept)


def test_set_state_is_differentiable(make):
    """Gradients flow into the tensors that set_state was given."""
    envs = make(CARTPOLE, arrays="torch")
    envs.reset(seed=0)
    length = torch.tensor(0.3, device=envs.unwrapped._bridge.device, requires_grad=True)
    qpos = torch.zeros(3, 2, device=length.device) + length
    envs.set_state(qpos, torch.zeros(3, 2, device=length.device))
    envs.grad_step(_actions(envs, 1)[0])[1].sum().backward()
    assert length.grad.abs() > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_stream():
    """On a stream that torch made current the gradient is the same."""
    envs = gym.make_vec(CARTPOLE, num_envs=64, arrays="torch", device="cuda:0")
    results = []
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            envs.reset(seed=0)
            actions = _actions(envs, 8).requires_grad_()
            sum(envs.grad_step(action)[1].sum() for action in actions).backward()
            results.append(to_numpy(actions.grad))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda a: a.cpu().numpy(),
            TypeError,
            r"actions are a torch\.Tensor of float32 with",
        ),
        (lambda a: a.double(), TypeError, r"shape \(3, 1\) on .*, not of dtype torch\.float64"),
        (lambda a: a[:2], ValueError, r"shape \(3, 1\) on .*, not of shape \(2, 1\)"),
        (lambda a: a.to("meta"), ValueError, r"shape \(3, 1\) on .*, not on meta"),
    ],
)
def test_wrong_actions_are_refused(change, error, message, make):
    """Kind, dtype, shape and device of actions are checked; the message has what is accepted."""
    envs = make(CARTPOLE, arrays="torch")
    envs.reset(seed=0)
    for step in (envs.step, envs.grad_step):
        with pytest.raises(error, match="CartPoleSwingUp: .*" + message):
            step(change(_actions(envs, 1)[0]))


def test_tensor_with_a_graph_is_refused_by_numpy_environments(make):
    """NumPy cannot read it: the message names the argument, and says to detach."""
    envs = make(CARTPOLE)
    envs.reset(seed=0)
    tensor = torch.zeros((3, 1), requires_grad=True)
    with pytest.raises(TypeError, match=r"CartPoleSwingUp: actions must be a NumPy .*detach"):
        envs.step(tensor)
    envs.step(tensor.detach())


def test_numpy_backward_is_refused(make):
    """The NumPy backward says what to call instead."""
    envs = make(CARTPOLE, arrays="torch")
    with pytest.raises(TypeError, match=r"arrays='torch' call loss\.backward\(\)"):
        envs.backward(None, None)


def test_missing_torch_is_named(monkeypatch):
    """Without torch, arrays="torch" says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "diffenvs.torch_bridge", raising=False)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r'pip install "diffenvs\[torch\]"'):
        gym.make_vec(CARTPOLE, num_envs=1, arrays="torch")


def test_warp_actions_in_a_torch_environment(make):
    """A wp.array of actions is stepped too, and gives Warp arrays."""
    envs = make(CARTPOLE, arrays="torch")
    envs.reset(seed=0)
    action = wp.zeros((3, 1), dtype=float, device=envs.device)
    obs, *_ = envs.step(action)
    assert isinstance(obs, wp.array)
    envs.grad_step(_actions(envs, 1)[0])
    with pytest.raises(RuntimeError, match="this window has grad_steps on arrays of another kind"):
        envs.grad_step(action)
    envs.detach()
    before = envs.state.qpos
    envs.grad_step(action)
    assert not torch.equal(envs.state.qpos, before)


def test_backward_twice_needs_retain_graph(vector):
    """As elsewhere in torch, a graph is differentiated twice only if it was retained."""
    envs = vector("DiffHopper-v0", arrays="torch")
    actions = torch.zeros(envs.action_space.shape, requires_grad=True)
    actions = actions.to(envs.state.qpos.device)
    total = envs.grad_step(actions)[1].sum()
    total.backward(retain_graph=True)
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


def test_observation_changed_in_place_is_noticed(vector):
    """reset of some worlds returns what the others saw, so it must not have been changed."""
    envs = vector("DiffHopper-v0", arrays="torch", autoreset_mode="DISABLED")
    actions = torch.zeros(envs.action_space.shape, device=envs.state.qpos.device)
    mask = np.array([True, False, False])
    obs = envs.step(actions)[0]
    kept = obs.clone()
    obs.mul_(10.0)  # nothing has a history here
    again = envs.reset(options={"reset_mask": mask})[0]
    torch.testing.assert_close(again[1:], kept[1:])
    obs = envs.grad_step(actions)[0]
    obs.mul_(10.0)
    with pytest.raises(RuntimeError, match="observations of the last grad_step were changed in pl"):
        envs.reset(options={"reset_mask": mask})


@pytest.mark.skipif(wp.get_preferred_device().is_cuda, reason="looking would wait for the device")
def test_action_that_is_not_finite_is_refused(vector):
    """On the CPU, where looking costs little, torch's actions are looked at as NumPy's are."""
    envs = vector("DiffHopper-v0", arrays="torch")
    actions = torch.zeros(envs.action_space.shape)
    actions[1, 0] = torch.nan
    with pytest.raises(ValueError, match="Hopper: actions must be finite"):
        envs.grad_step(actions)
