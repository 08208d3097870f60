"""
Normalisation of a stream: observations, rewards, and the time feature (Elsayed et al. 2024).

All statistics are Welford's, in double precision, with the sample variance, and what is normalised is not clipped. They are
buffers of the policy, so a saved agent is complete and ``predict`` takes raw observations.

One absurd number would be remembered for ever: the deviation of its entry would be as absurd, and everything else that
the entry says would vanish beside it. So what is beyond :func:`outlier_limit` is left out of the statistics, and seen
as if it were as far from the mean as one among so many can be.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from torch import nn

EPSILON = 1e-8
# Numbers up to here are never outliers.
ORDINARY = 1e8
# Whole numbers of so few bytes are all ordinary, those of images among them.
_ORDINARY_BYTES = 2
# Numbers beyond this are outliers always: sums of their squares come near to where float32 ends.
HUGE = 1e15
# In between, those that are so many times the mean and the deviation.
_TIMES = 1e6
# Up to this size, Python adds squares faster than numpy begins.
_SMALL = 64


def magnitude(values: np.ndarray) -> float:
    """The Euclidean norm: NaN or infinite if an entry is (or if it is just too large), and never a warning."""
    if values.dtype.kind != "f":
        if values.dtype.itemsize <= _ORDINARY_BYTES:
            return 0.0
        values = values.astype(np.float64)
    return math.hypot(*values.ravel().tolist()) if values.size <= _SMALL else math.sqrt(_sum_of_squares(values))


@np.errstate(over="ignore", invalid="ignore")
def _sum_of_squares(values: np.ndarray) -> float:
    return float(np.vdot(values, values))


def outlier_limit(count: float, mean: Any, variance: Any) -> Any:
    """How large numbers may be after ``count`` others of that mean and variance."""
    if count < 1.0:
        return HUGE
    usual = np.maximum(np.abs(mean), np.sqrt(variance))
    return np.minimum(np.maximum(_TIMES * usual, ORDINARY), HUGE)


class _Statistics(nn.Module):
    """Buffers that stay in double precision in main memory, whatever the networks do: they are numpy's."""

    def __init__(self) -> None:
        super().__init__()
        self._viewed: list[th.Tensor | None] = []
        self._views: list[np.ndarray] = []

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> "_Statistics":
        return self

    def _arrays(self) -> list[np.ndarray]:
        """The buffers as numpy arrays. Made once: between two steps of an environment, torch takes longer than all else."""
        buffers = self._buffers.values()
        if len(buffers) != len(self._viewed) or not all(map(operator.is_, buffers, self._viewed)):
            self._viewed = list(buffers)
            self._views = [buffer.numpy() for buffer in buffers if buffer is not None]
        return self._views

    def __getstate__(self) -> dict[str, Any]:
        # Copies have arrays of their own.
        return {**self.__dict__, "_viewed": [], "_views": []}


class ObservationNormalizer(_Statistics):
    """
    Subtract the running mean of all observations so far and divide by their running standard deviation.

    The first observation becomes zero, as does every entry that never changes. Outliers, see above, are the mean to the
    statistics and ``±sqrt(count)`` to the networks.

    :param shape: Shape of an observation.
    """

    obs_count: th.Tensor
    """How many observations there were."""
    obs_mean: th.Tensor
    obs_square: th.Tensor
    """Sum of their squared distances from the mean."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("obs_count", th.zeros((), dtype=th.float64))
        self.register_buffer("obs_mean", th.zeros(tuple(shape), dtype=th.float64))
        self.register_buffer("obs_square", th.zeros(tuple(shape), dtype=th.float64))

    def update(self, observation: np.ndarray) -> None:
        """Take one observation into the statistics."""
        count, mean, square = self._arrays()
        if not magnitude(observation) <= ORDINARY:
            observation = np.where(self._outliers(observation) | np.isnan(observation), mean, observation)
        count += 1.0
        distance = observation - mean
        mean += distance / count
        distance *= observation - mean
        square += distance

    def normalize(self, observation: np.ndarray) -> np.ndarray:
        """An observation, or a batch, in double precision."""
        if magnitude(observation) <= ORDINARY:
            return self._scaled(observation)
        outliers, (count, mean, _) = self._outliers(observation), self._arrays()
        normalized = np.clip(self._scaled(np.where(outliers, mean, observation)), -HUGE, HUGE)
        return np.where(outliers, np.copysign(math.sqrt(max(count.item(), 1.0)), observation), normalized)

    def _scaled(self, observation: np.ndarray) -> np.ndarray:
        counts, mean, square = self._arrays()
        count, normalized = counts.item(), observation - mean
        if count < 2.0:
            normalized /= (1.0 + EPSILON) ** 0.5
        else:
            scale = square / (count - 1.0)
            scale += EPSILON
            normalized /= np.sqrt(scale, out=scale)
        return normalized

    def _outliers(self, observation: np.ndarray) -> np.ndarray:
        count, mean, square = self._arrays()
        limit = outlier_limit(count.item(), mean, square / max(count.item() - 1.0, 1.0))
        return np.abs(observation) > limit


class RewardScaler(_Statistics):
    """
    Divide rewards by the running standard deviation of the discounted return; the mean is never subtracted.

    The return is ``u = gamma * u * (1 - done) + reward`` with ``done`` of the same step. After the last step of an
    episode it is therefore the last reward, a part of which the next episode starts with, as in the published agent.
    An outlier, see above, is no part of it and becomes ``±sqrt(count)``.

    :param gamma: Discount factor.
    """

    reward_statistics: th.Tensor
    """The return ``u``, how many there were, their mean, and the sum of their squared distances from it."""

    def __init__(self, gamma: float):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("reward_statistics", th.zeros(4, dtype=th.float64))

    def scale(self, reward: float, done: bool) -> float:
        """
        Take one reward into the statistics and scale it.

        :param done: Whether the episode ends with this step.
        """
        (statistics,) = self._arrays()
        # Plain numbers: on scalars numpy would be ten times slower.
        discounted, count, mean, square = statistics.tolist()
        discounted = 0.0 if done else self.gamma * discounted
        if abs(reward) > ORDINARY and abs(reward) > outlier_limit(count, mean, square / max(count - 1.0, 1.0)):
            statistics[0] = discounted
            return math.copysign(math.sqrt(max(count, 1.0)), reward)
        discounted += reward
        count += 1.0
        distance = discounted - mean
        mean += distance / count
        square += distance * (discounted - mean)
        statistics[:] = discounted, count, mean, square
        variance = 1.0 if count < 2.0 else square / (count - 1.0)
        return reward / math.sqrt(variance + EPSILON)


def time_feature(steps: np.ndarray | int, time_limit: int) -> np.ndarray | float:
    """
    How far an episode is, from -0.5: the entry that is added to an observation after its normalisation.

    The observations before and after the first step have the same value, as in the published agent.

    :param steps: Steps taken in the episode.
    :param time_limit: Steps at which it goes from -0.5 to 0.5.
    """
    later = max(steps - 1, 0) if isinstance(steps, int) else np.maximum(steps - 1, 0)
    # Beyond the limit, of a task that goes on, it stays where it is.
    share = later / time_limit
    return (min(share, 1.0) if isinstance(share, float) else np.minimum(share, 1.0)) - 0.5
