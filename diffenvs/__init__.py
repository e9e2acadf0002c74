"""Differentiable MuJoCo environments for Gymnasium: analytic gradients through MuJoCo Warp.

Importing the package registers its environments, and loads neither Warp nor MuJoCo::

    import gymnasium as gym
    import diffenvs

    envs = gym.make_vec("DiffAnt-v0", num_envs=64, arrays="torch")
    obs, info = envs.reset(seed=0)
    obs, reward, terminated, truncated, info = envs.grad_step(policy(obs))
    reward.sum().backward()

A task of your own is registered by the same call as ours: `diffenvs.register`.
"""

from importlib import import_module
from typing import Any

import gymnasium as gym

__version__ = "0.1.0"
__all__ = ["TASKS", "DiffEnv", "DiffVectorEnv", "Task", "register"]

TASKS = {
    # id: (task, max_episode_steps)
    "DiffCartPoleSwingUp-v0": ("diffenvs.tasks.cartpole_swingup:CartPoleSwingUp", 250),
    "DiffInvertedPendulum-v0": ("diffenvs.tasks.inverted_pendulum:InvertedPendulum", 1000),
    "DiffInvertedDoublePendulum-v0": (
        "diffenvs.tasks.inverted_double_pendulum:InvertedDoublePendulum",
        1000,
    ),
    "DiffReacher-v0": ("diffenvs.tasks.reacher:Reacher", 50),
    "DiffPusher-v0": ("diffenvs.tasks.pusher:Pusher", 100),
    "DiffSwimmer-v0": ("diffenvs.tasks.swimmer:Swimmer", 1000),
    "DiffHopper-v0": ("diffenvs.tasks.hopper:Hopper", 1000),
    "DiffWalker2d-v0": ("diffenvs.tasks.walker2d:Walker2d", 1000),
    "DiffHalfCheetah-v0": ("diffenvs.tasks.half_cheetah:HalfCheetah", 1000),
    "DiffAnt-v0": ("diffenvs.tasks.ant:Ant", 1000),
    "DiffHumanoid-v0": ("diffenvs.tasks.humanoid:Humanoid", 1000),
    "DiffHumanoidStandup-v0": ("diffenvs.tasks.humanoid_standup:HumanoidStandup", 1000),
}

_PUBLIC = {
    "DiffEnv": "diffenvs.diffenvs",
    "DiffVectorEnv": "diffenvs.vector_env",
    "Task": "diffenvs.task",
}


def register(id: str, task: str, max_episode_steps: int | None = None, **kwargs: Any) -> None:
    """Register a task with Gymnasium, for `gym.make` and `gym.make_vec`.

    Args:
        id: Id with a version, for example "MyRobot-v0".
        task: Where the subclass of `Task` is, "module:Class".
        max_episode_steps: Time limit; None is none.
        **kwargs: Defaults of keywords of the environment.
    """
    gym.register(
        id=id,
        entry_point="diffenvs.diffenvs:DiffEnv",
        vector_entry_point="diffenvs.vector_env:DiffVectorEnv",
        max_episode_steps=max_episode_steps,
        kwargs={"task": task, **kwargs},
    )


def __getattr__(name: str) -> Any:
    """Import a public class when it is first asked for."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _id, (_task, _max_episode_steps) in TASKS.items():
    if _id not in gym.registry:
        register(_id, _task, _max_episode_steps)
