"""Statistics over runs: means, and how sure they are. NumPy alone."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

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
    total = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(ends - window, 0)
    return (total[ends] - total[starts]) / (ends - starts)
