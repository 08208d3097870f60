"""Which backend runs a product: measured, or by the rule."""

import logging
import os
import subprocess
import sys
import textwrap

import pytest
import torch as th

from sb3_sparse.sparse import SparseLinear, Topology, sparsity_report
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends, choose_backend, peek_backend
from sb3_sparse.sparse.kernels.backends import BACKENDS, blocked
from sb3_sparse.sparse.kernels.choosing import choices, chooser, measure
from sb3_sparse.sparse.kernels.choosing.rule import backend_by_rule
from tests.sparse.kernels.conftest import CPU, LAYER, forbid_measuring, pretend, stored


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"dense": 3.0, "csr": 2.0, "compiled": 1.0, "blocked": 2.0}, "compiled"),
        ({"dense": 3.0, "csr": 1.0, "compiled": 2.0, "blocked": 2.0}, "csr"),
        ({"dense": 3.0, "csr": 2.0, "compiled": 2.0, "blocked": 1.0}, "blocked"),
        ({"dense": 1.0, "csr": 2.0, "compiled": 2.0, "blocked": 2.0}, "dense"),
        # Less than a twentieth faster than dense is noise.
        ({"dense": 1.0, "csr": 2.0, "compiled": 0.99, "blocked": 2.0}, "dense"),
        ({"dense": 1.0, "csr": 2.0, "compiled": 2.0, "blocked": 0.96}, "dense"),
        ({"dense": 1.0, "csr": 2.0, "compiled": 2.0, "blocked": 0.94}, "blocked"),
    ],
)
def test_the_fastest_is_chosen_and_dense_wins_ties(fresh, monkeypatch, seconds, expected):
    pretend(monkeypatch, **seconds)
    assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == expected
    assert list(stored().values()) == [expected]


def test_nothing_is_measured_on_a_busy_machine(fresh, monkeypatch, caplog):
    cores = os.cpu_count()
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (1.6 * cores, 0.0, 0.0))
    topology = Topology.random(*LAYER)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "sb3_sparse"):
        forbid_measuring(patch)
        assert choose_backend(CPU, th.float32, topology).name == backend_by_rule(CPU, th.float32, topology, 256)
    assert "too busy" in caplog.text
    assert not fresh.exists()
    # As long as this process lives, whatever else runs.
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (1.4 * cores, 0.0, 0.0))
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    assert choose_backend(CPU, th.float32, Topology((64, 64), topology.flat_index().numpy())).name == "blocked"
    assert not fresh.exists()
    chooser.forget_choices()
    assert choose_backend(CPU, th.float32, topology).name == "csr"


def test_times_that_scatter_decide_nothing(fresh, monkeypatch, caplog):
    pretend(monkeypatch, dense=3.0, csr=[1.0, 1.7, 1.7], compiled=2.0, blocked=2.0)
    with caplog.at_level(logging.INFO, "sb3_sparse"):
        assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == "blocked"
    assert "times scatter" in caplog.text
    assert not fresh.exists()
    chooser.forget_choices()
    pretend(monkeypatch, dense=3.0, csr=[1.0, 1.3, 1.3], compiled=2.0, blocked=2.0)
    assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == "csr"


def test_who_is_far_behind_is_not_timed_again(fresh, monkeypatch):
    pretend(monkeypatch, dense=30.0, csr=2.1, compiled=1.5, blocked=1.0)
    counts = dict.fromkeys(BACKENDS, 0)
    for name, backend in BACKENDS.items():
        original = backend.forward
        monkeypatch.setattr(
            backend, "forward", lambda *args, f=original, name=name: (counts.update({name: counts[name] + 1}), f(*args))
        )
    assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == "blocked"
    assert (counts["dense"], counts["csr"]) == (2, 2)
    assert counts["compiled"] == counts["blocked"] == 1 + measure._MIN_ROUNDS


@pytest.mark.parametrize(
    ("seconds", "best", "expected"),
    [
        ({"dense": 9.0, "compiled": 1.0, "blocked": 1.04}, "compiled", "blocked"),
        ({"dense": 9.0, "compiled": 1.0, "blocked": 1.06}, "compiled", "compiled"),
        ({"dense": 1.03, "compiled": 1.0, "blocked": 1.04}, "dense", "dense"),
        ({"dense": 1.03, "compiled": 0.99, "blocked": 1.035}, "compiled", "compiled"),
        ({"dense": 9.0, "compiled": 1.0}, "compiled", "compiled"),
    ],
)
def test_a_tie_is_the_rules_unless_that_is_slower_than_dense(seconds, best, expected):
    assert measure.Measurement(best, seconds, True, "").best_or("blocked") == expected


@pytest.mark.parametrize("batch", [1, 2, 32, 256, 1024])
@pytest.mark.parametrize(
    "shape", [(64, 64), (2048, 512), (70_000, 512), (512, 70_000), (270_000, 128), (1, 2**20), (2**20, 1), (20_000, 20_000)]
)
def test_what_is_measured_is_bounded(shape, batch):
    class Large:
        rows, columns = shape
        density = 0.1

    sample = measure._sample(Large, batch)
    assert sample.numel <= 2**22
    assert batch * sample.numel <= 2**30
    assert batch * max(sample.rows, sample.columns) <= 2**22
    assert sample.density == pytest.approx(0.1, abs=0.02)
    if shape == (64, 64) or (shape == (2048, 512) and batch <= 256):
        assert (sample.rows, sample.columns) == shape


def test_the_first_product_of_a_large_layer_makes_nothing_large(fresh, monkeypatch):
    """A dense weight of this layer, or the gradient of its outputs, would take 256 and 128 MiB."""
    topology = Topology((2**20, 64), th.arange(0, 2**26, 64).numpy())
    largest, numels = [0], []
    step = measure._step

    def watch(backend, x, values, grad, sample):
        largest[0] = max(largest[0], *(t.numel() for t in (x, values, grad) if t is not None))
        numels.append(sample.numel)
        return step(backend, x, values, grad, sample)

    monkeypatch.setattr(measure, "_step", watch)
    assert choose_backend(CPU, th.float32, topology, 32).name in BACKENDS
    assert max(numels) <= 2**22
    assert largest[0] <= 2**22
    assert not topology._tensors
    assert not topology._flat_index
    assert topology not in blocked._kept


@pytest.mark.parametrize("training", [False, True])
def test_no_gradients_where_none_are_wanted(fresh, monkeypatch, training):
    calls = []
    for backend in BACKENDS.values():
        for method in ("grad_input", "grad_values"):
            original = getattr(backend, method)
            monkeypatch.setattr(backend, method, lambda *a, f=original, method=method: (calls.append(method), f(*a))[1])
    grads = []
    step = measure._step
    monkeypatch.setattr(measure, "_step", lambda b, x, v, grad, s: (grads.append(grad is not None), step(b, x, v, grad, s))[1])
    choose_backend(CPU, th.float32, Topology.random(*LAYER), training=training)
    assert bool(calls) is training
    assert set(grads) == {training}


def test_measuring_draws_nothing_and_leaves_nothing_behind(fresh):
    topology = Topology.random((128, 128), 800, 0)
    before, threads = th.get_rng_state(), th.get_num_threads()
    choose_backend(CPU, th.float32, topology)
    assert th.equal(before, th.get_rng_state())
    assert th.get_num_threads() == threads
    assert not topology._flat_index
    assert not topology._tensors
    assert topology not in blocked._kept


def test_only_what_can_run_is_measured(fresh):
    assert choose_backend(CPU, th.complex64, Topology.random(*LAYER)).name == "dense"
    assert choose_backend(CPU, th.float64, Topology.random(*LAYER)).name in ("dense", "csr")


def test_other_accelerators_are_waited_for_or_left_to_the_rule(fresh, monkeypatch):
    """Mistake of ours: all that is not a CPU was asked for the name that CUDA has for it, and only CUDA was waited for."""
    csr, topology = BACKENDS["csr"], Topology.random(*LAYER)
    monkeypatch.setattr(csr, "supports", lambda device, dtype: True)
    for device in ("mps", "xpu", "cuda"):
        # Torch is hardly ever built for one of them, and never for all.
        assert peek_backend(th.device(device), th.float32, topology)[0].name == "dense"
    waited = []
    monkeypatch.setattr(th.accelerator, "current_accelerator", lambda: th.device("mps"))
    monkeypatch.setattr(th.accelerator, "synchronize", waited.append)
    assert peek_backend(th.device("mps"), th.float32, topology) == (BACKENDS["dense"], False)
    assert choose_backend(th.device("xpu"), th.float32, topology) is BACKENDS["dense"]
    # No tensor can be there, so what is timed is elsewhere.
    times = measure.Measurement("csr", {"dense": 1.0, "csr": 0.5}, True, "")
    monkeypatch.setattr(chooser, "measure", lambda *args: times)
    assert choose_backend(th.device("mps"), th.float32, topology) is csr
    assert list(stored()) == ["mps float32 batch 256 64x64:400 training"]
    monkeypatch.setattr(csr, "forward", lambda *args: None)
    measure._step(csr, th.empty(2, 64, device="meta"), th.empty(400), None, topology)()
    assert waited == [th.device("meta")]


RULE = """
    from sb3_sparse.sparse import Topology
    from sb3_sparse.sparse.kernels.choosing import chooser, measure
    import torch as th
    def fail(*args): raise AssertionError("measured")
    chooser.measure = fail
    for shape in ((8, 8), (64, 64), (512, 512), (2048, 512)):
        for density in (0.01, 0.1, 0.2, 0.9, 1.0):
            topology = Topology.random(shape, round(density * shape[0] * shape[1]), 0)
            for dtype in (th.float32, th.float64, th.bfloat16):
                for batch in (0, 1, 5, 16, 100, 256, 5000):
                    backend = chooser.choose_backend(th.device("cpu"), dtype, topology, batch, batch > 1)
                    assert backend.supports(th.device("cpu"), dtype)
                    print(shape, density, dtype, batch, backend.name)
    th.manual_seed(0)
    layer = SparseLinear(512, 512, density=0.1, seed=1)
    for batch in (1, 16, 256):
        y = layer(th.randn(batch, 512))
        y.square().sum().backward()
        print(y.double().sum().item(), layer.values.grad.double().sum().item())
    """


def test_deterministic_measures_nothing_and_is_the_same_in_every_process(fresh, tmp_path):
    outputs = []
    for folder, threads in (("a", "1"), ("b", "2")):
        cache = tmp_path / folder
        cache.mkdir()
        environment = {**os.environ, BACKEND_VARIABLE: "deterministic", choices.CACHE_VARIABLE: str(cache)}
        if folder == "b":
            # What a file says does not matter either: it is not even read.
            (cache / choices._cache_file().name).mkdir()
        code = "from sb3_sparse.sparse import SparseLinear\n" + textwrap.dedent(RULE)
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == ""
        assert len(list(cache.iterdir())) == (folder == "b")
        outputs.append(result.stdout)
    assert outputs[0].count("\n") == 4 * 5 * 3 * 7 + 3
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("shape", "density", "batch", "dtype", "expected"),
    [
        ((2048, 512), 0.2, 256, th.float32, "blocked"),
        ((2048, 512), 0.2, 1, th.float32, "compiled"),
        ((2048, 512), 0.02, 256, th.float32, "compiled"),
        ((2048, 512), 0.1, 8, th.float32, "compiled"),
        ((2048, 512), 0.9, 256, th.float32, "dense"),
        ((64, 64), 0.2, 8, th.float32, "dense"),
        ((64, 64), 0.2, 256, th.float32, "blocked"),
        ((70_000, 512), 0.1, 256, th.float32, "blocked"),
        ((2048, 512), 0.1, 256, th.bfloat16, "blocked"),
        ((2048, 512), 0.6, 256, th.float32, "blocked"),
        ((2048, 512), 0.6, 256, th.float16, "dense"),
        ((2048, 512), 0.5, 256, th.float64, "dense"),
        ((2048, 512), 0.05, 256, th.float64, "csr" if "csr" in available_backends("cpu", th.float64) else "dense"),
    ],
)
def test_the_rule(shape, density, batch, dtype, expected):
    class Any:
        numel = shape[0] * shape[1]

    Any.density = density
    assert backend_by_rule(CPU, dtype, Any, batch) == expected


def test_the_rule_without_our_kernels_and_without_mkl(monkeypatch):
    topology = Topology.random((512, 512), 5000, 0)
    for name in ("blocked", "compiled", "csr"):
        monkeypatch.setattr(BACKENDS[name], "supports", lambda device, dtype: False)
    for batch in (0, 1, 8, 256):
        for dtype in (th.float32, th.float64):
            assert backend_by_rule(CPU, dtype, topology, batch) == "dense"


def test_a_report_measures_and_writes_nothing(fresh, monkeypatch):
    layer = SparseLinear(64, 64, density=0.1, seed=0)

    def row():
        return sparsity_report(layer).layers[0].backend

    with monkeypatch.context() as patch:
        forbid_measuring(patch)
        assert row() == "blocked (not measured yet)"
        assert "blocked (not measured yet)" in str(sparsity_report(layer))
    assert not fresh.exists()
    assert layer.topology not in chooser._chosen
    # What the file says.
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    choose_backend(CPU, th.float32, Topology.random((64, 64), layer.topology.nnz, 5))
    assert row() == "csr"
    assert sparsity_report(layer).topology_bytes == layer.topology.nbytes + BACKENDS["csr"].memory(layer.topology)
    # What this process has chosen, for another batch, too.
    monkeypatch.undo()
    monkeypatch.setenv(choices.CACHE_VARIABLE, "")
    chooser.forget_choices()
    monkeypatch.setattr(chooser, "is_busy", lambda: True)
    layer(th.zeros(1, 64))
    assert row() == "compiled"
    layer(th.zeros(2, 64))
    assert row() == "dense"
    monkeypatch.setenv(BACKEND_VARIABLE, "deterministic")
    assert row() == "blocked"
    monkeypatch.setenv(BACKEND_VARIABLE, "compiled")
    assert row() == "compiled"


def test_equal_topologies_count_once_in_a_report(monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "deterministic")
    mask = th.rand(64, 64) < 0.2
    layers = [SparseLinear(64, 64, topology=Topology.from_mask(mask)) for _ in range(2)]
    one = sparsity_report(layers[0]).topology_bytes
    assert sparsity_report(th.nn.Sequential(*layers)).topology_bytes == one


def test_peeking_is_settled_where_nothing_will_be_measured(fresh, monkeypatch):
    for mode in ("auto", "deterministic"):
        monkeypatch.setenv(BACKEND_VARIABLE, mode)
        assert peek_backend(CPU, th.float32, Topology.random((8, 8), 10, 0)) == (BACKENDS["dense"], True)
        assert peek_backend(CPU, th.complex64, Topology.random(*LAYER)) == (BACKENDS["dense"], True)
    assert peek_backend(CPU, th.float32, Topology.random(*LAYER)) == (BACKENDS["blocked"], True)
    monkeypatch.setenv(BACKEND_VARIABLE, "auto")
    assert peek_backend(CPU, th.float32, Topology.random(*LAYER)) == (BACKENDS["blocked"], False)
    monkeypatch.setenv(BACKEND_VARIABLE, "fastest")
    with pytest.raises(ValueError, match=r"SB3_SPARSE_BACKEND='fastest'.*'deterministic'"):
        peek_backend(CPU, th.float32, Topology.random(*LAYER))


def test_the_environment_is_looked_at_in_every_call(fresh, monkeypatch):
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)

    def chosen():
        return choose_backend(CPU, th.float32, Topology.random(*LAYER)).name

    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    assert chosen() == "csr"
    os.environ[BACKEND_VARIABLE] = "dense"
    assert chosen() == "dense"
    os.environ[BACKEND_VARIABLE] = ""
    assert chosen() == "csr"
    os.environ.update({BACKEND_VARIABLE: "compiled"})
    assert chosen() == "compiled"
    del os.environ[BACKEND_VARIABLE]
    assert chosen() == "csr"
    # Another dictionary altogether.
    monkeypatch.setattr(os, "environ", {**os.environ, BACKEND_VARIABLE: "blocked"})
    assert chosen() == "blocked"
    del os.environ[BACKEND_VARIABLE]
    assert chosen() == "csr"


def test_info_is_logged_to_the_packages_logger():
    code = (
        "import logging; logging.basicConfig(level=logging.INFO); import torch; from sb3_sparse import SparseLinear;"
        "SparseLinear(64, 64, density=0.1)(torch.zeros(2, 64))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"SB3_SPARSE_CACHE": ""})
    assert "INFO:sb3_sparse:cpu x" in result.stderr


def test_a_layer_uses_the_choice(fresh, monkeypatch):
    layer = SparseLinear(64, 64, density=0.1)
    used = []
    for name, backend in BACKENDS.items():
        original = backend.forward
        monkeypatch.setattr(backend, "forward", lambda *a, name=name, f=original: (used.append(name), f(*a))[1])
    layer(th.randn(32, 64))
    chosen = choose_backend(CPU, th.float32, layer.topology, 32).name
    assert used[-1] == chosen
