"""
Parts of SimBa that are faster where sparse layers surround them, on the CPU. What sparse layers return lies feature by
feature in memory; torch's own operations would bring it into another layout, and back.

None of this is seen from outside: modules stay what they are, and hooks, ``torch.compile``, export and the transforms of
``torch.func`` see each of them.
"""

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as nn_module

from sb3_sparse.sparse.kernels import hidden, norm
from sb3_sparse.sparse.layers import SparseLinear

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` that leaves a batch in the memory layout of sparse layers where it finds it there."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        """``(..., features)`` to the same."""
        if norm.can_normalize(x, self.weight, self.bias):
            return norm.layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


def linear_relu_linear(x: th.Tensor, first: nn.Module, activation: nn.Module, second: nn.Module) -> th.Tensor:
    """
    ``second(activation(first(x)))``: with the same numbers in one operation, if they are sparse layers and a ReLU, or at least
    in place, if nobody looks at what is between them.

    :param x: ``(..., in)``
    :param first: A linear layer.
    :param activation: Between them.
    :param second: Another linear layer.
    """
    if (
        th.compiler.is_compiling()
        or type(x) is not th.Tensor
        or type(activation) is not nn.ReLU
        or type(first) not in (nn.Linear, SparseLinear)
        or any(map(_is_observed, (first, activation, second)))
    ):
        return second(activation(first(x)))
    if type(first) is type(second) is SparseLinear:
        weights = [hidden.Weights(layer.values, layer.bias, layer.topology) for layer in (first, second)]
        if hidden.can_fuse(x, *weights):
            return hidden.linear_relu_linear(x, *weights)
    return second(F.relu_(first(x)))


def laid_for(layer: nn.Module, x: th.Tensor) -> th.Tensor:
    """
    A batch in the memory layout in which a sparse layer returns its results, if ``layer`` is one: what is added to such
    results should lie as they do.

    :param layer: Which comes next.
    :param x: ``(batch, features)``
    """
    if type(layer) is SparseLinear and norm.is_kernel_batch(x) and x.stride() != (1, x.shape[0]):
        return x.t().contiguous().t()
    return x


def _is_observed(module: nn.Module) -> bool:
    """Whether calling a module does more than its ``forward``."""
    return (
        "forward" in module.__dict__
        or any(getattr(module, hooks) for hooks in _HOOKS)
        or any(getattr(nn_module, "_global" + hooks) for hooks in _HOOKS)
    )
