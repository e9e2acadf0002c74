"""A run: the records of a training, from its first iteration or from where a checkpoint ended."""

from __future__ import annotations

import copy
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from diffenvs import command_line
from diffenvs.policy import save_policy
from diffenvs.training import checkpoint, curve, evaluation
from diffenvs.training.curve import Row
from diffenvs.training.processes import Processes, seed_all
from diffenvs.training.scores import Game, GymnasiumScores
from diffenvs.training.settings import Settings

LOG_EVERY = 10  # iterations between writes to TensorBoard: what was logged is fetched together
SEEDS = 1_000_000  # first seeds of the runs' worlds are so far apart
TEST_SEED = 3_000_000_000  # beyond those of training and of `diffenvs.evaluate`


class Run:
    """What a script leaves to this package: see `diffenvs.training`.

    It begins a run, or goes on with one whose checkpoint is there: then the learner has its state
    again, the worlds and `obs` theirs, and random numbers follow when the iterations begin. On the
    CPU a run that was killed and resumed ends with the weights of one that was not, bit for bit,
    if all that an iteration reads is in the learner, the worlds and `obs`.

    Args:
        cfg: Settings of the script.
        processes: What `start_processes` returned.
        envs: Vector environment with arrays="torch", without wrappers.
        learner: What learns, by name: everything with state_dict and load_state_dict that an
            iteration changes. Modules, optimisers, schedules.
        eval_keywords: Keywords of the environment in evaluations; None is those of `envs` but for
            its reward, which is Gymnasium's.

    Attributes:
        folder: Where everything is written.
        obs: Present observations; the script sets them at the end of an iteration.
        iteration: Iterations that are done.
        curve: A row per evaluation.
        best_return: The highest return of them; that policy is the result.
    """

    def __init__(
        self,
        cfg: Settings,
        processes: Processes,
        envs: Any,
        learner: dict[str, Any],
        eval_keywords: dict[str, Any] | None = None,
    ) -> None:
        self.cfg, self.processes, self.envs, self.learner = cfg, processes, envs, learner
        self.folder = cfg.folder
        self.iteration = 0
        self.curve: list[Row] = []
        self._best: dict[str, Any] | None = None
        self.best_return = -math.inf
        self._seconds = 0.0  # of the runs before that this one resumes
        self._unscored: dict[int, bytes] = {}  # weights by row that Gymnasium's score is awaited of
        self._failures: set[str] = set()
        self._scores: GymnasiumScores | None = None
        self._logged: list[dict[str, Any]] = []
        self._log_time = (0, time.perf_counter())  # steps at the last write, and when it was
        self._stop = False
        self._saved = time.perf_counter()
        given = envs.spec.kwargs if eval_keywords is None else eval_keywords
        self._sides = evaluation.keywords(cfg.env, given)
        self._evaluation = evaluation.Evaluation(
            cfg.env, self._sides["diffenvs"], cfg.eval_envs, TEST_SEED, processes.device
        )
        if cfg.resume:
            self._restore()
        else:
            self._begin()
        if processes.rank == 0:
            self._open()

    @property
    def steps(self) -> int:
        """Steps of all worlds of all processes so far."""
        return self.iteration * self.cfg.num_envs * self.cfg.horizon * self.processes.count

    @property
    def seconds(self) -> float:
        """Wall clock so far: since the process began, and of the runs before that it resumes."""
        return self._seconds + curve.seconds_of_process()

    # Iterations

    def iterations(self, policy: nn.Module) -> Iterator[int]:
        """Count iterations, from where the checkpoint ended; evaluate and save behind them.

        Ctrl-C ends them after the present one.

        Args:
            policy: Maps observations to actions without noise, if it is given nothing else.
        """
        self._check_learner(policy)
        with self._interrupts():
            if self.processes.rank == 0:
                self._start_scores(policy)
                if not self.curve:
                    self._evaluate(policy)
            checkpoint.set_random_state(self._random, self.processes.device)
            stop = self.iteration >= self.cfg.iterations
            with tqdm(
                total=self.cfg.iterations,
                initial=self.iteration,
                desc=self.cfg.env,
                disable=self.processes.rank != 0,
                mininterval=1.0,
            ) as bar:
                while not stop:
                    yield self.iteration
                    self.iteration += 1
                    bar.update()
                    stop = self._behind(policy, bar)

    def _behind(self, policy: nn.Module, bar: Any) -> bool:
        """What follows an iteration; say whether it was the last."""
        cfg = self.cfg
        end = self.iteration == cfg.iterations
        if self.processes.rank == 0:
            if end or (cfg.eval_every and self.iteration % cfg.eval_every == 0):
                self._evaluate(policy)
            self._take_scores()
            if self.iteration % LOG_EVERY == 0:
                self._flush()
            bar.set_postfix(self._latest(), refresh=False)
        due = time.perf_counter() - self._saved >= cfg.checkpoint_seconds
        stop, due = self.processes.any(self._stop, due and self.processes.rank == 0)
        if stop or due or end:
            self._save()
        return stop or end

    def _latest(self) -> dict[str, str]:
        """The last scores, for the progress bar."""
        found = {"return": f"{self.curve[-1].returns:.1f}"} if self.curve else {}
        for row in reversed(self.curve):
            if row.gymnasium is not None:
                return found | {"on Gymnasium": f"{row.gymnasium:.1f}"}
        return found

    def log(self, values: dict[str, Tensor | float]) -> None:
        """Take numbers of an iteration for TensorBoard, which shows the mean of some iterations.

        Tensors, of one element, stay on their device, and nothing waits for it.
        """
        if self.processes.rank == 0:
            self._logged.append({name: _keep(value) for name, value in values.items()})

    # Rank 0

    def _open(self) -> None:
        """Begin the records, or go on with them."""
        cfg = self.cfg
        now = curve.describe(cfg, self.processes.device, self.processes.count)
        if cfg.resume:
            self._about["resumed"].append(now | {"iteration": self.iteration})
        else:
            self._about = now | {"resumed": []}
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob("events.out.tfevents.*"):  # of a run without a checkpoint
                old.unlink()
        purge = self.steps + 1 if cfg.resume else None  # hides what is after the checkpoint
        self._writer = SummaryWriter(str(self.folder), purge_step=purge)

    def _flush(self) -> None:
        """Fetch what was logged, all in one transfer, and write it."""
        columns: dict[str, list[Any]] = {}
        for values in self._logged:
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        self._logged = []
        means, pending = {}, {}
        for name, values in columns.items():
            tensors = [value for value in values if isinstance(value, Tensor)]
            if len(tensors) < len(values):
                means[name] = sum(map(float, values)) / len(values)
            else:
                pending[name] = torch.stack(tensors).mean()
        if pending:
            means |= zip(pending, torch.stack(list(pending.values())).tolist(), strict=True)
        now = (self.steps, time.perf_counter())
        if now[0] > self._log_time[0]:
            rate = (now[0] - self._log_time[0]) / (now[1] - self._log_time[1])
            means["time/env_steps_per_second"] = rate
        means["time/seconds"] = self.seconds
        self._log_time = now
        for name, value in means.items():
            self._writer.add_scalar(name, value, self.steps)

    def _pause(self, began: float) -> None:
        """Count the time since then into no speed."""
        steps, last = self._log_time
        self._log_time = steps, last + time.perf_counter() - began

    def _start_scores(self, policy: nn.Module) -> None:
        """Start the process that plays on Gymnasium's environment, if there is one to play on."""
        spec = command_line.find_spec(self.cfg.env)
        if not self.cfg.gymnasium_episodes or "gymnasium" not in self._sides:
            return
        obs_size = self.envs.single_observation_space.shape[0]
        game = Game(
            self._gymnasium_id() or "",
            self._sides["gymnasium"],
            spec.max_episode_steps or 0,
            self.cfg.gymnasium_episodes,
            TEST_SEED,
            evaluation.export(policy, obs_size),
        )
        self._scores = GymnasiumScores(game, self.folder / "gymnasium.log")
        for row, weights in self._unscored.items():
            self._scores.request(row, weights)

    def _gymnasium_id(self) -> str | None:
        return self.envs.unwrapped.task.gymnasium

    def _evaluate(self, policy: nn.Module) -> None:
        """Score the policy; it may be the best."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)
        seconds, began = self.seconds, time.perf_counter()
        mean = self._evaluation.returns(policy).mean().item()
        state = checkpoint.to_cpu(policy.state_dict())
        if mean >= self.best_return or self._best is None:
            self._best = state
            self.best_return = mean if math.isfinite(mean) else -math.inf
        if self._scores is not None:
            weights = evaluation.weights(state)
            self._unscored[len(self.curve)] = weights
            self._scores.request(len(self.curve), weights)
        self.curve.append(Row(self.iteration, self.steps, seconds, mean))
        self._writer.add_scalar("eval/return", mean, self.steps)
        curve.write_tables(self.curve, self._about, self.folder)
        tqdm.write(
            f"iteration {self.iteration}: return {mean:.1f}; {self.steps:,} steps, {seconds:.0f} s"
        )
        self._pause(began)

    def _take_scores(self, wait: bool = False) -> None:
        """Enter the scores that have arrived into the curve."""
        for score in self._scores.arrived(wait) if self._scores is not None else ():
            row = self.curve[score.request]
            self._unscored.pop(score.request, None)
            if score.failure is not None:
                if score.failure not in self._failures:
                    tqdm.write(f"No score on {self._gymnasium_id()}: {score.failure}")
                self._failures.add(score.failure)
                continue
            row.gymnasium, row.gymnasium_error = score.mean, curve.finite(score.error)
            self._writer.add_scalar("eval/gymnasium_return", score.mean, row.steps)
            curve.write_tables(self.curve, self._about, self.folder)

    # Checkpoints

    def _begin(self) -> None:
        """Begin a run: every process with worlds and random numbers of its own."""
        processes, seed = self.processes, self.cfg.seed
        for module in self.learner.values():
            if isinstance(module, nn.Module):
                processes.share_([*module.parameters(), *module.buffers()])
        first = SEEDS * seed + processes.rank * self.cfg.num_envs
        self.obs, _ = self.envs.reset(seed=first)
        seed_all(SEEDS * (seed + 1) + processes.rank)
        self._random = checkpoint.random_state(processes.device)

    def _check_learner(self, policy: nn.Module) -> None:
        """Refuse a policy that a resumed run would not have."""
        modules = [x for x in self.learner.values() if isinstance(x, nn.Module)]
        kept = {id(x) for module in modules for x in (*module.parameters(), *module.buffers())}
        named = (*policy.named_parameters(), *policy.named_buffers())
        lost = [name for name, x in named if id(x) not in kept]
        if lost:
            raise ValueError(
                f"{lost} of the policy are in no module of the learner {list(self.learner)}, so a "
                "resumed run would not have them"
            )

    def _save(self) -> None:
        """Write a checkpoint, with what every process has."""
        began = time.perf_counter()
        part = {
            "learner": checkpoint.to_cpu({n: x.state_dict() for n, x in self.learner.items()}),
            "random": checkpoint.random_state(self.processes.device),
            "envs": self.envs.get_state(),
            "obs": checkpoint.to_cpu(self.obs),
        }
        parts = self.processes.gather(part)
        if self.processes.rank == 0:
            self._flush()
            self._writer.flush()
            records = {
                "iteration": self.iteration,
                "seconds": self.seconds,
                "curve": self.curve,
                "best": self._best,
                "best_return": self.best_return,
                "about": self._about,
                "unscored": self._unscored,
            }
            checkpoint.write(self.cfg, parts, records)
        self._pause(began)
        self._saved = time.perf_counter()

    def _restore(self) -> None:
        """Go on from the checkpoint."""
        content = checkpoint.read(self.cfg)
        part, records = content["parts"][self.processes.rank], content["records"]
        if part["learner"].keys() != self.learner.keys():
            raise ValueError(
                f"the checkpoint has the learner {list(part['learner'])}, the script "
                f"{list(self.learner)}"
            )
        for name, state in part["learner"].items():
            self.learner[name].load_state_dict(state)
        self.envs.reset(seed=self.cfg.seed)
        self.envs.set_state(part["envs"])
        self.obs = part["obs"].to(self.processes.device)
        self._random = part["random"]
        self.iteration, self.curve = records["iteration"], records["curve"]
        self._best, self.best_return = records["best"], records["best_return"]
        self._about = records["about"]
        self._unscored = records["unscored"]
        self._seconds = records["seconds"]
        self._log_time = (self.steps, time.perf_counter())

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Ctrl-C, or SIGTERM, ends the iterations after the present one; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {}

        def stop(number: int, frame: Any) -> None:
            self._stop = True
            for which, handler in before.items():
                signal.signal(which, handler)
            if self.processes.rank == 0:
                os.write(2, b"\nStopping after this iteration; once more stops at once.\n")

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # The end

    def finish(self, policy: nn.Module) -> None:
        """Write the results of the best policy, once Gymnasium's scores are there; print them.

        A Ctrl-C while it waits leaves out the scores that are not there.
        """
        processes = self.processes
        processes.close()
        if processes.rank != 0:
            return
        obs_size = self.envs.single_observation_space.shape[0]
        best = copy.deepcopy(policy).cpu().eval()
        if self._best is not None:
            best.load_state_dict(self._best)
        with checkpoint.replacing(self.folder / "policy.pt2") as path:
            save_policy(path, best, obs_size)
        self._draw()
        if self._scores is not None:
            if self._scores.waiting:
                print(f"Waiting for scores on {self._gymnasium_id()}; Ctrl-C leaves them out.")
            try:
                self._take_scores(wait=True)
            except KeyboardInterrupt:
                print("Left out.")
            self._scores.close()
            self._draw()
        self._writer.close()
        print(self._summary())
        print(f"Results are in {self.folder}: policy.pt2, curve.csv, curve.json, curve.png")
        if self.cfg.video:
            arguments = (TEST_SEED, self.folder, str(processes.device))
            options = self._sides["diffenvs"]
            print(evaluation.record_video(self.cfg.env, options, best, *arguments))

    def _draw(self) -> None:
        """Draw the curve."""
        script = Path(sys.argv[0]).stem
        title = f"{script}, {self.cfg.env}, seed {self.cfg.seed}"
        curve.draw(self.curve, title, self._gymnasium_id(), self.folder)

    def _summary(self) -> str:
        """Say what was reached."""
        first = self.curve[0]
        best = max(reversed(self.curve), key=lambda row: row.returns)
        lines = [
            f"{self.iteration} iterations, {self.steps:,} steps, {self.seconds:.0f} s.",
            f"Return of an episode: {first.returns:.1f} before training, {best.returns:.1f} at best"
            f" (iteration {best.iteration}).",
        ]
        if best.gymnasium is not None:
            error = "" if best.gymnasium_error is None else f" ± {best.gymnasium_error:.1f}"
            lines.append(
                f"On {self._gymnasium_id()} that policy has {best.gymnasium:.1f}{error}, in "
                f"{self.cfg.gymnasium_episodes} episodes."
            )
        return "\n".join(lines)


def _keep(value: Tensor | float) -> Tensor | float:
    """A copy of what was logged: a number, or a tensor on the GPU."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value.float().reshape(()).clone() if value.is_cuda else value.item()
    return float(value)
