"""The backend that ``docs/kernels.md`` shows, written outside of the package: only public names are used."""

import os
import re
import time
from pathlib import Path

import pytest
import torch as th

from sb3_sparse import SparseLinear, Topology, sparsity_report, to_dense
from sb3_sparse.sparse.kernels import available_backends, choose_backend, register_backend, unregister_backend

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
CODE = next(block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "register_backend(" in block)


@pytest.fixture
def Pairs():
    """The class that the page defines, without registering an object of it."""
    names = {}
    exec(compile(CODE.replace("register_backend(Pairs())", ""), str(PAGE), "exec"), names)
    return names["Pairs"]


@pytest.fixture
def pairs(Pairs, monkeypatch, tmp_path):
    """It is there for one test, which starts without choices, on a machine on which nothing else runs."""
    monkeypatch.setenv("SB3_SPARSE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    backend = Pairs()
    register_backend(backend)
    yield backend
    unregister_backend("pairs")
    assert "pairs" not in available_backends("cpu")


def every_contender_takes(monkeypatch, backend, seconds):
    """A clock on which all backends take a second for a step, and this one ``seconds``."""
    now = [0.0]

    def clock():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    forward = backend.forward

    def timed(*args):
        now[0] += seconds - 1.0
        return forward(*args)

    monkeypatch.setattr(backend, "forward", timed)


CPU = th.device("cpu")


# Choices are kept as long as the topologies are.
KEPT = [Topology.random((64, 48), 300, seed) for seed in range(3)]


def choice(seed, **kwargs):
    return choose_backend(CPU, th.float32, KEPT[seed], **kwargs).name


@pytest.mark.parametrize("batch", [0, 1, 2, 20])
def test_a_layer_computes_with_it(pairs, batch, monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "pairs")
    calls = []
    for method in ("forward", "grad_input", "grad_values"):
        original = getattr(pairs, method)
        monkeypatch.setattr(pairs, method, lambda *a, f=original, method=method: (calls.append(method), f(*a))[1])
    layer = SparseLinear(48, 64, density=0.1, seed=1)
    twin = to_dense(th.nn.Sequential(layer))[0]
    x = th.randn(batch, 48, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = layer(x), twin(other)
    grad = th.randn(batch, 64)
    y.backward(grad)
    expected.backward(grad)
    assert calls == ["forward", "grad_input", "grad_values"]
    th.testing.assert_close(y, expected)
    th.testing.assert_close(x.grad, other.grad)
    th.testing.assert_close(layer.values.grad, layer.topology.gather(twin.weight.grad))
    assert y.stride() == ((1, batch) if batch > 1 else (64, 1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("seconds", "is_chosen"), [(0.2, True), (1.5, False), (0.98, False)])
def test_it_is_chosen_where_it_is_faster_and_nowhere_else(pairs, monkeypatch, seconds, is_chosen, training):
    before = choice(1, training=training)  # of another kind: measured by the real clock
    every_contender_takes(monkeypatch, pairs, seconds)
    topology = Topology.random((64, 40), 300, 1)
    chosen = choose_backend(CPU, th.float32, topology, training=training).name
    # Less than a twentieth faster than dense is noise.
    assert chosen == ("pairs" if is_chosen else "dense")
    assert before in available_backends("cpu")
    assert ("pairs" in sparsity_report(SparseLinear(40, 64, topology=topology)).layers[0].backend) is is_chosen


def test_what_was_chosen_without_it_is_asked_anew_and_comes_back_after_it(pairs, monkeypatch):
    unregister_backend("pairs")
    try:
        without = choice(1)
    finally:
        register_backend(pairs)
    every_contender_takes(monkeypatch, pairs, 0.1)
    assert choice(1) == "pairs"
    unregister_backend("pairs")
    try:
        monkeypatch.setattr(time, "perf_counter", None)  # nothing is measured
        assert choice(1) == without
        assert choice(2) == without
    finally:
        register_backend(pairs)
    assert choice(1) == "pairs"


def test_it_does_not_take_part_where_it_cannot_run_nor_in_the_rule(pairs, monkeypatch):
    assert "pairs" in available_backends("cpu")
    assert "pairs" not in available_backends("cpu", th.bfloat16)
    every_contender_takes(monkeypatch, pairs, 0.1)
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "deterministic")
    assert {choice(1, batch=batch) for batch in (1, 16, 256)} <= {"dense", "compiled", "blocked"}


def test_it_is_named_by_the_variable_only_while_it_is_there(pairs, monkeypatch):
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "pairs")
    assert choice(1) == "pairs"
    unregister_backend("pairs")
    try:
        with pytest.raises(ValueError, match=r"SB3_SPARSE_BACKEND='pairs': expected 'auto', 'deterministic' or one of"):
            choice(1)
    finally:
        register_backend(pairs)


def test_what_is_no_backend_or_has_a_bad_name_is_refused(pairs, Pairs):
    with pytest.raises(TypeError, match="subclass of Backend"):
        register_backend(Pairs)
    with pytest.raises(TypeError, match="subclass of Backend"):
        register_backend("dense")
    for name in ("pairs", "dense", "csr", "compiled", "blocked", "auto", "deterministic"):
        other = Pairs()
        other.name = name
        with pytest.raises(ValueError, match=f"'{name}', which is taken"):
            register_backend(other)
    for name in ("", "two words", None, 3):
        other.name = name
        with pytest.raises(ValueError, match="expected a word"):
            register_backend(other)
    for name in ("dense", "compiled", "nobody"):
        with pytest.raises(ValueError, match=r"expected one that was registered, which are \['pairs'\]"):
            unregister_backend(name)


def test_the_code_of_the_page_runs_as_it_stands():
    try:
        exec(compile(CODE, str(PAGE), "exec"), {})
        assert "pairs" in available_backends("cpu")
    finally:
        unregister_backend("pairs")
