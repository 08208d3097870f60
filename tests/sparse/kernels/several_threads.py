"""
What ``test_threads.py`` runs in a process of its own, with several threads: pytest's process has one, and would keep the
others, which forked children of later tests would wait for.
"""

import os
import signal
import sys
import threading
import time

import pytest
import torch as th

from sb3_sparse.sparse import SparseConv2d, Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends, sparse_linear
from sb3_sparse.sparse.kernels.backends import BACKENDS, blocked, compiled
from sb3_sparse.sparse.kernels.backends.dense import _scratch
from sb3_sparse.sparse.kernels.convolution import shifted
from sb3_sparse.sparse.kernels.native import threads

N_THREADS = 4
BATCHES = [1, 3, 64, 250]


@pytest.fixture(autouse=True)
def _several_threads():
    th.set_num_threads(N_THREADS)
    yield
    th.set_num_threads(N_THREADS)


@pytest.fixture
def parts(monkeypatch):
    """Into how many parts each call of a kernel was cut."""
    seen = []
    run = threads.run

    def watched(kernel, arguments, bounds):
        seen.append(len(bounds) - 1)
        run(kernel, arguments, bounds)

    monkeypatch.setattr(threads, "MIN_WORK", 1)
    for module in (compiled, blocked, shifted):
        monkeypatch.setattr(module, "run", watched)
    return seen


@pytest.fixture(params=["OpenMP", "Python"])
def who_works(request, monkeypatch):
    """Threads of either kind."""
    if request.param == "Python":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("torch has no OpenMP that could be reached")
    return request.param


# Enough rows and columns for several rows of blocks each.
TOPOLOGY = Topology.random((700, 900), 63_000, seed=0)


def products(batch, seed=0, topology=TOPOLOGY):
    generator = th.Generator().manual_seed(seed)
    values = th.randn(topology.nnz, generator=generator).requires_grad_()
    x = th.randn(batch, topology.columns, generator=generator).requires_grad_()
    y = sparse_linear(x, values, topology, th.ones(topology.rows))
    y.square().sum().backward()
    return y.detach(), x.grad, values.grad


def equal(results, expected):
    return all(th.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("backend", ["compiled", "blocked"])
@pytest.mark.parametrize("batch", BATCHES)
def test_results_do_not_depend_on_the_number_of_threads(backend, batch, who_works, parts, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    th.set_num_threads(1)
    expected = products(batch)
    assert set(parts) == {1}
    for n_threads in (2, 3, N_THREADS, 7):
        parts.clear()
        th.set_num_threads(n_threads)
        for _ in range(3):
            assert equal(products(batch), expected)
        assert max(parts) == n_threads
    if who_works == "Python":
        assert threads._pool()._threads


@pytest.mark.parametrize("batch", [1, 20, 32])
# Channels in one block, and in several.
@pytest.mark.parametrize(("channels", "stride", "size"), [(8, 2, (21, 19)), (64, 1, (8, 11))])
def test_results_of_convolutions_do_not_depend_on_the_number_of_threads(
    batch, channels, stride, size, who_works, parts, monkeypatch
):
    monkeypatch.setenv(BACKEND_VARIABLE, "blocked")
    topology = Topology.random((64, channels, 3, 3), 60 * channels, seed=0)
    layer = SparseConv2d(th.nn.Conv2d(channels, 64, 3, stride, 1), topology)
    x = th.randn(batch, channels, *size, requires_grad=True)

    def results():
        y = layer(x)
        return y.detach(), *th.autograd.grad(y.square().sum(), [x, layer.values])

    th.set_num_threads(1)
    expected = results()
    assert set(parts) == {1}
    for n_threads in (2, 3, N_THREADS, 7):
        parts.clear()
        th.set_num_threads(n_threads)
        for _ in range(3):
            assert equal(results(), expected)
        assert max(parts) == n_threads


@pytest.mark.parametrize("backend", ["compiled", "blocked"])
def test_small_products_are_not_shared_and_large_ones_are(backend, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    assert threads.thread_count(threads.MIN_WORK - 1) == 1
    assert threads.thread_count(2 * threads.MIN_WORK) == 2
    assert threads.thread_count(100 * threads.MIN_WORK) == N_THREADS


@pytest.mark.parametrize("backend", available_backends("cpu"))
@pytest.mark.parametrize("batch", BATCHES)
def test_a_number_of_threads_gives_the_same_results_again(backend, batch, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    expected = products(batch)
    for _ in range(3):
        assert equal(products(batch), expected)


@pytest.mark.parametrize("backend", available_backends("cpu"))
def test_threads_of_python_use_one_topology_at_the_same_time(backend, parts, monkeypatch):
    """Like an online network and its target do, and several learners in one process."""
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    topology = Topology.random((300, 400), 30_000, seed=7)
    expected = {seed: products(32, seed, topology) for seed in range(6)}
    # As at first: each thread finds nothing that is kept.
    for kept in (blocked._kept, compiled._derived, _scratch.buffers):
        kept.pop(topology, None)
    topology._tensors.clear()
    topology._flat_index.clear()
    wrong, start = [], threading.Barrier(len(expected))

    def work(seed):
        start.wait()
        for _ in range(20):
            results = products(32, seed, topology)
            if not all(th.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in zip(results, expected[seed], strict=True)):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not wrong


def test_two_threads_are_between_scattering_and_multiplying(monkeypatch):
    """The dense backend's scratch: both have written their weights before either multiplies with them."""
    monkeypatch.setenv(BACKEND_VARIABLE, "dense")
    both, scatter = threading.Barrier(2), _scratch.scatter

    def scatter_and_wait(values, topology):
        weight = scatter(values, topology)
        both.wait(60)
        return weight

    topology = Topology.random((30, 20), 100, seed=0)
    x, results = th.randn(5, 20), {}
    values = {name: th.randn(100) for name in ("online", "target")}
    expected = {name: sparse_linear(x, values[name], topology) for name in values}
    monkeypatch.setattr(_scratch, "scatter", scatter_and_wait)
    workers = [
        threading.Thread(target=lambda name=name: results.update({name: sparse_linear(x, values[name], topology)}))
        for name in values
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert all(th.equal(results[name], expected[name]) for name in values)


def forked(function, seconds=20):
    """The exit status of a forked child that runs a function, or None if it did not end."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if function() else 1)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        os._exit(2)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("backend", ["compiled", "blocked"])
@pytest.mark.parametrize("batch", [1, 256])
def test_a_forked_child_of_a_parent_with_threads(backend, batch, who_works, parts):
    """It has one thread, whatever torch says: the others do not exist, and waiting for them would never end."""
    kernels = BACKENDS[backend]
    values, bias = th.linspace(-1, 1, TOPOLOGY.nnz), th.ones(TOPOLOGY.rows)
    # As kernels want them: torch's own copies would wait for threads of the parent.
    x = th.linspace(-1, 1, 900 * batch).view(900, batch).t()
    grad = th.linspace(-1, 1, 700 * batch).view(700, batch).t()
    x, grad = (x.contiguous(), grad.contiguous()) if batch == 1 else (x, grad)

    def run():
        packed, packed_grad = kernels.pack(x), kernels.pack(grad)
        y = kernels.forward(packed, values, TOPOLOGY, bias, batch)
        dx = kernels.grad_input(packed_grad, values, TOPOLOGY, batch)
        return [t.numpy().tobytes() for t in (y, dx, kernels.grad_values(packed_grad, packed, TOPOLOGY, batch))]

    expected = run()
    assert max(parts) == N_THREADS

    def child():
        parts.clear()
        assert run() == expected
        assert th.get_num_threads() == N_THREADS
        return max(parts) == 1

    assert forked(child) == 0
    assert run() == expected


def test_an_interrupted_call_ends_with_all_of_its_threads_done(monkeypatch):
    """What they write into may be freed as soon as the call has ended."""
    done, may_end = [], threading.Event()

    class Interrupted:
        def call(self, begin, end):
            if begin == 0:
                threading.Timer(0.3, may_end.set).start()
                raise KeyboardInterrupt
            assert may_end.wait(30)
            done.append(begin)

    monkeypatch.setattr(threads, "_openmp", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        threads.run(Interrupted(), (), (0, 1, 2, 3))
    assert sorted(done) == [1, 2]
