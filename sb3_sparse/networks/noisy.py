"""Linear layers that explore by noise on their weights, whose size is learned (Fortunato et al. 2018)."""

import math
from collections.abc import Iterable

import torch as th
from torch import nn

from sb3_sparse.common.validation import non_negative


class NoisyLinear(nn.Linear):
    """
    ``y = (W + S ⊙ f(q) f(p)ᵀ) x + b + s ⊙ f(q)`` with factorised Gaussian noise, ``f(z) = sign(z) √|z|``.

    ``weight`` and ``bias`` are the means, ``weight_sigma`` and ``bias_sigma`` the deviations. The noise is one for all
    samples of a batch, until :meth:`reset_noise` draws another; it begins as none. Whether it acts does not depend on the
    training mode, which SB3 switches off while it collects experience: see :attr:`noisy`.

    :param in_features: Size of each input sample.
    :param out_features: Size of each output sample.
    :param sigma: Deviations start at ``sigma / √in_features``. The paper of Rainbow takes 0.5, Dopamine 0.1.
    :raises ValueError: If ``sigma`` is negative.
    """

    noise_in: th.Tensor
    noise_out: th.Tensor
    #: Whether the noise acts.
    noisy: bool = True

    def __init__(self, in_features: int, out_features: int, sigma: float = 0.5):
        sigma = non_negative("sigma", sigma)
        super().__init__(in_features, out_features)
        self.weight_sigma = nn.Parameter(th.empty_like(self.weight))
        self.bias_sigma = nn.Parameter(th.empty_like(self.bias))
        bound = 1.0 / math.sqrt(in_features)
        with th.no_grad():
            for mean, deviation in ((self.weight, self.weight_sigma), (self.bias, self.bias_sigma)):
                mean.uniform_(-bound, bound)
                deviation.fill_(sigma * bound)
        # Of no agent: each draw makes it anew.
        self.register_buffer("noise_in", th.zeros(in_features), persistent=False)
        self.register_buffer("noise_out", th.zeros(out_features), persistent=False)

    def reset_noise(self) -> None:
        """Draw another noise, from torch's generator."""
        for noise in (self.noise_in, self.noise_out):
            noise.normal_()
            # In place: others may hold the buffer.
            noise.copy_(noise.sign() * noise.abs().sqrt())

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(..., in_features)``
        :return: ``(..., out_features)``
        """
        means = super().forward(x)
        if not self.noisy:
            return means
        # The matrix of the noise is never made: it is an outer product.
        deviations = nn.functional.linear(x * self.noise_in, self.weight_sigma, self.bias_sigma)
        return means + deviations * self.noise_out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noisy={self.noisy}"


def noisy_layers(module: nn.Module) -> Iterable[NoisyLinear]:
    """
    The noisy layers of a module.

    :param module: Any module.
    """
    return (layer for layer in module.modules() if isinstance(layer, NoisyLinear))
