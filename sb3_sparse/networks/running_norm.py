"""Running normalisation of observations, as a part of the network."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch as th
from torch import nn

# Old statistics are forgotten with this rate at least, so that they follow a replay buffer that moves on.
MIN_RATE = 1e-3
EPS = 1e-8
# Rows farther from the mean than this many times 1 + |mean| + standard deviation are outliers, unless they are many.
OUTLIER = 1e4
# What is squared in float32 stays within this, in the moments here and in the layer normalisations behind.
LARGEST = 1e15


class Moments(NamedTuple):
    """What a :class:`RunningNorm` knows; the mean is the sum of two numbers, for precision."""

    mean: th.Tensor
    mean_rest: th.Tensor
    var: th.Tensor
    n_updates: th.Tensor


class RunningNorm(nn.Module):
    """
    ``(x - mean) / sqrt(var + 1e-8)`` with statistics of the batches it was shown (SimBa's RSNorm, no clipping).

    Statistics move in :meth:`update` and nowhere else: the module does the same in training and evaluation mode.
    Update ``t`` blends in the moments of a batch with rate ``max(1 / t, 1e-3)``. Batches drawn uniformly from a
    replay buffer are samples of all that it holds, so the statistics are those of the buffer.

    Rows with an infinite number or NaN do not count, and neither do outliers (more than 10,000 times ``1 + |mean| +
    standard deviation`` away) as long as they are at most a quarter of the rest. A batch without a row that counts
    changes nothing. What goes out is bounded by 1e15, which only outliers reach.

    Before the first update inputs pass through unchanged. The buffers are called ``obs_*`` since SB3 overwrites
    those whose name contains ``running_`` when it updates target networks.

    :param shape: Shape of one observation.
    """

    obs_mean: th.Tensor
    obs_mean_rest: th.Tensor
    obs_var: th.Tensor
    obs_count: th.Tensor

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("obs_mean", th.zeros(shape))
        self.register_buffer("obs_mean_rest", th.zeros(shape))
        self.register_buffer("obs_var", th.ones(shape))
        self.register_buffer("obs_count", th.zeros(()))

    @property
    def moments(self) -> Moments:
        """The statistics themselves, not a copy."""
        return Moments(self.obs_mean, self.obs_mean_rest, self.obs_var, self.obs_count)

    def update(self, x: th.Tensor) -> None:
        """
        Blend the moments of a batch into the statistics.

        :param x: ``(batch, *shape)``
        """
        self.move_to(self.blended(x))

    @th.no_grad()
    def blended(self, x: th.Tensor) -> Moments:
        """
        What the statistics are after an update.

        :param x: ``(batch, *shape)``
        """
        if len(x) == 0:
            return self.moments
        deviation = self._deviation(x, self.moments)
        counts = self._counts(deviation)
        n_counting = counts.sum()
        weight = len(x) / n_counting.clamp(min=1)
        counts = counts.view(-1, *(1,) * (x.dim() - 1))
        # Rows that do not count are set to the mean of the others: then only the variance has to be corrected for
        # them, and where all count the numbers are, bit for bit, those of the plain moments.
        deviation = th.where(counts, deviation.clamp(-LARGEST, LARGEST), 0.0)
        deviation = th.where(counts, deviation, deviation.mean(dim=0) * weight)
        batch_var, delta = th.var_mean(deviation, dim=0, correction=0)
        moves = n_counting > 0
        count = self.obs_count + moves
        # Until a row has counted there is nothing to divide by.
        rate = count.clamp(min=1).reciprocal().clamp(min=MIN_RATE) * moves
        # Moments of a mixture: the parts' variances and the distance of their means.
        var = self.obs_var.lerp(batch_var * weight, rate).addcmul(delta.square(), rate * (1 - rate))
        step = self.obs_mean_rest + rate * delta
        mean = self.obs_mean + step
        return Moments(mean, step - (mean - self.obs_mean), var, count)

    @th.no_grad()
    def move_to(self, moments: Moments) -> None:
        """Take these for the statistics."""
        for buffer, value in zip(self.moments, moments, strict=True):
            buffer.copy_(value)

    def forward(self, x: th.Tensor, moments: Moments | None = None) -> th.Tensor:
        """
        :param x: ``(batch, *shape)``
        :param moments: Statistics to normalise with instead of its own.
        :return: The same, normalised.
        """
        moments = moments or self.moments
        return (self._deviation(x, moments) * (moments.var + EPS).rsqrt()).clamp(-LARGEST, LARGEST)

    @staticmethod
    def _deviation(x: th.Tensor, moments: Moments) -> th.Tensor:
        return (x - moments.mean) - moments.mean_rest

    def _counts(self, deviation: th.Tensor) -> th.Tensor:
        """Which rows of a batch count."""
        limit = OUTLIER * (1 + self.obs_mean.abs() + self.obs_var.sqrt())
        # NaN for a row with NaN, and infinite for one with an infinite number.
        distance = (deviation.abs() / limit.clamp(max=LARGEST)).reshape(len(deviation), -1).amax(dim=1)
        finite, near = distance < math.inf, distance <= 1
        # Many outliers are data that have moved. Nothing is read off the device to decide it.
        return th.where(4 * near.sum() >= 3 * finite.sum(), near, finite)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        try:
            self.check_state(state_dict, prefix)
        except ValueError as error:
            # As torch reports what does not fit. Others call `load_state_dict` and take a ValueError for something else.
            args[-1].append(str(error))
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_state(self, state_dict: Mapping[str, Any], prefix: str = "") -> None:
        """
        :raises ValueError: If the statistics in a state dict cannot be any.
        """
        for name in self._buffers:
            value = state_dict.get(prefix + name)
            # Only tensors that hold numbers: not those of the meta device, nor torch's fakes.
            if value is None or type(value) not in (th.Tensor, nn.Parameter) or value.is_meta:
                continue
            if not value.isfinite().all():
                raise ValueError(f"{prefix}{name}: expected finite statistics, but the state dict has infinite ones or NaN.")
            if name in ("obs_var", "obs_count") and value.lt(0).any():
                raise ValueError(f"{prefix}{name}: expected numbers of at least 0, but the state dict has negative ones.")
