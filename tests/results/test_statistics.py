"""Means and bands, by plain counting."""

import numpy as np
import pytest

from sb3_sparse.results.statistics import Series, bootstrap_interval, mean_curve, rolling_mean


def test_rolling_mean():
    y = np.random.default_rng(0).normal(size=50)
    by_hand = [y[max(0, i - 6) : i + 1].mean() for i in range(50)]
    np.testing.assert_allclose(rolling_mean(y, 7), by_hand)
    np.testing.assert_allclose(rolling_mean(y, 1), y)
    np.testing.assert_allclose(rolling_mean(y, 1000)[-1], y.mean())
    assert rolling_mean(np.array([]), 3).size == 0


def test_a_rolling_mean_forgets_what_has_left_its_window():
    """A difference of sums over everything does not, after one large value."""
    y = np.array([3.0, 1e18, 1.5, 2.5, 4.5, np.nan, 1.0, 3.0])
    np.testing.assert_array_equal(rolling_mean(y, 1), y)
    np.testing.assert_array_equal(rolling_mean(y, 2)[[3, 4, 7]], [2.0, 3.5, 2.0])


def test_mean_and_band_equal_a_plain_bootstrap():
    rng = np.random.default_rng(1)
    runs = [Series(np.arange(5.0), rng.normal(size=5)) for _ in range(4)]
    curve = mean_curve(runs)
    values = np.stack([run.y for run in runs])
    np.testing.assert_allclose(curve.mean, values.mean(axis=0))
    # Other draws, more of them: the ends agree up to the noise of the bootstrap.
    draws = np.random.default_rng(5).integers(4, size=(20_000, 4))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5], axis=0)
    spread = values.std(axis=0)
    assert np.all(np.abs(curve.low - low) < 0.1 * spread)
    assert np.all(np.abs(curve.high - high) < 0.1 * spread)
    again = mean_curve(runs)
    np.testing.assert_array_equal(curve.low, again.low)


def test_runs_measured_at_other_places_are_interpolated_where_all_are_known():
    first = Series(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    second = Series(np.array([5.0, 25.0]), np.array([15.0, 35.0]))
    curve = mean_curve([first, second])
    np.testing.assert_array_equal(curve.x, [5, 10, 20])
    np.testing.assert_allclose(curve.mean, [10, 15, 25])
    apart = mean_curve([first, Series(np.array([30.0]), np.array([1.0]))])
    assert len(apart.x) == len(apart.mean) == len(apart.low) == 0
    alone = mean_curve([second])
    assert alone.low is None
    np.testing.assert_array_equal(alone.mean, second.y)


def test_the_interval_of_any_shape_and_of_none():
    values = np.random.default_rng(2).normal(size=(6, 3, 4))
    low, high = bootstrap_interval(values)
    assert low.shape == high.shape == (3, 4)
    alone = [bootstrap_interval(values[:, i, j]) for i in range(3) for j in range(4)]
    np.testing.assert_allclose(np.array(alone), np.stack([low.ravel(), high.ravel()], axis=1))
    assert np.all((low < values.mean(axis=0)) & (values.mean(axis=0) < high))
    # The documented draws: 2,000 of them with seed 0, and the percentiles of their means.
    draws = np.random.default_rng(0).integers(6, size=(2000, 6))
    by_hand = np.percentile(values[draws].mean(axis=1), [2.5, 97.5], axis=0)
    np.testing.assert_allclose(np.stack([low, high]), by_hand, rtol=1e-12)
    np.testing.assert_array_equal(bootstrap_interval(np.array([[3.0, 4.0]])), [[3.0, 4.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"values of shape \(0, 5\): expected a row for each run"):
        bootstrap_interval(np.zeros((0, 5)))
    with pytest.raises(ValueError, match="expected a row for each run"):
        bootstrap_interval(3.0)
