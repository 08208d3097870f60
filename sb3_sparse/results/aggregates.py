"""
One number for many games and runs, and how sure it is. NumPy alone.

The definitions are those of Agarwal et al. (2021), "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
and of their library rliable. Scores are a matrix with a row for each run and a column for each game; any further
dimensions in front are matrices of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_sparse.results.statistics import CONFIDENCE, RESAMPLES

# Numbers that are drawn at once in a bootstrap, to bound the memory.
CHUNK = 4_000_000


class Estimate(NamedTuple):
    """A number, and the ends of its bootstrap interval: None with a single run, of which nothing can be drawn anew."""

    value: Any
    low: Any
    high: Any


def score_matrix(scores: Mapping[str, Sequence[float]] | Any, name: str = "scores") -> np.ndarray:
    """
    Scores as a matrix.

    :param scores: The runs of each game, or a matrix.
    :param name: For messages.
    :return: ``(runs, games)``
    :raises ValueError: If there are none, one is no finite number, or games have different numbers of runs: an aggregate
        would then count some games more than others.
    """
    if isinstance(scores, Mapping):
        counts = {game: len(runs) for game, runs in scores.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"{name}: games with different numbers of runs, {counts}. Leave runs out until all have as many, or add some."
            )
        for game, runs in scores.items():
            for i, score in enumerate(runs):
                if not isinstance(score, (int, float, np.number)) or not np.isfinite(score):
                    raise ValueError(f"{name}[{game!r}][{i}]={score!r}: expected a finite number.")
        scores = np.array([list(runs) for runs in scores.values()], dtype=np.float64).T
    try:
        matrix = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a matrix of numbers, with a row for each run ({error}).") from error
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{name} of shape {matrix.shape}: expected a row for each run, a column for each game, one at least.")
    if not np.isfinite(matrix).all():
        run, game = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"{name}[{run}, {game}]={matrix[run, game]}: expected a finite number.")
    return matrix


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: of all runs of all games, without the lowest quarter and the highest one."""
    values = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = values.shape[-1] // 4
    return values[..., cut : values.shape[-1] - cut].mean(axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Over games, of the mean over runs."""
    return np.median(scores.mean(axis=-2), axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """Over games, of the mean over runs."""
    return scores.mean(axis=-2).mean(axis=-1)


def optimality_gap(scores: np.ndarray) -> np.ndarray:
    """How much is missing to 1 on average, where more than 1 does not make up for less. Lower is better."""
    return 1 - np.minimum(scores, 1).mean(axis=(-2, -1))


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "IQM": iqm,
    "median": median,
    "mean": mean,
    "optimality gap": optimality_gap,
}


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Of a run being better than one of the others on the same game, averaged over games; equal ones count half.

    :param scores: ``(..., runs, games)``
    :param others: ``(..., runs, games)``, the same games in the same order.
    """
    first, second = scores[..., :, None, :], others[..., None, :, :]
    return ((first > second) + 0.5 * (first == second)).mean(axis=(-3, -2, -1))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Fraction of all runs of all games that are better than each threshold.

    :param scores: ``(..., runs, games)``
    :param thresholds: ``(thresholds,)``
    :return: ``(..., thresholds)``
    """
    values = scores.reshape(*scores.shape[:-2], -1)
    return np.stack([(values > threshold).mean(axis=-1) for threshold in thresholds], axis=-1)


def estimate(
    statistic: Callable[..., np.ndarray], *scores: Any, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Estimate:
    """
    A statistic and its percentile interval by the stratified bootstrap: the runs of each game are drawn anew on their own,
    with a fixed seed.

    >>> print(*estimate(mean, [[0.0, 1.0], [0.2, 3.0]], resamples=500))
    1.05 0.5 1.6

    :param statistic: Takes a matrix ``(..., runs, games)`` for each of the scores, such as :func:`iqm`.
    :param scores: Matrices ``(runs, games)``, with the same number of games.
    :param resamples: How often runs are drawn anew.
    :param confidence: Probability of the interval.
    :raises ValueError: If they are no such matrices.
    """
    matrices = [score_matrix(matrix) for matrix in scores]
    if len({matrix.shape[1] for matrix in matrices}) > 1:
        raise ValueError(f"scores of shapes {[matrix.shape for matrix in matrices]}: expected the same games, in columns.")
    value = statistic(*matrices)
    if any(len(matrix) == 1 for matrix in matrices):
        return Estimate(value, None, None)
    rng = np.random.default_rng(0)
    step = max(1, CHUNK // max(matrix.size for matrix in matrices))
    drawn = []
    for start in range(0, resamples, step):
        n = min(step, resamples - start)
        picks = [rng.integers(len(matrix), size=(n, *matrix.shape)) for matrix in matrices]
        drawn.append(
            statistic(*(np.take_along_axis(matrix[None], pick, axis=1) for matrix, pick in zip(matrices, picks, strict=True)))
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return Estimate(value, low, high)


def aggregate(scores: Mapping[str, Sequence[float]] | Any, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """
    All of ``AGGREGATES`` with their intervals.

    :param scores: The runs of each game, or a matrix ``(runs, games)``.
    :param resamples: How often runs are drawn anew.
    :raises ValueError: If a score is missing or no finite number.
    """
    matrix = score_matrix(scores)
    return {name: estimate(statistic, matrix, resamples=resamples) for name, statistic in AGGREGATES.items()}
