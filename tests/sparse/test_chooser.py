import json
import logging
import subprocess
import sys

import pytest
import torch as th

from sb3_sparse.sparse import SparseLinear, Topology
from sb3_sparse.sparse.kernels import blocked, chooser
from sb3_sparse.sparse.kernels.chooser import BACKENDS, choose_backend
from sb3_sparse.sparse.kernels.dense import _scratch

CPU = th.device("cpu")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No choices in memory, and an empty cache folder."""
    monkeypatch.setenv(chooser.CACHE_VARIABLE, str(tmp_path / "cache"))
    chooser.forget_choices()
    yield tmp_path / "cache"
    chooser.forget_choices()


def pretend(monkeypatch, **seconds):
    """Let each backend take a given time."""
    clock = [0.0]
    monkeypatch.setattr(chooser.time, "perf_counter", lambda: clock[0])
    for name, backend in BACKENDS.items():

        def forward(x, values, topology, bias, batch, name=name):
            clock[0] += seconds[name]

        for method in ("grad_input", "grad_values"):
            monkeypatch.setattr(backend, method, lambda *args: None)
        monkeypatch.setattr(backend, "forward", forward)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"dense": 3.0, "csr": 2.0, "compiled": 1.0, "blocked": 2.0}, "compiled"),
        ({"dense": 3.0, "csr": 1.0, "compiled": 2.0, "blocked": 2.0}, "csr"),
        ({"dense": 3.0, "csr": 2.0, "compiled": 2.0, "blocked": 1.0}, "blocked"),
        ({"dense": 1.0, "csr": 2.0, "compiled": 2.0, "blocked": 2.0}, "dense"),
        ({"dense": 1.0, "csr": 2.0, "compiled": 0.99, "blocked": 2.0}, "dense"),
    ],
)
def test_the_fastest_is_chosen_and_dense_wins_ties(fresh, monkeypatch, seconds, expected):
    pretend(monkeypatch, **seconds)
    assert choose_backend(CPU, th.float32, Topology.random((64, 64), 400, 0)).name == expected


def test_choices_are_kept_in_memory_and_on_disk(fresh, monkeypatch, caplog):
    topology = Topology.random((64, 64), 400, 0)
    with caplog.at_level(logging.INFO, "sb3_sparse"):
        first = choose_backend(CPU, th.float32, topology, 200)
    assert "64x64:400 training: chose" in caplog.text
    assert "batch 256" in caplog.text
    (file,) = fresh.iterdir()
    assert list(json.loads(file.read_text()).values()) == [first.name]

    def fail(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(chooser, "_measure", fail)
    assert choose_backend(CPU, th.float32, topology, 256) is first
    chooser.forget_choices()
    assert choose_backend(CPU, th.float32, topology, 130) is first
    with pytest.raises(AssertionError, match="measured again"):
        choose_backend(CPU, th.float32, topology, 1)


def test_a_damaged_file_is_ignored_and_replaced(fresh, caplog):
    fresh.mkdir()
    path = chooser._cache_file()
    path.write_text("{ not json")
    topology = Topology.random((64, 64), 400, 0)
    choose_backend(CPU, th.float32, topology)
    assert "ignoring the backend choices" in caplog.text
    assert len(json.loads(path.read_text())) == 1
    assert [file.name for file in fresh.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_no_error(fresh, monkeypatch, caplog):
    (fresh.parent / "file").write_text("")
    monkeypatch.setenv(chooser.CACHE_VARIABLE, str(fresh.parent / "file" / "folder"))
    assert choose_backend(CPU, th.float32, Topology.random((64, 64), 400, 0)).name in BACKENDS
    assert "cannot keep the backend choices" in caplog.text


def test_no_folder_no_file(fresh, monkeypatch):
    monkeypatch.setenv(chooser.CACHE_VARIABLE, "")
    choose_backend(CPU, th.float32, Topology.random((64, 64), 400, 0))
    assert not fresh.exists()


def test_measuring_draws_nothing_and_leaves_no_dense_buffer_behind(fresh, monkeypatch):
    topology = Topology.random((128, 128), 800, 0)
    before = th.get_rng_state()
    chosen = choose_backend(CPU, th.float32, topology)
    assert th.equal(before, th.get_rng_state())
    if chosen.name != "dense":
        assert topology not in _scratch.buffers
        assert not topology._flat_index


def test_measuring_one_kind_leaves_what_another_kind_uses(fresh, monkeypatch):
    topology = Topology.random((128, 64), 800, 0)
    monkeypatch.setattr(chooser, "_measure", lambda *args: "blocked")
    backend = choose_backend(CPU, th.float32, topology, 256)
    monkeypatch.undo()
    monkeypatch.setenv(chooser.CACHE_VARIABLE, "")
    x, values = th.zeros(256, 64), th.zeros(800)
    backend.forward(backend.pack(x), values, topology, None, 256)
    kept = blocked._kept[topology]["rows"]
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    assert choose_backend(CPU, th.float32, topology, 16).name == "csr"
    assert blocked._kept[topology]["rows"] is kept


def test_only_what_can_run_is_measured(fresh):
    assert choose_backend(CPU, th.bfloat16, Topology.random((64, 64), 400, 0)).name == "dense"
    assert choose_backend(CPU, th.float64, Topology.random((64, 64), 400, 0)).name in ("dense", "csr")


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
