import copy
import io
import pickle

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sb3_sparse.networks.noisy import NoisyLinear
from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology, sparsify_
from sb3_sparse.sparse.layers import sparse_layers
from sb3_sparse.sparse.topology import MAX_SEED


class MaskedTwin(nn.Module):
    """A dense layer whose weight is multiplied by a mask: what a sparse layer has to equal."""

    def __init__(self, layer: SparseLinear):
        super().__init__()
        self.register_buffer("mask", layer.topology.mask().float())
        self.weight = nn.Parameter(layer.weight.clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_layer_equals_masked_dense_twin_over_50_adamw_steps(density):
    th.manual_seed(0)
    sparse = nn.Sequential(SparseLinear(40, 60, density=density), nn.Tanh(), SparseLinear(60, 5, density=density))
    twin = nn.Sequential(MaskedTwin(sparse[0]), nn.Tanh(), MaskedTwin(sparse[2]))
    optimizers = [th.optim.AdamW(net.parameters(), lr=1e-2, fused=True) for net in (sparse, twin)]
    for _ in range(50):
        x, target = th.randn(32, 40), th.randn(32, 5)
        for net, optimizer in zip((sparse, twin), optimizers, strict=True):
            optimizer.zero_grad()
            F.mse_loss(net(x), target).backward()
            optimizer.step()
        assert relative_error(sparse(x), twin(x)) < 1e-5
        for ours, theirs in ((sparse[0], twin[0]), (sparse[2], twin[2])):
            gradient = theirs.weight.grad.flatten()[ours.topology.flat_index()]
            assert relative_error(ours.values.grad, gradient) < 1e-5
            assert relative_error(ours.weight, theirs.weight * theirs.mask) < 1e-5


def test_only_living_weights_are_parameters():
    layer = SparseLinear(100, 50, density=0.1)
    assert {name: p.shape for name, p in layer.named_parameters()} == {"nonzeros": (500,), "bias": (50,)}
    assert set(layer.state_dict()) == {"nonzeros", "bias", "topology_seed"}
    assert all(tensor.dtype == th.float32 for tensor in layer.state_dict().values())
    assert layer.density == 0.1
    assert SparseLinear(3, 4, density=0.5, bias=False).bias is None


def test_initial_values_are_those_of_nn_linear_at_the_living_positions():
    th.manual_seed(3)
    dense = nn.Linear(30, 20)
    th.manual_seed(3)
    layer = SparseLinear(30, 20, density=0.2)
    mask = layer.topology.mask()
    assert th.equal(layer.weight, dense.weight * mask)
    assert th.equal(layer.bias, dense.bias)
    # Nothing but the layer itself was drawn: the next one starts alike too.
    assert th.equal(th.rand(1), (th.manual_seed(3), nn.Linear(30, 20), th.rand(1))[-1])


def test_rescale_keeps_the_norm_of_a_row():
    layers = []
    for rescale in (False, True):
        th.manual_seed(0)
        layers.append(SparseLinear(200, 100, density=0.25, rescale=rescale))
    assert th.allclose(layers[1].values, 2 * layers[0].values)


def test_default_topologies_follow_the_seed_and_differ_between_layers():
    def build():
        th.manual_seed(7)
        return SparseLinear(20, 20, density=0.3), SparseLinear(20, 20, density=0.3)

    first, second = build(), build()
    assert first[0].topology == second[0].topology
    assert first[1].topology == second[1].topology
    assert first[0].topology != first[1].topology


def test_weight_cannot_be_written_to():
    layer = SparseLinear(5, 4, density=0.5)
    writes = [
        lambda w: w.fill_(9.0),
        nn.init.zeros_,
        nn.init.kaiming_uniform_,
        lambda w: w.requires_grad_(False),
        lambda w: setattr(w, "requires_grad", False),
        lambda w: setattr(w, "data", th.zeros(4, 5)),
        lambda w: w.data.zero_(),
        lambda w: w.detach().zero_(),
        lambda w: w.view(-1).zero_(),
        lambda w: w.t().__setitem__(0, 1.0),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.__iadd__(1.0),
        lambda w: th.add(w, 1.0, out=w.detach()),
        lambda w: w.register_hook(print),
        lambda w: w.unbind()[0].zero_(),
        lambda w: w.split(2)[0].zero_(),
        lambda w: th._foreach_zero_([w.detach()]),
        lambda w: nn.utils.vector_to_parameters(th.zeros(20), [w]),
    ]
    for write in writes:
        with pytest.raises(RuntimeError, match=r"the dense weight of a sparse layer is a copy.*layer\.values"):
            write(layer.weight)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.detach().numpy()[0, 0] = 1.0
    for weight in (th.zeros(4, 5), nn.Parameter(th.zeros(4, 5))):
        with pytest.raises(AttributeError, match=r"layer\.values"):
            layer.weight = weight
    with pytest.raises(AttributeError, match="set_topology"):
        layer.topology = layer.topology


def test_weight_is_there_to_look_at_and_to_compute_with():
    layer = SparseLinear(5, 4, density=0.5)
    dense = layer.to_dense().weight
    assert th.equal(layer.weight, dense)
    assert type(layer.weight * 2) is th.Tensor
    assert type(layer.weight.clone().zero_()) is th.Tensor
    assert th.equal(th.from_numpy(layer.weight.numpy().copy()), dense.detach())
    assert type(copy.deepcopy(layer.weight)) is th.Tensor
    assert type(pickle.loads(pickle.dumps(layer.weight))) is th.Tensor
    assert len({repr(layer.weight), str(layer.weight)}) == 1
    # A penalty on the weights reaches the values.
    layer.weight.square().sum().backward()
    assert th.equal(layer.values.grad, 2 * layer.values.detach())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_and_share_the_indices(clone):
    layer = SparseLinear(50, 40, density=0.2)
    other = clone(layer)
    x = th.randn(3, 50)
    assert th.equal(layer(x), other(x))
    assert other.topology is layer.topology
    assert other.values.data_ptr() != layer.values.data_ptr()


def test_loading_takes_over_the_topology():
    source, target = (SparseLinear(50, 40, density=0.2, seed=seed) for seed in (1, 2))
    target.load_state_dict(source.state_dict())
    assert target.topology is source.topology
    assert th.equal(target.weight, source.weight)


def test_loading_a_file_of_weights_only():
    source = SparseLinear(50, 40, density=0.2, seed=1)
    file = io.BytesIO()
    th.save(source.state_dict(), file)
    file.seek(0)
    target = SparseLinear(50, 40, density=0.2, seed=2)
    target.load_state_dict(th.load(file, weights_only=True))
    assert th.equal(target.weight, source.weight)


def test_a_given_topology_travels_by_its_indices():
    mask = th.rand(6, 5) < 0.4
    source = SparseLinear(5, 6, topology=Topology.from_mask(mask))
    assert set(source.state_dict()) == {"nonzeros", "bias", "topology_seed", "topology_index"}
    drawn = SparseLinear(5, 6, topology=Topology.random((6, 5), source.topology.nnz, seed=3))
    given = SparseLinear(5, 6, topology=Topology.from_mask(mask.flatten().flip(0).view(6, 5)))
    for target in (drawn, given):
        target.load_state_dict(source.state_dict())
        assert th.equal(target.topology.mask(), mask)
        assert th.equal(target.weight, source.weight)
    restored = SparseLinear(5, 6, topology=Topology.from_mask(mask))
    seeded = SparseLinear(5, 6, topology=Topology.random((6, 5), source.topology.nnz, seed=3))
    restored.load_state_dict(seeded.state_dict())
    assert restored.topology is seeded.topology
    assert set(restored.state_dict()) == {"nonzeros", "bias", "topology_seed"}


def test_a_different_number_of_weights_does_not_load():
    with pytest.raises(RuntimeError, match="size mismatch for nonzeros"):
        SparseLinear(50, 40, density=0.2).load_state_dict(SparseLinear(50, 40, density=0.3).state_dict())


@pytest.mark.parametrize("dtype", [th.bfloat16, th.float16, th.float64])
def test_other_dtypes_keep_the_seed(dtype):
    layer = SparseLinear(20, 10, density=0.5, seed=MAX_SEED - 1).to(dtype)
    assert layer.values.dtype == dtype
    assert layer.topology_seed.dtype == th.float32
    other = SparseLinear(20, 10, density=0.5, seed=1)
    other.load_state_dict(layer.state_dict())
    assert other.topology is layer.topology
    if dtype != th.float16:
        assert layer(th.randn(3, 20, dtype=dtype)).dtype == dtype


def test_layers_on_meta_have_topologies_of_their_own():
    """Mistake of ours: no weights are drawn there, by which the next layer would have found another topology."""
    th.manual_seed(0)
    with th.device("meta"):
        first, second = SparseLinear(20, 10, density=0.5), SparseLinear(20, 10, density=0.5)
    third = SparseLinear(20, 10, density=0.5, device="meta")
    assert len({layer.topology for layer in (first, second, third)}) == 3
    th.manual_seed(0)
    assert SparseLinear(20, 10, density=0.5, device="meta").topology == first.topology


def test_from_meta_to_memory():
    layer = SparseLinear(20, 10, density=0.5, seed=7, device="meta").to_empty(device="cpu")
    assert layer.topology_seed.tolist() == layer.topology.identity
    assert layer.topology.seed == 7
    layer.load_state_dict(SparseLinear(20, 10, density=0.5, seed=9).state_dict())
    assert layer.topology.seed == 9


def test_dense_twin_and_back():
    layer = SparseLinear(20, 10, density=0.3)
    dense = layer.to_dense()
    x = th.randn(4, 20)
    assert type(dense) is nn.Linear
    assert th.allclose(dense(x), layer(x), atol=1e-6)
    assert th.equal(SparseLinear.from_dense(dense, layer.topology).values, layer.values)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "bias": False},
        {"kernel_size": 2, "groups": 2},
    ],
)
def test_convolution_equals_masked_dense_twin(settings):
    dense = nn.Conv2d(4, 6, **settings)
    topology = Topology.random(dense.weight.shape, dense.weight.numel() // 3, seed=0)
    sparse = SparseConv2d.from_dense(dense, topology)
    mask = topology.mask()
    with th.no_grad():
        dense.weight.mul_(mask)
    x = th.randn(2, 4, 9, 9)
    y = sparse(x)
    assert th.allclose(y, dense(x), atol=1e-6)
    y.square().sum().backward()
    dense(x).square().sum().backward()
    assert th.allclose(sparse.values.grad, dense.weight.grad[mask], rtol=1e-4, atol=1e-4)
    assert th.allclose(sparse.to_dense()(x), dense(x), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "density=None and topology=None: give"),
        ({"density": 1.5}, "density=1.5"),
        ({"density": 0.5, "topology": Topology.random((4, 5), 3, 0)}, "either topology="),
        ({"topology": Topology.random((5, 4), 3, 0)}, "does not fit"),
        ({"density": 0.5, "seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseLinear(5, 4, **arguments)


@pytest.mark.parametrize("changed", [dict(padding=(0, 0)), dict(padding="same"), dict(padding=2, stride=2, dilation=2)])
def test_a_convolution_may_have_other_settings_than_it_was_made_with(changed):
    dense = nn.Conv2d(3, 4, 3, padding=1)
    for name, value in changed.items():
        setattr(dense, name, value)
    sparse, x = SparseConv2d.from_dense(dense, Topology.random((4, 3, 3, 3), 108, 0)), th.randn(2, 3, 9, 8)
    assert th.allclose(sparse(x), dense(x), atol=1e-5)
    assert th.allclose(sparse.to_dense()(x), dense(x), atol=1e-5)


def test_what_was_first_used_in_inference_mode_can_be_trained():
    layer, x = SparseConv2d(nn.Conv2d(3, 4, 3), Topology.random((4, 3, 3, 3), 40, 4711)), th.randn(2, 3, 8, 8)
    with th.inference_mode():
        expected = layer(x).clone()
        layer.weight.sum()
    y = layer(x)
    y.sum().backward()
    assert th.equal(y.detach(), expected)
    assert layer.values.grad.any()
    layer.weight.sum().backward()


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_the_bias_may_be_computed_from_another_parameter():
    # Torch itself refuses `values`: its container of parametrizations has a method of that name.
    layer = SparseLinear(20, 30, density=0.3, seed=1)
    x, plain = th.randn(4, 20), layer.to_dense()
    parametrize.register_parametrization(layer, "bias", Doubled())
    expected = F.linear(x, plain.weight, 2 * plain.bias)
    y = layer(x)
    assert th.allclose(y, expected, atol=1e-5)
    assert th.allclose(layer(x[:1]), expected[:1], atol=1e-5)
    y.sum().backward()
    assert layer.parametrizations.bias.original.grad.eq(8).all()


def test_the_living_weights_have_a_name_that_no_algorithm_takes_for_a_value_function():
    """Mistake of ours: as "values", TRPO left the actor's sparse weights as they were drawn."""
    layer = sparsify_(nn.Sequential(nn.Linear(20, 30)), 0.5)[0]
    assert dict(layer.named_parameters())["nonzeros"] is layer.values is layer.nonzeros
    other = nn.Parameter(th.ones_like(layer.values))
    layer.values = other
    assert layer._parameters["nonzeros"] is layer.values is other
    with pytest.raises(TypeError, match="nonzeros"):
        layer.values = th.ones(3)
    # State dicts of 0.1, also where they are read in part, and modules that were pickled then.
    state = layer.state_dict()
    old = {"values" if name == "nonzeros" else name: value for name, value in state.items()}
    for strict in (True, False):
        again = sparsify_(nn.Sequential(nn.Linear(20, 30)), 0.5, seed=7)
        assert again.load_state_dict({f"0.{name}": value for name, value in old.items()}, strict=strict) == ([], [])
        assert th.equal(again[0].values, other)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*0\.values"):
        again.load_state_dict({f"0.{name}": value for name, value in {**old, **state}.items()})
    content = layer.__getstate__()
    content["_parameters"] = {"values" if name == "nonzeros" else name: p for name, p in layer._parameters.items()}
    unpickled = SparseLinear.__new__(SparseLinear)
    unpickled.__setstate__(content)
    assert unpickled.values is other
    x = th.randn(3, 20)
    assert th.equal(unpickled(x), layer(x))


def test_living_weights_may_be_parametrized():
    layer = SparseLinear(20, 30, density=0.3, seed=1)
    x, y = th.randn(4, 20), layer(th.zeros(4, 20))

    class Doubled(nn.Module):
        def forward(self, values):
            return 2 * values

    plain = layer(x)
    nn.utils.parametrize.register_parametrization(layer, "nonzeros", Doubled())
    th.testing.assert_close(layer(x) - y, 2 * (plain - y))
    assert th.equal(layer.values, layer.nonzeros)


@pytest.mark.parametrize("name", ["nonzeros", "bias"])
def test_what_is_computed_cannot_be_written(name):
    """Mistake: values went into a temporary tensor, without a word."""
    layer = SparseLinear(20, 30, density=0.3, seed=1)
    parametrize.register_parametrization(layer, name, nn.Tanh())
    before, old, new = copy.deepcopy(layer.state_dict()), layer.topology, Topology.random((30, 20), 180, 2)
    writes = [layer.reset_parameters]
    if name == "nonzeros":
        writes.append(lambda: layer.set_topology(new, th.ones(180)))
    for write in writes:
        with pytest.raises(ValueError, match=rf"\['{name}'\] of a sparse layer .*computed .*remove_parametrizations"):
            write()
    assert layer.topology is old
    assert all(th.equal(value, before[key]) for key, value in layer.state_dict().items())
    layer.set_topology(new)
    assert layer.topology is new
    parametrize.remove_parametrizations(layer, name)
    layer.set_topology(old, th.ones(180))
    assert layer.values.eq(1).all()
    layer.reset_parameters()
    assert not layer.values.eq(1).any()


def test_tensors_in_place_of_parameters():
    layer = SparseLinear(20, 30, density=0.3, seed=1)
    x, y = th.randn(4, 20), layer(th.zeros(4, 20))
    assert th.equal(y, layer.bias.expand(4, 30))
    given = {"nonzeros": th.zeros_like(layer.values), "bias": th.ones(30)}
    assert th.equal(th.func.functional_call(layer, given, (x,)), th.ones(4, 30))
    # As replicas of DataParallel have them.
    layer._parameters.clear()
    layer.nonzeros, layer.bias = given["nonzeros"], None
    assert th.equal(layer(x), th.zeros(4, 30))


def reset_all(module):
    """As it is written everywhere."""
    for each in module.modules():
        if hasattr(each, "reset_parameters"):
            each.reset_parameters()


def dense_network():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.Conv2d(4, 4, 2), nn.Flatten()),
        *(NoisyLinear(4 * 5 * 5, 12, sigma=0.3), nn.ReLU(), nn.Linear(12, 5)),
    )


@pytest.mark.parametrize("rescale", [False, True])
def test_who_resets_all_modules_resets_sparse_ones_too(rescale):
    dense = dense_network()
    sparse = sparsify_(copy.deepcopy(dense), 0.6, seed=0, rescale=rescale)
    parameters, topologies = list(sparse.parameters()), [layer.topology for layer in sparse_layers(sparse).values()]
    assert len(topologies) == 3
    for again in (sparse, pickle.loads(pickle.dumps(sparse)), copy.deepcopy(sparse)):
        with th.no_grad():
            for p in again.parameters():
                p.fill_(7.0)
        for module in (dense, again):
            th.manual_seed(3)
            reset_all(module)
        for name, layer in sparse_layers(again).items():
            right = dense.get_submodule(name)
            factor = layer.density**-0.5 if rescale else 1.0
            for own, theirs in layer.gathered.items():
                th.testing.assert_close(getattr(layer, own), factor * layer.topology.gather(getattr(right, theirs)))
            assert layer.bias is None if right.bias is None else th.equal(layer.bias, right.bias)
        assert th.equal(again[3].bias_sigma, dense[3].bias_sigma)
    assert [layer.topology for layer in sparse_layers(sparse).values()] == topologies
    assert all(p is q for p, q in zip(sparse.parameters(), parameters, strict=True))


def test_what_was_made_without_memory_can_be_given_some():
    with th.device("meta"):
        layer = SparseLinear(40, 30, density=0.2, seed=1)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.topology == Topology.random((30, 40), 240, 1)
    assert 0 < layer.values.abs().max() <= 40**-0.5
    assert layer(th.ones(1, 40)).isfinite().all()
