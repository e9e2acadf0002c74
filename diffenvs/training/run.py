"""A run: a training from its first iteration, or from where a checkpoint ended, to its results."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffenvs.training import checkpoint, curve
from diffenvs.training.processes import Processes, seed_all
from diffenvs.training.records import Records
from diffenvs.training.settings import Settings, refuse

LOG_EVERY = 10  # iterations between writes to TensorBoard
SEEDS = 1_000_000  # first seeds of the runs' worlds are so far apart


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
        eval_keywords: Keywords of the environment in evaluations; None is those of `envs`, but
            for those of reward, start and end, which are Gymnasium's.

    Attributes:
        folder: Where everything is written.
        obs: Present observations; the script sets them at the end of an iteration.
        iteration: Iterations that are done.
        more_steps: Steps of all worlds of this process outside the iterations; a script adds them.
        records: What was found out; None in other processes than rank 0.
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
        self.iteration = self.more_steps = 0
        self._seconds = 0.0  # of the runs before that this one resumes
        self._stop = False
        before = None
        if cfg.resume:
            before = self._restore()
        else:
            self._begin()
        self.records = (
            Records(cfg, processes, envs, eval_keywords, self.steps, before)
            if processes.rank == 0
            else None
        )
        self._saved = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps of all worlds of all processes so far."""
        steps = self.iteration * self.cfg.num_envs * self.cfg.horizon + self.more_steps
        return steps * self.processes.count

    @property
    def seconds(self) -> float:
        """Wall clock so far: since the process began, and of the runs before that it resumes."""
        return self._seconds + curve.seconds_of_process()

    def iterations(self, policy: nn.Module) -> Iterator[int]:
        """Count iterations, from where the checkpoint ended; evaluate and save behind them.

        Ctrl-C ends them after the present one, which is evaluated then.

        Args:
            policy: Maps observations to actions without noise, if it is given nothing else.
        """
        self._check_learner(policy)
        with self._interrupts():
            if self.records is not None:
                self.records.start(policy)
                if not self.records.curve:
                    self._evaluate(policy)
            checkpoint.set_random_state(self._random, self.processes.device)
            stop = self.iteration >= self.cfg.iterations
            with tqdm(
                total=self.cfg.iterations,
                initial=self.iteration,
                desc=self.cfg.env,
                disable=self.records is None,
                mininterval=1.0,
            ) as bar:
                while not stop:
                    yield self.iteration
                    self.iteration += 1
                    bar.update()
                    stop = self._behind(policy, bar)

    def log(self, values: dict[str, Tensor | float]) -> None:
        """Take numbers of an iteration for TensorBoard, which shows the mean of some iterations.

        Tensors, of one element, stay on their device, and nothing waits for it.
        """
        if self.records is not None:
            self.records.log.keep(values)

    def finish(self, policy: nn.Module) -> None:
        """Write the results of the best policy, once Gymnasium's scores are there; print them.

        A Ctrl-C while it waits leaves out the scores that are not there.
        """
        self.processes.leave()
        if self.records is not None:
            print(f"{self.iteration} iterations, {self.steps:,} steps, {self.seconds:.0f} s.")
            self.records.finish(policy)

    # Behind an iteration

    def _behind(self, policy: nn.Module, bar: Any) -> bool:
        """What follows an iteration; say whether it was the last."""
        cfg, records = self.cfg, self.records
        end = self.iteration == cfg.iterations
        if records is not None:
            if end or (cfg.eval_every and self.iteration % cfg.eval_every == 0):
                self._evaluate(policy)
            records.take_scores(policy)
            if self.iteration % LOG_EVERY == 0:
                records.log.write(self.steps, self.seconds)
            bar.set_postfix(records.latest(), refresh=False)
        due = time.perf_counter() - self._saved >= cfg.checkpoint_seconds
        stop, due = self.processes.any(self._stop, due and records is not None)
        if stop or due or end:
            self._save()
        if stop and records is not None and records.curve[-1].iteration < self.iteration:
            self._evaluate(policy)  # behind the checkpoint: a resumed run does without
        return stop or end

    def _evaluate(self, policy: nn.Module) -> None:
        """Score the policy at the present time."""
        assert self.records is not None
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)
        self.records.evaluate(policy, self.iteration, self.steps, self.seconds)

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
            if self.records is not None:
                os.write(2, b"\nStopping after this iteration; once more stops at once.\n")

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # Checkpoints

    def _begin(self) -> None:
        """Begin a run: every process with worlds and random numbers of its own."""
        processes, seed = self.processes, self.cfg.seed
        for module in self.learner.values():
            if isinstance(module, nn.Module):
                processes.share_([*module.parameters(), *module.buffers()])
        self.obs, _ = self.envs.reset(seed=SEEDS * seed + processes.rank * self.cfg.num_envs)
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
            "device": self.processes.device.type,
        }
        parts = self.processes.gather(part)
        if self.records is not None:
            self.records.log.write(self.steps, self.seconds)
            self.records.log.writer.flush()
            found = {name: getattr(self, name) for name in ("iteration", "more_steps", "seconds")}
            checkpoint.write(self.cfg, parts, found | self.records.state())
            self.records.log.pause(began)
        self._saved = time.perf_counter()

    def _restore(self) -> dict[str, Any]:
        """Go on from the checkpoint; return the records in it."""
        content = checkpoint.read(self.cfg)
        part, records = content["parts"][self.processes.rank], content["records"]
        if part["learner"].keys() != self.learner.keys():
            raise ValueError(
                f"the checkpoint has the learner {list(part['learner'])}, the script "
                f"{list(self.learner)}"
            )
        if part["device"] != self.processes.device.type:  # an optimiser keeps the one it is for
            refuse(
                f"--resume cannot go on with {self.folder / checkpoint.NAME}: device is "
                f"{self.processes.device.type}, and was {part['device']} when it was written"
            )
        for name, state in part["learner"].items():
            self.learner[name].load_state_dict(state)
        self.envs.set_state(part["envs"])
        self.obs = part["obs"].to(self.processes.device)
        self._random = part["random"]
        self.iteration, self._seconds = records["iteration"], records["seconds"]
        self.more_steps = records["more_steps"]
        return records
