"""The convolution that layers call: on our kernels where they are faster, else torch's own with a dense weight."""

from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_sparse.sparse.kernels.autograd import scatter_dense
from sb3_sparse.sparse.kernels.backends.half_precision import KERNEL_DTYPES
from sb3_sparse.sparse.kernels.choosing.convolutions import shifts
from sb3_sparse.sparse.kernels.convolution.images import Images
from sb3_sparse.sparse.kernels.convolution.shifted import Shifted
from sb3_sparse.sparse.kernels.convolution.window import Window
from sb3_sparse.sparse.kernels.products import has_memory, is_eager
from sb3_sparse.sparse.topology import Topology


class _SparseConv2d(th.autograd.Function):
    """The convolution with gradients for images, living weights and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: th.Tensor,
        values: th.Tensor,
        bias: th.Tensor | None,
        topology: Topology,
        window: Window,
        dtype: th.dtype,
    ) -> th.Tensor:
        products = Shifted(topology, window, _shape(x))
        packed = products.pack(x.float())
        # Whoever wants gradients of gradients gets them from torch's convolution, which needs `x` and `values` themselves.
        ctx.save_for_backward(x, values, packed.data if ctx.needs_input_grad[1] else None)
        ctx.products, ctx.topology, ctx.window = products, topology, window
        return _multiply(products, packed, values.detach(), None if bias is None else bias.detach(), dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: th.Tensor) -> tuple[th.Tensor | None, ...]:
        # Gradients leave in float32; autograd gives them the dtypes of what they are of.
        grad = grad_outputs[0].float()
        wants_x, wants_values, wants_bias = ctx.needs_input_grad[:3]
        x, values, data = ctx.saved_tensors
        x, values, packed_x = x.float(), values.float(), Images(data)
        # With create_graph=True, or many gradients at once.
        beyond_kernels = th.is_grad_enabled() or not is_eager(grad) or not has_memory(grad)
        if beyond_kernels or (wants_values and not ctx.products.may_sample(packed_x)):
            grads = _dense_gradients(grad, x, values, ctx.topology, ctx.window, (wants_x, wants_values))
            return *grads, grad.sum((0, 2, 3)) if wants_bias else None, None, None, None
        packed = ctx.products.pack_gradient(grad)
        grad_x = ctx.products.grad_input(packed, values.detach()) if wants_x else None
        grad_values = ctx.products.grad_values(packed, packed_x) if wants_values else None
        return grad_x, grad_values, grad.sum((0, 2, 3)) if wants_bias else None, None, None, None


def sparse_conv2d(
    x: th.Tensor,
    values: th.Tensor,
    topology: Topology,
    window: Window,
    bias: th.Tensor | None = None,
    identity: th.Tensor | None = None,
) -> th.Tensor:
    """
    A 2-D convolution whose weight is given by its living values.

    What our kernels return of 16 images or more lies ``(out_channels, height, width, batch)`` in memory. Element-wise
    functions, ``flatten(1)`` and the next such layer take it so, without a copy; ``view(batch, -1)`` works on it, and
    ``view(-1)`` does not.

    :param x: ``(batch, in_channels, height, width)``
    :param values: Living weights, ``(nnz,)``, in the order of the topology.
    :param topology: Where they live, in a weight ``(out_channels, in_channels / groups, height, width)``.
    :param window: Stride, padding, and so on.
    :param bias: ``(out_channels,)`` or None.
    :param identity: The layer's buffer ``topology_seed``, by which a compiled graph notices another topology.
    :return: ``(batch, out_channels, height, width)``
    """
    if not _can_shift(x, values, topology, window, bias):
        return _dense(x, scatter_dense(values, topology, identity), window, bias)
    grad, dtype = th.is_grad_enabled(), _dtype_of_result(x)
    wants = (grad and x.requires_grad, grad and values.requires_grad)
    if not shifts(topology, window, _shape(x), wants, dtype):
        return _dense(x, scatter_dense(values, topology, identity), window, bias)
    if any(wants) or (grad and bias is not None and bias.requires_grad):
        return _SparseConv2d.apply(x, values, bias, topology, window, dtype)
    products = Shifted(topology, window, _shape(x))
    return _multiply(products, products.pack(x.float()), values, bias, dtype)


def _multiply(products: Shifted, packed: Images, values: th.Tensor, bias: th.Tensor | None, dtype: th.dtype) -> th.Tensor:
    """Kernels compute in float32: where 16 bits are asked for, the result is rounded."""
    values, bias = values.float().contiguous(), None if bias is None else bias.float().contiguous()
    return products.forward(packed, values, bias).to(dtype)


def _shape(x: th.Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, channels, height, width


def _dtype_of_result(x: th.Tensor) -> th.dtype:
    return th.get_autocast_dtype("cpu") if th.is_autocast_enabled("cpu") else x.dtype


def _can_shift(x: th.Tensor, values: th.Tensor, topology: Topology, window: Window, bias: th.Tensor | None) -> bool:
    """Whether our kernels may see this: anything else, mistakes too, is torch's."""
    dtypes = {tensor.dtype for tensor in (x, values, bias) if tensor is not None}
    return (
        not th.compiler.is_compiling()
        and is_eager(x)
        and is_eager(values)
        and x.is_cpu
        and values.is_cpu
        and dtypes.issubset(KERNEL_DTYPES)
        # Tensors of several dtypes are a mistake, unless they are all cast.
        and (len(dtypes) == 1 or th.is_autocast_enabled("cpu"))
        and x.dim() == 4
        and x.shape[1] == topology.shape[1] * window.groups
        and values.shape == (topology.nnz,)
        and (bias is None or (is_eager(bias) and bias.is_cpu and bias.shape == (topology.rows,)))
    )


def _dense(x: th.Tensor, weight: th.Tensor, window: Window, bias: th.Tensor | None) -> th.Tensor:
    x, padding = _padded(x, window)
    return F.conv2d(x, weight, bias, window.stride, padding, window.dilation, window.groups)


def _padded(x: th.Tensor, window: Window) -> tuple[th.Tensor, tuple[int, int]]:
    """The images, and what torch is still to pad them with: it knows no sides."""
    if window.before == window.after:
        return x, window.before
    (top, left), (bottom, right) = window.before, window.after
    return F.pad(x, (left, right, top, bottom)), (0, 0)


def _dense_gradients(
    grad: th.Tensor, x: th.Tensor, values: th.Tensor, topology: Topology, window: Window, wants: tuple[bool, bool]
) -> tuple[th.Tensor | None, th.Tensor | None]:
    """Gradients of images and living weights in torch's operations, which can be differentiated again."""
    weight = scatter_dense(values, topology)
    padded, padding = _padded(x, window)
    dx, dw, _ = th.ops.aten.convolution_backward(
        grad,
        padded,
        weight,
        None,
        window.stride,
        padding,
        window.dilation,
        False,
        [0, 0],
        window.groups,
        [*wants, False],
    )
    if wants[0] and padded is not x:
        (top, left), (height, width) = window.before, x.shape[2:]
        dx = dx[:, :, top : top + height, left : left + width]
    return dx if wants[0] else None, topology.gather(dw) if wants[1] else None
