"""
The product that layers call. Eager torch runs our kernels (``products.py``); where a tool of torch's is at work on the
computation, it gets what it can read: ``operation.py`` or ``formula.py``.
"""

from typing import Any

import torch as th
from torch.autograd import forward_ad

from sb3_sparse.sparse.kernels import formula, operation
from sb3_sparse.sparse.kernels.choosing.chooser import choose_backend
from sb3_sparse.sparse.kernels.products import Product, is_eager, is_plain
from sb3_sparse.sparse.topology import Topology

# Of tools that may be at work. Asked in every call, so not looked up in every call.
_transform = th._C._functorch.peek_interpreter_stack
_tracing_state = th._C._get_tracing_state


def _wants_formula(*tensors: Any) -> bool:
    """Whether the tool that is at work has to see torch's own operations: what it makes is to run without this package."""
    if th.compiler.is_compiling():
        # What `is_exporting()` answers; itself it is True in whatever torch.compile of torch 2.8 and 2.9 looks at.
        return th.compiler._is_exporting_flag
    return (
        any(isinstance(tensor, th.fx.Proxy) for tensor in tensors)
        or _tracing_state() is not None
        or _transform() is not None
        or forward_ad._current_level >= 0
    )


def _for_tools(
    x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, identity: th.Tensor | None
) -> th.Tensor:
    """The product, as the tool that is at work wants to see it."""
    if _wants_formula(x, values):
        return formula.linear(x, values, topology, bias, None if identity is None else identity.device)
    _check(x, values, topology, bias)
    x, values, bias = _autocast(x, values, bias)
    _check_places(x, values, bias)
    y = operation.linear(x.reshape(-1, topology.columns), values, bias, identity, topology.handle)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], topology.rows)


def sparse_linear(
    x: th.Tensor,
    values: th.Tensor,
    topology: Topology,
    bias: th.Tensor | None = None,
    identity: th.Tensor | None = None,
) -> th.Tensor:
    """
    ``x Wᵀ + bias`` for a weight given by its living values.

    Under autocast the product runs in the autocast dtype, as ``torch.nn.functional.linear`` does. Gradients can be
    differentiated again.

    :param x: Input of shape ``(..., in)``.
    :param values: Living weights, ``(nnz,)``, row by row.
    :param topology: Where they live.
    :param bias: ``(out,)`` or None.
    :param identity: The layer's buffer ``topology_seed``, by which a compiled graph notices another topology.
    :return: Output of shape ``(..., out)``; its memory layout is described at :class:`Backend`.
    :raises ValueError: If a shape, dtype or device does not fit.
    """
    if th.compiler.is_compiling() or not (is_eager(x) and is_plain(values)):
        return _for_tools(x, values, topology, bias, identity)
    _check(x, values, topology, bias)
    if th.is_autocast_enabled("cpu" if x.is_cpu else x.device.type):
        x, values, bias = _autocast(x, values, bias)
    _check_places(x, values, bias)
    rows = x if x.dim() == 2 else x.reshape(-1, topology.columns)
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    training = th.is_grad_enabled() and (x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad))
    batch = rows.shape[0]  # which takes a quarter of the time of len(rows)
    backend = choose_backend(values.device, values.dtype, topology, batch, training)
    if training:
        y = Product.apply(rows, values, bias, topology, backend)
    else:
        # Acting on single observations: a graph that nobody asked for would cost as much as the product.
        y = backend.forward(backend.pack(rows), values, topology, bias, batch)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], topology.rows)


def scatter_dense(values: th.Tensor, topology: Topology, identity: th.Tensor | None = None) -> th.Tensor:
    """
    The dense weight tensor, a fresh one, differentiable with respect to ``values``.

    :param values: Living weights, ``(nnz,)``.
    :param topology: Where they live.
    :param identity: The layer's buffer ``topology_seed``, by which a compiled graph notices another topology.
    :return: Tensor of shape ``topology.shape``, zero where no weight lives.
    """
    if th.compiler.is_compiling() or not is_eager(values):
        if _wants_formula(values):
            return formula.scatter(values, topology, None if identity is None else identity.device)
        return operation.scatter(values, identity, topology.handle)
    return topology.scatter(values, keep=True)


def _check(x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None) -> None:
    if not x.dim() or x.shape[-1] != topology.columns:
        raise ValueError(f"input of shape {tuple(x.shape)}: expected {topology.columns} features in the last dimension.")
    if values.shape != (topology.nnz,) or (bias is not None and bias.shape != (topology.rows,)):
        shapes = f"values {tuple(values.shape)}, bias {None if bias is None else tuple(bias.shape)}"
        raise ValueError(f"{shapes}: expected {(topology.nnz,)} and {(topology.rows,)} for {topology}.")


def _check_places(x: th.Tensor, values: th.Tensor, bias: th.Tensor | None) -> None:
    dtype, device = values.dtype, values.device
    if x.dtype is dtype and x.device == device and (bias is None or (bias.dtype is dtype and bias.device == device)):
        return
    for name, tensor in (("input", x), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (dtype, device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, the weights are {dtype} on {device}: "
                "convert one of them with .to()."
            )


def _autocast(x: th.Tensor, values: th.Tensor, bias: th.Tensor | None) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    place = x.device.type
    # torch.compile of torch 2.8 and 2.9 cannot look into the question which places have autocast.
    available = place != "meta" if th.compiler.is_compiling() else th.amp.is_autocast_available(place)
    # Of complex numbers the imaginary part would be lost, of float64 half of the digits: torch casts neither.
    is_cast = values.dtype.is_floating_point and values.dtype != th.float64 and not x.is_complex()
    if available and th.is_autocast_enabled(place) and is_cast:
        dtype = th.get_autocast_dtype(place)
        x, values = x.to(dtype), values.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return x, values, bias
