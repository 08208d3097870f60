"""Metrics: a numpy oracle each, what follows from their definitions, and published values."""

import math

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse.networks import SimBaEncoder, orthogonal_linear
from sb3_sparse.plasticity import (
    dormant_ratio,
    effective_rank,
    feature_norm,
    fraction_active_units,
    gradient_norm,
    interference_from_gram,
    parameter_norm,
    pca_rank,
    record_activations,
    spectrum,
    srank,
    stable_rank,
    threshold_rank,
)
from sb3_sparse.sparse import SparseLinear, sparsify_, to_dense

RANKS = (srank, pca_rank, threshold_rank, effective_rank, stable_rank)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def decaying_features(rng, samples=60, width=90, rate=0.1):
    """Features whose singular values fall off exponentially."""
    left, _ = np.linalg.qr(rng.standard_normal((samples, samples)))
    right, _ = np.linalg.qr(rng.standard_normal((width, samples)))
    return (left * np.exp(-rate * np.arange(samples))) @ right.T


def oracle_dormant(layers, tau):
    dormant = total = 0
    for layer in layers:
        activity = np.abs(layer).mean(axis=(0, *range(2, layer.ndim)))
        dormant += int((activity / (activity.mean() + 1e-9) <= tau).sum())
        total += len(activity)
    return dormant / total


@pytest.mark.parametrize(("convention", "tau"), [("redo", 0.025), ("authors", 0.1)])
def test_dormant_ratio_equals_its_oracle(rng, convention, tau):
    scales = np.geomspace(1e-3, 1, 40)
    layers = {
        "mlp": rng.standard_normal((32, 40)) * scales,
        "cnn": rng.standard_normal((32, 40, 3, 2)) * scales[None, ::-1, None, None],
        "narrow": rng.standard_normal((32, 5)),
    }
    result = dormant_ratio({name: th.tensor(layer) for name, layer in layers.items()}, convention=convention)
    assert result.ratio == pytest.approx(oracle_dormant(layers.values(), tau), abs=1e-12)
    assert 0 < result.ratio < 1
    assert result.layers == {name: pytest.approx(oracle_dormant([layer], tau)) for name, layer in layers.items()}
    assert (float(result), result.units) == (result.ratio, 85)
    # Pooled over units, which is not the mean over layers.
    assert result.ratio != pytest.approx(np.mean(list(result.layers.values())))
    other = dormant_ratio({name: th.tensor(layer) for name, layer in layers.items()}, 0.5, convention)
    assert other.ratio == pytest.approx(oracle_dormant(layers.values(), 0.5))


def test_dormant_ratio_with_threshold_zero_counts_the_dead_and_knows_no_scale(rng):
    layer = th.tensor(np.abs(rng.standard_normal((16, 10))))
    layer[:, [2, 5, 7]] = 0.0
    assert dormant_ratio(layer, tau=0).ratio == 0.3
    assert dormant_ratio(1e4 * layer) == dormant_ratio(layer)
    assert dormant_ratio(th.zeros(4, 3)).ratio == 1.0


def test_structurally_dead_units_are_counted_apart():
    layer = th.tensor([[1.0, 0.0, 0.0, 0.2], [1.0, 0.0, 0.0, 0.2]])
    result = dormant_ratio(layer, 0.1, structurally_dead=th.tensor([False, True, False, False]))
    assert result == (1 / 3, {"": 1 / 3}, 1, 3, 1)
    # They do not lower the mean that the others are compared with either.
    layer = th.tensor([[1.0, 0.3, *[0.0] * 8]])
    dead = th.tensor([False, False, *[True] * 8])
    assert dormant_ratio(layer, 0.5, structurally_dead=dead).ratio == 0.5
    assert dormant_ratio(layer, 0.5).dormant == 8
    assert math.isnan(dormant_ratio(layer, structurally_dead=th.ones(10, dtype=th.bool)).ratio)


def test_fraction_active_units_counts_entries(rng):
    layers = {"a": th.tensor(rng.standard_normal((8, 6))), "b": th.tensor(rng.standard_normal((8, 4, 3, 3)))}
    values = np.concatenate([layer.numpy().ravel() for layer in layers.values()])
    assert fraction_active_units(layers) == pytest.approx((values > 0).mean(), abs=1e-12)
    assert fraction_active_units(th.zeros(3, 3)) == 0.0


def test_half_of_a_fresh_relu_network_is_active_and_none_with_large_negative_biases():
    th.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 1))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    x = th.randn(256, 20)
    assert fraction_active_units(record_activations(net, lambda: net(x)).activated) == pytest.approx(0.5, abs=0.03)
    nn.init.constant_(net[0].bias, -1e6)
    nn.init.constant_(net[2].bias, -1e6)
    seen = record_activations(net, lambda: net(x))
    assert fraction_active_units(seen.activated) == 0.0
    assert dormant_ratio(seen.activated).ratio == 1.0
    # Before the activation function they are as lively as can be: the conventions differ.
    assert dormant_ratio(seen.linear, convention="authors").ratio == 0.0


def oracle_ranks(features):
    s = np.linalg.svd(features, compute_uv=False)
    p = s / s.sum()
    entropy = -(p * np.log(p)).sum()
    share, energy = s.cumsum() / s.sum(), (s**2).cumsum() / (s**2).sum()
    return {
        srank: 1 + int((share < 0.99).sum()),
        pca_rank: 1 + int((energy < 0.99).sum()),
        threshold_rank: int((np.linalg.eigvalsh(features.T @ features / len(features)) > 0.01**2).sum()),
        effective_rank: np.exp(entropy),
        stable_rank: (features**2).sum() / s[0] ** 2,
    }


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_ranks_equal_their_oracles(rng, dtype):
    features = decaying_features(rng)
    oracle = oracle_ranks(features)
    assert len({round(value, 3) for value in oracle.values()}) == len(RANKS), "five different things"
    given = th.tensor(features, dtype=dtype)
    for rank in RANKS:
        assert rank(given) == pytest.approx(oracle[rank], rel=1e-5), rank.__name__
        assert rank(spectrum(given)) == rank(given)
        assert rank(given, normalized=True) == pytest.approx(oracle[rank] / 60, rel=1e-5)


def test_ranks_of_simple_matrices(rng):
    # n = 150 and not 100, where 0.99 n is whole and rounding decides.
    rotation = th.tensor(np.linalg.qr(rng.standard_normal((150, 150)))[0])
    assert [rank(rotation) for rank in RANKS] == pytest.approx([149, 149, 150, 150, 150])
    outer = th.tensor(np.outer(rng.standard_normal(20), rng.standard_normal(30)))
    assert [rank(outer) for rank in RANKS] == pytest.approx([1, 1, 1, 1, 1])
    features = th.tensor(decaying_features(rng, 150, 200))
    assert [rank(rotation @ features) for rank in RANKS] == pytest.approx([rank(features) for rank in RANKS])
    assert [rank(th.zeros(4, 6)) for rank in RANKS] == [0] * 5
    assert spectrum(features)[1:] == (150, 200)


def test_threshold_and_share_can_be_chosen(rng):
    features = th.tensor(np.diag([8.0, 4.0, 2.0, 1.0]))
    assert srank(features, delta=0.2) == 2
    assert srank(features, delta=0.19) == 3
    assert pca_rank(features, delta=0.25) == 1
    assert threshold_rank(features, tau=0.9) == 3


def test_norms_equal_their_oracles(rng):
    tensors = [th.tensor(rng.standard_normal(shape), dtype=th.float32) for shape in ((3, 4), (7,), ())]
    flat = np.concatenate([tensor.numpy().ravel() for tensor in tensors])
    assert parameter_norm(tensors) == pytest.approx(np.linalg.norm(flat), rel=1e-6)
    assert gradient_norm([*tensors, None]) == pytest.approx(np.linalg.norm(flat), rel=1e-6)
    features = rng.standard_normal((9, 5))
    assert feature_norm(th.tensor(features)) == pytest.approx(np.linalg.norm(features, axis=1).mean())


def test_norms_are_over_the_weights_that_exist():
    th.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 2))
    sparsify_(net, 0.8)
    assert isinstance(net[0], SparseLinear)
    x, y = th.randn(16, 30), th.randn(16, 2)
    dense = to_dense(net)
    assert parameter_norm(net.parameters()) == pytest.approx(parameter_norm(dense.parameters()), rel=1e-6)
    (net(x) - y).square().mean().backward()
    (dense(x) - y).square().mean().backward()
    masked = [dense[0].weight.grad * net[0].topology.mask(), dense[0].bias.grad]
    masked += [dense[2].weight.grad * (net[2].topology.mask() if isinstance(net[2], SparseLinear) else 1), dense[2].bias.grad]
    assert gradient_norm(p.grad for p in net.parameters()) == pytest.approx(gradient_norm(masked), rel=1e-6)


def test_interference_summaries_equal_their_oracle(rng):
    gradients = rng.standard_normal((12, 30))
    gradients[4] = 0.0
    norms = np.linalg.norm(gradients, axis=1)
    cosine = np.divide(
        gradients @ gradients.T, np.outer(norms, norms), where=np.outer(norms, norms) > 0, out=np.zeros((12, 12))
    )
    off = cosine[~np.eye(12, dtype=bool)]
    result = interference_from_gram(th.tensor(gradients @ gradients.T))
    np.testing.assert_allclose(result.matrix, cosine, atol=1e-12)
    assert result[1:] == pytest.approx((off.mean(), np.abs(off).mean(), (off < 0).mean()), abs=1e-12)
    assert th.equal(result.matrix, result.matrix.T)
    assert th.linalg.eigvalsh(result.matrix).min() > -1e-9
    scales = rng.uniform(0.1, 10, 12)
    scaled = interference_from_gram(th.tensor((gradients @ gradients.T) * np.outer(scales, scales)))
    np.testing.assert_allclose(scaled.matrix, result.matrix, atol=1e-12)


def test_values_that_are_not_finite_give_nan():
    broken = th.ones(4, 3)
    broken[1, 2] = math.nan
    values = [dormant_ratio(broken).ratio, fraction_active_units(broken), *(rank(broken) for rank in RANKS)]
    values += [parameter_norm([broken]), feature_norm(broken), *interference_from_gram(th.full((3, 3), math.nan))[1:]]
    assert all(math.isnan(value) for value in values), values


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dormant_ratio(th.ones(2, 2), convention="dopamine"), "convention='dopamine'"),
        (lambda: dormant_ratio(th.ones(2, 2), tau=-1.0), "tau=-1.0"),
        (lambda: dormant_ratio({}), "without any layer"),
        (lambda: dormant_ratio(th.ones(3)), "expected \\(batch, units"),
        (lambda: dormant_ratio(th.ones(2, 2), structurally_dead=th.zeros(3, dtype=th.bool)), "has shape \\(3,\\)"),
        (lambda: srank(th.ones(3)), "expected \\(samples, features\\)"),
        (lambda: srank(th.ones(3, 3), delta=1.0), "delta=1.0"),
        (lambda: interference_from_gram(th.ones(1, 1)), "two samples or more"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fresh_critic(width, sparsity=0.0, seed=0):
    """SimBa's critic for humanoid-run (91 inputs), and what a batch of unit normals does in it."""
    th.manual_seed(seed)
    net = nn.Sequential(SimBaEncoder(91, width, 2), orthogonal_linear(width, 1))
    sparsify_(net, sparsity)
    x = th.randn(256, 91)
    return net, record_activations(net, lambda: net(x))


@pytest.mark.parametrize(
    ("width", "sparsity", "norm", "rank", "rank_at_5_percent", "dormant_01", "dormant_02"),
    [
        (512, 0.0, 108.9, 244, 210, 0.011, 0.031),
        (512, 0.8, 59.7, 240, 196, 0.000, 0.002),
        (512, 0.9, 50.4, 238, 188, 0.000, 0.000),
        (1024, 0.0, 153.8, 248, 221, 0.011, 0.032),
    ],
)
def test_published_values_of_a_fresh_critic(width, sparsity, norm, rank, rank_at_5_percent, dormant_01, dormant_02):
    net, seen = fresh_critic(width, sparsity)
    assert parameter_norm(net.parameters()) == pytest.approx(norm, rel=1e-3 if sparsity == 0 else 1e-2)
    (features,) = seen.features
    values = spectrum(features)
    assert srank(values) == pytest.approx(rank, abs=1)
    assert srank(values, delta=0.05) == pytest.approx(rank_at_5_percent, abs=2)
    assert dormant_ratio(seen.linear, convention="authors").ratio == 0.0
    # The published shares are of the units of all linear layers, after the ReLU of those that have one. From one seed
    # to the next they spread by 0.2 and 0.3 percent.
    layers = {**seen.linear, **seen.activated}
    assert dormant_ratio(layers, 0.1).ratio == pytest.approx(dormant_01, abs=0.005)
    assert dormant_ratio(layers, 0.2).ratio == pytest.approx(dormant_02, abs=0.007)
    assert feature_norm(features) == pytest.approx(math.sqrt(width), rel=1e-4)


def test_published_values_of_the_largest_fresh_critic():
    net, seen = fresh_critic(2560)
    assert srank(seen.features[0]) == 250
    assert parameter_norm(net.parameters()) == pytest.approx(242.8, rel=1e-3)
