"""One memory layout of results, whichever backend, device and dtype."""

import pytest
import torch as th

from sb3_sparse.sparse import Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends, sparse_linear
from sb3_sparse.sparse.kernels.backends import BACKENDS

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
