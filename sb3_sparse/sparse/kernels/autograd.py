"""The differentiable operations on compressed weights."""

from typing import Any

import torch as th
from torch.autograd.function import once_differentiable

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.kernels.chooser import choose_backend
from sb3_sparse.sparse.topology import Topology


class _SparseLinear(th.autograd.Function):
    """``y = x Wᵀ + bias`` with gradients for ``x``, the living weights and the bias. Differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, x: th.Tensor, values: th.Tensor, bias: th.Tensor | None, topology: Topology, backend: Backend
    ) -> th.Tensor:
        packed = backend.pack(x)
        # What no gradient needs is not kept alive: the actor's pass through a frozen critic saves no activations.
        ctx.save_for_backward(
            packed if ctx.needs_input_grad[1] else None,
            values if ctx.needs_input_grad[0] else None,
        )
        ctx.topology, ctx.backend, ctx.batch = topology, backend, len(x)
        return backend.forward(packed, values.detach(), topology, bias, len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        (grad,) = grad_outputs
        packed_x, values = ctx.saved_tensors
        packed = ctx.backend.pack(grad)
        grad_x = grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.backend.grad_input(packed, values.detach(), ctx.topology, ctx.batch)
        if ctx.needs_input_grad[1]:
            grad_values = ctx.backend.grad_values(packed, packed_x, ctx.topology, ctx.batch)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_x, grad_values, grad_bias, None, None


class _ScatterDense(th.autograd.Function):
    """Living weights to the dense weight tensor; the gradient is gathered back."""

    @staticmethod
    def forward(ctx: Any, values: th.Tensor, topology: Topology) -> th.Tensor:
        ctx.topology = topology
        dense = values.new_zeros(topology.numel)
        dense.index_copy_(0, topology.flat_index(values.device, keep=True), values)
        return dense.view(topology.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor, None]:
        (grad,) = grad_outputs
        return grad.reshape(-1).index_select(0, ctx.topology.flat_index(grad.device, keep=True)), None


def sparse_linear(x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None = None) -> th.Tensor:
    """
    ``x Wᵀ + bias`` for a weight given by its living values.

    Under autocast the product runs in the autocast dtype, as ``torch.nn.functional.linear`` does. Gradients
    exist once: differentiating them again raises.

    :param x: Input of shape ``(..., in)``.
    :param values: Living weights, ``(nnz,)``, row by row.
    :param topology: Where they live.
    :param bias: ``(out,)`` or None.
    :return: Output of shape ``(..., out)``.
    :raises ValueError: If a shape, dtype or device does not fit.
    """
    if x.shape[-1] != topology.columns:
        raise ValueError(f"input of shape {tuple(x.shape)}: expected {topology.columns} features in the last dimension.")
    if values.shape != (topology.nnz,) or (bias is not None and bias.shape != (topology.rows,)):
        shapes = f"values {tuple(values.shape)}, bias {None if bias is None else tuple(bias.shape)}"
        raise ValueError(f"{shapes}: expected {(topology.nnz,)} and {(topology.rows,)} for {topology}.")
    if th.is_autocast_enabled(x.device.type) and values.dtype != th.float64:
        dtype = th.get_autocast_dtype(x.device.type)
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    for name, tensor in (("input", x), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (values.dtype, values.device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, the weights are {values.dtype} on {values.device}: "
                "convert one of them with .to()."
            )
    rows = x if x.dim() == 2 else x.reshape(-1, topology.columns)
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    training = th.is_grad_enabled() and (x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad))
    backend = choose_backend(values.device, values.dtype, topology, len(rows), training)
    if training:
        y = _SparseLinear.apply(rows, values, bias, topology, backend)
    else:
        # Acting on single observations: a graph that nobody asked for would cost as much as the product.
        y = backend.forward(backend.pack(rows), values, topology, bias, len(rows))
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], topology.rows)


def scatter_dense(values: th.Tensor, topology: Topology) -> th.Tensor:
    """
    The dense weight tensor, a fresh one, differentiable with respect to ``values``.

    :param values: Living weights, ``(nnz,)``.
    :param topology: Where they live.
    :return: Tensor of shape ``topology.shape``, zero where no weight lives.
    """
    return _ScatterDense.apply(values, topology)
