"""Whether a convolution runs on our kernels or, with a dense weight, on torch's: chosen as backends are."""

import math
from collections.abc import Callable

import torch as th
from torch.nn import functional as F

from sb3_sparse.sparse.kernels.backends import BACKENDS
from sb3_sparse.sparse.kernels.choosing import chooser
from sb3_sparse.sparse.kernels.choosing.measure import Measurement, compete
from sb3_sparse.sparse.kernels.convolution.shifted import Shifted, can_shift
from sb3_sparse.sparse.kernels.convolution.window import Window
from sb3_sparse.sparse.kernels.native.code import LANES
from sb3_sparse.sparse.topology import Topology

DENSE, SHIFTED = "dense", "shifted"
# Multiply-adds of a dense convolution that are measured at most, for one product.
_MAX_WORK = 1 << 29
# Below so many, calls cost more than what a sparse product saves.
_MIN_WORK = 1 << 20
# By the rule, convolutions are sparse up to this density, which was the faster way for all shapes that were tried; in 16
# bits, which torch may be faster with and our kernels are not, up to half of it.
_MAX_DENSITY = 0.5


def shifts(
    topology: Topology,
    window: Window,
    shape: tuple[int, int, int, int],
    wants: tuple[bool, bool],
    dtype: th.dtype = th.float32,
) -> bool:
    """
    Whether a convolution of images on the CPU runs on our kernels. Never if that was measured to be slower.

    ``SB3_SPARSE_BACKEND`` counts as for linear layers: ``blocked`` and ``compiled`` stand for our kernels.

    :param shape: Of the images, ``(batch, channels, height, width)``.
    :param wants: Whether gradients of images and of values are wanted.
    :param dtype: Of the result: float32, or 16 bits.
    """
    mode = chooser.environment_variable() or chooser.AUTO
    batch = 1 << (shape[0] - 1).bit_length() if shape[0] else 0
    if shape[0] < LANES:
        # Of fewer than a vector of images kernels work otherwise.
        batch = min(batch, LANES - 1)
    key = (mode, batch, shape[1:], window, wants, dtype, th.get_num_threads())
    chosen = chooser.chosen_convolutions.get(topology)
    name = None if chosen is None else chosen.get(key)
    if name is None:
        name = _decide(mode, topology, window, shape, wants, batch, dtype)
        chooser.chosen_convolutions.setdefault(topology, {})[key] = name
    # Of a batch that is rounded up it was asked whether the kernels can do it.
    return name == SHIFTED and can_shift(topology, window, shape)


def _decide(
    mode: str,
    topology: Topology,
    window: Window,
    shape: tuple[int, int, int, int],
    wants: tuple[bool, bool],
    batch: int,
    dtype: th.dtype,
) -> str:
    if not can_shift(topology, window, shape):
        return DENSE
    if mode not in (chooser.AUTO, chooser.DETERMINISTIC):
        backend = chooser.forced_backend(mode, th.device("cpu"), th.float32)
        return SHIFTED if backend in (BACKENDS["blocked"], BACKENDS["compiled"]) else DENSE
    work = topology.numel * math.prod(window.out_size(shape[2:]))
    is_tiny = work * batch < _MIN_WORK
    max_density = _MAX_DENSITY if dtype is th.float32 else _MAX_DENSITY / 2
    by_rule = DENSE if is_tiny or batch < LANES or topology.density > max_density else SHIFTED
    if mode == chooser.DETERMINISTIC or is_tiny:
        return by_rule
    use = {(False, False): "forward", (False, True): "values", (True, False): "images"}.get(wants, "training")
    kind = (
        f"cpu x{th.get_num_threads()} {str(dtype).removeprefix('torch.')} "
        f"batch {batch} convolution {_by(topology.shape)}:{topology.nnz} "
        f"of {_by(shape[2:])} stride {_by(window.stride)} padding {_by(window.before)} {_by(window.after)} "
        f"dilation {_by(window.dilation)} groups {window.groups} {use}"
    )
    return chooser.decide(kind, [DENSE, SHIFTED], by_rule, lambda: _measure(topology, window, shape, wants, work, dtype))


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


@th.no_grad()
def _measure(
    topology: Topology, window: Window, shape: tuple[int, int, int, int], wants: tuple[bool, bool], work: int, dtype: th.dtype
) -> Measurement:
    """For as many images as the bounds allow, but for whole vectors of them."""
    batch, channels, height, width = shape
    batch = max(min(batch, LANES), min(batch, _MAX_WORK // work // LANES * LANES))

    def filled(*size: int) -> th.Tensor:
        # As layers have it, whatever torch makes by default: kernels read at its address.
        return th.linspace(-1, 1, math.prod(size), dtype=th.float32, device="cpu").to(dtype).view(size)

    x, values = filled(batch, channels, height, width), filled(topology.nnz)
    grad = filled(batch, topology.rows, *window.out_size((height, width))) if any(wants) else None
    products = Shifted(topology, window, (batch, channels, height, width))

    def shifted() -> None:
        packed, weights = products.pack(x.float()), values.float()
        products.forward(packed, weights, None).to(dtype)
        if grad is not None:
            packed_grad = products.pack_gradient(grad.float())
            if wants[0]:
                products.grad_input(packed_grad, weights).to(dtype)
            if wants[1]:
                products.grad_values(packed_grad, packed).to(dtype)

    return compete({DENSE: _dense_step(x, values, grad, topology, window, wants), SHIFTED: shifted})


def _dense_step(
    x: th.Tensor, values: th.Tensor, grad: th.Tensor | None, topology: Topology, window: Window, wants: tuple[bool, bool]
) -> Callable[[], None]:
    (top, left), (bottom, right) = window.before, window.after
    is_even = window.before == window.after
    padding = window.before if is_even else (0, 0)
    settings = (window.stride, padding, window.dilation)

    def step() -> None:
        padded = x if is_even else F.pad(x, (left, right, top, bottom))
        weight = topology.scatter(values, keep=True)
        F.conv2d(padded, weight, None, *settings, window.groups)
        if grad is not None:
            mask = [*wants, False]
            _, dw, _ = th.ops.aten.convolution_backward(
                grad, padded, weight, None, *settings, False, [0, 0], window.groups, mask
            )
            if wants[1]:
                topology.gather(dw, keep=True)

    return step
