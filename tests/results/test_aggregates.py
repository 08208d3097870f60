"""Aggregates over games and runs, against rliable's numbers (scripts/rliable_numbers.py), scipy and plain loops."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sb3_sparse.results.aggregates import (
    AGGREGATES,
    aggregate,
    estimate,
    iqm,
    mean,
    performance_profile,
    probability_of_improvement,
    score_matrix,
)
from sb3_sparse.results.statistics import bootstrap_interval

RLIABLE = json.loads((Path(__file__).parent / "rliable.json").read_text())
CASES = [pytest.param(case, id="x".join(map(str, np.shape(case["x"])))) for case in RLIABLE["cases"]]
THRESHOLDS = np.array(RLIABLE["thresholds"])


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_rliable(case):
    x, y = np.array(case["x"]), np.array(case["y"])
    assert set(AGGREGATES) == set(case["aggregates"])
    for name, expected in case["aggregates"].items():
        assert AGGREGATES[name](x) == pytest.approx(expected, abs=1e-12), name
    assert probability_of_improvement(x, y) == pytest.approx(case["probability_of_improvement"], abs=1e-12)
    np.testing.assert_allclose(performance_profile(x, THRESHOLDS), case["profile"], atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if "intervals" in case.values[0]])
def test_intervals_are_those_of_rliable_up_to_its_draws(case):
    x, y = np.array(case["x"]), np.array(case["y"])
    found = aggregate(x, resamples=50_000)
    for name, (low, high) in case["intervals"].items():
        value, width = found[name].value, high - low
        assert low < value < high
        assert abs(found[name].low - low) < 0.02 * width, name
        assert abs(found[name].high - high) < 0.02 * width, name
    band = estimate(lambda scores: performance_profile(scores, THRESHOLDS), x, resamples=5_000)
    np.testing.assert_allclose([band.low, band.high], case["profile_band"], atol=1.01 / x.size)
    low, high = case["probability_interval"]
    found = estimate(probability_of_improvement, x, y, resamples=5_000)
    assert abs(found.low - low) < 0.05 * (high - low)
    assert abs(found.high - high) < 0.05 * (high - low)


def test_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for runs, games in [(1, 1), (1, 3), (2, 2), (3, 5), (7, 26), (10, 6)]:
        x, y = rng.normal(size=(runs, games)).round(1), rng.normal(size=(runs + 1, games)).round(1)
        assert iqm(x) == pytest.approx(stats.trim_mean(x, 0.25, axis=None), abs=1e-12)
        wins = [stats.mannwhitneyu(x[:, game], y[:, game]).statistic / (runs * (runs + 1)) for game in range(games)]
        assert probability_of_improvement(x, y) == pytest.approx(np.mean(wins), abs=1e-12)
    assert probability_of_improvement(x, x) == 0.5


def test_each_game_draws_its_own_runs():
    """Two games whose runs cancel out: their mean would not move if all games drew the same runs."""
    x = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.75]])
    found = estimate(mean, x, resamples=20_000)
    draws = np.random.default_rng(7).integers(3, size=(20_000, 3, 2))
    by_hand = [np.mean([x[pick[:, game], game].mean() for game in range(2)]) for pick in draws]
    low, high = np.percentile(by_hand, [2.5, 97.5])
    assert low < 0.3
    assert found == pytest.approx((0.5, low, high), abs=0.02)
    alone = estimate(mean, x[:, :1])
    assert (alone.low, alone.high) == pytest.approx([float(end) for end in bootstrap_interval(x[:, 0])], abs=1e-12)
    assert found == estimate(mean, x, resamples=20_000), "the seed is fixed"


def test_chunks_of_draws_are_all_of_them(monkeypatch):
    x = np.random.default_rng(0).normal(size=(4, 3))
    whole = estimate(iqm, x, resamples=1_000)
    monkeypatch.setattr("sb3_sparse.results.aggregates.CHUNK", 12 * 7)
    assert estimate(iqm, x, resamples=1_000) == whole


def test_one_run_has_no_interval():
    assert estimate(mean, [[1.0, 2.0]]) == (1.5, None, None)
    assert estimate(probability_of_improvement, [[1.0]], [[0.0], [2.0]]) == (0.5, None, None)


def test_what_is_no_matrix_of_scores_is_refused():
    assert score_matrix({"Pong": [1, 2], "Qbert": (3, 4)}).tolist() == [[1, 3], [2, 4]]
    with pytest.raises(ValueError, match=r"different numbers of runs, \{'Pong': 2, 'Qbert': 1\}"):
        score_matrix({"Pong": [1, 2], "Qbert": [3]})
    with pytest.raises(ValueError, match=r"scores\['Qbert'\]\[1\]=nan: expected a finite number"):
        score_matrix({"Pong": [1, 2], "Qbert": [3, float("nan")]})
    with pytest.raises(ValueError, match=r"scores\[1, 0\]=inf"):
        aggregate([[1.0, 2.0], [np.inf, 3.0]])
    with pytest.raises(ValueError, match=r"scores of shape \(0,\)"):
        aggregate({})
    with pytest.raises(ValueError, match=r"scores of shape \(0, 2\)"):
        aggregate({"Pong": [], "Qbert": []})
    with pytest.raises(ValueError, match=r"scores of shape \(3,\)"):
        aggregate([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="expected a matrix of numbers"):
        aggregate([[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match="expected the same games"):
        estimate(probability_of_improvement, [[1.0, 2.0]], [[1.0]])
