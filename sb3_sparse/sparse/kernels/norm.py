"""Layer normalisation of what sparse layers return: batches that lie feature by feature, which torch's own would transpose."""

import struct
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_sparse.sparse.kernels.backend import empty_result
from sb3_sparse.sparse.kernels.native import norm
from sb3_sparse.sparse.kernels.native.code import LANES
from sb3_sparse.sparse.kernels.native.threads import run, thread_count
from sb3_sparse.sparse.kernels.products import has_memory, is_eager, is_plain

_TILE_VECTORS = 4
# So many multiply-adds take the time of normalising a number, and of its gradient.
_WORK = 4


def lies_by_features(x: th.Tensor) -> bool:
    """Whether the kernels here can read ``x``: as :func:`is_kernel_batch`, feature by feature in memory."""
    return is_kernel_batch(x) and x.stride() == (1, x.shape[0])


def is_kernel_batch(x: th.Tensor) -> bool:
    """Whether ``x`` is a batch ``(samples, features)`` of float32 on the CPU, of a vector at least, and no tool at work."""
    return (
        not th.compiler.is_compiling()
        and is_eager(x)
        and x.dim() == 2
        and x.shape[0] >= LANES
        and x.is_cpu
        and x.dtype is th.float32
    )


def layer_norm(x: th.Tensor, weight: th.Tensor, bias: th.Tensor, epsilon: float) -> th.Tensor:
    """
    ``torch.nn.functional.layer_norm`` over the features of a batch for which :func:`lies_by_features` is true.

    Sums are added up feature by feature, for all samples at once. Gradients can be differentiated again.

    :param x: ``(batch, features)``
    :param weight: ``(features,)``
    :param bias: ``(features,)``
    :param epsilon: Added to the variance.
    :return: ``(batch, features)``, feature by feature in memory too.
    """
    if th.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _LayerNorm.apply(x, weight, bias, epsilon)
    return _normalize(x, weight, bias, epsilon)[0]


def can_normalize(x: th.Tensor, *parameters: th.Tensor | None) -> bool:
    """Whether :func:`layer_norm` can take these tensors."""
    return lies_by_features(x) and all(
        p is not None and is_plain(p) and p.shape == x.shape[1:] and p.is_cpu and p.dtype is th.float32 and p.is_contiguous()
        for p in parameters
    )


class _LayerNorm(th.autograd.Function):
    """As torch's, with the same three gradients."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, weight: th.Tensor, bias: th.Tensor, epsilon: float) -> th.Tensor:
        y, statistics = _normalize(x, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, statistics)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        (grad,) = grad_outputs
        x, weight, statistics = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        if th.is_grad_enabled() or not is_eager(grad) or not has_memory(grad):
            return *_formula(grad, x, weight, ctx.epsilon), None
        batch, features = x.shape
        grad = grad.t().contiguous().t()
        mean, inverse = (s.data_ptr() for s in statistics)
        grad_x = grad_weight = grad_bias = None
        if wants_x:
            grad_x = empty_result(x, batch, features)
            pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), mean, inverse, grad_x.data_ptr())
            _run_tiles("grad_input", (*pointers, features, batch), batch, features)
        if wants_weight or wants_bias:
            grad_weight, grad_bias = x.new_empty(features), x.new_empty(features)
            pointers = (grad.data_ptr(), x.data_ptr(), mean, inverse, grad_weight.data_ptr(), grad_bias.data_ptr())
            threads = thread_count(_WORK * batch * features)
            bounds = tuple(features * part // threads for part in range(threads + 1))
            run(norm.kernel("grad_parameters"), (*pointers, batch), bounds)
        return grad_x, grad_weight if wants_weight else None, grad_bias if wants_bias else None, None


def _formula(grad: th.Tensor, x: th.Tensor, weight: th.Tensor, epsilon: float) -> tuple[th.Tensor, ...]:
    """The gradients in torch's own operations, for tools and to be differentiated."""
    z = F.layer_norm(x, x.shape[1:], eps=epsilon)
    inverse = (x.var(dim=1, correction=0, keepdim=True) + epsilon).rsqrt()
    scaled = grad * weight
    centred = scaled - scaled.mean(dim=1, keepdim=True) - z * (scaled * z).mean(dim=1, keepdim=True)
    return inverse * centred, (grad * z).sum(dim=0), grad.sum(dim=0)


def _normalize(x: th.Tensor, weight: th.Tensor, bias: th.Tensor, epsilon: float) -> tuple[th.Tensor, th.Tensor]:
    """The result, and mean and inverse standard deviation of each sample."""
    batch, features = x.shape
    y, statistics = empty_result(x, batch, features), x.new_empty(2, batch)
    mean, inverse = (s.data_ptr() for s in statistics)
    pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), mean, inverse)
    _run_tiles("normalize", (*pointers, features, batch, _bits(epsilon)), batch, features)
    return y, statistics


def _run_tiles(name: str, arguments: tuple[int, ...], batch: int, features: int) -> None:
    vectors = _TILE_VECTORS if batch >= _TILE_VECTORS * LANES else 1
    tiles = -(-batch // (vectors * LANES))
    threads = min(tiles, thread_count(_WORK * batch * features))
    run(norm.kernel(name, vectors), arguments, tuple(tiles * part // threads for part in range(threads + 1)))


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack("<f", value), "little")
