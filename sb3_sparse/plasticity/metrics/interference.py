"""
Inner products of per-sample gradients, without ever holding the gradients (paper, Eq. 2 and Figure 9).

The matrix of inner products is a sum over parameters, so it is built layer by layer. What a layer adds follows from
the inputs it saw and the gradients of its outputs, both of which one ordinary pass over the batch yields:

- dense linear layer: ``(d_i . d_j) (a_i . a_j + 1)``, the one for the bias;
- sparse linear layer: the gradients ``d_i[row] a_i[column]`` of some living weights at a time, all samples, then the next;
- noisy linear layer: the same once more for its deviations, whose inputs and gradients are multiplied by the noise;
- any other module: its gradient for one sample after the other, by automatic differentiation of the module alone;
- parameters outside such modules: the same through the whole graph.

The sum is checked against one gradient of a random combination of the losses. Where the two differ, as for a module whose
weight is used outside it, too, or one with samples in another dimension, all goes through the whole graph: slow, but right.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.utils.hooks import RemovableHandle

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.networks.noisy import NoisyLinear, SparseNoisyLinear
from sb3_sparse.sparse import SparseLinear

_LINEAR = (nn.Linear, SparseLinear, NoisyLinear, SparseNoisyLinear)
# Living weights of a sparse layer at a time: with 256 samples a block of gradients that stays in the cache.
EDGES_PER_CHUNK = 4096
# By how much the matrix may miss the check, relative to what it should be, and to what it is if all gradients are parallel.
_TOLERANCES = 1e-3, 1e-5
# Numbers in a block of per-sample gradients of any other module (256 MiB in float32).
NUMBERS_PER_BLOCK = 2**26


class Interference(NamedTuple):
    """Cosines between the gradients of single samples (paper, Eq. 2), and what they come to off the diagonal."""

    matrix: th.Tensor
    """``(samples, samples)``, float64. A sample without any gradient has a row of zeros."""
    mean: float
    """Mean cosine of two different samples."""
    mean_abs: float
    """Mean of its magnitude: 0 for samples that do not interfere."""
    negative: float
    """Share of pairs in conflict, with a cosine below 0."""


def interference_from_gram(gram: th.Tensor) -> Interference:
    """
    Cosines and their summaries from the inner products of per-sample gradients.

    :param gram: ``(samples, samples)``
    :raises ValueError: If it is not square, or there is but one sample.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise ValueError(f"gram of shape {tuple(gram.shape)}: expected (samples, samples) for two samples or more.")
    gram = gram.detach().double()
    inverse = gram.diagonal().rsqrt()
    inverse = inverse.masked_fill(inverse.isinf(), 0.0)
    # Rounding takes the cosine of parallel gradients past 1.
    matrix = (gram * th.outer(inverse, inverse)).clamp(-1.0, 1.0)
    pairs = matrix[~th.eye(len(matrix), dtype=th.bool, device=matrix.device)]
    negative = float((pairs < 0).double().mean()) if pairs.isfinite().all() else math.nan
    return Interference(matrix, float(pairs.mean()), float(pairs.abs().mean()), negative)


def gradient_interference(network: nn.Module, losses: Callable[[], th.Tensor]) -> Interference:
    """
    Cosines between the gradients of single samples, over all parameters of a network that exist.

    >>> x, y = th.randn(8, 3), th.randn(8, 1)
    >>> network = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    >>> gradient_interference(network, lambda: (network(x) - y).square().sum(dim=1)).matrix.shape
    torch.Size([8, 8])

    :param network: Whose parameters count. No layer of it may mix samples, as batch normalisation does in training
        mode; call ``network.eval()`` first.
    :param losses: Makes a forward pass and returns one loss per sample, ``(samples,)``. Parts of the pass that run
        without gradients, like a target network, are left alone.
    :return: The matrix and its summaries.
    :raises ValueError: If ``losses`` does not return one loss for each of two or more samples, or no gradient reaches
        the network.
    """
    return interference_from_gram(gradient_gram(network, losses))


@th.enable_grad()
def gradient_gram(network: nn.Module, losses: Callable[[], th.Tensor]) -> th.Tensor:
    """
    Inner products of the gradients of single samples.

    Neither ``.grad`` of the parameters nor the network changes. See :func:`gradient_interference`.

    :param network: Whose parameters count.
    :param losses: Makes a forward pass and returns one loss per sample, ``(samples,)``.
    :return: ``(samples, samples)`` in float64. Its mean is the squared norm of the gradient of the mean loss.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    with _recorded_calls(network) as calls:
        values = losses()
    if values.dim() != 1 or len(values) < 2 or not values.requires_grad:
        raise ValueError(f"losses of shape {tuple(values.shape)}: expected one loss per sample that depends on the network.")
    samples = len(values)
    without_samples = {call.module for call in calls if not call.output.dim() or len(call.output) != samples}
    calls = [call for call in calls if call.module not in without_samples]
    recorded = {id(p) for call in calls for p in call.module.parameters(recurse=False)}
    loose = [p for p in parameters if id(p) not in recorded]
    deltas: tuple[th.Tensor | None, ...] = ()
    if calls:
        outputs = [call.output for call in calls]
        deltas = th.autograd.grad(values.sum(), outputs, retain_graph=True, allow_unused=True)
    grouped: dict[nn.Module, list[tuple[_Call, th.Tensor]]] = {}
    for call, delta in zip(calls, deltas, strict=True):
        if delta is not None:
            grouped.setdefault(call.module, []).append((call, delta))
    grams = [_module_gram(module, uses, samples) for module, uses in grouped.items()]
    if loose and (used := _used(values, loose)):
        grams.append(_graph_gram(values, used))
    if not grams:
        raise ValueError("the losses do not depend on any parameter of the network: is it the network they come from?")
    gram = th.stack(grams).sum(dim=0)
    return gram if _passes_check(gram, values, parameters) else _graph_gram(values, parameters)


class _Call(NamedTuple):
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: th.Tensor


@contextmanager
def _recorded_calls(network: nn.Module) -> Iterator[list[_Call]]:
    """Notes every pass through a module that has parameters of its own, all of them its alone."""
    calls: list[_Call] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not isinstance(output, th.Tensor) or not output.requires_grad:
            return None
        calls.append(_Call(module, args, kwargs, output))
        # An activation in place would overwrite the output that the gradient is asked for.
        return output.clone()

    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            handles.extend(module.register_forward_hook(note, with_kwargs=True) for module in _modules_to_record(network))
        yield calls
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()


def _modules_to_record(network: nn.Module) -> list[nn.Module]:
    owners: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        module
        for module in network.modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
        and not any(True for child in module.children() for _ in child.parameters())
    ]


def _module_gram(module: nn.Module, uses: list[tuple[_Call, th.Tensor]], samples: int) -> th.Tensor:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if len(uses) == 1 and type(module) in _LINEAR and len(parameters) == len(list(module.parameters())):
        call, delta = uses[0]
        if delta.dim() == 2 and not call.kwargs and not module._forward_pre_hooks:
            inputs = call.args[0].detach()
            delta, scales = _unit_scale(delta)
            gram = _linear_gram(module, inputs, delta)
            if isinstance(module, (NoisyLinear, SparseNoisyLinear)) and module.noisy:
                gram += _linear_gram(module, inputs * module.noise_in, delta * module.noise_out)
            return gram * th.outer(scales, scales)

    def gradients(sample: int) -> tuple[th.Tensor, ...]:
        outputs = [module(*_one(call.args, sample, samples), **_one(call.kwargs, sample, samples)) for call, _ in uses]
        deltas = [delta[sample : sample + 1] for _, delta in uses]
        return th.autograd.grad(outputs, parameters, deltas, allow_unused=True, materialize_grads=True)

    return _gram_of_rows(gradients, samples, parameters)


def _graph_gram(values: th.Tensor, parameters: list[nn.Parameter]) -> th.Tensor:
    """Whatever the network does: the gradient of one sample after the other."""

    def gradients(sample: int) -> tuple[th.Tensor, ...]:
        return th.autograd.grad(values[sample], parameters, retain_graph=True, allow_unused=True, materialize_grads=True)

    return _gram_of_rows(gradients, len(values), parameters)


def _passes_check(gram: th.Tensor, values: th.Tensor, parameters: list[nn.Parameter]) -> bool:
    """Whether the squared norm of the gradient of ``weights @ values`` is ``weights @ gram @ weights``."""
    weights = th.randn(len(values), generator=th.Generator().manual_seed(0), dtype=th.float64).to(gram.device)
    gradients = th.autograd.grad(weights.to(values.dtype) @ values, parameters, retain_graph=True, allow_unused=True)
    norms = [th.linalg.vector_norm(gradient, dtype=th.float64) for gradient in gradients if gradient is not None]
    expected = th.stack(norms).square().sum()
    bound = (weights.abs() @ gram.diagonal().clamp(min=0).sqrt()) ** 2
    relative, absolute = _TOLERANCES
    error = (weights @ gram @ weights - expected).abs()
    # What is not finite says so itself.
    return not bool(error > relative * expected + absolute * bound)


def _linear_gram(layer: Any, inputs: th.Tensor, delta: th.Tensor) -> th.Tensor:
    if isinstance(layer, SparseLinear):
        return _sparse_gram(layer, inputs, delta)
    return (delta @ delta.T).double() * ((inputs @ inputs.T).double() + float(layer.bias is not None))


def _sparse_gram(layer: SparseLinear, inputs: th.Tensor, delta: th.Tensor) -> th.Tensor:
    columns = layer.topology.column_index(inputs.device)
    # One row per unit: an edge then picks contiguous numbers of all samples.
    inputs, delta = inputs.T.contiguous(), delta.T.contiguous()
    rows = th.repeat_interleave(layer.topology.fan_in().to(inputs.device))
    gram = th.zeros(delta.shape[1], delta.shape[1], dtype=th.float64, device=delta.device)
    if layer.bias is not None:
        gram += delta.T @ delta
    for row, column in zip(rows.split(EDGES_PER_CHUNK), columns.split(EDGES_PER_CHUNK), strict=True):
        per_sample = delta.index_select(0, row).mul_(inputs.index_select(0, column))
        gram += per_sample.T @ per_sample
    return gram


def _gram_of_rows(gradients: Callable[[int], Iterable[th.Tensor]], samples: int, parameters: list[nn.Parameter]) -> th.Tensor:
    """Inner products of gradients that come one sample at a time; blocks are computed anew rather than all kept."""
    device = parameters[0].device
    block_size = max(1, NUMBERS_PER_BLOCK // sum(p.numel() for p in parameters))
    blocks = [range(start, min(start + block_size, samples)) for start in range(0, samples, block_size)]
    gram = th.zeros(samples, samples, dtype=th.float64, device=device)

    def rows(block: range) -> tuple[th.Tensor, th.Tensor]:
        return _unit_scale(th.stack([th.cat([g.reshape(-1) for g in gradients(sample)]) for sample in block]))

    for i, block in enumerate(blocks):
        left, left_scales = rows(block)
        for j, other in enumerate(blocks[: i + 1]):
            right, right_scales = (left, left_scales) if i == j else rows(other)
            product = (left @ right.T).double() * th.outer(left_scales, right_scales)
            gram[block.start : block.stop, other.start : other.stop] = product
            gram[other.start : other.stop, block.start : block.stop] = product.T
    return gram


def _unit_scale(rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Each row divided by a power of two of its size, and these: the squares of vanishing gradients are 0 in float32."""
    largest = rows.abs().amax(dim=1).clamp(min=th.finfo(rows.dtype).tiny).double()
    scales = th.where(largest.isfinite(), th.exp2(largest.log2().floor()), 1.0)
    return rows / scales[:, None].to(rows.dtype), scales


def _one(values: Any, sample: int, samples: int) -> Any:
    """The arguments of a module for one sample."""
    if isinstance(values, th.Tensor):
        has_samples = values.dim() > 0 and len(values) == samples
        return (values[sample : sample + 1] if has_samples else values).detach()
    if isinstance(values, tuple):
        return tuple(_one(value, sample, samples) for value in values)
    if isinstance(values, dict):
        return {key: _one(value, sample, samples) for key, value in values.items()}
    return values


def _used(values: th.Tensor, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    gradients = th.autograd.grad(values.sum(), parameters, retain_graph=True, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
