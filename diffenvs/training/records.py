"""What a run finds out: scores, the best policy, the curve. Rank 0 has them."""

from __future__ import annotations

import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from diffenvs import command_line
from diffenvs.policy import save_policy
from diffenvs.training import checkpoint, curve, evaluation
from diffenvs.training.curve import Row
from diffenvs.training.log import Log
from diffenvs.training.processes import Processes
from diffenvs.training.scores import Game, GymnasiumScores
from diffenvs.training.settings import Settings

TEST_SEED = 3_000_000_000  # beyond those of training and of `diffenvs.evaluate`
STATE = ("about", "curve", "best", "best_score", "unscored")  # what a checkpoint has of it


class Records:
    """The records of a run.

    Args:
        cfg: Settings of the script.
        processes: The processes of the run.
        envs: The environment of the training.
        eval_keywords: See `Run`.
        steps: Environment steps so far.
        before: `state()` at the checkpoint from which the run goes on.

    Attributes:
        about: What the curve depends on.
        curve: A row per evaluation.
        best: State of the policy with the highest score, see `Row`; the first until one has any.
        best_score: That score.
        unscored: By row, the policies of which Gymnasium's score is awaited.
        log: What TensorBoard shows.
    """

    def __init__(
        self,
        cfg: Settings,
        processes: Processes,
        envs: Any,
        eval_keywords: dict[str, Any] | None,
        steps: int,
        before: dict[str, Any] | None,
    ) -> None:
        self._cfg, self._folder, self._device = cfg, cfg.folder, processes.device
        self._obs_size = envs.single_observation_space.shape[0]
        self._gymnasium = envs.unwrapped.task.gymnasium  # id, if there is such a task
        given = envs.spec.kwargs if eval_keywords is None else eval_keywords
        self._sides = evaluation.keywords(cfg.env, given)
        self._evaluation = evaluation.Evaluation(
            cfg.env, self._sides["diffenvs"], cfg.eval_envs, TEST_SEED, processes.device
        )
        self.about = curve.describe(cfg, processes.device, processes.count) | {"resumed": []}
        self.curve: list[Row] = []
        self.best: dict[str, Any] | None = None
        self.best_score = -math.inf
        self.unscored: dict[int, dict[str, Any]] = {}
        if before is not None:
            now = self.about
            for name in STATE:
                setattr(self, name, before[name])
            self.about["resumed"].append(now)
        self._failures: set[str] = set()
        self._scores: GymnasiumScores | None = None
        self.log = Log(self._folder, steps, before is not None)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has of the records."""
        return {name: getattr(self, name) for name in STATE}

    def start(self, policy: nn.Module) -> None:
        """Start the process that plays on Gymnasium's environment, if there is one to play on."""
        cfg = self._cfg
        if not cfg.gymnasium_episodes or self._gymnasium is None:
            return
        game = Game(
            self._gymnasium,
            self._sides["gymnasium"],
            command_line.find_spec(cfg.env).max_episode_steps or 0,
            cfg.gymnasium_episodes,
            TEST_SEED,
            evaluation.export(policy, self._obs_size),
        )
        self._scores = GymnasiumScores(game, self._folder / "gymnasium.log")
        for row, state in self.unscored.items():
            self._scores.request(row, evaluation.weights(state))

    def evaluate(self, policy: nn.Module, iteration: int, steps: int, seconds: float) -> None:
        """Score the policy; it may be the best, which Gymnasium's score decides if it has one."""
        began, row = time.perf_counter(), len(self.curve)
        mean = self._evaluation.returns(policy).mean().item()
        state = checkpoint.to_cpu(policy.state_dict())
        self.curve.append(Row(iteration, steps, seconds, mean))
        if self.best is None:  # better than none
            self._keep(policy, state)
        if self._scores is None:
            self._judge(policy, row, state)
        else:
            self.unscored[row] = state
            self._scores.request(row, evaluation.weights(state))
        self.log.writer.add_scalar("eval/return", mean, steps)
        curve.write_tables(self.curve, self.about, self._folder)
        tqdm.write(f"iteration {iteration}: return {mean:.1f}; {steps:,} steps, {seconds:.0f} s")
        self.log.pause(began)

    def take_scores(self, policy: nn.Module, wait: bool = False) -> None:
        """Enter Gymnasium's scores that have arrived into the curve; or wait for all."""
        for score in self._scores.arrived(wait) if self._scores is not None else ():
            began = time.perf_counter()
            row = self.curve[score.request]
            if score.failure is None:
                row.gymnasium, row.gymnasium_error = score.mean, curve.finite(score.error)
                self.log.writer.add_scalar("eval/gymnasium_return", score.mean, row.steps)
                curve.write_tables(self.curve, self.about, self._folder)
            elif score.failure not in self._failures:
                tqdm.write(f"No score on {self._gymnasium}: {score.failure}")
                self._failures.add(score.failure)
            self._judge(policy, score.request, self.unscored.pop(score.request))
            self.log.pause(began)

    def latest(self) -> dict[str, str]:
        """The last scores, for the progress bar."""
        found = {"return": f"{self.curve[-1].returns:.1f}"} if self.curve else {}
        for row in reversed(self.curve):
            if row.gymnasium is not None:
                return found | {"on Gymnasium": f"{row.gymnasium:.1f}"}
        return found

    def finish(self, policy: nn.Module) -> None:
        """Write policy, curve and video, and say what was reached."""
        cfg, folder = self._cfg, self._folder
        self._draw()
        if self._scores is not None:
            if self._scores.waiting:
                print(f"Waiting for scores on {self._gymnasium}; Ctrl-C leaves them out.")
            try:
                self.take_scores(policy, wait=True)
            except KeyboardInterrupt:
                print("Left out.")
                for row, state in self.unscored.items():
                    self._judge(policy, row, state)
            self._scores.close()
            self._draw()
        self.log.writer.close()
        print(self._summary())
        print(f"Results are in {folder}: policy.pt2, curve.csv, curve.json, curve.png")
        if self._gymnasium is not None:
            command = f"python -m diffenvs.evaluate --env {cfg.env}"
            print(f"Score it at length: {command} --policy {folder / 'policy.pt2'}")
        if cfg.video:
            options, device = self._sides["diffenvs"], str(self._device)
            best = self._best(policy)
            print(evaluation.record_video(cfg.env, options, best, TEST_SEED, folder, device))

    def _judge(self, policy: nn.Module, row: int, state: dict[str, Any]) -> None:
        """Keep the policy of a row if its score is the highest so far."""
        score = self.curve[row].score
        if score > -math.inf and score >= self.best_score:
            self.best_score = score
            self._keep(policy, state)

    def _keep(self, policy: nn.Module, state: dict[str, Any]) -> None:
        """Make it the best, and write it for `diffenvs.evaluate`."""
        self.best = state
        with checkpoint.replacing(self._folder / "policy.pt2") as path:
            save_policy(path, self._best(policy), self._obs_size)

    def _best(self, policy: nn.Module) -> nn.Module:
        """Return a copy of a policy that has the best weights, on the CPU."""
        best = copy.deepcopy(policy).cpu().eval()
        if self.best is not None:
            best.load_state_dict(self.best)
        return best

    def _draw(self) -> None:
        """Draw the curve."""
        title = f"{Path(sys.argv[0]).stem}, {self._cfg.env}, seed {self._cfg.seed}"
        curve.draw(self.curve, title, self._gymnasium, self._folder)

    def _summary(self) -> str:
        """Say what was reached."""
        first = self.curve[0]
        best = max(reversed(self.curve), key=lambda row: row.score)
        lines = [
            f"Return of an episode: {first.returns:.1f} before training, {best.returns:.1f} at best"
            f" (iteration {best.iteration})."
        ]
        if best.gymnasium is not None:
            error = "" if best.gymnasium_error is None else f" ± {best.gymnasium_error:.1f}"
            lines.append(
                f"On {self._gymnasium} that policy has {best.gymnasium:.1f}{error}, in "
                f"{self._cfg.gymnasium_episodes} episodes."
            )
        return "\n".join(lines)
