"""
Normalisation of a stream: observations, rewards, and the time feature (Elsayed et al. 2024).

All statistics are Welford's, in double precision, with the sample variance, and nothing is clipped. They are buffers
of the policy, so a saved agent is complete and ``predict`` takes raw observations.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch as th
from torch import nn

EPSILON = 1e-8


class _Statistics(nn.Module):
    """Buffers that stay in double precision in main memory, whatever the networks do: they are numpy's."""

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> "_Statistics":
        return self


class ObservationNormalizer(_Statistics):
    """
    Subtract the running mean of all observations so far and divide by their running standard deviation.

    The first observation becomes zero, as does every entry that never changes.

    :param shape: Shape of an observation.
    """

    obs_count: th.Tensor
    obs_mean: th.Tensor
    obs_square: th.Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("obs_count", th.zeros((), dtype=th.float64))
        self.register_buffer("obs_mean", th.zeros(tuple(shape), dtype=th.float64))
        # Sum of squared distances from the mean.
        self.register_buffer("obs_square", th.zeros(tuple(shape), dtype=th.float64))

    def update(self, observation: np.ndarray) -> None:
        """Take one observation into the statistics."""
        mean = self.obs_mean.numpy()
        count = self.obs_count.numpy()
        count += 1.0
        distance = observation - mean
        mean += distance / count
        self.obs_square.numpy()[...] += distance * (observation - mean)

    def normalize(self, observation: np.ndarray) -> np.ndarray:
        """An observation, or a batch, in float32."""
        count = self.obs_count.item()
        if count < 2.0:
            scale: float | np.ndarray = np.sqrt(1.0 + EPSILON)
        else:
            scale = np.sqrt(self.obs_square.numpy() / (count - 1.0) + EPSILON)
        return ((observation - self.obs_mean.numpy()) / scale).astype(np.float32)


class RewardScaler(_Statistics):
    """
    Divide rewards by the running standard deviation of the discounted return; the mean is never subtracted.

    The return is ``u = gamma * u * (1 - done) + reward`` with ``done`` of the same step. After the last step of an
    episode it is therefore the last reward, a part of which the next episode starts with, as in the published agent.

    :param gamma: Discount factor.
    """

    reward_count: th.Tensor
    reward_return: th.Tensor
    reward_mean: th.Tensor
    reward_square: th.Tensor

    def __init__(self, gamma: float):
        super().__init__()
        self.gamma = gamma
        for name in ("count", "return", "mean", "square"):
            self.register_buffer("reward_" + name, th.zeros((), dtype=th.float64))

    def scale(self, reward: float, done: bool) -> float:
        """
        Take one reward into the statistics and scale it.

        :param done: Whether the episode ends with this step.
        """
        # Plain numbers: on scalars numpy would be ten times slower.
        discounted = (0.0 if done else self.gamma * self.reward_return.item()) + reward
        count, mean = self.reward_count.item() + 1.0, self.reward_mean.item()
        distance = discounted - mean
        mean += distance / count
        square = self.reward_square.item() + distance * (discounted - mean)
        self.reward_return.fill_(discounted)
        self.reward_count.fill_(count)
        self.reward_mean.fill_(mean)
        self.reward_square.fill_(square)
        variance = 1.0 if count < 2.0 else square / (count - 1.0)
        return float(reward / (variance + EPSILON) ** 0.5)


def time_feature(steps: np.ndarray | int, time_limit: int) -> np.ndarray:
    """
    How far an episode is, from -0.5: the entry that is added to an observation after its normalisation.

    The observations before and after the first step have the same value, as in the published agent.

    :param steps: Steps taken in the episode.
    :param time_limit: Steps at which it goes from -0.5 to 0.5.
    """
    return np.maximum(np.asarray(steps) - 1, 0) / time_limit - 0.5
