"""Trainers of others, as they are: what they do with our environments is what they always do."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import HOPPER

STEPS = 2000


def _copies(parameters):
    return [value.detach().clone() for value in parameters]


def _assert_trained(before, after):
    """Every parameter is finite, and a step of training changed it."""
    for old, new in zip(before, after, strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


@pytest.mark.slow
def test_stable_baselines3_trains_the_single_environment():
    """PPO of Stable-Baselines3 learns from gym.make's environment for 2,000 steps."""
    sb3 = pytest.importorskip("stable_baselines3")
    env = gym.make(HOPPER)
    model = sb3.PPO("MlpPolicy", env, n_steps=250, batch_size=50, device="cpu", seed=0)
    before = _copies(model.policy.parameters())
    model.learn(STEPS)
    assert model.num_timesteps == STEPS
    _assert_trained(before, model.policy.parameters())
    assert len(model.ep_info_buffer) > 20
    for episode in model.ep_info_buffer:
        assert 1 <= episode["l"] <= 1000 and np.isfinite(episode["r"])
    action, _ = model.predict(env.reset(seed=1)[0])
    assert env.action_space.contains(action)
    env.close()


@pytest.mark.slow
def test_skrl_trains_the_vector_environment(tmp_path):
    """PPO of skrl, by its own wrapper and runner, learns from 20 worlds for 2,000 steps in all."""
    pytest.importorskip("skrl")
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.utils.runner.torch import Runner

    num_envs = 20
    envs = wrap_env(gym.make_vec(HOPPER, num_envs=num_envs))
    assert envs.num_envs == num_envs
    layers = {"name": "net", "input": "OBSERVATIONS", "layers": [32], "activations": "tanh"}
    network = {"network": [layers], "clip_actions": False}
    quiet = {"directory": str(tmp_path), "write_interval": 0, "checkpoint_interval": 0}
    ppo = {"class": "PPO", "rollouts": 20, "learning_epochs": 2, "mini_batches": 2}
    trainer = {"class": "SequentialTrainer", "headless": True, "disable_progressbar": True}
    runner = Runner(
        envs,
        {
            "seed": 0,
            "models": {
                "separate": True,
                "policy": {"class": "GaussianMixin", "output": "ACTIONS", **network},
                "value": {"class": "DeterministicMixin", "output": "ONE", **network},
            },
            "memory": {"class": "RandomMemory", "memory_size": -1},
            "agent": {**ppo, "experiment": quiet},
            "trainer": {
                **trainer,
                "timesteps": STEPS // num_envs,
                "close_environment_at_exit": False,
            },
        },
    )
    agent = runner.agent
    before = _copies([*agent.policy.parameters(), *agent.value.parameters()])
    runner.run()
    _assert_trained(before, [*agent.policy.parameters(), *agent.value.parameters()])
    envs.close()
