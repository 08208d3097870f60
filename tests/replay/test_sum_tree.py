"""The sum tree against an array."""

import numpy as np
import pytest

from sb3_sparse.replay.sum_tree import SumTree

CAPACITIES = [1, 2, 3, 15, 16, 17, 255, 256, 257, 1000, 2**20 - 1]


@pytest.mark.parametrize(
    ("capacity", "n_operations"),
    # Of the largest, whose array takes long to add up, a tenth.
    [(capacity, 200 if capacity > 10**5 else 2_000) for capacity in CAPACITIES]
    + [pytest.param(capacity, 10**5, marks=pytest.mark.full) for capacity in (1, 2, 3, 1000)],
)
def test_against_an_array_over_many_mixed_operations(capacity, n_operations):
    generator = np.random.default_rng(capacity)
    tree, array = SumTree(capacity), np.zeros(capacity)
    for step in range(n_operations):
        n = int(generator.integers(1, 50))
        indices = generator.integers(0, capacity, n)
        values = generator.random(n) * 10.0 ** generator.integers(-6, 6) * (generator.random(n) < 0.8)
        tree[indices] = values
        array[indices] = values
        assert np.array_equal(tree[indices], array[indices])
        if step % 20 == 0 and array.sum() > 0:
            assert tree.total == pytest.approx(array.sum(), rel=1e-12)
            masses = generator.random(50) * tree.total * (1 - 1e-12)
            found = tree.find(masses)
            assert (array[found] > 0).all()
            ends = array.cumsum()
            slack = 1e-9 * tree.total
            assert (ends[found] >= masses - slack).all()
            assert (ends[found] - array[found] <= masses + slack).all()
    assert np.array_equal(tree.weights, array)


def test_no_weight_is_lost_to_rounding():
    """A tree that adds differences keeps their rounding: large weights that came and went leave their traces."""
    tree = SumTree(1000)
    tree[np.arange(1000)] = 1e-6
    for _ in range(1000):
        tree[[7]] = 1e12
        tree[[7]] = 1e-6
    assert tree.total == pytest.approx(1e-3, rel=1e-12)
    tree[np.arange(1000)] = 0.0
    assert tree.total == 0.0


@pytest.mark.parametrize("capacity", [3, 17, 100, 1000])
def test_the_ends_of_the_range_belong_to_the_first_and_the_last(capacity):
    """Known bug of others: rounding past the last leaf, and leaves that only fill a tree up to a power of two."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        tree, weights = SumTree(capacity), generator.random(capacity) ** 20 * (generator.random(capacity) < 0.5)
        weights[generator.integers(capacity)] = 1.0
        alive = np.flatnonzero(weights)
        # The last one counts for something: what rounding swallows cannot be drawn.
        weights[alive[-1]] = 1.0
        tree[np.arange(capacity)] = weights
        assert tree.find([0.0])[0] == alive[0]
        assert tree.find([np.nextafter(tree.total, 0.0)])[0] == alive[-1]


def test_draws_follow_the_weights():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    tree, weights = SumTree(300), generator.random(300) ** 3
    tree[np.arange(300)] = weights
    counts = np.bincount(tree.find(generator.random(10**5) * tree.total), minlength=300)
    expected = weights / weights.sum() * 10**5
    common = expected > 5
    observed, expected = np.append(counts[common], counts[~common].sum()), np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_of_an_index_that_is_there_twice_the_last_counts():
    tree = SumTree(40)
    tree[[5, 6, 5]] = [1.0, 2.0, 3.0]
    assert tree[[5, 6]].tolist() == [3.0, 2.0]
    assert tree.total == 5.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: tree.__setitem__([3], [1.0]), "indices="),
        (lambda tree: tree.__setitem__([-1], [1.0]), "indices="),
        (lambda tree: tree.__setitem__([0.5], [1.0]), "whole numbers"),
        (lambda tree: tree.__setitem__([0, 1], [1.0, -1.0]), "at least 0"),
        (lambda tree: tree.__setitem__([0, 1], [1.0, np.nan]), "finite"),
        (lambda tree: tree.__setitem__([0, 1], np.inf), "finite"),
        (lambda tree: tree[[7]], "from 0 to 2"),
        (lambda tree: tree.find([6.0]), r"expected numbers in \[0, 6\.0\)"),
        (lambda tree: tree.find([-0.1]), "masses="),
        (lambda tree: SumTree(3).find([0.0]), "all weights are 0"),
        (lambda tree: SumTree(0), "capacity=0"),
    ],
)
def test_what_is_refused_changes_nothing(change, expected):
    tree = SumTree(3)
    tree[[0, 1, 2]] = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=expected):
        change(tree)
    assert tree.weights.tolist() == [1.0, 2.0, 3.0]
    assert tree.total == 6.0


def test_nothing_to_do_is_nothing_done():
    tree = SumTree(3)
    tree[np.array([], dtype=int)] = np.array([])
    assert tree.total == 0.0
    tree[[1]] = 1.0
    assert tree.find([]).tolist() == []


def test_an_interrupted_write_leaves_sums_right(monkeypatch):
    tree = SumTree(1000)
    tree[np.arange(1000)] = 1.0

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "unique", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tree[[5]] = [500.0]
    assert tree.total == tree.weights.sum()
    assert tree.find([100.0]).tolist() == [5]
