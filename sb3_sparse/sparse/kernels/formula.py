"""
The product in torch's own operations, for tools that look into a computation: tracers, exporters, function transforms.

As slow as a dense layer, and known to everything that torch's own layers are known to.
"""

import torch as th
from torch.nn import functional as F

from sb3_sparse.sparse.topology import Topology


def scatter(values: th.Tensor, topology: Topology, device: th.device | None = None) -> th.Tensor:
    """
    The dense weight tensor, a fresh one, differentiable with respect to ``values``.

    :param values: Living weights, ``(nnz,)``.
    :param topology: Where they live.
    :param device: Where ``values`` are, if they cannot tell.
    :return: Tensor of shape ``topology.shape``, zero where no weight lives.
    """
    # Not `Topology.scatter`, which writes into a tensor: exporters and transforms want functions, and positions that they
    # can take for a constant.
    index = _positions(topology.handle, str(values.device if device is None else device))
    return values.new_zeros(topology.numel).scatter(0, index, values).view(topology.shape)


def linear(
    x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, device: th.device | None = None
) -> th.Tensor:
    """
    ``x Wᵀ + bias``.

    :param x: ``(..., in)``
    :param values: Living weights, ``(nnz,)``.
    :param topology: Where they live.
    :param bias: ``(out,)`` or None.
    :param device: Where ``values`` are, if they cannot tell.
    """
    return F.linear(x, scatter(values, topology, device), bias)


def _positions(handle: str, device: str) -> th.Tensor:
    # Of names alone, so that torch.export keeps the result, instead of how it was computed. torch.jit.trace keeps it too,
    # and warns that it is a constant where it watches.
    state = th._C._get_tracing_state()
    th._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return Topology.of_handle(handle).flat_index(device)
    finally:
        th._C._set_tracing_state(state)  # type: ignore[attr-defined]


# What torch.compiler.assume_constant_result does, without the second that importing the compiler takes.
_positions._dynamo_marked_constant = True  # type: ignore[attr-defined]
