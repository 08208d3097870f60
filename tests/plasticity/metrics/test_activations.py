"""What one pass through a network shows, whatever the network is made of."""

import functools

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from sb3_sparse.networks import SimBaEncoder
from sb3_sparse.plasticity import dormant_ratio, record_activations
from sb3_sparse.sparse import SparseLinear, Topology, sparsify_


class Dueling(nn.Module):
    """Functions of torch for activations, two heads after streams of their own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.value, self.advantage = nn.Linear(12, 5), nn.Linear(12, 6)
        self.value_head, self.advantage_head = nn.Linear(5, 1), nn.Linear(6, 4)

    def forward(self, x):
        latent = F.relu(self.conv(x)).flatten(1)
        value = self.value_head(F.leaky_relu(self.value(latent)))
        advantage = self.advantage_head(self.advantage(latent).tanh())
        return th.sigmoid(value + advantage - advantage.mean(dim=1, keepdim=True))


def test_simba_block_by_block():
    th.manual_seed(0)
    net = nn.Sequential(SimBaEncoder(3, 8, 2), nn.Linear(8, 2), nn.Tanh())
    x = th.randn(5, 3)
    seen = record_activations(net, lambda: net(x))
    encoder = net[0]
    stem = encoder.stem(x)
    hidden = encoder.blocks[0].fc1(encoder.blocks[0].norm(stem))
    assert list(seen.linear) == ["0.stem", *(f"0.blocks.{i}.fc{j}" for i in (0, 1) for j in (1, 2))]
    # The ReLU works in place; what came before it is seen all the same.
    assert th.equal(seen.linear["0.blocks.0.fc1"], hidden)
    assert hidden.min() < 0
    assert list(seen.activated) == ["0.blocks.0.fc1", "0.blocks.1.fc1"]
    assert th.equal(seen.activated["0.blocks.0.fc1"], hidden.relu())
    assert len(seen.features) == 1
    assert th.equal(seen.features[0], encoder(x))
    assert not any(tensor.requires_grad for tensor in (*seen.linear.values(), *seen.activated.values(), *seen.features))
    assert not any(module._forward_hooks for module in net.modules())


def test_functions_streams_and_several_heads():
    th.manual_seed(0)
    net = Dueling()
    x = th.randn(5, 1, 4, 4)
    seen = record_activations(net, lambda: net(x))
    assert list(seen.linear) == ["conv", "value", "advantage"]
    assert list(seen.activated) == ["conv", "value", "advantage"]
    assert [tuple(features.shape) for features in seen.features] == [(5, 5), (5, 6)]
    assert th.equal(seen.activated["conv"], net.conv(x).relu())
    assert th.equal(seen.activated["advantage"], net.advantage(net.conv(x).relu().flatten(1)).tanh())
    assert dormant_ratio(seen.activated).units == 3 + 5 + 6


def test_heads_with_one_latent_vector_share_a_feature():
    trunk, mu, log_std = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 2), nn.Linear(8, 2)
    net = nn.ModuleList([trunk, mu, log_std])
    x = th.randn(5, 3)

    def forward():
        latent = trunk(x)
        return mu(latent), th.tanh(log_std(latent))

    seen = record_activations(net, forward)
    assert (list(seen.linear), list(seen.activated), len(seen.features)) == (["0.0"], ["0.0"], 1)


def test_a_layer_that_is_used_twice_is_seen_twice():
    layer, head = nn.Linear(3, 3), nn.Linear(3, 1)
    net = nn.ModuleList([layer, head])
    seen = record_activations(net, lambda: head(F.relu(layer(F.relu(layer(th.randn(4, 3)))))))
    assert list(seen.linear) == list(seen.activated) == ["0", "0#2"]


def test_structurally_dead_units():
    mask = th.ones(6, 4, dtype=th.bool)
    mask[[1, 4]] = False
    layer = SparseLinear(4, 6, topology=Topology.from_mask(mask))
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    with th.no_grad():
        layer.bias[1] = 1.0
    prune.custom_from_mask(net[2], "weight", th.eye(5, 6).flip(0)[:5] * th.tensor([[1], [1], [0], [1], [1]]))
    seen = record_activations(net, lambda: net(th.randn(32, 4)))
    assert {name: dead.nonzero().flatten().tolist() for name, dead in seen.structurally_dead.items()} == {
        "0": [1, 4],
        "2": [2],
    }
    result = dormant_ratio(seen.activated, 0.0, structurally_dead=seen.structurally_dead)
    assert (result.structurally_dead, result.units) == (3, 8)


def test_a_normalised_unit_without_input_is_not_dead():
    mask = th.ones(6, 4, dtype=th.bool)
    mask[1] = False
    net = nn.Sequential(
        SparseLinear(4, 6, topology=Topology.from_mask(mask)), nn.LayerNorm(6), nn.LeakyReLU(), nn.Linear(6, 1)
    )
    seen = record_activations(net, lambda: net(th.randn(32, 4)))
    assert seen.structurally_dead["0"].tolist() == [False, True, False, False, False, False]
    assert dormant_ratio(seen.activated, 0.0, structurally_dead={}).ratio == 0.0


def test_a_linear_network_has_a_head_and_nothing_else():
    net = nn.Linear(3, 2)
    x = th.randn(4, 3)
    seen = record_activations(net, lambda: net(x))
    assert (seen.linear, seen.activated) == ({}, {})
    assert th.equal(seen.features[0], x)


def test_a_pass_through_another_network_is_refused():
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="no linear or convolutional layer of the network took part"):
        record_activations(nn.Linear(3, 2), lambda: net(th.randn(4, 3)))


def test_sparse_networks_show_what_their_dense_twins_do():
    th.manual_seed(0)
    net = nn.Sequential(SimBaEncoder(5, 16, 1), nn.Linear(16, 2))
    sparsify_(net, 0.6)
    x = th.randn(8, 5)
    seen = record_activations(net, lambda: net(x))
    assert list(seen.linear) == ["0.stem", "0.blocks.0.fc1", "0.blocks.0.fc2"]
    assert list(seen.activated) == ["0.blocks.0.fc1"]


def test_an_encoder_has_no_heads():
    encoder = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh())
    x = th.randn(6, 3)
    seen = record_activations(encoder, lambda: encoder(x), has_heads=False)
    assert th.equal(seen.linear["2"], encoder[2](encoder[1](encoder[0](x))))
    assert th.equal(seen.activated["2"], encoder(x))
    assert len(seen.features) == 1
    assert th.equal(seen.features[0], encoder(x))
    with_heads = record_activations(encoder, lambda: encoder(x))
    assert list(with_heads.linear) == list(with_heads.activated) == ["0"]
    with pytest.raises(ValueError, match="returned no tensor"):
        record_activations(encoder, lambda: print(encoder(x).shape), has_heads=False)


def test_activations_under_all_their_names():
    """Mistake of ours: RReLU, Threshold, the shrinks, functions that work in place and clamp(min=0) were left out."""
    functions = "relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardswish hardsigmoid logsigmoid"
    functions += " sigmoid tanh hardshrink softshrink tanhshrink leaky_relu_ elu_ selu_ celu_ hardtanh_"
    shapes = {f"F.{name}": getattr(F, name) for name in functions.split()}
    for owner in (th, th.Tensor):
        shapes |= {f"{owner}.{name}": getattr(owner, name) for name in ("sigmoid", "sigmoid_", "tanh", "tanh_", "hardshrink")}
    shapes |= {f"th.{name}": getattr(th, name) for name in ("selu", "selu_", "celu", "celu_")}
    shapes["threshold"] = lambda x: F.threshold(x, 0.1, 0.0)
    shapes["threshold, in place"] = lambda x: F.threshold(x, 0.1, 0.0, inplace=True)
    shapes["RReLU"] = nn.RReLU().eval()
    relus = {f"{owner}.{name}": getattr(owner, name) for owner in (F, th) for name in ("relu", "relu_")}
    for owner in (th, th.Tensor):
        for name in ("clamp", "clamp_", "clip", "clip_"):
            clamp = getattr(owner, name)
            relus[f"{owner}.{name}(min=0)"] = functools.partial(clamp, min=0)
            relus[f"{owner}.{name}(0)"] = lambda x, clamp=clamp: clamp(x, 0.0)
        for name in ("clamp_min", "clamp_min_"):
            relus[f"{owner}.{name}"] = functools.partial(getattr(owner, name), min=0)
    relus["maximum"] = lambda x: th.maximum(x, th.zeros_like(x))
    relus["maximum of 0 and x"] = lambda x: th.maximum(th.tensor(0.0), x)
    net, x = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 2)]), th.randn(16, 6)
    for name, function in {**shapes, **relus}.items():
        seen = record_activations(net, lambda function=function: net[1](function(net[0](x))))
        expected = function(net[0](x).detach())
        assert th.equal(seen.activated.get("0", th.empty(0)), expected), name
        assert list(seen.activated) == ["0"], name
        assert list(seen.rectified) == (["0"] if name in relus else []), name
    # Limits are no activations.
    for limit in (
        lambda x: x.clamp(-5, 2),
        lambda x: x.clamp(0, 1),
        lambda x: th.maximum(x, x.roll(1)),
        lambda x: x.clip(max=0),
    ):
        assert not record_activations(net, lambda limit=limit: net[1](limit(net[0](x)))).activated


class Swish(nn.Module):
    """Written by hand."""

    def forward(self, x):
        return x * th.sigmoid(x)


class MyReLU(nn.Module):
    def forward(self, x):
        return x.clamp(min=0)


def test_an_activation_of_ones_own_is_what_its_module_returns():
    """Mistake of ours: of x * sigmoid(x) the sigmoid was taken, by which every unit is active."""
    net, x = nn.Sequential(nn.Linear(6, 8), Swish(), nn.Linear(8, 8), MyReLU(), nn.Linear(8, 2)), th.randn(16, 6)
    seen = record_activations(net, lambda: net(x))
    assert list(seen.activated) == ["0", "2"]
    assert th.allclose(seen.activated["0"], F.silu(net[0](x)))
    assert list(seen.rectified) == ["2"]
    assert th.equal(seen.rectified["2"], net[:4](x))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_behind_a_layer_or_with_layers_is_refused():
    """Mistake of ours: the layer before it was taken for a head, since nothing was seen to follow it."""
    scripted, traced, norm = th.jit.script(Swish()), th.jit.trace(Swish(), th.randn(2, 8)), th.jit.script(nn.LayerNorm(8))
    for inner in (scripted, traced, norm, th.jit.script(nn.Linear(8, 8))):
        net = nn.Sequential(nn.Linear(6, 8), inner, nn.Linear(8, 2))
        with pytest.raises(ValueError, match="module '1' is TorchScript"):
            record_activations(net, lambda net=net: net(th.randn(16, 6)))
    net(th.randn(16, 6)), scripted(net[0](th.randn(16, 6)))  # No hook is left behind.


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_before_the_layers_is_passed_over():
    """Mistake of ours: a scripted change of pictures ended a training at its first measurement."""
    net, x = nn.Sequential(th.jit.script(Swish()), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), th.randn(16, 6)
    seen = record_activations(net, lambda: net(x))
    assert list(seen.activated) == list(seen.linear) == ["1"]
    assert th.equal(seen.activated["1"], net[:3](x))
    assert not nn.modules.module._global_forward_hooks


class Borrowing(nn.Module):
    """Calls layers that somebody else holds: a module without children."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return F.relu(self.layers[1](F.tanh(self.layers[0](x))))


def test_a_module_that_borrows_layers_is_no_activation():
    """Mistake of ours: of all activations in it only the last one was seen."""
    first, second, head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
    net, x = nn.ModuleList([first, second, head, Borrowing(first, second)]), th.randn(16, 6)
    seen = record_activations(net, lambda: head(net[3](x)))
    assert list(seen.activated) == ["0", "1"]
    assert th.equal(seen.activated["0"], F.tanh(first(x)))
    assert list(seen.rectified) == ["1"]


def test_the_larger_of_two_layers_is_no_relu():
    """Mistake of ours: it was taken for one where the batch made one of them 0 everywhere."""
    net, x = nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)]), th.randn(16, 6)
    nn.init.zeros_(net[0].weight), nn.init.zeros_(net[0].bias)
    for larger in (th.maximum, lambda a, b: b.clamp(min=a), lambda a, b: th.clamp_min(b, a)):
        assert not record_activations(net, lambda larger=larger: net[2](larger(net[0](x), net[1](x)))).rectified
    for zero in (th.zeros_like, lambda y: y.new_zeros(()), lambda y: th.tensor(0.0)):
        seen = record_activations(net, lambda zero=zero: net[2](th.maximum((y := net[1](x)), zero(y))))
        assert list(seen.rectified) == ["1"]
