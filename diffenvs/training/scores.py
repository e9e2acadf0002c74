"""Scores on Gymnasium's own environment, played by a process of its own while training goes on.

`GymnasiumScores` starts a Python of low priority and sends it, through a pipe, the policy's program
once and its weights with every request. The process ends when the pipe does, also when the training
was killed.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

import diffenvs
from diffenvs.evaluate import run_episodes


@dataclass
class Game:
    """What is to be played."""

    env: str  # id of Gymnasium's environment
    keywords: dict[str, Any]
    limit: int  # steps of an episode
    episodes: int
    seed: int  # of the first episode
    program: bytes  # the policy, of torch.export


@dataclass
class Score:
    """Mean return of the episodes, and its standard error; or why there is none."""

    request: int
    mean: float = float("nan")
    error: float = float("nan")
    failure: str | None = None


class GymnasiumScores:
    """Scores that arrive when they are done.

    Args:
        game: What is played.
        log: File to which the process writes its messages.
    """

    def __init__(self, game: Game, log: Path) -> None:
        self._requests: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Score] = queue.SimpleQueue()
        self.waiting = 0
        """Number of requests that have not been answered."""
        package = str(Path(diffenvs.__file__).parents[1])
        path = os.pathsep.join([package, *(entry for entry in sys.path if entry)])
        with log.open("ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from diffenvs.training import scores; scores.run()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,  # Ctrl-C is not for it
            )
        atexit.register(self.close)
        threading.Thread(target=self._serve, args=(game,), daemon=True).start()

    def request(self, number: int, weights: bytes) -> None:
        """Ask for the score of a policy; returns at once."""
        self.waiting += 1
        self._requests.put((number, weights))

    def arrived(self, wait: bool = False) -> Iterator[Score]:
        """Give the scores that have arrived since the last call; or wait for all."""
        while self.waiting and (wait or not self._results.empty()):
            score = self._results.get()
            self.waiting -= 1
            yield score

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()

    def _serve(self, game: Game) -> None:
        """Pass requests on and take answers, in a thread: both wait."""
        failure = None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        first = True
        while True:
            request, weights = self._requests.get()
            try:
                if failure is None:
                    if first:
                        pickle.dump(game, stdin)
                        first = False
                    pickle.dump((request, weights), stdin)
                    stdin.flush()
                    self._results.put(pickle.load(stdout))
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                failure = f"its process ended ({type(error).__name__})"
            if failure is not None:
                self._results.put(Score(request, failure=failure))


def play(game: Game, envs: Any, act: Any) -> tuple[float, float]:
    """Play whole episodes; return mean and standard error of the returns."""
    returns = run_episodes(envs, act, game.episodes, game.seed).returns
    error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else np.nan
    return float(returns.mean()), float(error)


def main(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    try:
        game: Game = pickle.load(requests)
        program = torch.export.load(io.BytesIO(game.program)).module()
        envs = gym.make_vec(
            game.env,
            num_envs=game.episodes,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            max_episode_steps=game.limit,
            **game.keywords,
        )

        @torch.no_grad()
        def act(obs: np.ndarray) -> np.ndarray:
            return program(torch.from_numpy(obs.astype(np.float32))).numpy()

        while True:
            request, weights = pickle.load(requests)
            try:
                # The program has no parameters that act() does not read, such as the noise.
                state = torch.load(io.BytesIO(weights))
                missing = program.load_state_dict(state, strict=False).missing_keys
                if missing:
                    raise ValueError(f"the policy has lost {missing}")
                score = Score(request, *play(game, envs, act))
            except Exception as error:
                score = Score(request, failure=f"{type(error).__name__}: {error}")
            pickle.dump(score, answers)
            answers.flush()
    except EOFError:  # the training is over
        return


def run() -> None:
    """Answer what comes through the pipe, at low priority."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is kept out of the answers
    if hasattr(os, "nice"):
        os.nice(19)
    main(sys.stdin.buffer, answers)
