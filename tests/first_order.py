"""What the tests of training share: other processes, worlds with a timetable, plain sums, kills."""

import dataclasses
import importlib.util
import itertools
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import torch

from diffenvs import TASKS, command_line, training
from diffenvs.training import Processes, checkpoint

ENV = "DiffInvertedPendulum-v0"
EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    """Import an example, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclass looks for the names of types
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    """Run an example as from the command line, in this process."""
    script = str(EXAMPLES / f"{name}.py")
    with mock.patch.object(sys, "argv", [script, *map(str, arguments)]):
        runpy.run_path(script, run_name="__main__")


def settings_of_tasks(script):
    """Settings of a script for the tasks of its table, which are of the right types."""
    assert script.TASKS.keys() <= TASKS.keys()
    others = {"reward": str, "integrator": str, "policy_hidden": tuple}  # than None
    found = []
    for env, settings in script.TASKS.items():
        cfg = script.Config(env=env, **settings)  # refuses names that it does not know
        training.settings.check(cfg)
        for field in dataclasses.fields(cfg):
            kind = others.get(field.name) or type(field.default)
            assert field.name not in settings or type(settings[field.name]) is kind, field.name
        options = {name: getattr(cfg, name, None) for name in ("reward", "integrator")}
        options = {name: value for name, value in options.items() if value is not None}
        command_line.make_task(gym.spec(env), options)
        found.append(cfg)
    assert found
    return found


def environment(**more):
    """Variables with which another process finds this tree."""
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def torchrun(folder, *command, **variables):
    """Run a script in two processes; return what it printed.

    Args:
        folder: Where it runs.
        command: Script and arguments.
        variables: More variables of its environment.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launcher, *map(str, command)],
        env=environment(**variables),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, messages = process.communicate(timeout=480)
    except subprocess.TimeoutExpired:  # two that wait for each other wait for an hour
        process.terminate()  # and with it those that it started
        out, messages = process.communicate()
    assert process.returncode == 0, messages
    return out


class Worlds:
    """Worlds whose episodes end as a timetable says, and whose last observations are leaves.

    World 0 falls in step 1 and world 1 is cut there; in the last step world 2 is cut and world 3
    falls; world 4 falls in step 0 and is cut in step 2; world 5 goes on.

    Attributes:
        finals: The observations that the steps led to, of which a gradient may be asked.
    """

    horizon, num_envs, nobs = 4, 6, 3
    falls = ((1, 0), (3, 3), (0, 4))
    cuts = ((1, 1), (3, 2), (2, 4))
    action_space = SimpleNamespace(shape=(6, 2))
    state = ()

    def __init__(self):
        self.draw = torch.Generator().manual_seed(1)
        self.finals = []
        self.obs = self.observe()

    def observe(self):
        return torch.randn(self.num_envs, self.nobs, generator=self.draw)

    def grad_step(self, action):
        time = len(self.finals)
        self.finals.append(self.observe().requires_grad_())
        worlds = torch.arange(self.num_envs)
        fallen, cut = (
            torch.tensor([(time, world.item()) in table for world in worlds])
            for table in (self.falls, self.cuts)
        )
        reward = torch.randn(self.num_envs, generator=self.draw) + action.sum(dim=1)
        return self.observe(), reward, fallen, cut, {"final_obs": self.finals[-1]}


def plain_score(reward, next_value, done, gamma):
    """The score of a window, as a sum over episodes and steps in float64."""
    reward, next_value = (x.detach().double().tolist() for x in (reward, next_value))
    steps, worlds, total = len(reward), len(reward[0]), 0.0
    for world in range(worlds):
        begin = 0
        for t in range(steps):
            total += gamma ** (t - begin) * reward[t][world]
            if done[t][world] or t == steps - 1:
                total += gamma ** (t + 1 - begin) * next_value[t][world]
                begin = t + 1
    return total / (steps * worlds)


def plain_targets(reward, next_value, done, gamma, lam):
    """Returns of TD(lambda): means of all n-step returns within an episode, in float64."""
    reward, next_value = (x.detach().double().numpy() for x in (reward, next_value))
    steps, worlds = reward.shape
    targets = np.zeros_like(reward)
    for t, world in itertools.product(range(steps), range(worlds)):
        ends = [k for k in range(t, steps) if done[k, world] or k == steps - 1]
        count = ends[0] - t + 1  # steps to the end of the episode, or of the window
        returns = []
        for n in range(1, count + 1):
            earned = sum(gamma**k * reward[t + k, world] for k in range(n))
            returns.append(earned + gamma**n * next_value[t + n - 1, world])
        weights = [(1.0 - lam) * lam**n for n in range(count - 1)] + [lam ** (count - 1)]
        targets[t, world] = np.dot(weights, returns)
    return targets


def timetable():
    """Which episodes of `Worlds` end in which step: by a fall, or at all; (horizon, num_envs)."""
    fallen, done = (torch.zeros(Worlds.horizon, Worlds.num_envs, dtype=torch.bool) for _ in "12")
    for t, world in Worlds.falls:
        fallen[t, world] = True
    for t, world in (*Worlds.falls, *Worlds.cuts):
        done[t, world] = True
    return fallen, done


def kill_and_resume(name, folder, *arguments):
    """Run an example to its end; and again, killed at a random moment and resumed.

    The killed run is a process of its own, the others are run in this one.

    Returns:
        The folders of the two runs.
    """
    chance = random.Random()
    iterations = 24
    settings = ("--env", ENV, "--iterations", iterations, "--checkpoint-seconds", 0)
    settings = (*map(str, settings), "--device", "cpu", *map(str, arguments))
    run(name, *settings, "--out", folder / "whole")
    command = [sys.executable, EXAMPLES / f"{name}.py", *settings, "--out", folder / "killed"]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    file = folder / "killed" / ENV / "seed0" / checkpoint.NAME
    enough, delay = chance.randint(1, iterations // 2), chance.uniform(0.0, 0.05)
    written = set()
    while len(written) < enough:
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.002)
        if file.exists():
            written.add(file.stat().st_mtime_ns)
    time.sleep(delay)
    process.kill()
    out = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, out
    killed = torch.load(file, weights_only=False)["records"]["iteration"]
    assert 0 < killed < iterations
    assert file.with_name("policy.pt2").exists()  # the best so far
    run(name, *settings, "--out", folder / "killed", "--resume")
    return [folder / run / ENV / "seed0" for run in ("whole", "killed")]


def assert_equal(a, b, where="it"):
    """Two trees of dicts, lists and arrays are equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif hasattr(a, "arrays"):
        assert_equal(a.arrays, b.arrays, where)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, err_msg=where)
    else:
        assert a == b, where


def assert_last_step(folder, lr, part):
    """The policy's last step was that part of the learning rate; steering changed it in all steps.

    Of runs that are steered shorter in each of two iterations, or not at all.
    """
    (process,) = torch.load(folder / "checkpoint.pt", weights_only=False)["parts"]
    learner = process["learner"]
    assert abs(learner["optimizer"]["param_groups"][0]["lr"] / (lr * part) - 1.0) < 1e-5
    assert abs(learner["step_size"]["part"] / part**2 - 1.0) < 1e-5


def assert_captured_critic_is_eager(make):
    """Fit two critics on a GPU, one from graphs and one from Python: the same, call by call.

    Args:
        make: Makes one, of 3 observations, on a device.
    """
    device = torch.device("cuda")
    alone, critics = Processes(0, 1, device), []
    for _ in range(2):
        torch.manual_seed(0)
        critics.append(make(device))
    critics[1].gradient, critics[1].apply = critics[1]._gradient, critics[1]._apply
    parameters = [list(x.optimizer.param_groups[0]["params"]) for x in critics]
    before = [x.detach().clone() for x in parameters[0]]
    for number in range(8):
        losses = []
        for critic in critics:
            torch.manual_seed(number)  # for it shuffles
            x = torch.randn(64, 3, device=device)
            target, weight = 300.0 + 40.0 * x.sum(dim=1), (x[:, 0] > -1.0).float()
            losses.append(critic.fit(x, target, weight, 1e-2 / (1 + number), alone))
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)
    for one, other, start in zip(*parameters, before, strict=True):
        assert (one - start).norm() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
