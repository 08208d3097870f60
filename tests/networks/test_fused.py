"""Parts of SimBa that are faster between sparse layers: against torch's own, with hooks, and under torch's tools."""

import copy
import pickle

import pytest
import torch as th
from torch import nn
from torch.func import functional_call

from sb3_sparse.networks import SimBaEncoder, fused
from sb3_sparse.networks.fused import LayerNorm
from sb3_sparse.networks.simba import ResidualBlock
from sb3_sparse.sparse import to_dense
from sb3_sparse.sparse.kernels import hidden, norm
from sb3_sparse.sparse.sparsity import Sparsity

SIZES = pytest.mark.parametrize(("batch", "features"), [(16, 1), (16, 40), (47, 3), (64, 64), (100, 513), (256, 128)])


def encoder(sparsity=0.9, seed=0, in_features=20):
    th.manual_seed(seed)
    net = SimBaEncoder(in_features, 64, 2)
    Sparsity(sparsity).apply_(net)
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net


def by_features(*shape):
    return th.randn(shape[::-1]).t()


def outputs_and_gradients(net, x, grad):
    x = x.detach().requires_grad_()
    y = net(x)
    gradients = th.autograd.grad(y, [x, *net.parameters()], grad)
    return [y.detach(), *gradients]


def counted(monkeypatch, module, name):
    """Counts calls of a function."""
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(1) or original(*args))
    return calls


@SIZES
def test_norm_in_float64(batch, features, monkeypatch):
    th.manual_seed(0)
    ours, twin = LayerNorm(features), nn.LayerNorm(features).double()
    with th.no_grad():
        for ours_p, twin_p in zip(ours.parameters(), twin.parameters(), strict=True):
            twin_p.copy_(ours_p.normal_())
    x, grad = 3 + 2 * by_features(batch, features), by_features(batch, features)
    calls = counted(monkeypatch, norm, "layer_norm")
    results = outputs_and_gradients(ours, x, grad)
    assert len(calls) == 1
    for result, right in zip(results, outputs_and_gradients(twin, x.double(), grad.double()), strict=True):
        th.testing.assert_close(result.double(), right, rtol=1e-4, atol=1e-4 if features > 1 else 1e-2)
    # As sparse layers' results.
    assert results[0].stride() == results[1].stride() == (1, batch)
    # A gradient that lies otherwise is the same one.
    again = outputs_and_gradients(ours, x, grad.contiguous())
    assert all(th.equal(a, b) for a, b in zip(results, again, strict=True))


@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2], [1, 2]])
def test_norm_computes_the_gradients_that_are_wanted(wanted):
    layer, x = LayerNorm(30), by_features(32, 30)
    tensors = [x, layer.weight, layer.bias]
    expected = th.autograd.grad(layer(x.requires_grad_()), tensors, th.ones(32, 30))
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in wanted)
    y = layer(x)
    y.backward(th.ones(32, 30))
    for i, tensor in enumerate(tensors):
        assert (tensor.grad is not None) == (i in wanted)
        assert tensor.grad is None or th.equal(tensor.grad, expected[i])
    with th.no_grad():
        assert th.equal(layer(x), y)


def test_norm_can_be_differentiated_again_and_for_many_gradients():
    layer, plain = LayerNorm(30), nn.LayerNorm(30)
    x, grad = by_features(32, 30).requires_grad_(), by_features(32, 30)
    results = []
    for module in (layer, plain):
        (first,) = th.autograd.grad(module(x), x, grad, create_graph=True)
        second = th.autograd.grad(first.square().sum(), [x, module.weight])
        many = th.autograd.grad(module(x), x, th.stack([grad, -grad]), is_grads_batched=True)
        results.append([first, *second, *many])
    for ours, torchs in zip(*results, strict=True):
        th.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [
        th.randn(256, 30),
        by_features(15, 30),
        th.randn(0, 30),
        th.randn(1, 30),
        by_features(32, 30).double(),
        th.randn(2, 30, 32).transpose(1, 2),
        by_features(32, 60)[:, ::2],
    ],
    ids=["row by row", "few", "none", "one", "float64", "three dimensions", "every other"],
)
def test_what_norm_leaves_to_torch(x, monkeypatch):
    calls = counted(monkeypatch, norm, "layer_norm")
    layer, plain = LayerNorm(30).to(x.dtype), nn.LayerNorm(30).to(x.dtype)
    assert th.equal(layer(x), plain(x))
    assert not calls


def test_norm_under_autocast_is_torchs(monkeypatch):
    layer, plain, x = LayerNorm(30), nn.LayerNorm(30), by_features(32, 30)
    with th.autocast("cpu", dtype=th.bfloat16):
        for batch in (x, x.bfloat16()):
            assert layer(batch).dtype == plain(batch).dtype
            th.testing.assert_close(layer(batch), plain(batch))


def test_norm_says_what_torch_says_where_features_do_not_fit():
    with pytest.raises(RuntimeError, match="normalized_shape"):
        LayerNorm(30)(by_features(32, 31))


# The first sparsity leaves the stem dense, whose results lie sample by sample.
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 2, 16, 100])
def test_simba_equals_its_dense_twin_in_float64(batch, sparsity, monkeypatch):
    net = encoder(sparsity)
    twin = to_dense(copy.deepcopy(net)).double()
    x, grad = th.randn(batch, 20), th.randn(batch, 64)
    calls = counted(monkeypatch, hidden, "linear_relu_linear")
    results = outputs_and_gradients(net, x, grad)
    assert len(calls) == 2
    rights = outputs_and_gradients(twin, x.double(), grad.double())
    expected = dict(zip(["y", "x", *dict(twin.named_parameters())], rights, strict=True))
    layers = dict(net.named_modules())
    for name, result in zip(["y", "x", *dict(net.named_parameters())], results, strict=True):
        where, _, parameter = name.rpartition(".")
        right = expected[f"{where}.weight" if parameter == "nonzeros" else name]
        if parameter == "nonzeros":
            right = right.reshape(-1)[layers[where].topology.flat_index()]
        th.testing.assert_close(result.double(), right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 16, 100])
@pytest.mark.parametrize(
    "hook", ["forward", "pre", "backward", "backward pre", "global", "global pre", "forward on top", "second module"]
)
def test_whoever_looks_between_sees_all_and_changes_no_number(hook, batch, sparsity, monkeypatch):
    net, seen = encoder(sparsity), []
    x, grad = th.randn(batch, 20), th.randn(batch, 64)
    expected = outputs_and_gradients(net, x, grad)
    calls = counted(monkeypatch, hidden, "linear_relu_linear")
    block = net.blocks[0]
    handle = None
    if hook == "forward":
        handle = block.activation.register_forward_hook(lambda *args: seen.append(args))
    elif hook == "pre":
        handle = block.fc1.register_forward_pre_hook(lambda *args: seen.append(args))
    elif hook == "backward":
        handle = block.activation.register_full_backward_hook(lambda *args: seen.append(args) and None)
    elif hook == "backward pre":
        handle = block.fc2.register_full_backward_pre_hook(lambda *args: seen.append(args) and None)
    elif hook == "global":
        handle = nn.modules.module.register_module_forward_hook(lambda *args: seen.append(args) and None)
    elif hook == "global pre":
        handle = nn.modules.module.register_module_forward_pre_hook(lambda *args: seen.append(args) and None)
    elif hook == "forward on top":
        original = block.fc1.forward
        block.fc1.forward = lambda x: seen.append(x) or original(x)
    else:

        class Watching(nn.ReLU):
            def forward(self, x):
                seen.append(x)
                return super().forward(x)

        block.activation = Watching()
    try:
        results = outputs_and_gradients(net, x, grad)
    finally:
        if handle is not None:
            handle.remove()
    assert seen
    assert len(calls) == (0 if hook.startswith("global") else 1)
    assert all(th.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("name", ["fc1", "activation"])
@pytest.mark.parametrize("pickled_before", [False, True])
def test_what_a_hook_keeps_stays_as_it_was(name, batch, sparsity, pickled_before):
    """As whoever records what units compute does: no copies."""
    net, x = encoder(sparsity), th.randn(batch, 20)
    if pickled_before:
        for block in net.blocks:
            block.activation.inplace = True
        net = pickle.loads(pickle.dumps(net))
    kept = []
    for block in net.blocks:
        module = block.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output: kept.append((inputs[0].detach(), output.detach())))
        module.register_full_backward_hook(lambda module, *gradients: None)
    net(x).sum().backward()
    assert len(kept) == len(net.blocks) == 2
    for block, (before, after) in zip(net.blocks, list(kept), strict=True):
        right = block.fc1(before) if name == "fc1" else before.relu()
        assert (right if name == "fc1" else before).min() < 0
        th.testing.assert_close(after, right)


def test_other_activations_and_layers_are_called_one_by_one(monkeypatch):
    calls = counted(monkeypatch, hidden, "linear_relu_linear")
    for block in (ResidualBlock(16), ResidualBlock(16, nn.Tanh)):
        if isinstance(block.activation, nn.Tanh):
            Sparsity(0.5).apply_(block)
        x = th.randn(32, 16)
        expected = x + block.fc2(block.activation(block.fc1(nn.LayerNorm.forward(block.norm, x))))
        th.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    assert not calls


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@pytest.mark.parametrize("batch", [1, 32])
def test_torchs_tools_see_the_modules(batch, monkeypatch):
    net, x = encoder(0.5), th.randn(batch, 20)
    expected = net(x)
    calls = counted(monkeypatch, hidden, "linear_relu_linear"), counted(monkeypatch, norm, "layer_norm")
    close = {"rtol": 1e-4, "atol": 1e-4}
    th.testing.assert_close(th.export.export(net, (x,), strict=False).module()(x), expected, **close)
    th.testing.assert_close(th.jit.trace(net, (x,), check_trace=False)(x), expected, **close)
    compiled = th.compile(net, fullgraph=True, backend="aot_eager")
    th.testing.assert_close(compiled(x), expected, **close)
    with th.no_grad():
        th.testing.assert_close(compiled(x), expected, **close)
    parameters = dict(net.named_parameters())
    th.testing.assert_close(th.func.vmap(lambda x: functional_call(net, parameters, (x[None],))[0])(x), expected, **close)
    th.func.grad(lambda p: functional_call(net, p, (x,)).sum())(parameters)
    tracer = th.fx.symbolic_trace(net)
    th.testing.assert_close(tracer(x), expected, **close)
    assert not any(calls)
    # Which is the same module, called with other tensors.
    th.testing.assert_close(functional_call(net, parameters, (x,)), expected, rtol=0, atol=0)
    assert all(calls) if batch > 1 else calls[0]


def test_laid_for_sparse_layers_alone():
    sparse, dense, x = encoder(0.9).blocks[0].fc2, nn.Linear(3, 3), th.randn(32, 20, requires_grad=True)
    laid = fused.laid_for(sparse, x)
    assert laid.stride() == (1, 32)
    assert th.equal(laid, x)
    (grad,) = th.autograd.grad(laid, x, th.ones(32, 20))
    assert grad.eq(1).all()
    assert fused.laid_for(sparse, laid) is laid
    for other in (x[:5], x.double()):
        assert fused.laid_for(sparse, other) is other
    assert fused.laid_for(dense, x) is x


def test_a_copy_computes_the_same():
    net, x = encoder(0.9), th.randn(32, 20)
    assert th.equal(copy.deepcopy(net)(x), net(x))
    assert th.equal(net(x), net(x))
