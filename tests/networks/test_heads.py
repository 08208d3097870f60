"""Distributions over returns against a loop, and heads by their formulas."""

import numpy as np
import pytest
import torch as th

from sb3_sparse.networks.heads import DuelingHead, PlainHead, Support


def exact(support, dtype=th.float64):
    """With atoms that were not rounded to float32 on their way."""
    support.atoms = th.linspace(support.v_min, support.v_max, support.n_atoms, dtype=dtype)
    return support


def project(probabilities, rewards, discounts, atoms):
    """Atom by atom: its mass goes to the two atoms around where it is moved to, more to the nearer."""
    v_min, v_max, spacing = atoms[0], atoms[-1], atoms[1] - atoms[0]
    result = np.zeros_like(probabilities)
    for i in range(len(probabilities)):
        for j, atom in enumerate(atoms):
            moved = min(max(rewards[i] + discounts[i] * atom, v_min), v_max)
            for k, other in enumerate(atoms):
                result[i, k] += probabilities[i, j] * max(0.0, 1.0 - abs(moved - other) / spacing)
    return result


@pytest.mark.parametrize(("n_atoms", "v_min", "v_max"), [(2, 0.0, 1.0), (3, -1.0, 1.0), (51, -10.0, 10.0), (11, 5.0, 7.5)])
def test_the_projection_is_the_loops(n_atoms, v_min, v_max):
    generator = np.random.default_rng(n_atoms)
    n, support = 60, Support(n_atoms, v_min, v_max)
    probabilities = generator.dirichlet(np.ones(n_atoms), n)
    rewards, discounts = generator.normal(scale=v_max - v_min, size=n), generator.random(n)
    # Terminals; rewards on atoms; no reward at all, where every atom may be hit exactly.
    discounts[:20] = 0.0
    rewards[:10] = np.linspace(v_min, v_max, n_atoms)[generator.integers(0, n_atoms, 10)]
    rewards[20:30], discounts[20:30] = 0.0, 1.0
    expected = project(probabilities, rewards, discounts, np.linspace(v_min, v_max, n_atoms))
    for dtype, tolerance in ((th.float32, 1e-5), (th.float64, 1e-12)):
        arguments = (th.as_tensor(array, dtype=dtype) for array in (probabilities, rewards, discounts))
        found = exact(support, dtype).project(*arguments)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=tolerance)
        np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)


def test_the_mean_is_kept_where_nothing_is_cut_off():
    support = exact(Support(51, -10.0, 10.0))
    probabilities = th.rand(200, 51, dtype=th.float64)
    probabilities /= probabilities.sum(1, keepdim=True)
    rewards, discounts = th.rand(200, dtype=th.float64) - 0.5, th.full((200,), 0.9, dtype=th.float64)
    projected = support.project(probabilities, rewards, discounts)
    th.testing.assert_close(support.mean(projected), rewards + 0.9 * support.mean(probabilities), rtol=0, atol=1e-12)


def test_all_mass_of_a_terminal_is_at_its_reward():
    support = Support(5, 0.0, 4.0)
    projected = support.project(th.rand(3, 5).softmax(1), th.tensor([1.0, 2.25, 99.0]), th.zeros(3))
    th.testing.assert_close(projected, th.tensor([[0, 1.0, 0, 0, 0], [0, 0, 0.75, 0.25, 0], [0, 0, 0, 0, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, 0.0, 1.0), "n_atoms=1"),
        ((51, 1.0, 1.0), "v_min below v_max"),
        ((51, 2.0, 1.0), "v_min"),
        ((51, 0, np.nan), "v_max"),
    ],
)
def test_supports_that_are_none(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        Support(*arguments)


def test_dueling_is_value_plus_centred_advantage():
    head = DuelingHead(6, 3, 4)
    x = th.randn(5, 6)
    advantage, value = head.advantage(x).view(5, 3, 4), head.value(x).view(5, 1, 4)
    th.testing.assert_close(head(x), value + advantage - advantage.mean(1, keepdim=True))
    th.testing.assert_close(head(x).mean(1, keepdim=True), value)
    assert PlainHead(6, 3, 4)(x).shape == (5, 3, 4)
