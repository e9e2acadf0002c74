"""Kernels are loaded before their launches run, all that they need, and without running them."""

import gc
import threading
import time

import feature_models
import numpy as np
import pytest
import warp as wp

from diffenvs.physics import Physics, compile_worker, load
from diffenvs.physics.load import load_kernels, paused_collector, rehearse
from diffenvs.physics.tape import captured

wp.set_module_options({"enable_backward": False})
DEVICE = wp.get_device("cpu")


def _add(value: float):
    """A kernel in a module of its own, which no earlier test has loaded."""

    @wp.kernel(module="unique", enable_backward=False)
    def add(x: wp.array[float], left: wp.array[int]):
        x[wp.tid()] += value
        left[0] = 0

    return add


@pytest.fixture
def loads(monkeypatch):
    """The modules that are loaded while the test runs, in order."""
    found, real = [], wp.Module.load

    def noting(module, device, block_dim=None, **kwargs):
        before = dict(module.execs)
        loaded = real(module, device, block_dim, **kwargs)
        if loaded not in before.values():
            found.append(module)
        return loaded

    monkeypatch.setattr(wp.Module, "load", noting)
    return found


def test_rehearsal_executes_nothing_and_finds_all_modules(loads):
    """Kernels, copies, fills, sorts: nothing happens to an array, yet every module is found."""
    x, y = wp.array([3.0, 1.0], dtype=float), wp.array([7.0, 8.0, 9.0, 9.0], dtype=float)
    order, one = wp.array([1, 0, 5, 5], dtype=int), wp.ones(1, dtype=int)
    kernels = [_add(value) for value in (0.5, 1.5, 2.5, 3.5, 4.5)]
    kept, threads = [], []

    def launch(kernel, into=x, dim=2):
        wp.launch(kernel, dim=dim, inputs=[into, one])

    def elsewhere():
        other = wp.zeros(2, dtype=float, device=DEVICE)
        wp.launch(kernels[4], dim=2, inputs=[other, wp.ones(1, dtype=int)], device=DEVICE)
        threads.append(other.numpy())

    def launches():
        launch(kernels[0])
        wp.capture_while(one, while_body=launch, kernel=kernels[1])
        wp.capture_if(one, lambda: launch(kernels[2]), lambda: launch(kernels[3]))
        launch(kernels[0], dim=0)
        wp.copy(x, y, count=2)
        x.zero_()
        order.fill_(4)
        y.assign(np.zeros(4, np.float32))
        wp.utils.radix_sort_pairs(y, order, 2)
        wp.utils.array_scan(x, x)
        kept[:] = [wp.full(2, 6.0, dtype=float), wp.clone(y), wp.zeros(2, dtype=float)]
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    with wp.ScopedDevice(DEVICE):
        needed = rehearse(DEVICE, launches)
        assert needed == [(kernel.module, 1) for kernel in kernels[:4]]
        assert loads == [kernels[4].module]  # of the other thread, which is not rehearsed
        np.testing.assert_array_equal(threads[0], [4.5, 4.5])
        np.testing.assert_array_equal(x.numpy(), [3, 1])
        np.testing.assert_array_equal(y.numpy(), [7, 8, 9, 9])
        np.testing.assert_array_equal(order.numpy(), [1, 0, 5, 5])
        for array, values in zip(kept, ([6, 6], [7, 8, 9, 9], [0, 0]), strict=True):
            np.testing.assert_array_equal(array.numpy(), values)

        load_kernels(DEVICE, launches)
        assert {m.name for m in loads} == {kernel.module.name for kernel in kernels}
        assert rehearse(DEVICE, launches) == [] and len(loads) == 5
        np.testing.assert_array_equal(x.numpy(), [3, 1])
        launch(kernels[0])
        np.testing.assert_array_equal(x.numpy(), [3.5, 1.5])
        assert len(loads) == 5


@pytest.mark.parametrize("integrator", feature_models.INTEGRATORS)
def test_step_and_adjoint_load_nothing_when_they_run(integrator, loads):
    """A step and its adjoint find their kernels loaded, and the rehearsal changed no array."""
    mjm = feature_models.load("crawler", integrator)
    physics = Physics(mjm, 2, DEVICE, nstep=2)
    state, after, adj, adj_out = (physics.make_state() for _ in range(4))
    for array in (*state.arrays(), *adj_out.differentiable()):
        array.assign(array.numpy() + np.float32(0.25))
    inputs, adj_inputs = physics.make_inputs(), physics.make_inputs()
    record = physics.make_record(inputs)
    arrays = [*state.arrays(), *after.arrays(), *adj.arrays(), *adj_inputs.given().values()]
    arrays += [x for x in vars(physics.d).values() if isinstance(x, wp.array) and x.size]
    before = [array.numpy().copy() for array in arrays]
    loads.clear()

    def step():
        physics.launch_step(state, inputs, after, record)

    def adjoint():
        physics.launch_step_vjp(record, adj_out, adj, adj_inputs)

    load_kernels(DEVICE, step, adjoint)
    for array, values in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array.numpy(), values)
    assert rehearse(DEVICE, step, adjoint) == []
    loads.clear()
    step()
    adjoint()
    assert loads == []
    assert np.abs(adj.qvel.numpy()).max() > 0.1


def test_without_the_names_of_warp_kernels_load_as_they_run(monkeypatch, loads):
    """With this Warp kernels are loaded ahead; with one that renamed something, at their launch."""
    assert load._KNOWN
    monkeypatch.setattr(load, "_KNOWN", False)
    x, left, add = wp.zeros(2, dtype=float), wp.ones(1, dtype=int), _add(5.5)
    load_kernels(DEVICE, lambda: pytest.fail("nothing is to be launched"))
    graph = captured(DEVICE, lambda: wp.launch(add, dim=2, inputs=[x, left], device=DEVICE))
    wp.capture_launch(graph)
    assert loads == [add.module]
    np.testing.assert_array_equal(x.numpy(), [11, 11])  # a captured graph is launched once


def test_kernel_that_does_not_compile_is_reported():
    """The error of a module that cannot be built is that of its launch."""

    @wp.kernel(module="unique", enable_backward=False)
    def broken(x: wp.array[float]):
        x[0] = x[0].nowhere

    x = wp.zeros(1, dtype=float, device=DEVICE)

    def launches():
        wp.launch(broken, dim=1, inputs=[x], device=DEVICE)

    for run in (lambda: load_kernels(DEVICE, launches), launches):
        with pytest.raises(Exception, match="nowhere"):
            run()


def test_collector_is_paused_and_left_as_it_was():
    """The collector rests inside; it stays off if it was, and what is frozen stays frozen."""
    assert gc.isenabled() and gc.get_freeze_count() == 0
    with paused_collector():
        assert not gc.isenabled()
        made = [[] for _ in range(10)]
    assert gc.isenabled() and gc.get_freeze_count() == 0
    assert sum(any(x is y for y in made) for x in gc.get_objects(generation=2)) == 10
    gc.freeze()
    frozen = gc.get_freeze_count()
    try:
        with paused_collector():
            pass
        assert gc.isenabled() and gc.get_freeze_count() >= frozen - 1000 > 0
        gc.disable()
        with paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_rehearsals_of_two_threads_do_not_mix():
    """The second waits for the first: each would restore what the other had replaced."""
    real, order = (wp.Module.load, wp.copy, wp.array.zero_), []
    inside, asked = threading.Event(), threading.Event()

    def first():
        inside.set()
        assert asked.wait(5)
        time.sleep(0.1)
        order.append("first")

    def begin():
        inside.wait(5)
        asked.set()
        rehearse(DEVICE, lambda: order.append("second"))

    other = threading.Thread(target=begin)
    other.start()
    rehearse(DEVICE, first)
    other.join()
    assert order == ["first", "second"]
    assert (wp.Module.load, wp.copy, wp.array.zero_) == real


def test_an_interrupted_load_does_not_go_on(monkeypatch):
    """Ctrl-C while kernels compile ends it: what has not begun is not compiled."""
    begun = []

    def force_load(device, modules, *args):
        begun.append(modules[0])
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(0.2)

    monkeypatch.setattr(wp, "force_load", force_load)
    monkeypatch.setattr(wp.config, "load_module_max_workers", 1)
    x, one = wp.ones(2, dtype=float), wp.ones(1, dtype=int)
    kernels = [_add(value) for value in (11.5, 12.5, 13.5, 14.5)]
    with pytest.raises(KeyboardInterrupt):
        load_kernels(
            DEVICE, lambda: [wp.launch(kernel, dim=2, inputs=[x, one]) for kernel in kernels]
        )
    time.sleep(0.5)
    assert len(begun) < 4


def test_sources_are_compiled_by_other_processes(monkeypatch, tmp_path):
    """A CUDA binary comes from a worker; what a worker cannot compile is compiled here."""
    here = []
    monkeypatch.setattr(
        compile_worker._build, "build_cuda", lambda *args, **kwargs: here.append(args)
    )
    one, other = _add(7.5), _add(8.5)
    with compile_worker.compile_apart(1):
        wp.compile_aot_module(one.module, arch=90, module_dir=tmp_path)
        assert [path.suffix for path in tmp_path.glob("*.cubin")] == [".cubin"]
        assert not here
        monkeypatch.setattr(compile_worker.pickle, "load", lambda file: False)
        wp.compile_aot_module(other.module, arch=90, module_dir=tmp_path / "other")
    assert len(here) == 1
    assert compile_worker._build.build_cuda("as before") is None and len(here) == 2
