"""Processes that compile CUDA sources side by side: NVRTC compiles one source at a time in each.

Warp generates the source of a module and has it compiled by `build_cuda`. Inside `compile_apart`
that call is handed to a worker, which is this file run as a program: it reads calls from its
standard input and answers each on its output: done or not. A worker sees no GPU and needs none.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import warp as wp

# Warp has no public name for it; without it, sources are compiled in this process
_build: Any = getattr(getattr(wp, "_src", None), "build", None)


class _Worker:
    """One process, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def build(self, *args: Any, **kwargs: Any) -> bool:
        """Call `build_cuda` over there; whether it succeeded."""
        try:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", __file__],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=os.environ
                    | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)},
                )
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None and stdout is not None
            pickle.dump((args, kwargs), stdin)
            stdin.flush()
            return pickle.load(stdout)
        except Exception:  # it could not be started, or has died, or says what is no answer
            self.end(at_once=True)
            return False

    def end(self, at_once: bool) -> None:
        """Ask the process to end, which it does when it has cleared its temporary files away."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if at_once:
            self._process.kill()

    def wait(self) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def compile_apart(processes: int) -> Iterator[None]:
    """What threads compile for CUDA inside is compiled by up to so many processes."""
    if not hasattr(_build, "build_cuda"):
        yield
        return
    here = _build.build_cuda
    made = [_Worker() for _ in range(processes)]
    idle: queue.LifoQueue[_Worker] = queue.LifoQueue()  # one that runs already comes first
    for worker in made:
        idle.put(worker)
    ended = threading.Event()

    def build_cuda(*args: Any, **kwargs: Any) -> None:
        worker = idle.get()
        try:
            done = worker.build(*args, **kwargs)
        finally:
            idle.put(worker)
        if ended.is_set():
            raise InterruptedError("compiling was interrupted")
        if not done:
            here(*args, **kwargs)  # which says what is wrong, if it is the source

    _build.build_cuda = build_cuda
    interrupted = True
    try:
        yield
        interrupted = False
    finally:
        _build.build_cuda = here
        ended.set()
        for worker in made:
            worker.end(at_once=interrupted)
        for worker in made:
            worker.wait()


def _main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Warp prints is not an answer
    wp.init()
    while True:
        try:
            args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        # a folder of precompiled headers; the caller's belongs to one of its threads
        kwargs["pch_dir"] = wp._src.context.runtime.get_nvrtc_pch_dir()
        try:
            _build.build_cuda(*args, **kwargs)
            done = True
        except Exception:
            done = False
        pickle.dump(done, answers)
        answers.flush()


if __name__ == "__main__":
    _main()
