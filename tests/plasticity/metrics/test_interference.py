"""Inner products of per-sample gradients against a plain loop over samples."""

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from sb3_sparse.networks import SimBaEncoder
from sb3_sparse.plasticity import gradient_gram, gradient_interference, gradient_norm
from sb3_sparse.plasticity.metrics import interference
from sb3_sparse.sparse import SparseLinear, sparsify_

SAMPLES = 7


def loop(network, losses):
    """Gradient of one sample after the other, all of them kept."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    values = losses()
    rows = []
    for value in values:
        gradients = th.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(th.cat([gradient.flatten() for gradient in gradients]))
    matrix = th.stack(rows).double()
    return matrix @ matrix.T


class Functional(nn.Module):
    """Parameters of its own beside layers, and one used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(th.rand(6))
        self.head = nn.Linear(6, 1, bias=False)
        self.unused = nn.Linear(6, 6)

    def forward(self, x):
        x = th.relu_(self.layer(x)) * self.scale
        return self.head(F.relu(self.layer(x)))


def tied():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 1))
    net[2].weight = net[0].weight
    return net


def frozen_bias():
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 1))
    net[0].bias.requires_grad_(False)
    return net


def pruned():
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1))
    prune.random_unstructured(net[0], "weight", 0.5)
    return net


def simba(sparsity):
    net = nn.Sequential(SimBaEncoder(6, 12, 2), nn.Linear(12, 1))
    sparsify_(net, sparsity)
    return net


def cnn(sparsity):
    net = nn.Sequential(
        nn.Unflatten(1, (2, 6, 6)),
        nn.Conv2d(2, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5, 1),
    )
    sparsify_(net, sparsity)
    return net


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4, bias=False), nn.ReLU(True), nn.Linear(4, 1)),
    "dense SimBa": lambda: simba(0.0),
    "sparse SimBa": lambda: simba(0.7),
    "very sparse SimBa": lambda: simba(0.97),
    "cnn": lambda: cnn(0.0),
    "sparse cnn": lambda: cnn(0.5),
    "sequence": lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 1)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1)).eval(),
    "functional": Functional,
    "tied weights": tied,
    "frozen bias": frozen_bias,
    "pruned with a mask": pruned,
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 1)).eval(),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("small_blocks", [False, True])
def test_gram_equals_the_loop(name, small_blocks, monkeypatch):
    if small_blocks:
        monkeypatch.setattr(interference, "EDGES_PER_CHUNK", 5)
        monkeypatch.setattr(interference, "NUMBERS_PER_BLOCK", 50)
    th.manual_seed(1)
    network = NETWORKS[name]()
    x, y = th.randn(SAMPLES, 72 if "cnn" in name else 6), th.randn(SAMPLES, 1)

    def losses():
        return (network(x) - y).square().sum(dim=1)

    state = {key: value.clone() for key, value in network.state_dict().items()}
    gram, oracle = gradient_gram(network, losses), loop(network, losses)
    th.testing.assert_close(gram, oracle, rtol=1e-5, atol=1e-5 * float(oracle.abs().max()))
    assert all(p.grad is None for p in network.parameters())
    assert all(th.equal(value, state[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    # The mean of the matrix is the squared norm of the gradient of the mean loss.
    losses().mean().backward()
    assert float(gram.mean()) == pytest.approx(gradient_norm(p.grad for p in network.parameters()) ** 2, rel=1e-4)


def test_the_fast_paths_are_taken(monkeypatch):
    """Otherwise a large critic would go through the slow one, one sample at a time."""
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), SparseLinear(8, 8, density=0.5), nn.ReLU(), nn.Linear(8, 1))
    monkeypatch.setattr(interference, "_gram_of_rows", None)
    x = th.randn(SAMPLES, 6)
    gradient_gram(network, lambda: network(x).flatten())


def test_two_passes_through_shared_layers():
    th.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x, z = th.randn(SAMPLES, 4), th.randn(SAMPLES, 4)

    def losses():
        with th.no_grad():
            target = network(z)
        return ((network(x) - network(x + z)) * target).flatten()

    th.testing.assert_close(gradient_gram(network, losses), loop(network, losses))


def test_only_the_given_network_counts():
    th.manual_seed(0)
    actor, critic = nn.Linear(4, 2), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    x = th.randn(SAMPLES, 4)

    def losses():
        return -critic(th.cat([x, actor(x)], dim=1)).flatten()

    th.testing.assert_close(gradient_gram(actor, losses), loop(actor, losses))


def test_identical_samples_are_aligned_and_opposite_ones_conflict():
    th.manual_seed(0)
    network = nn.Sequential(SimBaEncoder(3, 8, 1), nn.Linear(8, 1))
    x = th.randn(1, 3).repeat(4, 1)
    sign = th.tensor([1.0, 1.0, -1.0, 3.0])
    result = gradient_interference(network, lambda: network(x).flatten() * sign)
    expected = th.outer(sign.sign(), sign.sign()).double()
    th.testing.assert_close(result.matrix, expected)
    assert result[1:] == pytest.approx((0.0, 1.0, 0.5), abs=1e-6)


def test_what_cannot_work_is_named():
    network = nn.Linear(3, 1)
    x = th.randn(4, 3)
    with pytest.raises(ValueError, match="one loss per sample"):
        gradient_gram(network, lambda: network(x))
    with pytest.raises(ValueError, match="one loss per sample"):
        gradient_gram(network, lambda: network(x).flatten().detach())
    with pytest.raises(ValueError, match="do not depend on any parameter"):
        gradient_gram(nn.Linear(3, 1), lambda: network(x).flatten())


class UsedOutside(nn.Module):
    """Weights that work in their layer and outside it."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, x):
        penalty = self.head.weight.square().sum() + next(self.layer.parameters()).sum()
        return self.head(F.relu(self.layer(x))) + 0.1 * penalty * x.sum(1, keepdim=True)


def sparse_and_used_outside():
    net = UsedOutside()
    net.layer = sparsify_(net.layer, 0.5)
    return net


class TimeMajor(nn.Module):
    """As many steps as samples, the steps first."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x):
        steps = th.arange(1, SAMPLES + 1)[:, None, None]
        return self.head(F.relu(self.layer(x * steps)).mean(0))


@pytest.mark.parametrize("build", [UsedOutside, sparse_and_used_outside, TimeMajor])
def test_what_layers_cannot_tell_goes_through_the_graph(build):
    """Mistake of ours: what such parameters do elsewhere was left out, or steps were taken for samples."""
    th.manual_seed(0)
    net, x = build(), th.randn(SAMPLES, 6)
    expected = loop(net, lambda: net(x).flatten())
    with th.no_grad():
        gram = gradient_gram(net, lambda: net(x).flatten())
    th.testing.assert_close(gram, expected, rtol=1e-4, atol=1e-5 * expected.max().item())


@pytest.mark.parametrize("sparsity", [0, 0.5])
@pytest.mark.parametrize("scale", [1e-22, 1e-30])
def test_gradients_that_vanish_have_cosines(sparsity, scale):
    """Mistake of ours: their products in float32 were 0, so they seemed to interfere with nothing."""
    th.manual_seed(0)
    for net, x in ((simba(sparsity), th.randn(SAMPLES, 6)), (cnn(sparsity), th.randn(SAMPLES, 72))):
        usual = gradient_interference(net, lambda net=net, x=x: net(x).flatten())
        tiny = gradient_interference(net, lambda net=net, x=x: scale * net(x).flatten())
        th.testing.assert_close(tiny.matrix, usual.matrix, rtol=1e-3, atol=1e-4)
        assert tiny.matrix.diagonal().min() > 0.99
