"""
The product as operations that torch knows: for compiled graphs, tensors without data, and whatever else records what
is computed instead of computing it.

A graph holds numbers and tensors only, so a topology is passed as its ``handle``. The tensor with its identity comes
along: a layer whose identity was changed after its graph was made is noticed when the graph runs.

The gradients of each of the three products are the other two, as in ``products.py``.
"""

from typing import Any

import torch as th

from sb3_sparse.sparse.kernels import formula
from sb3_sparse.sparse.kernels.backend import Backend, empty_result
from sb3_sparse.sparse.kernels.choosing.chooser import choose_backend
from sb3_sparse.sparse.state.identity import is_near
from sb3_sparse.sparse.topology import Topology


@th.library.custom_op("sb3_sparse::linear", mutates_args=())
def linear(x: th.Tensor, values: th.Tensor, bias: th.Tensor | None, identity: th.Tensor | None, handle: str) -> th.Tensor:
    """``x Wᵀ + bias`` for ``x`` of shape ``(batch, in)``."""
    topology = _topology(handle, identity)
    backend = _backend(values, topology, len(x))
    bias = None if bias is None else bias.contiguous()
    return backend.forward(backend.pack(x), values.detach().contiguous(), topology, bias, len(x))


@linear.register_fake
def _(x: Any, values: Any, bias: Any, identity: Any, handle: str) -> th.Tensor:
    return empty_result(x, x.shape[0], Topology.of_handle(handle).rows)


@th.library.custom_op("sb3_sparse::linear_grad_input", mutates_args=())
def linear_grad_input(grad: th.Tensor, values: th.Tensor, handle: str) -> th.Tensor:
    """``grad W`` for ``grad`` of shape ``(batch, out)``."""
    topology = Topology.of_handle(handle)
    backend = _backend(values, topology, len(grad))
    return backend.grad_input(backend.pack(grad), values.detach().contiguous(), topology, len(grad))


@linear_grad_input.register_fake
def _(grad: Any, values: Any, handle: str) -> th.Tensor:
    return empty_result(grad, grad.shape[0], Topology.of_handle(handle).columns)


@th.library.custom_op("sb3_sparse::linear_grad_values", mutates_args=())
def linear_grad_values(grad: th.Tensor, x: th.Tensor, handle: str) -> th.Tensor:
    """The entries of ``gradᵀ x`` where weights live."""
    topology = Topology.of_handle(handle)
    backend = _backend(x, topology, len(x))
    return backend.grad_values(backend.pack(grad), backend.pack(x), topology, len(x))


@linear_grad_values.register_fake
def _(grad: Any, x: Any, handle: str) -> th.Tensor:
    return grad.new_empty(Topology.of_handle(handle).nnz)


def _save(ctx: Any, inputs: tuple[Any, ...], output: th.Tensor) -> None:
    x, values, _, _, ctx.handle = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values if ctx.needs_input_grad[0] else None)


def _differentiate(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
    x, values = ctx.saved_tensors
    grad_x = linear_grad_input(grad, values.conj(), ctx.handle) if ctx.needs_input_grad[0] else None
    grad_values = linear_grad_values(grad, x.conj(), ctx.handle) if ctx.needs_input_grad[1] else None
    grad_bias = grad.sum(dim=0) if ctx.needs_input_grad[2] else None
    return grad_x, grad_values, grad_bias, None, None


linear.register_autograd(_differentiate, setup_context=_save)


def _save_both(ctx: Any, inputs: tuple[Any, ...], output: th.Tensor) -> None:
    first, second, ctx.handle = inputs
    ctx.save_for_backward(first if ctx.needs_input_grad[1] else None, second if ctx.needs_input_grad[0] else None)


def _differentiate_grad_input(ctx: Any, again: th.Tensor) -> tuple[th.Tensor | None, ...]:
    grad, values = ctx.saved_tensors
    of_grad = linear(again, values.conj(), None, None, ctx.handle) if ctx.needs_input_grad[0] else None
    of_values = linear_grad_values(grad.conj(), again, ctx.handle) if ctx.needs_input_grad[1] else None
    return of_grad, of_values, None


def _differentiate_grad_values(ctx: Any, again: th.Tensor) -> tuple[th.Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    of_grad = linear(x.conj(), again, None, None, ctx.handle) if ctx.needs_input_grad[0] else None
    of_x = linear_grad_input(grad.conj(), again, ctx.handle) if ctx.needs_input_grad[1] else None
    return of_grad, of_x, None


linear_grad_input.register_autograd(_differentiate_grad_input, setup_context=_save_both)
linear_grad_values.register_autograd(_differentiate_grad_values, setup_context=_save_both)


@linear.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Any, values: Any, bias: Any, identity: Any, handle: str) -> Any:
    topology = Topology.of_handle(handle)
    x_dim, values_dim, bias_dim, *_ = in_dims

    def product(x: th.Tensor, values: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        return formula.linear(x, values, topology, bias)

    return th.func.vmap(product, in_dims=(x_dim, values_dim, bias_dim))(x, values, bias), 0


@th.library.custom_op("sb3_sparse::scatter", mutates_args=())
def scatter(values: th.Tensor, identity: th.Tensor | None, handle: str) -> th.Tensor:
    """The dense weight tensor."""
    return _topology(handle, identity).scatter(values, keep=True)


@scatter.register_fake
def _(values: Any, identity: Any, handle: str) -> th.Tensor:
    return values.new_empty(Topology.of_handle(handle).shape)


@th.library.custom_op("sb3_sparse::gather", mutates_args=())
def gather(weight: th.Tensor, handle: str) -> th.Tensor:
    """The entries of a dense tensor where weights live."""
    return Topology.of_handle(handle).gather(weight, keep=True)


@gather.register_fake
def _(weight: Any, handle: str) -> th.Tensor:
    return weight.new_empty(Topology.of_handle(handle).nnz)


def _save_handle(ctx: Any, inputs: tuple[Any, ...], output: th.Tensor) -> None:
    ctx.handle = inputs[-1]


scatter.register_autograd(lambda ctx, grad: (gather(grad, ctx.handle), None, None), setup_context=_save_handle)
gather.register_autograd(lambda ctx, grad: (scatter(grad, None, ctx.handle), None), setup_context=_save_handle)


def _topology(handle: str, identity: th.Tensor | None) -> Topology:
    topology = Topology.of_handle(handle)
    if identity is not None and identity.device.type == "cpu" and not is_near(identity.tolist(), topology.identity):
        raise RuntimeError(
            "the topology of a sparse layer was changed after its graph was compiled, by writing into its buffer "
            "topology_seed: call torch.compiler.reset() and compile the module again."
        )
    return topology


def _backend(values: th.Tensor, topology: Topology, batch: int) -> Backend:
    return choose_backend(values.device, values.dtype, topology, batch, True)
