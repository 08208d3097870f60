"""Statistics over runs: means, and how sure they are. NumPy alone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Of the bootstrap: enough that the ends of a 95 % band do not move visibly.
RESAMPLES = 2000
CONFIDENCE = 0.95


class Series(NamedTuple):
    """One curve: values at rising numbers of timesteps, both ``(n,)``."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Curve:
    """One series of one group of runs."""

    runs: list[Series]
    """Of each run that has it."""
    x: np.ndarray
    """Where the mean is defined: the part that all runs have. Empty if there is none."""
    mean: np.ndarray
    low: np.ndarray | None
    """Lower end of the bootstrap band; None with a single run."""
    high: np.ndarray | None


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The 95 % interval of the mean over runs by the percentile bootstrap: runs are drawn anew, with a fixed seed.

    Of one run alone it is a point, which says nothing.

    :param values: One row for each run, ``(runs, ...)``.
    :return: The lower and the upper end, ``(...)``.
    :raises ValueError: If there is no run.
    """
    values = np.asarray(values)
    if not values.ndim or not len(values):
        raise ValueError(f"values of shape {values.shape}: expected a row for each run, and at least one.")
    tail = (1 - CONFIDENCE) / 2
    # The draws in the last dimension, where they lie side by side in memory.
    means = np.tensordot(values, _weights(len(values)), axes=(0, 1))
    low, high = np.quantile(means, [tail, 1 - tail], axis=-1)
    return low, high


# Many curves have as many runs; of few numbers of runs, since of many the weights are large.
@lru_cache(maxsize=4)
def _weights(n: int) -> np.ndarray:
    """How often each of ``n`` runs is drawn, so that the means of all draws are one product of matrices."""
    draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    weights: np.ndarray = np.stack([np.bincount(draw, minlength=n) for draw in draws]) / n
    weights.flags.writeable = False
    return weights


def mean_curve(runs: list[Series]) -> Curve:
    """
    Mean over runs and its :func:`bootstrap_interval`.

    Runs measured at different places are interpolated linearly at the places of all of them.

    :param runs: At least one, each with at least one point.
    """
    start, end = max(run.x[0] for run in runs), min(run.x[-1] for run in runs)
    x = np.unique(np.concatenate([run.x for run in runs]))
    x = x[(x >= start) & (x <= end)]
    values = np.stack([np.interp(x, run.x, run.y) for run in runs])
    if len(runs) == 1:
        return Curve(runs, x, values[0], None, None)
    return Curve(runs, x, values.mean(axis=0), *bootstrap_interval(values))


def rolling_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and the ``window - 1`` before it, of fewer at the beginning."""
    y = np.asarray(y, dtype=np.float64)
    window = min(window, len(y))
    if window <= 1:
        return y
    # Each window by itself: a difference of sums over everything would forget small values after a large one.
    beginning = np.cumsum(y[: window - 1]) / np.arange(1, window)
    return np.concatenate([beginning, sliding_window_view(y, window).mean(axis=1)])


class Summarized(NamedTuple):
    """What a publication says of some runs."""

    mean: float
    sd: float
    """Sample standard deviation."""
    n: int


def difference_of_means(first: Summarized, second: Summarized) -> tuple[float, float, float]:
    """
    How far apart two means are, and the 95 % interval by Welch's t, which does not take the variances to be equal. Unlike a
    bootstrap it needs no single runs, and is no narrower than it should be with three of them.

    :param first: With at least two runs.
    :param second: Likewise.
    :return: ``first - second``, and the lower and upper end.
    :raises ValueError: If there are fewer runs, or a deviation is no number.
    """
    for each in (first, second):
        if each.n < 2 or not np.isfinite(each.mean) or not 0 <= each.sd < np.inf:
            raise ValueError(f"{each}: expected two runs at least, a mean and a standard deviation.")
    variances = np.array([each.sd**2 / each.n for each in (first, second)])
    total, difference = float(variances.sum()), first.mean - second.mean
    if total == 0.0:
        return difference, difference, difference
    degrees = total**2 / float((variances**2 / [first.n - 1, second.n - 1]).sum())
    half = student_quantile(1 - (1 - CONFIDENCE) / 2, degrees) * total**0.5
    return difference, difference - half, difference + half


def student_quantile(probability: float, degrees: float) -> float:
    """
    A quantile of Student's t distribution.

    >>> round(student_quantile(0.975, 4.0), 3)
    2.776

    :param probability: In [0.5, 1).
    :param degrees: Of freedom, at least 1.
    """
    # With t = sqrt(degrees) * tan(angle), the density of the angle is a power of its cosine.
    angles = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(degrees) * np.tan(np.interp(2 * probability - 1, mass / mass[-1], angles)))
