"""Two products with a ReLU between them: as the three operations, bit by bit, and against a dense twin in float64."""

import itertools

import pytest
import torch as th

from sb3_sparse.sparse import Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends, sparse_linear
from sb3_sparse.sparse.kernels.hidden import Weights, can_fuse, linear_relu_linear

BATCHES = pytest.mark.parametrize("batch", [0, 1, 5, 16, 100, 256])


@pytest.fixture(params=available_backends("cpu"))
def backend(request, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, request.param)
    return request.param


def make(batch, sizes=(150, 300, 140), density=0.2, bias=True, dtype=th.float32):
    """Input, gradient and weights."""
    th.manual_seed(0)
    weights = []
    for columns, rows in itertools.pairwise(sizes):
        topology = Topology.random((rows, columns), round(density * rows * columns), seed=1)
        values = th.randn(topology.nnz, dtype=dtype, requires_grad=True)
        weights.append(Weights(values, th.randn(rows, dtype=dtype, requires_grad=True) if bias else None, topology))
    x = th.randn(batch, sizes[0], dtype=dtype, requires_grad=True)
    return x, th.randn(batch, sizes[2], dtype=dtype), weights


def three_operations(x, first, second):
    hidden = sparse_linear(x, first.values, first.topology, first.bias)
    return sparse_linear(hidden.relu_(), second.values, second.topology, second.bias)


def gradients(compute, x, grad, weights):
    """The output, and every gradient that is wanted."""
    tensors = [tensor for tensor in (x, *(t for w in weights for t in w.tensors)) if tensor.requires_grad]
    y = compute(x, *weights)
    return [y.detach(), *(th.autograd.grad(y, tensors, grad) if tensors else ())]


def assert_same_bits(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.stride() == b.stride()
        assert th.equal(a.contiguous().view(th.int32), b.contiguous().view(th.int32))


@BATCHES
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_are_those_of_three_operations(backend, batch, bias):
    x, grad, weights = make(batch, bias=bias)
    assert can_fuse(x, *weights)
    ours = gradients(linear_relu_linear, x, grad, weights)
    assert_same_bits(ours, gradients(three_operations, x, grad, weights))
    assert_same_bits(ours, gradients(linear_relu_linear, x, grad, weights))
    with th.no_grad():
        assert_same_bits([linear_relu_linear(x, *weights)], [three_operations(x, *weights)])


def test_also_where_numbers_are_none(backend):
    x, grad, weights = make(32)
    with th.no_grad():
        x[3, 7], x[4, 8], weights[1].values[5] = th.nan, th.inf, th.nan
    ours, theirs = (gradients(compute, x, grad, weights) for compute in (linear_relu_linear, three_operations))
    for a, b in zip(ours, theirs, strict=True):
        assert th.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@BATCHES
def test_against_a_dense_twin_in_float64(backend, batch, density):
    x, grad, weights = make(batch, density=density)
    twins = []
    for values, bias, topology in weights:
        dense = topology.scatter(values.detach().double()).requires_grad_()
        twins.append((dense, bias.detach().double().requires_grad_()))
    x64 = x.detach().double().requires_grad_()
    hidden = th.nn.functional.linear(x64, *twins[0]).relu()
    y = th.nn.functional.linear(hidden, *twins[1])
    expected = list(th.autograd.grad(y, [x64, *(t for twin in twins for t in twin)], grad.double()))
    for place, weight in ((1, weights[0]), (3, weights[1])):
        expected[place] = expected[place].reshape(-1)[weight.topology.flat_index()]
    for ours, right in zip(gradients(linear_relu_linear, x, grad, weights), [y.detach(), *expected], strict=True):
        # A sum near zero may be on the other side of it in float64.
        assert (ours - right).abs().amax().item() <= 1e-4 * (1 + right.abs().amax().item()) if right.numel() else True


@pytest.mark.parametrize("frozen", ["x", "first", "second", "values", "biases", "all but x", "all but second", "all"])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(backend, frozen):
    x, grad, weights = make(100)
    first, second = ([w.values, w.bias] for w in weights)
    chosen = {
        "x": [x],
        "first": first,
        "second": second,
        "values": [first[0], second[0]],
        "biases": [first[1], second[1]],
        "all but x": first + second,
        "all but second": [x, *first],
        "all": [x, *first, *second],
    }[frozen]
    for tensor in chosen:
        tensor.requires_grad_(False)
    assert_same_bits(*(gradients(compute, x, grad, weights) for compute in (linear_relu_linear, three_operations)))
    if frozen == "all":
        assert not linear_relu_linear(x, *weights).requires_grad
    else:
        y = linear_relu_linear(x, *weights)  # Up to torch 2.8, what is saved goes with the result.
        kept = [tuple(t.shape) for t in y.grad_fn.saved_tensors if t is not None]
        # The frozen critic of an actor's loss keeps no input of its first layer.
        packed = (100, 150) if backend in ("dense", "csr") else (150, 128 if backend == "blocked" else 112)
        assert (packed in kept or (100, 150) in kept) == (first[0].requires_grad or second[0].requires_grad)


@pytest.mark.parametrize("frozen", ["none", "x", "first", "second", "all but x"])
@pytest.mark.parametrize("bias", [True, False])
def test_differentiated_again_and_again(backend, frozen, bias):
    """Mistake of ours: with the inputs named, second derivatives were 0 or lacked a part, and only .backward() raised."""
    x, grad, weights = make(16, sizes=(15, 30, 14), bias=bias)
    first, second = weights
    chosen = {"x": [x], "first": first.tensors, "second": second.tensors, "all but x": first.tensors + second.tensors}
    for tensor in chosen.get(frozen, ()):
        tensor.requires_grad_(False)
    tensors = [tensor for tensor in (x, *first.tensors, *second.tensors) if tensor.requires_grad]

    def dense(x, first, second):
        hidden, double = x.double(), []
        for values, bias, topology in (first, second):
            weight = th.zeros(topology.numel, dtype=th.float64).index_put((topology.flat_index(),), values.double())
            weight = weight.view(topology.shape)
            hidden = hidden @ weight.t() + (0 if bias is None else bias.double())
            double.append(hidden)
            hidden = hidden.relu()
        return double[-1]

    found = []
    for compute in (linear_relu_linear, dense):
        value, derivatives = (compute(x, *weights) * grad / 100).tanh().square().sum(), []
        for _ in range(3):
            grads = th.autograd.grad(value, tensors, create_graph=True)
            derivatives += [each.detach() for each in grads]
            value = sum(each.square().mean() for each in grads)
        value.backward()
        found.append([*derivatives, *(tensor.grad for tensor in tensors)])
        for tensor in tensors:
            tensor.grad = None
    for ours, theirs in zip(*found, strict=True):
        th.testing.assert_close(ours, theirs.float(), rtol=2e-3, atol=2e-3 * float(theirs.abs().max()))


def test_many_gradients_at_once(backend):
    x, _, weights = make(16)
    tensors = [x, *weights[0].tensors, *weights[1].tensors]
    grads = th.randn(3, 16, 140)
    many = th.autograd.grad(linear_relu_linear(x, *weights), tensors, grads, is_grads_batched=True)
    for i, grad in enumerate(grads):
        one = th.autograd.grad(linear_relu_linear(x, *weights), tensors, grad)
        for a, b in zip(many, one, strict=True):
            th.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-4)


def test_what_it_leaves_to_the_layers():
    x, _, weights = make(16)
    assert can_fuse(x, *weights)
    assert not can_fuse(x.reshape(4, 4, -1), *weights)
    assert not can_fuse(x[:, :-1], *weights)
    assert not can_fuse(x.double(), *weights)
    assert not can_fuse(x.to("meta"), *weights)
    assert not can_fuse(x, *reversed(weights))
    with th.autocast("cpu", dtype=th.bfloat16):
        assert not can_fuse(x, *weights)
    with th.autograd.forward_ad.dual_level():
        assert not can_fuse(x, *weights)
    assert not th.func.vmap(lambda x: th.tensor(can_fuse(x[None], *weights)))(x).any()


@pytest.mark.parametrize("name", ["compiled", "blocked"])
def test_other_numbers_of_threads_change_nothing(name, monkeypatch):
    # Named, since each number of threads would be measured anew, and might get another one.
    monkeypatch.setenv(BACKEND_VARIABLE, name)
    x, grad, weights = make(256, sizes=(600, 1100, 600))
    before, results = th.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            th.set_num_threads(threads)
            results.append(gradients(linear_relu_linear, x, grad, weights))
    finally:
        th.set_num_threads(before)
    # Biases' gradients are torch's own sums.
    for other in results[1:]:
        assert_same_bits([results[0][i] for i in (0, 1, 2, 4)], [other[i] for i in (0, 1, 2, 4)])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("tensor", ["values", "bias"])
@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: th.cat([t, t]), lambda t: th.stack([t, t])])
def test_weights_of_other_shapes_are_left_to_the_layers_which_refuse_them(backend, which, tensor, change):
    x, _, weights = make(5)
    changed = change(getattr(weights[which], tensor).detach())
    weights[which] = weights[which]._replace(**{tensor: changed})
    assert not can_fuse(x, *weights)
    with pytest.raises(ValueError, match="expected"):
        three_operations(x, *weights)
