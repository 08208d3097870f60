"""
Two products with a ReLU between them, as in a residual block, as one operation: what lies between them is written once,
instead of being read and written again by the ReLU and by its gradient. The numbers are those of the three operations.
"""

from typing import Any, NamedTuple

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.kernels.choosing.chooser import choose_backend
from sb3_sparse.sparse.kernels.products import has_memory, input_gradient, is_eager, is_plain, product, values_gradient
from sb3_sparse.sparse.topology import Topology


class Weights(NamedTuple):
    """Of a sparse linear layer."""

    values: th.Tensor
    bias: th.Tensor | None
    topology: Topology

    @property
    def tensors(self) -> tuple[th.Tensor, ...]:
        """Values, and bias if there is one."""
        return (self.values,) if self.bias is None else (self.values, self.bias)


def can_fuse(x: th.Tensor, first: Weights, second: Weights) -> bool:
    """Whether :func:`linear_relu_linear` can take these tensors: plain ones of one kind, and no tool of torch's at work."""
    if not is_eager(x) or x.dim() != 2 or x.shape[1] != first.topology.columns:
        return False
    if first.topology.rows != second.topology.columns or th.is_autocast_enabled(x.device.type):
        return False
    if any(w.values.shape != (w.topology.nnz,) for w in (first, second)):
        return False
    if any(w.bias is not None and w.bias.shape != (w.topology.rows,) for w in (first, second)):
        return False
    return all(
        is_plain(tensor) and tensor.dtype is x.dtype and tensor.device == x.device and tensor.is_contiguous()
        for tensor in (*first.tensors, *second.tensors)
    )


def linear_relu_linear(x: th.Tensor, first: Weights, second: Weights) -> th.Tensor:
    """
    ``sparse_linear(relu(sparse_linear(x, first)), second)``, for what :func:`can_fuse` allows.

    :param x: ``(batch, in)``
    :param first: Of the layer before the ReLU.
    :param second: Of the layer behind it.
    :return: ``(batch, out)``
    """
    batch, records = x.shape[0], th.is_grad_enabled()
    hidden_is_trained = records and (x.requires_grad or any(tensor.requires_grad for tensor in first.tensors))
    is_trained = hidden_is_trained or (records and any(tensor.requires_grad for tensor in second.tensors))
    # As the two layers would, one after the other.
    backends = tuple(
        choose_backend(x.device, x.dtype, weights.topology, batch, training)
        for weights, training in ((first, hidden_is_trained), (second, is_trained))
    )
    if is_trained:
        tensors = (x, first.values, first.bias, second.values, second.bias)
        return _LinearReluLinear.apply(*tensors, (first.topology, second.topology), backends)
    before, after = backends
    hidden = before.forward_relu(before.pack(x), first.values, first.topology, first.bias, batch)
    return after.forward(after.pack(hidden), second.values, second.topology, second.bias, batch)


class _LinearReluLinear(th.autograd.Function):
    """Gradients as those of the three operations, in the same order."""

    @staticmethod
    def forward(
        ctx: Any,
        x: th.Tensor,
        values_1: th.Tensor,
        bias_1: th.Tensor | None,
        values_2: th.Tensor,
        bias_2: th.Tensor | None,
        topologies: tuple[Topology, Topology],
        backends: tuple[Backend, Backend],
    ) -> th.Tensor:
        before, after = backends
        batch = x.shape[0]
        packed = before.pack(x)
        hidden = after.pack(before.forward_relu(packed, values_1.detach(), topologies[0], bias_1, batch))
        wants_x, wants_values_1, wants_bias_1, wants_values_2, _ = ctx.needs_input_grad[:5]
        ctx.wants_hidden = wants_x or wants_values_1 or wants_bias_1
        # What no gradient needs is not kept alive. `x` is mostly the same memory as `packed`.
        ctx.save_for_backward(
            packed if wants_values_1 else None,
            values_1 if wants_x or wants_values_2 else None,
            hidden if wants_values_2 or ctx.wants_hidden else None,
            values_2 if ctx.wants_hidden else None,
            x if wants_values_1 or wants_values_2 else None,
            bias_1 if wants_values_2 else None,
        )
        ctx.topologies, ctx.backends, ctx.batch = topologies, backends, batch
        return after.forward(hidden, values_2.detach(), topologies[1], bias_2, batch)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        (grad,) = grad_outputs
        if th.is_grad_enabled() or not is_eager(grad) or not has_memory(grad):
            return *_gradients_again(ctx, grad), None, None
        return *_gradients(ctx, grad), None, None


def _gradients(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
    """Of x, and values and bias of both layers."""
    packed_x, values_1, hidden, values_2, *_ = ctx.saved_tensors
    (before, after), topologies, batch = ctx.backends, ctx.topologies, ctx.batch
    wants_x, wants_values_1, wants_bias_1, wants_values_2, wants_bias_2 = ctx.needs_input_grad[:5]
    grad_x = grad_values_1 = grad_bias_1 = grad_values_2 = grad_hidden = None
    packed = after.pack(grad)
    if ctx.wants_hidden:
        grad_hidden = after.grad_input_relu(packed, values_2.detach(), topologies[1], hidden, batch)
    if wants_values_2:
        grad_values_2 = after.grad_values(packed, hidden, topologies[1], batch)
    grad_bias_2 = grad.sum(dim=0) if wants_bias_2 else None
    if grad_hidden is not None:
        packed = before.pack(grad_hidden)
        if wants_x:
            grad_x = before.grad_input(packed, values_1.detach(), topologies[0], batch)
        if wants_values_1:
            grad_values_1 = before.grad_values(packed, packed_x, topologies[0], batch)
        grad_bias_1 = grad_hidden.sum(dim=0) if wants_bias_1 else None
    return grad_x, grad_values_1, grad_bias_1, grad_values_2, grad_bias_2


def _gradients_again(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
    """The same with create_graph=True, or for many gradients at once, as by ``is_grads_batched=True``."""
    _, values_1, packed_hidden, values_2, x, bias_1 = ctx.saved_tensors
    backends, topologies = ctx.backends, ctx.topologies
    wants_x, wants_values_1, wants_bias_1, wants_values_2, wants_bias_2 = ctx.needs_input_grad[:5]
    grad_x = grad_values_1 = grad_bias_1 = grad_values_2 = None
    if ctx.wants_hidden:
        is_active = backends[1].unpack(packed_hidden, ctx.batch) > 0
        grad_hidden = input_gradient(grad, values_2, topologies[1], backends[1]) * is_active
        grad_x = input_gradient(grad_hidden, values_1, topologies[0], backends[0]) if wants_x else None
        grad_values_1 = values_gradient(grad_hidden, x, topologies[0], backends[0]) if wants_values_1 else None
        grad_bias_1 = grad_hidden.sum(dim=0) if wants_bias_1 else None
    if wants_values_2:
        # Once more: what was saved of it does not lead on to what it was made of.
        hidden = product(x, values_1, topologies[0], backends[0])
        hidden = (hidden if bias_1 is None else hidden + bias_1).relu()
        grad_values_2 = values_gradient(grad, hidden, topologies[1], backends[1])
    return grad_x, grad_values_1, grad_bias_1, grad_values_2, grad.sum(dim=0) if wants_bias_2 else None
