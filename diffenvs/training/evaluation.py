"""What a policy is worth: whole episodes without noise, in numbers and in pictures."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from diffenvs import command_line
from diffenvs.evaluate import both_keywords
from diffenvs.policy import save_policy
from diffenvs.task import pays
from diffenvs.training.checkpoint import replacing
from diffenvs.training.worlds import sound

LOOK_EVERY = 10  # steps between looks whether all episodes have ended: a look waits for the device

OF_TRAINING = {
    # keywords of an environment that say how it trains, and not what the task is
    "task",
    "num_envs",
    "vectorization_mode",
    "arrays",
    "autoreset_mode",
    "window",
    "retain",
    "nconmax",
    "njmax",
    "seed",
    "device",
    "max_episode_steps",
    "render_mode",
}


def keywords(env: str, training: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Keywords by side with which a policy is scored.

    They are those of training. But what is paid, where an episode starts and when it terminates is
    Gymnasium's, where Gymnasium has the task: a run may train on something else, and is scored on
    that.

    Args:
        env: Id of our environment.
        training: Keywords with which it was made for training.
    """
    spec = command_line.find_spec(env)
    given = {name: value for name, value in training.items() if name not in OF_TRAINING}
    if command_line.find_task(spec).gymnasium is not None:
        given = {name: value for name, value in given.items() if not _of_episodes(name)}
    return both_keywords(spec, given)


def _of_episodes(name: str) -> bool:
    """Say whether a keyword decides rewards, starts or ends, and not what is seen or simulated."""
    return (
        pays(name)
        or name.startswith(("reset_", "healthy_", "terminate_"))
        or name.endswith("_cost_range")
    )


class Evaluation:
    """Episodes on our environment; it is made when it is first needed.

    Args:
        env: Id of the environment.
        options: Its keywords.
        num_envs: Number of worlds, one episode each.
        seed: World i starts from `seed + i`, in every evaluation.
        device: Where it runs.
    """

    def __init__(
        self, env: str, options: dict[str, Any], num_envs: int, seed: int, device: torch.device
    ) -> None:
        self._env, self._options, self._seed = env, options, seed
        self._num_envs, self._device = num_envs, str(device)
        self._envs: Any = None

    @torch.no_grad()
    def returns(self, policy: nn.Module) -> Tensor:
        """Play; return the sums of rewards, (num_envs,), NaN in worlds that diverged."""
        if self._envs is None:
            self._envs = gym.make_vec(
                self._env,
                num_envs=self._num_envs,
                arrays="torch",
                window=1,
                device=self._device,
                **self._options,
            )
        envs = self._envs
        obs, _ = envs.reset(seed=self._seed)
        returns = torch.zeros(envs.num_envs, device=obs.device)
        running = torch.ones(envs.num_envs, dtype=torch.bool, device=obs.device)
        was_training = policy.training
        policy.eval()
        steps = 0
        while steps % LOOK_EVERY or running.any():
            good = sound(obs)  # a world that diverged has no return, and harms no other
            returns.masked_fill_(running & ~good, torch.nan)
            action = policy(torch.where(good[:, None], obs, 0.0))
            obs, reward, terminated, truncated, _ = envs.step(action)
            returns += torch.where(running, reward, 0.0)
            running &= ~(terminated | truncated)
            steps += 1
        policy.train(was_training)
        return returns


def export(policy: nn.Module, obs_size: int) -> bytes:
    """Return the policy as a program of torch.export, into which weights can be loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.pt2"
        save_policy(path, policy, obs_size)
        return path.read_bytes()


def weights(state: dict[str, Any]) -> bytes:
    """Return a state_dict as the bytes of a file."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@torch.no_grad()
def record_video(
    env: str, options: dict[str, Any], policy: nn.Module, seed: int, folder: Path, device: str
) -> str:
    """Film one episode; say where the film is, or why there is none."""
    with tempfile.TemporaryDirectory(dir=folder) as reel:
        try:
            film: Any = gym.make(env, render_mode="rgb_array", device=device, **options)
            quality = film.unwrapped.model.vis.quality  # where there is no GPU to draw with
            quality.shadowsize, quality.offsamples = 1024, 0
            film = gym.wrappers.RecordVideo(film, f"{reel}/film", disable_logger=True)
            obs, _ = film.reset(seed=seed)
            done = False
            while not done:
                action = policy(torch.as_tensor(obs)[None])[0].numpy()
                obs, _, terminated, truncated, _ = film.step(action)
                done = terminated or truncated
            film.close()
        except gym.error.DependencyNotInstalled as error:
            return f"No video: {error}"
        with replacing(folder / "episode.mp4") as path:
            next(Path(reel).glob("film/*.mp4")).rename(path)
    return f"Video: {folder / 'episode.mp4'}"
