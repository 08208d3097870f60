"""
The product of a sparse linear layer and its gradients, as functions that autograd knows and can differentiate again.

With a weight ``W`` of living values ``v``, three products are linear in each of their two arguments: ``x Wᵀ``, ``g W``, and
the entries of ``gᵀ x`` where weights live. The gradients of each are the other two, so a backend's three products are
enough for derivatives of any order. Where a tool of torch's looks at the tensors, they are torch's own operations.
"""

from typing import Any

import torch as th
from torch.autograd import forward_ad

from sb3_sparse.sparse.kernels import formula
from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.topology import Topology

_PLAIN = (th.Tensor, th.nn.Parameter)
# Of tools that may be at work. Asked in every call, so not looked up in every call.
_transform = th._C._functorch.peek_interpreter_stack
_number_of_dispatch_modes = th._C._len_torch_dispatch_stack
_tracing_state = th._C._get_tracing_state


def is_eager(tensor: Any) -> bool:
    """Whether nothing but torch's own autograd looks at computations with that tensor, and there is something to compute."""
    return (
        type(tensor) in _PLAIN
        and not tensor.is_meta
        and _transform() is None
        and _number_of_dispatch_modes() == 0
        and _tracing_state() is None
        and forward_ad._current_level < 0
    )


def is_plain(tensor: Any) -> bool:
    """Whether it is a tensor or parameter of torch's, and of no subclass."""
    return type(tensor) in _PLAIN


def has_memory(tensor: th.Tensor) -> bool:
    """The tensors of torch's older vmap look like any other until they are asked for their data."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def product(x: th.Tensor, values: th.Tensor, topology: Topology, backend: Backend) -> th.Tensor:
    """``x Wᵀ``, of shape ``(batch, out)``."""
    if _can_run(x, values):
        return Product.apply(x, values.contiguous(), None, topology, backend)
    return x @ formula.scatter(values, topology).t()


def input_gradient(grad: th.Tensor, values: th.Tensor, topology: Topology, backend: Backend) -> th.Tensor:
    """``grad W``, of shape ``(batch, in)``."""
    if _can_run(grad, values):
        return _InputGradient.apply(grad, values.contiguous(), topology, backend)
    return grad @ formula.scatter(values, topology)


def values_gradient(grad: th.Tensor, x: th.Tensor, topology: Topology, backend: Backend) -> th.Tensor:
    """The entries of ``gradᵀ x`` where weights live, of shape ``(nnz,)``."""
    if _can_run(grad, x):
        return _ValuesGradient.apply(grad, x, topology, backend)
    return (grad.t() @ x).reshape(-1).index_select(0, topology.flat_index(x.device))


def _can_run(*tensors: th.Tensor) -> bool:
    return all(is_eager(tensor) and has_memory(tensor) for tensor in tensors)


class Product(th.autograd.Function):
    """``y = x Wᵀ + bias`` with gradients for ``x``, the living values and the bias."""

    @staticmethod
    def forward(
        ctx: Any, x: th.Tensor, values: th.Tensor, bias: th.Tensor | None, topology: Topology, backend: Backend
    ) -> th.Tensor:
        packed = backend.pack(x)
        wants_x, wants_values = ctx.needs_input_grad[:2]
        # What no gradient needs is not kept alive: the actor's pass through a frozen critic saves no activations. `x` itself,
        # mostly the same memory as `packed`, leads on to what it was made of, for second derivatives.
        ctx.save_for_backward(packed if wants_values else None, values if wants_x else None, x if wants_values else None)
        ctx.topology, ctx.backend, ctx.batch = topology, backend, x.shape[0]
        return backend.forward(packed, values.detach(), topology, bias, x.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        (grad,) = grad_outputs
        packed_x, values, x = ctx.saved_tensors
        grad_x = grad_values = None
        wants_x, wants_values, wants_bias = ctx.needs_input_grad[:3]
        if th.is_grad_enabled() or grad.is_complex() or not _can_run(grad):
            # With create_graph=True, or many gradients at once: torch.func.vmap, is_grads_batched=True.
            if wants_x:
                grad_x = input_gradient(grad, values.conj(), ctx.topology, ctx.backend)
            if wants_values:
                grad_values = values_gradient(grad, x.conj(), ctx.topology, ctx.backend)
        else:
            packed = ctx.backend.pack(grad)
            if wants_x:
                grad_x = ctx.backend.grad_input(packed, values.detach(), ctx.topology, ctx.batch)
            if wants_values:
                grad_values = ctx.backend.grad_values(packed, packed_x, ctx.topology, ctx.batch)
        return grad_x, grad_values, grad.sum(dim=0) if wants_bias else None, None, None


class _InputGradient(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: th.Tensor, values: th.Tensor, topology: Topology, backend: Backend) -> th.Tensor:
        ctx.save_for_backward(grad, values)
        ctx.topology, ctx.backend = topology, backend
        return backend.grad_input(backend.pack(grad), values.detach(), topology, grad.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        (again,) = grad_outputs
        grad, values = ctx.saved_tensors
        wants_grad, wants_values = ctx.needs_input_grad[:2]
        of_grad = product(again, values.conj(), ctx.topology, ctx.backend) if wants_grad else None
        of_values = values_gradient(grad.conj(), again, ctx.topology, ctx.backend) if wants_values else None
        return of_grad, of_values, None, None


class _ValuesGradient(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: th.Tensor, x: th.Tensor, topology: Topology, backend: Backend) -> th.Tensor:
        ctx.save_for_backward(grad, x)
        ctx.topology, ctx.backend = topology, backend
        return backend.grad_values(backend.pack(grad), backend.pack(x), topology, grad.shape[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        (again,) = grad_outputs
        grad, x = ctx.saved_tensors
        wants_grad, wants_x = ctx.needs_input_grad[:2]
        of_grad = product(x.conj(), again, ctx.topology, ctx.backend) if wants_grad else None
        of_x = input_gradient(grad.conj(), again, ctx.topology, ctx.backend) if wants_x else None
        return of_grad, of_x, None, None
