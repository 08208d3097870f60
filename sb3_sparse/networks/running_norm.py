"""Running normalisation of observations, as a part of the network."""

import torch as th
from torch import nn

# Old statistics are forgotten with this rate at least, so that they follow a replay buffer that moves on.
MIN_RATE = 1e-3
EPS = 1e-8


class RunningNorm(nn.Module):
    """
    ``(x - mean) / sqrt(var + 1e-8)`` with statistics of the batches it was shown (SimBa's RSNorm, no clipping).

    Statistics move in :meth:`update` and nowhere else: the module does the same in training and evaluation mode.
    Update ``t`` blends in the moments of a batch with rate ``max(1 / t, 1e-3)``. Batches drawn uniformly from a
    replay buffer are samples of all that it holds, so the statistics are those of the buffer.

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

    @th.no_grad()
    def update(self, x: th.Tensor) -> None:
        """
        Blend the moments of a batch into the statistics.

        :param x: ``(batch, *shape)``
        """
        self.obs_count += 1
        rate = self.obs_count.reciprocal().clamp(min=MIN_RATE)
        batch_var, delta = th.var_mean(self._deviation(x), dim=0, correction=0)
        # Moments of a mixture: the parts' variances and the distance of their means.
        self.obs_var.lerp_(batch_var, rate).addcmul_(delta.square(), rate * (1 - rate))
        step = self.obs_mean_rest + rate * delta
        mean = self.obs_mean + step
        self.obs_mean_rest.copy_(step - (mean - self.obs_mean))
        self.obs_mean.copy_(mean)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(batch, *shape)``
        :return: The same, normalised.
        """
        return self._deviation(x) * (self.obs_var + EPS).rsqrt()

    def _deviation(self, x: th.Tensor) -> th.Tensor:
        return (x - self.obs_mean) - self.obs_mean_rest
