"""Kernels of launches are compiled and loaded side by side, before the launches first run.

mujoco_warp makes its kernels when a step first needs them, each in a Warp module of its own, and
Warp compiles a module at its first launch: fifty of them, one after the other. So the launches are
rehearsed, which makes the kernels and notes their modules but touches no array, and all modules
are then loaded at once, on all cores.
"""

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import warp as wp

from .compile_worker import compile_apart

# Held while functions of Warp are replaced, which other threads would undo, and while a graph is
# captured, of which Warp has one at a time.
one_at_a_time = threading.RLock()
_MOST_WORKERS = 16
# these fill an array that they made themselves, which whoever asked for it may keep
_MAKERS = {f.__code__ for f in (wp.zeros, wp.zeros_like, wp.full, wp.full_like, wp.clone)}
# of Warp's modules; without these, a module is loaded when a kernel of it is first launched
_KNOWN = all(
    hasattr(wp.get_module(__name__), name)
    for name in ("load", "execs", "kernels", "options", "get_module_hash")
)
_SORTS = ("array_scan", "radix_sort_pairs", "runlength_encode", "segmented_sort_pairs")


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """No garbage collection inside; what was made there counts as old afterwards.

    Warp parses and hashes its kernels into objects that stay, a million of them with mujoco_warp's,
    and the collector would walk all of these over and over: a quarter of the time to the first
    gradient, and a quarter of a capture. Old objects are collected like any others, but looked at
    less often.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() == 0:  # it is not for us to thaw what somebody froze
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def load_kernels(device: wp.Device, *launches: Callable[[], None]) -> None:
    """Loads what the launches need, in parallel; none of them is executed.

    Args:
        device: that they run on.
        launches: of which none reads the device; their Python code runs once more.
    """
    if not _KNOWN:
        return
    with one_at_a_time, paused_collector():
        modules = rehearse(device, *launches)
        if not modules:
            return
        # The longest first. Those with tiles have a block of their own size; Warp builds the
        # libraries of their matrix functions one at a time, and nothing else may wait for that.
        modules.sort(key=lambda x: (x[1] != x[0].options["block_dim"], -len(x[0].kernels)))
        workers = min(wp.config.load_module_max_workers or _cores(), len(modules), _MOST_WORKERS)
        pool = ThreadPoolExecutor(workers)
        with compile_apart(workers) if device.is_cuda else contextlib.nullcontext():
            try:
                loading = [pool.submit(wp.force_load, device, [m], dim, 0) for m, dim in modules]
                for future in loading:
                    future.result()
            finally:  # whoever interrupts this does not wait for what has not begun
                pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rehearse(device: wp.Device, *launches: Callable[[], None]) -> list[tuple[wp.Module, int]]:
    """The modules that the launches need and that are not loaded, with the block size of each.

    The launches of this thread do nothing meanwhile, nor do copies, fills, scans and sorts; a
    loop's body and both branches of a condition run once.
    """
    needed: dict[tuple[wp.Module, int], None] = {}
    owner = threading.get_ident()
    patches = contextlib.ExitStack()

    def replace(where: Any, name: str, stand_in: Callable[..., Any]) -> None:
        real = getattr(where, name)

        def here(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner or sys._getframe(1).f_code in _MAKERS:
                return real(*args, **kwargs)
            return stand_in(*args, **kwargs)

        setattr(where, name, here)
        patches.callback(setattr, where, name, real)

    def load(module: wp.Module, device: wp.Device, block_dim: int | None = None) -> None:
        # a kernel whose module is not there is not launched
        dim: int = block_dim or module.options["block_dim"]
        there = module.execs.get((device.context, dim))
        if there is None or there.module_hash != module.get_module_hash(dim):
            needed[module, dim] = None

    def block_size(kernel: wp.Kernel, device: Any = None) -> tuple[int, int]:
        load(kernel.module, wp.get_device(device))
        return 1, 1

    def nothing(*args: Any, **kwargs: Any) -> None: ...

    def branches(condition: wp.array, on_true=None, on_false=None, stream=None, **kwargs) -> None:
        for branch in (on_true, on_false):
            if callable(branch):
                branch(**kwargs)

    def loop(condition: wp.array, while_body, stream=None, **kwargs) -> None:
        if callable(while_body):
            while_body(**kwargs)

    with one_at_a_time, patches, wp.ScopedDevice(device):
        replace(wp.Module, "load", load)
        replace(wp, "capture_if", branches)
        replace(wp, "capture_while", loop)
        replace(wp, "copy", nothing)
        for name in ("zero_", "fill_"):
            replace(wp.array, name, nothing)
        for name in _SORTS:
            replace(wp.utils, name, nothing)
        if device.is_cuda:
            replace(wp, "get_suggested_block_size", block_size)
        for launch in launches:
            launch()
    return list(needed)
