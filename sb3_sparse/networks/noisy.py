"""Linear layers that explore by noise on their weights, whose size is learned (Fortunato et al. 2018)."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.common.validation import non_negative
from sb3_sparse.sparse.kernels import sparse_linear
from sb3_sparse.sparse.layers import SparseLinear
from sb3_sparse.sparse.pruning import register_kind
from sb3_sparse.sparse.topology import Topology
from sb3_sparse.sparse.weight import NONZEROS, copy_parameter


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
    #: Of which size the deviations are at first.
    sigma: float = 0.5
    # Memory for the weights with their noise, and whether it holds those of the moment: see `noise_added`.
    _sum: th.Tensor | None = None
    _added: bool = False

    def __init__(self, in_features: int, out_features: int, sigma: float = 0.5):
        sigma = non_negative("sigma", sigma)
        super().__init__(in_features, out_features)
        self.sigma = sigma
        self.weight_sigma = nn.Parameter(th.empty_like(self.weight))
        self.bias_sigma = nn.Parameter(th.empty_like(self.bias))
        self.reset_parameters()
        # Of no agent: each draw makes it anew.
        self.register_buffer("noise_in", th.zeros(in_features), persistent=False)
        self.register_buffer("noise_out", th.zeros(out_features), persistent=False)

    @th.no_grad()
    def reset_parameters(self) -> None:
        """Draw new means, uniformly up to ``1 / √in_features``, with the deviations that they had at first."""
        if "bias_sigma" not in self._parameters:
            # Called by nn.Linear, which makes the means.
            super().reset_parameters()
            return
        self._added = False
        bound = 1.0 / math.sqrt(self.in_features)
        for mean, deviation in ((self.weight, self.weight_sigma), (self.bias, self.bias_sigma)):
            mean.uniform_(-bound, bound)
            deviation.fill_(self.sigma * bound)

    def reset_noise(self) -> None:
        """Draw another noise, from torch's generator."""
        self._added = False
        _draw(self.noise_in, self.noise_out)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(..., in_features)``
        :return: ``(..., out_features)``
        """
        if self.noisy and self._added and x.dim() == 2 and not th.is_autocast_enabled(x.device.type):
            parameters = (self.weight, self.weight_sigma, self.bias, self.bias_sigma)
            return _WithSum.apply(x, *parameters, self.noise_in, self.noise_out, self._sum)
        means = super().forward(x)
        if not self.noisy:
            return means
        # The matrix of the noise is never made: it is an outer product.
        deviations = nn.functional.linear(x * self.noise_in, self.weight_sigma, self.bias_sigma)
        return means + deviations * self.noise_out

    @th.no_grad()
    def _add_noise(self) -> None:
        if self._sum is None or self._sum.device != self.weight.device or self._sum.dtype != self.weight.dtype:
            self._sum = th.empty_like(self.weight)
        th.mul(self.weight_sigma, self.noise_in, out=self._sum)
        th.addcmul(self.weight, self._sum, self.noise_out[:, None], out=self._sum)
        self._added = True

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noisy={self.noisy}"


class _WithSum(th.autograd.Function):
    """What :class:`NoisyLinear` computes, from weights to which the noise is added already: one product instead of two."""

    @staticmethod
    def forward(ctx, x, weight, weight_sigma, bias, bias_sigma, noise_in, noise_out, total):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, weight_sigma, noise_in, noise_out, total)
        return nn.functional.linear(x, total, bias + bias_sigma * noise_out)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, weight_sigma, noise_in, noise_out, total = ctx.saved_tensors
        if th.is_grad_enabled():
            # With create_graph=True: the sum has to lead on to what it was made of.
            total = weight + weight_sigma * noise_in * noise_out[:, None]
        of_x = grad @ total if ctx.needs_input_grad[0] else None
        of_weight, of_bias = grad.T @ x, grad.sum(0)
        of_sigma = (of_weight * noise_in).mul_(noise_out[:, None])
        return of_x, of_weight, of_sigma, of_bias, of_bias * noise_out, None, None, None


class SparseNoisyLinear(SparseLinear):
    """
    :class:`NoisyLinear` of which some weights exist: their means ``nonzeros`` and deviations ``nonzeros_sigma``.

    Made by :func:`sparsify_`. Means and deviations live at the same positions.
    """

    gathered = {NONZEROS: "weight", "nonzeros_sigma": "weight_sigma"}
    taken = ("bias", "bias_sigma", "noise_in", "noise_out")

    nonzeros_sigma: nn.Parameter
    bias_sigma: nn.Parameter
    noise_in: th.Tensor
    noise_out: th.Tensor
    noisy: bool = True
    sigma: float = 0.5

    @classmethod
    def from_dense(cls, dense: nn.Linear, topology: Topology, rescale: bool = False) -> "SparseNoisyLinear":
        """A sparse layer that keeps the weights of ``dense`` where the topology has one."""
        assert isinstance(dense, NoisyLinear)
        layer: Any = super().from_dense(dense, topology, rescale)
        deviations = topology.gather(dense.weight_sigma.detach())
        # As the means: the noise keeps its size relative to them.
        factor = math.sqrt(topology.density) if rescale and topology.nnz else 1.0
        layer.nonzeros_sigma = nn.Parameter(deviations / factor, requires_grad=dense.weight_sigma.requires_grad)
        layer.bias_sigma = copy_parameter(dense.bias_sigma)
        for name in ("noise_in", "noise_out"):
            layer.register_buffer(name, getattr(dense, name).clone(), persistent=False)
        layer.noisy, layer.sigma = dense.noisy, dense.sigma
        return layer

    def to_dense(self) -> NoisyLinear:
        """A :class:`NoisyLinear` that computes the same."""
        # Nothing is drawn for what is overwritten.
        with th.device("meta"):
            dense = NoisyLinear(self.in_features, self.out_features, self.sigma).to(self.values.dtype)
        dense = dense.to_empty(device=self.values.device)
        dense.noisy, dense.training = self.noisy, self.training
        with th.no_grad():
            for name, old in self.gathered.items():
                dense._parameters[old].copy_(self.topology.scatter(self._parameters[name]))  # type: ignore
            for name in self.taken:
                getattr(dense, name).copy_(getattr(self, name))
        # Frozen is what was frozen.
        for name, parameter in self._parameters.items():
            dense._parameters[self.gathered.get(name, name)].requires_grad_(parameter.requires_grad)  # type: ignore
        return dense

    def reset_noise(self) -> None:
        """Draw another noise, from torch's generator."""
        _draw(self.noise_in, self.noise_out)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(..., in_features)``
        :return: ``(..., out_features)``
        """
        means = super().forward(x)
        if not self.noisy:
            return means
        identity = self._buffers["topology_seed"]
        deviations = sparse_linear(x * self.noise_in, self.nonzeros_sigma, self.topology, self.bias_sigma, identity)
        return means + deviations * self.noise_out


register_kind(NoisyLinear, SparseNoisyLinear)


def _draw(*noises: th.Tensor) -> None:
    for noise in noises:
        noise.normal_()
        # In place: others may hold the buffer.
        noise.copy_(noise.sign() * noise.abs().sqrt())


def noisy_layers(module: nn.Module) -> Iterable[NoisyLinear | SparseNoisyLinear]:
    """
    The noisy layers of a module.

    :param module: Any module.
    """
    return (layer for layer in module.modules() if isinstance(layer, NoisyLinear | SparseNoisyLinear))


@contextmanager
def noise_added(*modules: nn.Module) -> Iterator[None]:
    """
    Add weights and noise up once for all passes inside, instead of multiplying with each in each pass. Weights must not
    change there. A layer goes on as outside when another noise is drawn, for inputs other than ``(batch, features)``, and
    under autocast; sparse layers always do.

    :param modules: Whose noisy layers are meant.
    """
    layers = [layer for module in modules for layer in noisy_layers(module) if isinstance(layer, NoisyLinear)]
    try:
        for layer in layers:
            layer._add_noise()
        yield
    finally:
        for layer in layers:
            layer._added = False


def replace_noisy_(module: nn.Module) -> None:
    """
    Put a plain layer of the means in the place of each dense noisy layer of a module.

    :param module: Changed in place; it is not a noisy layer itself.
    """
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, NoisyLinear):
                plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
                plain.weight, plain.bias = layer.weight, layer.bias
                setattr(parent, name, plain.train(layer.training))
