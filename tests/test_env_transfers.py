"""What environments copy between host and device, and what they wait for."""

import time

import numpy as np
import pytest
import warp as wp

from diffenvs.packed import Packed
from diffenvs.physics.mirror import Mirror

torch = pytest.importorskip("torch")
cuda = pytest.mark.skipif(not wp.get_preferred_device().is_cuda, reason="needs a GPU")
HOPPER = "DiffHopper-v0"
BUSY = 300_000_000  # cycles: at 2 GHz longer than all that the host does meanwhile


@pytest.fixture
def transfers(monkeypatch):
    """Counts copies between host and device; on the CPU, what would be one on a GPU."""
    counts = {"fetch": 0, "numpy": 0, "h2d": 0, "d2h": 0}

    def counted(owner, function, name):
        original = getattr(owner, function)

        def call(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, function, call)

    counted(Mirror, "fetch", "fetch")
    counted(wp.array, "numpy", "numpy")
    core = wp._src.context.runtime.core
    counted(core, "wp_memcpy_h2d", "h2d")
    counted(core, "wp_memcpy_d2h", "d2h")
    return counts


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_numpy_step_is_one_transfer_each_way(vector, actions, transfers, mode):
    """Whatever a step returns and checks comes with one copy, and the action goes with one."""
    envs = vector(HOPPER, autoreset_mode=mode)
    once = 1 if envs.device.is_cuda else 0
    for step in [envs.step] if mode == "NEXT_STEP" else [envs.step, envs.grad_step]:
        for window in range(3):  # the first two capture
            envs.detach()
            for number, action in enumerate(actions(envs, 2)):
                transfers |= dict.fromkeys(transfers, 0)
                step(action)
                # with DISABLED the first step of a window looks which worlds are done
                if window == 2 and (number > 0 or mode != "DISABLED"):
                    assert transfers == {"fetch": 1, "numpy": 0, "h2d": once, "d2h": once}


def test_single_step_is_one_transfer_each_way(single, transfers):
    """The single environment looks whether it is done without a copy of its own."""
    env = single(HOPPER)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(3))
    transfers |= dict.fromkeys(transfers, 0)
    env.step(np.zeros(3))
    once = 1 if env.worlds.device.is_cuda else 0
    assert transfers == {"fetch": 1, "numpy": 0, "h2d": once, "d2h": once}


def test_numpy_backward_transfers_do_not_grow_with_the_window(vector, actions, transfers):
    """Cotangents go to the device, and the gradient comes back, in one copy each."""
    envs = vector(HOPPER)
    counts = []
    for steps in (2, 2, 2, 4, 4, 4):  # new slots capture
        envs.detach()
        for action in actions(envs, steps):
            envs.grad_step(action)
        states = tuple(np.ones((steps, 3, 6), dtype=np.float32) for _ in range(2))
        given = np.ones((steps, 3, 11)), np.ones((steps, 3)), None, (*states, None)
        transfers |= dict.fromkeys(transfers, 0)
        assert np.abs(envs.backward(*given)).max() > 0.0
        counts.append(dict(transfers))
    assert counts[2] == counts[5]
    assert counts[2]["fetch"] == 0 and counts[2]["numpy"] == 4  # actions; qpos, qvel and act
    if envs.device.is_cuda:
        assert counts[2]["h2d"] == 4 and counts[2]["d2h"] <= 4  # that of act is empty


def test_done_worlds_are_known_after_a_change_from_outside(vector, single):
    """What the host knows of done worlds is not older than a reset, set_state or a snapshot."""
    env = single(HOPPER)
    env.reset(seed=0)
    alive = env.get_state()
    fallen = np.zeros(6)
    fallen[1] = 0.2
    env.set_state(fallen, np.zeros(6))
    assert env.step(np.zeros(3))[2]
    done = env.get_state()
    with pytest.raises(AssertionError, match="the episode has terminated"):
        env.step(np.zeros(3))
    env.set_state(alive)
    assert not env.step(np.zeros(3))[2]
    env.set_state(done)
    with pytest.raises(AssertionError, match="the episode has terminated"):
        env.step(np.zeros(3))
    env.set_state(*alive_state(env, alive))
    assert not env.step(np.zeros(3))[2]

    envs = vector(HOPPER, autoreset_mode="DISABLED")
    envs.set_state(np.tile(fallen, (3, 1)), np.zeros((3, 6)))
    assert envs.step(np.zeros((3, 3)))[2].all()
    envs.reset(options={"reset_mask": np.array([True, True, False])})
    with pytest.raises(AssertionError, match=r"worlds \[2\] are done"):
        envs.step(np.zeros((3, 3)))


def alive_state(env, snapshot):
    """qpos and qvel of the one world of a snapshot."""
    return snapshot.arrays["qpos"][0], snapshot.arrays["qvel"][0]


def test_packed_arrays_share_one_piece_of_memory():
    """Every array is where the host finds it, in its own shape and type; empty ones too."""
    device = wp.get_preferred_device()
    fields = {
        "a": ((3, 5), wp.float32),
        "none": ((3, 0), wp.float32),
        "flag": ((3,), wp.bool),
        "count": ((7,), wp.int32),
    }
    packed = Packed(device, fields)
    rng = np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "flag": np.array([True, False, True]),
        "count": np.arange(7, dtype=np.int32),
    }
    for name, value in values.items():
        packed.arrays[name].assign(value)
    packed.fetch()
    for name, (shape, _) in fields.items():
        assert packed.arrays[name].shape == packed.host[name].shape == shape
    for name, value in values.items():
        np.testing.assert_array_equal(packed.host[name], value)
        assert packed.host[name].dtype == value.dtype
        assert packed.arrays[name].ptr % 64 == packed.arrays["a"].ptr % 64


def test_torch_cotangents_that_are_missing_are_zero(vector):
    """A loss on some outputs has the gradient of one on all of them, times zero for the others."""
    envs = vector(HOPPER, arrays="torch")
    action = torch.full(envs.action_space.shape, 0.3, device=envs.state.qpos.device)
    found = []
    for everything in (True, False, True):
        envs.reset(seed=0)
        leaf = action.clone().requires_grad_()
        obs, reward, _, _, info = envs.grad_step(leaf)
        loss = reward.sum()
        if everything:
            loss = loss + 0.0 * (
                obs.sum() + info["final_obs"].sum() + sum(x.sum() for x in envs.state)
            )
        loss.backward()
        found.append(leaf.grad.cpu().numpy())
        # leaves something else in the buffers of cotangents
        envs.detach()
        leaf = action.clone().requires_grad_()
        (7.0 * envs.grad_step(leaf)[0].square().sum()).backward()
    assert np.abs(found[0]).max() > 0.0
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-6)


def _window(envs, actions, busy=False):
    """A window's observations, reward and gradient, on the current stream."""
    envs.reset(seed=0)
    leaf = actions.clone().requires_grad_()
    if busy:  # the actions come late: nothing may start before they are there
        late = torch.zeros_like(actions)
        torch.cuda._sleep(BUSY)
        late.copy_(actions)
        leaf = late.requires_grad_()
    total = 0.0
    for action in leaf:
        obs, reward, *_ = envs.grad_step(action)
        total = total + reward.sum() + obs.square().sum()
    total.backward()
    return [x.detach().cpu().numpy() for x in (obs, total, leaf.grad)]


@cuda
def test_torch_steps_are_ordered_on_any_stream(vector, assert_same):
    """On a side stream, behind a kernel that keeps it busy, results are those of the default."""
    envs = vector(HOPPER, num_envs=64, arrays="torch")
    actions = torch.rand((8, 64, 3), device="cuda") - 0.5
    torch.cuda.synchronize()
    reference = _window(envs, actions)
    assert np.abs(reference[2]).max() > 0.0
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            found = _window(envs, actions, busy=True)
        for value, wanted in zip(found, reference, strict=True):
            assert_same(value, wanted)


@cuda
def test_torch_does_not_wait_for_the_device(vector):
    """step, grad_step and, once the window was looked at, backward return before they are done."""
    envs = vector(HOPPER, num_envs=64, arrays="torch")
    actions = torch.rand((4, 64, 3), device="cuda") - 0.5
    for _ in range(2):  # compiles, captures
        _window(envs, actions)
    envs.reset(seed=0)
    envs.step(actions[0])
    envs.step(actions[0])
    leaf = actions.clone().requires_grad_()

    def waited(call):
        """Whether the device was done with what it had before, when the call returned."""
        torch.cuda.synchronize()
        torch.cuda._sleep(BUSY)
        before = torch.cuda.Event()
        before.record()
        start = time.perf_counter()
        result = call()
        return before.query(), time.perf_counter() - start, result

    def steps():
        return sum(envs.grad_step(action)[1].sum() for action in leaf)

    done, seconds, _ = waited(lambda: envs.step(actions[0]))
    assert not done, seconds
    envs.reset(seed=0)  # looks
    done, seconds, total = waited(steps)
    assert not done, seconds
    envs.unwrapped.rollout.settle()  # the look of the window
    torch.cuda.set_sync_debug_mode("error")
    try:
        done, seconds, _ = waited(lambda: total.backward(retain_graph=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not done, seconds
    torch.cuda.synchronize()
    assert leaf.grad.abs().max() > 0.0
