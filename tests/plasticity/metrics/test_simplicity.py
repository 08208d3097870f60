"""Simplicity bias: the spectrum against numpy, pictures whose complexity is known, and initialisations."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse.plasticity import mlp, simba_actor, simba_critic, simplicity_bias_score, spectral_complexity
from sb3_sparse.plasticity.metrics.simplicity import input_grid
from sb3_sparse.sparse import SparseLinear, sparsity_report


def complexity_oracle(image):
    """Bin by bin, from the full transform."""
    n = len(image)
    spectrum = np.fft.fft2(image)
    half = n // 2 + 1
    n_bins = round(math.hypot(half - 1, half - 1)) + 1
    bins = np.zeros(n_bins)
    for i in range(half):
        for j in range(half):
            if (i, j) != (0, 0):
                bins[round(math.hypot(i, j))] += abs(spectrum[i, j])
    return sum(k * amplitude for k, amplitude in enumerate(bins)) / bins.sum() / (n_bins - 1)


@pytest.mark.parametrize("n", [2, 7, 24, 31])
def test_complexity_equals_the_oracle(n):
    image = th.randn(n, n, generator=th.Generator().manual_seed(n), dtype=th.float64) + 3.0
    assert spectral_complexity(image) == pytest.approx(complexity_oracle(image.numpy()), rel=1e-9)
    assert spectral_complexity(-2.5 * image + 1.0) == pytest.approx(spectral_complexity(image), rel=1e-9)


@pytest.mark.parametrize("k", [1, 17, 149, 150])
def test_a_wave_has_its_own_frequency(k):
    wave = th.cos(2 * math.pi * k * th.arange(300, dtype=th.float64) / 300)
    for image in (wave[:, None].expand(300, 300), wave[None, :].expand(300, 300)):
        assert spectral_complexity(image) == pytest.approx(k / 212, rel=1e-7)


def test_a_constant_picture_has_none():
    # 0.1 and 300 * 300 are not exact in binary: only an exact zero is safe to compare with.
    assert spectral_complexity(th.full((300, 300), 0.1)) == 0.0


@pytest.mark.parametrize("image", [th.zeros(3, 4), th.zeros(9), th.zeros(1, 1), th.full((4, 4), math.nan)])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match="image"):
        spectral_complexity(image)


def test_the_grid():
    raw = input_grid(30, 100.0, normalize=False)
    axis = np.linspace(-100, 100, 30)
    np.testing.assert_allclose(raw.view(30, 30, 2)[:, 4, 0], axis, rtol=1e-6)
    np.testing.assert_allclose(raw.view(30, 30, 2)[4, :, 1], axis, rtol=1e-6)
    normalised = input_grid(30, 100.0)
    np.testing.assert_allclose(normalised, (raw - raw.mean(0)) / raw.std(0, correction=0), atol=1e-6)
    for arguments in ((1,), (30, 0.0), (30, math.inf)):
        with pytest.raises(ValueError, match="expected"):
            input_grid(*arguments)


def test_the_score_is_the_mean_over_initialisations():
    result = simplicity_bias_score(simba_actor(0.25, 0.8), 3, grid_size=20, seed=5)
    by_hand = []
    for seed in (5, 6, 7):
        with th.random.fork_rng():
            th.manual_seed(seed)
            network = simba_actor(0.25, 0.8)()
        with th.no_grad():
            by_hand.append(1 / complexity_oracle(network(input_grid(20)).view(20, 20).double().numpy()))
    np.testing.assert_allclose(result.scores, by_hand, rtol=1e-5)
    assert result.seeds == (5, 6, 7)
    assert result.mean == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert result.standard_error == pytest.approx(np.std(by_hand, ddof=1) / math.sqrt(3), rel=1e-4)
    assert math.isnan(simplicity_bias_score(mlp(8), 1, grid_size=8).standard_error)


def test_seeds_decide_and_the_global_state_is_left_alone():
    th.manual_seed(3)
    before = th.get_rng_state()
    first = simplicity_bias_score(simba_actor(0.25, 0.9), 4, grid_size=20)
    assert th.equal(th.get_rng_state(), before)
    assert th.initial_seed() == 3
    th.manual_seed(99)
    assert simplicity_bias_score(simba_actor(0.25, 0.9), 4, grid_size=20) == first
    rest = simplicity_bias_score(simba_actor(0.25, 0.9), 2, grid_size=20, seed=2)
    assert rest.scores == first.scores[2:], "a measurement can be split"
    assert len(set(first.scores)) == 4


def test_normalised_inputs_matter_to_simba_and_not_to_a_relu_network_without_biases():
    options = {"n_inits": 2, "grid_size": 40}
    for factory, same in ((mlp(16), True), (simba_actor(0.25), False)):
        scores = [simplicity_bias_score(factory, normalize_inputs=on, **options).scores for on in (True, False)]
        assert np.allclose(*scores, rtol=1e-3) == same


@pytest.mark.parametrize(("make", "layers"), [(simba_actor, 4), (simba_critic, 6)])
def test_simba_networks_have_the_shape_and_sparsity_of_the_policies(make, layers):
    report = sparsity_report(make(0.5, 0.9)())
    width = {simba_actor: 64, simba_critic: 256}[make]
    assert [row.shape for row in report.layers][:3] == [(width, 2), (4 * width, width), (width, 4 * width)]
    assert len(report.layers) == layers
    assert report.sparsity == pytest.approx(0.9, abs=1e-4)
    assert report.layers[0].density == 1.0, "the stem of two inputs stays dense under Erdős-Rényi"
    assert make(0.5)()[0].blocks[0].fc1.weight.shape == (4 * width, width)


def test_topologies_are_drawn_for_each_initialisation_or_held_fixed():
    def topologies(factory):
        found = []
        for seed in (0, 1):
            with th.random.fork_rng():
                th.manual_seed(seed)
                found.append([layer.topology for layer in factory().modules() if isinstance(layer, SparseLinear)])
        return found

    first, second = topologies(simba_actor(0.25, 0.9))
    assert all(a is not b for a, b in zip(first, second, strict=True))
    first, second = topologies(simba_actor(0.25, 0.9, mask_seed=7))
    assert first == second
    assert first


def test_rescaled_weights_keep_the_variance():
    block = simba_actor(1.0, 0.9, rescale=True)()[0].blocks[0]
    plain = simba_actor(1.0, 0.9)()[0].blocks[0]
    ratio = (block.fc1.weight.std() / plain.fc1.weight.std()).detach()
    assert float(ratio) == pytest.approx(1 / math.sqrt(plain.fc1.density), rel=0.05)


def test_networks_without_a_score_are_named():
    def constant():
        return nn.Sequential(nn.Linear(2, 1).requires_grad_(False), nn.Hardtanh(5.0, 6.0))

    with pytest.raises(ValueError, match="seed 11 is constant over the grid"):
        simplicity_bias_score(constant, 2, grid_size=8, limit=1e-3, seed=11)
    with pytest.raises(ValueError, match="expected one number for each"):
        simplicity_bias_score(lambda: nn.Linear(2, 3), 1, grid_size=8)
    with pytest.raises(ValueError, match="n_inits=0"):
        simplicity_bias_score(mlp(8), 0)
    with pytest.raises(ValueError, match="width=0"):
        mlp(0)
    with pytest.raises(ValueError, match=r"sparsity=1\.0"):
        simba_critic(sparsity=1.0)
    with pytest.raises(ValueError, match="expected one of"):
        simba_actor(sparsity=0.9, sparsity_distribution="none")


def test_sparsity_makes_the_actor_simpler():
    dense, sparse = (simplicity_bias_score(simba_actor(sparsity=s), 8, grid_size=60) for s in (0.0, 0.95))
    assert sparse.mean > dense.mean + 2 * max(dense.standard_error, sparse.standard_error)


# Mean and spread over 100 initialisations of an independent implementation with the same conventions.
PUBLISHED = {
    ("MLP 256x2", 0.0): (6.00, 0.83),
    ("SimBa actor", 0.0): (6.21, 0.52),
    ("SimBa actor", 0.8): (6.37, 0.51),
    ("SimBa actor", 0.9): (6.48, 0.40),
    ("SimBa actor", 0.95): (6.65, 0.35),
}


def test_the_documented_scores_are_the_published_ones():
    """Within two standard errors of the difference of two measured means."""
    path = Path(__file__).parents[3] / "docs/images/simplicity_bias.csv"
    with path.open() as file:
        rows = {(row["network"], float(row["sparsity"])): row for row in csv.DictReader(file)}
    for key, (mean, spread) in PUBLISHED.items():
        assert int(rows[key]["inits"]) >= 100
        error = math.hypot(float(rows[key]["standard_error"]), spread / math.sqrt(100))
        assert abs(float(rows[key]["mean"]) - mean) < 2 * error
