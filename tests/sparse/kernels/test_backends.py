"""Every backend against the masked dense twin in float64."""

import os
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch as th
from torch._subclasses import FakeTensorMode

from sb3_sparse.sparse import SparseLinear, Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends, formula, sparse_linear
from sb3_sparse.sparse.kernels.backends import BACKENDS, blocked
from sb3_sparse.sparse.kernels.backends.dense import _scratch

BACKEND_NAMES = available_backends("cpu")
# The last one has several rows of blocks, columns of blocks and, where all weights live, groups of blocks.
SHAPES = [(1, 1), (5, 3), (3, 200), (200, 3), (129, 65), (300, 700), (600, 300)]


@pytest.fixture(params=BACKEND_NAMES)
def backend(request, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, request.param)
    return request.param


def dense_weight(values, topology):
    weight = th.zeros(topology.numel, dtype=th.float64)
    weight[topology.flat_index()] = values.detach().double()
    return weight.view(topology.rows, topology.columns)


def assert_close(result, expected, scale):
    """Relative to the sum of absolute terms, which is what rounding errors are proportional to."""
    assert result.shape == expected.shape
    if expected.numel():
        assert ((result - expected).abs().max() / (scale.max() + 1e-30)).item() < 1e-6


@pytest.mark.parametrize("batch", [1, 2, 3, 32, 256, 1000])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_masked_dense_twin(backend, shape, density, batch):
    th.manual_seed(0)
    topology = Topology.random(shape, round(density * shape[0] * shape[1]), seed=5)
    values = th.randn(topology.nnz, requires_grad=True)
    bias = th.randn(shape[0], requires_grad=True)
    x = th.randn(batch, shape[1], requires_grad=True)
    grad = th.randn(batch, shape[0])
    sparse_linear(x, values, topology, bias).backward(grad)

    weight, x64, grad64 = dense_weight(values, topology), x.detach().double(), grad.double()
    scale = x64.abs() @ weight.abs().t() + bias.detach().abs()
    assert_close(sparse_linear(x, values, topology, bias), x64 @ weight.t() + bias.detach().double(), scale)
    assert_close(x.grad, grad64 @ weight, grad64.abs() @ weight.abs())
    dv = (grad64.t() @ x64).view(-1)[topology.flat_index()]
    assert_close(values.grad, dv, grad64.abs().t() @ x64.abs())
    assert_close(bias.grad, grad64.sum(0), grad64.abs().sum(0))


@pytest.mark.parametrize("shape", [(2, 70_000), (70_000, 2)])
@pytest.mark.parametrize("batch", [1, 20])
def test_more_columns_than_16_bits_count(backend, shape, batch):
    test_products_equal_masked_dense_twin(backend, shape, 0.1, batch)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_blocks_where_weights_are_unevenly_spread(n_threads, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "blocked")
    th.manual_seed(0)
    mask = th.zeros(700, 500)
    mask[3], mask[:, 130], mask[650:, 300:310] = 1, 1, 1
    topology = Topology.from_mask(mask)
    values, x = th.randn(topology.nnz, requires_grad=True), th.randn(1000, 500, requires_grad=True)
    grad = th.randn(1000, 700)
    before = th.get_num_threads()
    try:
        th.set_num_threads(n_threads)
        y = sparse_linear(x, values, topology)
        y.backward(grad)
    finally:
        th.set_num_threads(before)
    weight = dense_weight(values, topology)
    assert_close(y.detach(), x.detach().double() @ weight.t(), x.detach().double().abs() @ weight.abs().t())
    assert_close(x.grad, grad.double() @ weight, grad.double().abs() @ weight.abs())
    dv = (grad.double().t() @ x.detach().double())[mask.bool()]
    assert_close(values.grad, dv, (grad.double().abs().t() @ x.detach().double().abs()))


def test_defaults_of_torch_do_not_matter(backend):
    topology = Topology.random((64, 64), 500, seed=0)
    values, x, grad = th.randn(500, requires_grad=True), th.randn(32, 64, requires_grad=True), th.randn(32, 64)

    def run():
        y = sparse_linear(x, values, topology)
        return y, *th.autograd.grad(y, (x, values), grad)

    expected = run()
    with th.device("meta"):
        results = [run()]
    th.set_default_dtype(th.float16)
    try:
        results.append(run())
    finally:
        th.set_default_dtype(th.float32)
    for result in results:
        assert all(th.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_blocks_of_one_number_of_threads_are_kept(monkeypatch):
    topology = Topology.random((1024, 512), 5000, seed=0)
    before = th.get_num_threads()
    try:
        for n_threads, block_rows in ((1, 512), (3, 342), (4, 256), (64, 128)):
            th.set_num_threads(n_threads)
            assert blocked._blocks(topology, "rows").block_rows == block_rows
            assert blocked._blocks(topology, "rows") is blocked._blocks(topology, "rows")
    finally:
        th.set_num_threads(before)
    assert list(blocked._kept[topology]) == ["rows"]


@pytest.mark.parametrize("shape", [(1000, 700), (300, 2000), (3, 5)])
def test_memory_is_what_is_kept(shape):
    topology = Topology.random(shape, shape[0] * shape[1] // 5, seed=1)
    x, grad, values = th.zeros(32, shape[1]), th.zeros(32, shape[0]), th.zeros(topology.nnz)
    for name, backend in BACKENDS.items():
        packed, packed_grad = backend.pack(x), backend.pack(grad)
        backend.forward(packed, values, topology, None, 32)
        backend.grad_input(packed_grad, values, topology, 32)
        backend.grad_values(packed_grad, packed, topology, 32)
        if name == "blocked":
            kept = [
                array for cut in blocked._kept[topology].values() for array in (cut.counts, cut.local, cut.crow, cut.edges)
            ]
            shared = topology.crow
        elif name == "dense":
            kept = [array.numpy() for array in (*_scratch.buffers[topology].values(), *topology._flat_index.values())]
            shared = None
        else:
            kept, shared = [tensor.numpy() for tensor in topology.tensors()], topology.crow
        assert backend.memory(topology) == sum(a.nbytes for a in kept if shared is None or not np.shares_memory(a, shared))
        topology._flat_index.clear()
        topology._tensors.clear()


def test_non_contiguous_inputs(backend):
    topology = Topology.random((70, 50), 400, seed=1)
    values = th.randn(800)[::2].requires_grad_()
    weight = dense_weight(values, topology)
    base = th.randn(50, 64)
    strided = th.randn(64, 100)[:, ::2]
    for x in (base.t(), base.t()[::2], strided, strided[:1], base.t()[:1], th.randn(1, 50).expand(64, 50)):
        x = x.detach().requires_grad_()
        y = sparse_linear(x, values, topology)
        assert_close(y.detach(), x.detach().double() @ weight.t(), th.tensor(10.0))
        (dx,) = th.autograd.grad(y, x, th.ones(()).expand_as(y))
        assert_close(dx, th.ones(len(x), 70).double() @ weight, th.tensor(10.0))


def test_leading_dimensions_and_no_batch(backend):
    layer = SparseLinear(12, 7, density=0.3, seed=0)
    x = th.randn(2, 5, 3, 12)
    y = layer(x)
    assert y.shape == (2, 5, 3, 7)
    assert th.allclose(y[1, 2, 0], layer(x[1, 2, 0]), atol=1e-6)
    assert layer(x[0, 0, 0]).shape == (7,)
    empty = layer(x[:, :0])
    assert empty.shape == (2, 0, 3, 7)
    empty.sum().backward()
    assert layer.values.grad.eq(0).all()


def test_empty_rows(backend):
    mask = th.zeros(6, 4)
    mask[2, 1] = mask[5, 3] = 1
    topology = Topology.from_mask(mask)
    values, bias = th.tensor([2.0, -1.0], requires_grad=True), th.arange(6.0)
    for batch in (1, 20):
        x = th.ones(batch, 4)
        expected = bias + th.tensor([0.0, 0, 2, 0, 0, -1])
        assert th.equal(sparse_linear(x, values, topology, bias), expected.expand(batch, 6))


def test_gradients_only_where_needed(backend):
    topology = Topology.random((8, 6), 20, seed=0)
    values, x = th.randn(20, requires_grad=True), th.randn(3, 6, requires_grad=True)
    sparse_linear(x, values.detach(), topology).sum().backward()
    assert values.grad is None
    assert x.grad is not None
    sparse_linear(x.detach(), values, topology).sum().backward()
    assert values.grad is not None
    bias = th.zeros(8, requires_grad=True)
    sparse_linear(x.detach(), values.detach(), topology, bias).sum().backward()
    assert th.equal(bias.grad, th.full((8,), 3.0))
    assert not sparse_linear(x.detach(), values.detach(), topology).requires_grad


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_derivatives_of_higher_order(backend, batch):
    """Mistake of ours: with the inputs named, second derivatives were 0 or lacked a part, and only .backward() raised."""
    topology = Topology.random((8, 6), 20, seed=0)
    values, bias, x = th.randn(20), th.randn(8), th.randn(batch, 6)
    found = []
    for multiply in (
        lambda x, v, b: sparse_linear(x, v, topology, b),
        lambda x, v, b: x.double() @ formula.scatter(v.double(), topology).t() + b.double(),
    ):
        tensors = [tensor.clone().requires_grad_() for tensor in (x, values, bias)]
        derivatives, value = [], multiply(*tensors).tanh().square().sum()
        for _ in range(3):
            grads = th.autograd.grad(value, tensors, create_graph=True)
            derivatives += [grad.detach() for grad in grads]
            value = sum(grad.square().mean() for grad in grads)
        value.backward()
        found.append([*derivatives, *(tensor.grad for tensor in tensors)])
    for ours, theirs in zip(*found, strict=True):
        th.testing.assert_close(ours, theirs.float(), rtol=2e-3, atol=2e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [th.float64, th.complex128])
def test_gradcheck_in_double_precision(monkeypatch, dtype):
    """Mistake of ours: of complex weights the gradients lacked the conjugate."""
    monkeypatch.setenv(BACKEND_VARIABLE, "dense")
    topology = Topology.random((5, 7), 12, seed=0)
    values, bias, x = (th.randn(shape, dtype=dtype, requires_grad=True) for shape in ((12,), (5,), (4, 7)))
    multiply = lambda x, v, b: sparse_linear(x, v, topology, b)  # noqa: E731
    assert th.autograd.gradcheck(multiply, (x, values, bias))
    assert th.autograd.gradgradcheck(lambda *tensors: multiply(*tensors) ** 2, (x, values, bias))


@pytest.mark.parametrize("batch", [1, 64])
def test_a_sign_beside_the_memory_is_seen(backend, batch):
    """Mistake of ours: imaginary parts of conjugates came in with the other sign."""
    layer, x = SparseLinear(6, 4, density=0.5, bias=False, seed=0), th.randn(batch, 6)
    assert th.equal(layer(th._neg_view(x)), layer(-x))
    assert th.equal(layer(th._neg_view(x.t().contiguous()).t()), layer(-x))


def test_an_update_through_data_is_seen(backend):
    # SB3's polyak_update writes through `.data`, which autograd's version counters do not notice.
    layer = SparseLinear(6, 4, density=0.5, bias=False, seed=0)
    x = th.randn(3, 6)
    before = layer(x).detach().clone()
    layer.values.data.mul_(2.0)
    assert th.allclose(layer(x), 2 * before)


def test_autocast_runs_in_bfloat16():
    layer = SparseLinear(64, 32, density=0.5, seed=0)
    x = th.randn(16, 64, requires_grad=True)
    with th.autocast("cpu", dtype=th.bfloat16):
        y = layer(x)
    assert y.dtype == th.bfloat16
    y.float().sum().backward()
    assert layer.values.grad.dtype == th.float32
    assert th.allclose(y.float(), layer(x), atol=0.05)


@pytest.mark.parametrize("dtype", [th.float64, th.complex64])
def test_autocast_leaves_what_torch_leaves(dtype):
    """Mistake of ours: of complex layers the imaginary part was lost."""
    layer, x = SparseLinear(64, 32, density=0.5, seed=0, dtype=dtype), th.randn(16, 64, dtype=dtype)
    dense, real = layer.to_dense(), SparseLinear(64, 32, density=0.5, seed=0)
    with th.autocast("cpu", dtype=th.bfloat16):
        y = layer(x)
        th.testing.assert_close(y, dense(x))
        if dtype.is_complex:
            with pytest.raises(ValueError, match=r"input is torch\.complex64 on cpu, the weights are torch\.float32"):
                real(x)
    assert y.dtype == dtype


def test_variable_names_the_backend(monkeypatch):
    topology = Topology.random((4, 4), 4, seed=0)
    monkeypatch.setenv(BACKEND_VARIABLE, "fastest")
    with pytest.raises(ValueError, match=r"SB3_SPARSE_BACKEND='fastest'.*'compiled'"):
        sparse_linear(th.zeros(1, 4), th.zeros(4), topology)
    monkeypatch.setenv(BACKEND_VARIABLE, "compiled")
    with pytest.raises(ValueError, match=r"cannot run torch\.float64 on cpu"):
        sparse_linear(th.zeros(1, 4, dtype=th.float64), th.zeros(4, dtype=th.float64), topology)


@pytest.mark.parametrize("shape", [(2, 5), (5,), ()])
def test_wrong_number_of_features_is_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"{shape}: expected 4 features")):
        SparseLinear(4, 3, density=0.5)(th.zeros(shape))


def test_kernels_of_processors_without_avx512(tmp_path):
    if not llvm.get_host_cpu_features().get("avx2", False):
        pytest.skip("for x86-64 processors with AVX2")
    root = Path(__file__).parents[3]
    tests = ["test_products_equal_masked_dense_twin", "test_blocks_where_weights_are_unevenly_spread"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "without_avx512", "-p", "no:cacheprovider", "-k", " or ".join(tests), __file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_backends_are_the_documented_ones():
    page = (Path(__file__).parents[3] / "docs" / "sparse.md").read_text()
    table = page.partition("\n## Backends\n")[2].partition("\n\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, flags=re.MULTILINE))
    assert set(documented) == set(BACKENDS)
    for name, backend in BACKENDS.items():
        runs_on = documented[name]
        for device in ("cpu", "cuda"):
            for dtype in (th.float32, th.float64, th.bfloat16, th.float16):
                kind = str(dtype).removeprefix("torch.")
                said = "everything" in runs_on or (device in runs_on.lower() and kind in runs_on)
                if name == "csr" and device == "cpu":
                    said = said and th.backends.mkl.is_available()
                assert backend.supports(th.device(device), dtype) == said, (name, device, dtype)


@pytest.mark.parametrize("bad", [th.float64, th.float16, th.int64])
def test_inputs_of_another_dtype_are_refused(backend, bad):
    layer = SparseLinear(6, 4, density=0.5, seed=0)
    with pytest.raises(ValueError, match=f"input is {bad}.*the weights are torch.float32"):
        layer(th.zeros(20, 6).to(bad))
    with pytest.raises(ValueError, match=r"values \(3,\)"):
        sparse_linear(th.zeros(2, 6), th.zeros(3), layer.topology)
    with pytest.raises(ValueError, match=r"bias \(5,\)"):
        sparse_linear(th.zeros(2, 6), layer.values, layer.topology, th.zeros(5))


def test_streams_of_cuda_have_scratches_of_their_own(monkeypatch):
    """Mistake of ours: in one thread they shared a dense weight, which one may write while the other multiplies with it."""
    stream, topology = [1], Topology.random((6, 4), 12, seed=0)
    monkeypatch.setattr(th.cuda, "current_stream", lambda device: stream[0])
    with FakeTensorMode():
        values = th.empty(12, device="cuda")
        for stream[0] in (1, 2, 1):
            _scratch.scatter(values, topology)
    assert [key[2] for key in _scratch.buffers[topology]] == [1, 2]


def test_inference_mode_leaves_no_trace(backend):
    layer = SparseLinear(60, 40, density=0.5, seed=11)
    x = th.randn(20, 60)
    with th.inference_mode():
        expected = layer(x).clone()
    y = layer(x)
    y.sum().backward()
    assert th.equal(y.detach(), expected)


def test_autocast_leaves_float64_alone():
    layer = SparseLinear(6, 4, density=0.5, seed=0).double()
    with th.autocast("cpu", dtype=th.bfloat16):
        assert layer(th.zeros(2, 6, dtype=th.float64)).dtype == th.float64


# The memory layout of results is one for every backend, device and dtype.
BATCHES = [0, 1, 2, 7, 16, 48, 64, 100, 128, 250, 256]
PLACES = [("cpu", th.float32), ("cpu", th.float64), ("cpu", th.bfloat16)]
PLACES += [pytest.param("cuda", dtype, marks=pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU"))
           for dtype in (th.float32, th.float64, th.float16)]  # fmt: skip


def expected_strides(batch, features):
    return (1, batch) if batch > 1 else (features, 1)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", [(40, 70), (1, 30), (30, 1)])
def test_several_samples_lie_feature_by_feature(device, dtype, batch, shape):
    topology = Topology.random(shape, shape[0] * shape[1] // 3, seed=0)
    values = th.randn(topology.nnz, device=device).to(dtype)
    bias = th.randn(shape[0], device=device).to(dtype)
    names = available_backends(device, dtype)
    assert "dense" in names
    for name in names:
        backend = BACKENDS[name]
        for x in (th.randn(batch, shape[1], device=device), th.randn(shape[1], batch, device=device).t()):
            x = x.to(dtype)
            grad = th.randn(batch, shape[0], device=device).to(dtype)
            for given in (bias, None):
                y = backend.forward(backend.pack(x), values, topology, given, batch)
                assert (y.shape, y.stride()) == ((batch, shape[0]), expected_strides(batch, shape[0])), name
            dx = backend.grad_input(backend.pack(grad), values, topology, batch)
            assert (dx.shape, dx.stride()) == ((batch, shape[1]), expected_strides(batch, shape[1])), name
            # Nothing behind the samples is kept alive.
            for result in (y, dx):
                assert result.untyped_storage().nbytes() == result.numel() * result.element_size()


@pytest.mark.parametrize("backend", available_backends("cpu"))
@pytest.mark.parametrize("batch", [1, 2, 100, 256])
def test_results_can_be_reshaped_and_changed_in_place_with_every_backend(backend, batch, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    topology = Topology.random((40, 30), 200, seed=0)
    values = th.randn(200, requires_grad=True)
    x = th.randn(batch, 30)
    expected = sparse_linear(x, values.detach(), topology)
    y = sparse_linear(x, values, topology)
    assert not y._is_view()
    assert th.equal(y.reshape(-1), expected.reshape(-1))
    if batch > 1:
        for result in (y, expected):
            with pytest.raises(RuntimeError, match=r"view size is not compatible"):
                result.view(-1)
    else:
        y.view(-1)
    y.mul_(2.0).relu_().sum().backward()
    assert th.allclose(y, 2 * expected.relu())
    assert values.grad.isfinite().all()
