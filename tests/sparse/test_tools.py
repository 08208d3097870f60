"""PyTorch's own tools on sparse layers: each does with them what it does with the dense twin."""

import contextlib
import copy
import io
import multiprocessing
import sys

import pytest
import torch as th
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology, sparsify_, to_dense
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, formula, sparse_linear

# The tools themselves are old, or use what is.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    th.compiler.reset()


def mlp():
    th.manual_seed(0)
    return sparsify_(nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 5)), 0.8)


def cnn():
    th.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    return sparsify_(net, 0.7)


def inputs(net, batch=16):
    th.manual_seed(1)
    return th.randn(batch, 40) if isinstance(net[0], SparseLinear) else th.randn(batch, 3, 8, 8)


NETS = pytest.mark.parametrize("make", [mlp, cnn])


def close(a, b):
    assert a.shape == b.shape
    assert th.allclose(a, b, rtol=1e-4, atol=1e-5)


def gradients(net, x, backward_through):
    x = x.clone().requires_grad_()
    net.zero_grad()
    backward_through(x).square().sum().backward()
    return [x.grad, *(p.grad for p in net.parameters())]


@NETS
@pytest.mark.parametrize("with_gradients", [False, True])
def test_jit_trace(make, with_gradients):
    net = make()
    with th.set_grad_enabled(with_gradients):
        traced = th.jit.trace(net, inputs(net, 2))
    file = io.BytesIO()
    th.jit.save(traced, file)
    file.seek(0)
    loaded = th.jit.load(file)
    x = inputs(net, 7)
    close(traced(x), net(x))
    close(loaded(x), net(x))
    if with_gradients:
        for ours, theirs in zip(gradients(net, x, net), gradients(net, x, traced), strict=True):
            close(ours, theirs)


@NETS
def test_jit_script_names_the_way_out(make):
    net = make()
    with pytest.raises(RuntimeError, match=r"to_dense\(module\)"):
        th.jit.script(net)
    assert isinstance(net[0], (SparseLinear, SparseConv2d))
    x = inputs(net)
    close(th.jit.script(to_dense(net))(x), net(x))


@NETS
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_as_one_graph(make, backend):
    if backend == "inductor" and make is cnn:
        pytest.skip("the same graph as the MLP's, and a minute of C++ compiler")
    net = make()
    compiled = th.compile(net, fullgraph=True, backend=backend)
    for batch in (16, 7, 1):
        x = inputs(net, batch)
        with th.no_grad():
            close(compiled(x), net(x))
        for ours, theirs in zip(gradients(net, x, net), gradients(net, x, compiled), strict=True):
            close(ours, theirs)


def test_compile_without_memory():
    layer = SparseLinear(40, 30, density=0.2, device="meta")
    compiled = th.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(th.empty(4, 40, device="meta"))
    assert (y.shape, y.device.type) == ((4, 30), "meta")


def test_a_compiled_layer_follows_its_topology():
    layer = SparseLinear(40, 30, density=0.2, seed=1)
    compiled = th.compile(layer, fullgraph=True, backend="aot_eager")
    x = th.randn(4, 40)
    close(compiled(x), layer(x))
    layer.set_topology(Topology.random((30, 40), layer.topology.nnz, 2))
    close(compiled(x), layer(x))
    # Written behind its back: noticed when the graph runs, which has no part that looks.
    layer.topology_seed.copy_(SparseLinear(40, 30, density=0.2, seed=3).topology_seed)
    with pytest.raises(RuntimeError, match="was changed after its graph was compiled"):
        compiled(x)
    layer(x)
    close(compiled(x), layer(x))


@pytest.mark.parametrize("backend", ["dense", "csr", "compiled", "blocked"])
@pytest.mark.parametrize("batch", [1, 16, 100])
def test_results_lie_as_the_graph_expects(backend, batch, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    layer = SparseLinear(40, 30, density=0.2, seed=1)
    x = th.randn(batch, 40, requires_grad=True)
    args = (x, layer.values, layer.bias, layer.topology_seed, layer.topology.handle)
    th.library.opcheck(th.ops.sb3_sparse.linear, args)
    grad = th.randn(batch, 30, requires_grad=True)
    th.library.opcheck(th.ops.sb3_sparse.linear_grad_input, (grad, layer.values, args[-1]))
    th.library.opcheck(th.ops.sb3_sparse.linear_grad_values, (grad, x, args[-1]))


def test_the_operations_of_convolutions_check_out():
    layer = cnn()[0]
    th.library.opcheck(th.ops.sb3_sparse.scatter, (layer.values, layer.topology_seed, layer.topology.handle))
    th.library.opcheck(th.ops.sb3_sparse.gather, (layer.to_dense().weight.detach(), layer.topology.handle))


@NETS
@pytest.mark.parametrize("strict", [False, True])
def test_export(make, strict, tmp_path):
    net = make()
    dynamic = ({0: th.export.Dim("batch", min=2)},)
    program = th.export.export(net, (inputs(net, 4),), dynamic_shapes=dynamic, strict=strict)
    th.export.save(program, tmp_path / "net.pt2")
    module = th.export.load(tmp_path / "net.pt2").module()
    # It is made of torch's own operations, and so opens without this package.
    assert all("sb3_sparse" not in str(node.target) for node in program.graph.nodes)
    x = inputs(net, 7)
    close(module(x), net(x))


@NETS
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(make, dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = make()
    names = {"input_names": ["x"], "output_names": ["y"]}
    shapes = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
    th.onnx.export(net.eval(), (inputs(net, 4),), str(tmp_path / "net.onnx"), dynamo=dynamo, **names, **shapes)
    x = inputs(net, 7)
    (y,) = onnxruntime.InferenceSession(str(tmp_path / "net.onnx")).run(None, {"x": x.numpy()})
    close(th.from_numpy(y), net(x).detach())


@NETS
def test_fx(make):
    net = make()
    traced = th.fx.symbolic_trace(net)
    x = inputs(net)
    close(traced(x), net(x))
    for ours, theirs in zip(gradients(net, x, net), gradients(net, x, traced), strict=True):
        close(ours, theirs)
    # Weights are parameters of what was traced, not numbers in it.
    assert {name for name, _ in traced.named_parameters()} == {name for name, _ in net.named_parameters()}
    with th.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    traced.load_state_dict(net.state_dict(), strict=False)
    close(traced(x), net(x))


@NETS
def test_make_fx(make):
    from torch.fx.experimental.proxy_tensor import make_fx

    net = make()
    x = inputs(net)
    close(make_fx(net)(x)(x), net(x))


def twin(net):
    """The dense twin, and its parameters by the names of ours."""
    return to_dense(net)


def test_gradients_of_functions():
    net, x = mlp(), inputs(mlp())
    dense = twin(net)
    parameters, dense_parameters = dict(net.named_parameters()), dict(dense.named_parameters())

    def loss(parameters, module):
        return functional_call(module, parameters, (x,)).square().sum()

    ours, theirs = grad(loss)(parameters, net), grad(loss)(dense_parameters, dense)
    assert set(ours) == set(parameters)
    for name, g in ours.items():
        layer = net.get_submodule(name.rpartition(".")[0])
        expected = theirs[name.replace("nonzeros", "weight")]
        close(g, expected[layer.topology.mask()] if name.endswith("nonzeros") else expected)


def test_per_sample_gradients():
    net, x = mlp(), inputs(mlp())
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, sample):
        return functional_call(net, parameters, (sample[None],)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        for name, g in zip(
            parameters, th.autograd.grad(net(x[i : i + 1]).square().sum(), list(net.parameters())), strict=True
        ):
            close(per_sample[name][i], g)


@NETS
def test_jacobians(make):
    net, x = make(), inputs(make(), 1)
    dense = twin(net)
    close(jacrev(net)(x), jacrev(dense)(x))
    close(jacfwd(net)(x), jacrev(dense)(x))
    close(
        vmap(jacrev(lambda sample: net(sample[None])[0]))(inputs(net, 3)),
        vmap(jacrev(lambda s: dense(s[None])[0]))(inputs(net, 3)),
    )
    direction = th.randn_like(x)
    for ours, theirs in zip(jvp(net, (x,), (direction,)), jvp(dense, (x,), (direction,)), strict=True):
        close(ours, theirs)


@NETS
def test_second_derivatives_through_transforms(make):
    net, x = make(), inputs(make(), 1)
    dense = twin(net)

    def value(module):
        return lambda x: module(x).square().sum()

    close(jacfwd(jacrev(value(net)))(x), jacfwd(jacrev(value(dense)))(x))


def test_forward_mode_without_transforms():
    net, x = mlp(), inputs(mlp())
    direction = th.randn_like(x)
    tangents = []
    for module in (net, twin(net)):
        with th.autograd.forward_ad.dual_level():
            dual = th.autograd.forward_ad.make_dual(x, direction)
            tangents.append(th.autograd.forward_ad.unpack_dual(module(dual)).tangent)
    close(*tangents)


@pytest.mark.parametrize("backend", ["dense", "csr", "compiled", "blocked"])
@pytest.mark.parametrize("batch", [1, 6, 16])
def test_batches_of_gradients(backend, batch, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, backend)
    net = mlp()
    x = inputs(net, batch).requires_grad_()
    y = net(x).sum(dim=0)
    tensors = [x, *net.parameters()]
    one_by_one = [th.autograd.grad(y[i], tensors, retain_graph=True) for i in range(5)]
    together = th.autograd.grad(y, tensors, th.eye(5), is_grads_batched=True)
    for place, batched in enumerate(together):
        close(batched, th.stack([g[place] for g in one_by_one]))


def test_vmap_over_models_of_one_topology():
    models = [mlp() for _ in range(3)]
    for i, model in enumerate(models):
        for p in model.parameters():
            p.data.mul_(1 + i)
    parameters, buffers = stack_module_state(models)
    base, x = copy.deepcopy(models[0]), inputs(models[0])

    def call(parameters, buffers, x):
        return functional_call(base, (parameters, buffers), (x,))

    close(vmap(call, in_dims=(0, 0, None))(parameters, buffers, x), th.stack([model(x) for model in models]))


def test_vmap_over_models_of_different_topologies_is_refused():
    models = [sparsify_(nn.Sequential(nn.Linear(20, 30)), 0.5, seed=seed) for seed in (1, 2)]
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0])
    with pytest.raises(ValueError, match="to_dense"):
        vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(parameters, buffers, th.randn(2, 20))
    state = {**dict(models[1].named_parameters()), **dict(models[1].named_buffers())}
    # Where all of a layer is swapped, nothing is in doubt.
    x = th.randn(3, 2, 20)
    close(vmap(lambda x: functional_call(base, state, (x,)))(x), models[1](x))
    close(functional_call(base, state, (x,)), models[1](x))
    close(base(x), models[0](x))


@NETS
def test_tensors_without_data(make):
    from torch._subclasses.fake_tensor import FakeTensorMode

    net = make()
    real = net(inputs(net))
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = net(th.empty(inputs(net).shape))
        assert (y.shape, y.stride()) == (real.shape, real.stride())
    with FakeTensorMode():
        fake = make()
        y = fake(th.empty(inputs(net).shape))
        y.sum().backward()
        assert all(p.grad.shape == p.shape for p in fake.parameters())


def test_meta_tensors():
    layer = SparseLinear(40, 30, density=0.2, device="meta")
    y = layer(th.empty(4, 40, device="meta"))
    assert (y.shape, y.device.type) == ((4, 30), "meta")
    y.sum().backward()
    assert layer.values.grad.shape == layer.values.shape


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant):
    from torch.utils.checkpoint import checkpoint

    net = mlp()
    x = inputs(net)
    expected = gradients(net, x, net)
    for ours, theirs in zip(expected, gradients(net, x, lambda x: checkpoint(net, x, use_reentrant=reentrant)), strict=True):
        close(ours, theirs)


@NETS
@pytest.mark.parametrize("named", [False, True])
def test_gradient_penalties(make, named):
    """Mistake of ours: with the inputs named, second derivatives were 0 or lacked a part."""
    net, grads = make(), []
    x = inputs(net)
    for module in (net, twin(net)):
        tensor = x.clone().requires_grad_()
        (g,) = th.autograd.grad(module(tensor).tanh().sum(), tensor, create_graph=True)
        penalty = ((g.flatten(1).norm(dim=1) - 1) ** 2).mean()
        parameters = list(module.parameters())
        if named:
            found = th.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)
        else:
            penalty.backward()
            found = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
        grads.append(dict(zip((name for name, _ in module.named_parameters()), found, strict=True)))
    ours, theirs = grads
    for name, gradient in ours.items():
        place, _, kind = name.rpartition(".")
        layer = net.get_submodule(place)
        expected = theirs[name.replace("nonzeros", "weight")]
        close(gradient, layer.topology.gather(expected) if kind == "nonzeros" else expected)


def test_hessians_and_their_products():
    net = mlp()
    dense, x = twin(net), inputs(net, 1)
    direction = th.randn_like(x)
    for look in (
        lambda f: th.autograd.functional.hessian(f, x),
        lambda f: th.autograd.functional.hessian(f, x, vectorize=True),
        lambda f: th.autograd.functional.hvp(f, x, direction)[1],
        lambda f: th.autograd.functional.vhp(f, x, direction)[1],
        lambda f: th.autograd.functional.jvp(f, x, direction)[1],
    ):
        close(*(look(lambda x, module=module: module(x).tanh().square().sum()) for module in (net, dense)))


def test_a_penalty_on_the_weight_compiles():
    layer = SparseLinear(16, 8, density=0.5)
    th.compile(lambda: layer.weight.abs().sum(), backend="aot_eager")().backward()
    assert th.equal(layer.values.grad, layer.values.detach().sign())


def test_modes_that_only_look():
    from torch.utils.flop_counter import FlopCounterMode

    net, x = mlp(), inputs(mlp())
    expected = net(x)
    with FlopCounterMode(display=False):
        close(net(x), expected)


class Look(TorchDispatchMode):
    """A mode that only looks."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tool", ["mode", "compile"])
@pytest.mark.parametrize("dtype", [th.float32, th.complex64])
def test_derivatives_of_any_order_through_the_operations(tool, dtype):
    """Mistake of ours: there were no second ones, and of complex layers the first lacked the conjugate."""
    topology, found = Topology.random((9, 12), 50, seed=0), []
    start = [th.randn(shape, dtype=dtype) for shape in ((5, 12), (50,), (9,))]

    def multiply(x, values, bias):
        return sparse_linear(x, values, topology, bias)

    for function in (multiply, lambda x, values, bias: formula.linear(x, values, topology, bias)):
        tensors = [tensor.clone().requires_grad_() for tensor in start]
        product = th.compile(function, backend="eager") if (tool, function) == ("compile", multiply) else function
        with Look() if tool == "mode" else contextlib.nullcontext():
            derivatives, value = [], (product(*tensors) ** 2).abs().square().mean()
            for _ in range(3):
                grads = th.autograd.grad(value, tensors, create_graph=True)
                derivatives += grads
                value = sum(grad.abs().square().mean() for grad in grads)
        found.append([grad.detach() for grad in derivatives])
    for ours, theirs in zip(*found, strict=True):
        th.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4 * float(theirs.abs().max()))


def _train_a_step(rank, file, results):
    th.set_num_threads(1)
    th.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    net = sparsify_(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), 0.7, seed=rank)
    parallel = nn.parallel.DistributedDataParallel(net)
    optimizer = th.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(th.full((2, 20), 0.1 * (rank + 1))).square().sum().backward()
        optimizer.step()
    results.put((rank, net[0].topology.seed, net(th.ones(1, 20)).tolist()))
    th.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="no gloo over files")
def test_data_parallel_ranks_with_different_seeds_become_one_network(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_train_a_step, args=(rank, tmp_path / "store", results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert found[0][1:] == found[1][1:]
