"""
The three products of a sparse convolution on our kernels: each living weight multiplies shifted rows of an image.

float32 on the CPU. Results do not depend on the number of threads.
"""

import torch as th

from sb3_sparse.sparse.kernels.convolution.cut import Cut, Cuts, Size, cuts
from sb3_sparse.sparse.kernels.convolution.images import Images, Result, by_image, by_row, holds_images
from sb3_sparse.sparse.kernels.convolution.window import Window
from sb3_sparse.sparse.kernels.native.convolution import Geometry, kernel
from sb3_sparse.sparse.kernels.native.threads import run, thread_count
from sb3_sparse.sparse.topology import Topology


class Shifted:
    """
    The products for images of one shape.

    :param topology: Which weights live.
    :param window: Settings of the convolution.
    :param shape: ``(batch, channels, height, width)`` of the images.
    :raises ValueError: If the window is too large for the kernels: see :func:`can_shift`.
    """

    def __init__(self, topology: Topology, window: Window, shape: tuple[int, int, int, int]):
        made = _cuts(topology, window, shape)
        if made is None:
            raise ValueError(f"{window} over images of shape {shape}: its taps do not fit into a panel.")
        self._cuts, self._window, self._shape = made, window, shape
        self._nnz = topology.nnz
        self._out_shape = (shape[0], topology.rows, *window.out_size(shape[2:]))

    def pack(self, x: th.Tensor) -> Images:
        """Images as the products read them, made once for all of them."""
        if holds_images(len(x)):
            return by_image(x)
        return by_row(x, self._window.stride[1], self._window.before[1])

    def pack_gradient(self, grad: th.Tensor) -> Images:
        """The gradient of the result, likewise."""
        return by_image(grad) if holds_images(len(grad)) else by_row(grad, left=self._cuts.left)

    def forward(self, x: Images, values: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        """
        The convolution.

        :param x: From :meth:`pack`.
        :param values: Living weights, ``(nnz,)``, contiguous.
        :param bias: ``(out_channels,)``, contiguous, or None.
        """
        result = Result(values, self._out_shape)
        self._multiply(self._cuts.forward, x, values, bias, result.data)
        return result.images()

    def grad_input(self, grad: Images, values: th.Tensor) -> th.Tensor:
        """
        The gradient of the images.

        :param grad: From :meth:`pack_gradient`.
        """
        batch, channels, *_ = self._shape
        phases, (down, across) = self._cuts.phases, self._window.stride
        if holds_images(batch) or len(phases) == 1:
            result = Result(values, self._shape)
            for top, left, cut in phases:
                if cut is not None:
                    pixels = result.data[:, top::down, left::across] if holds_images(batch) else result.data
                    self._multiply(cut, grad, values, None, pixels)
            return result.images()
        dx = values.new_empty(self._shape)
        for top, left, cut in phases:
            if cut is not None:
                pixels = dx[:, :, top::down, left::across]
                result = Result(values, (batch, channels, *pixels.shape[2:]))
                self._multiply(cut, grad, values, None, result.data)
                pixels.copy_(result.images())
        return dx

    def may_sample(self, x: Images) -> bool:
        """
        Whether :meth:`grad_values` is right for these images. Vectors of a row's pixels reach beyond the row's end, where
        weights are multiplied with zeros for a gradient and pixels that they never see: those must be finite.

        :param x: From :meth:`pack`.
        """
        return holds_images(self._shape[0]) or bool(x.data.sum().isfinite())

    def grad_values(self, grad: Images, x: Images) -> th.Tensor:
        """
        The gradient of the living weights, ``(nnz,)``.

        :param grad: From :meth:`pack_gradient`.
        :param x: From :meth:`pack`, of which :meth:`may_sample` holds.
        """
        cut = self._cuts.forward
        data = grad.data
        if not holds_images(self._shape[0]) and self._cuts.left:
            # Without the zeros to the left, which are there for the other product: rows of both have to begin alike.
            data = by_row(_unpacked(grad, self._shape[0], self._cuts.left, self._out_shape[3])).data
        dv = data.new_zeros(len(cut.order))
        geometry = _geometry(cut, x, data)
        threads = min(cut.product.rows, thread_count(self._work()))
        bounds = tuple(cut.product.rows * part // threads for part in range(threads + 1))
        arguments = (dv.data_ptr(), *cut.addresses, data.data_ptr(), x.data.data_ptr(), *geometry)
        run(kernel("sample_product", cut.tile), arguments, bounds)
        return dv.index_select(0, cut.places)

    def _multiply(self, cut: Cut, x: Images, values: th.Tensor, bias: th.Tensor | None, y: th.Tensor) -> None:
        packed = values.index_select(0, cut.order)
        geometry = _geometry(cut, x, y)
        n_tiles = geometry.tiles_down * x.vectors
        threads = min(n_tiles, thread_count(self._work()))
        bounds = tuple(n_tiles * part // threads for part in range(threads + 1))
        bias_pointer = 0 if bias is None else bias.data_ptr()
        arguments = (packed.data_ptr(), *cut.addresses, x.data.data_ptr(), bias_pointer, y.data_ptr(), *geometry)
        run(kernel("multiply", cut.tile), arguments, bounds)

    def _work(self) -> int:
        batch, _, height, width = self._out_shape
        return self._nnz * batch * height * width


def can_shift(topology: Topology, window: Window, shape: tuple[int, int, int, int]) -> bool:
    """Whether the kernels can do a convolution: all taps of a channel have to fit into the panel, for one tile."""
    return shape[0] > 0 and _cuts(topology, window, shape) is not None


def _cuts(topology: Topology, window: Window, shape: tuple[int, int, int, int]) -> Cuts | None:
    batch, _, height, width = shape
    return cuts(topology, window, Size(height, width, 0 if holds_images(batch) else batch))


def _unpacked(grad: Images, batch: int, left: int, width: int) -> th.Tensor:
    """What ``by_row`` was given."""
    rows = grad.data.flatten(2)[..., left * batch : (left + width) * batch]
    return rows.view(*rows.shape[:2], width, batch).permute(3, 0, 1, 2)


def _geometry(cut: Cut, x: Images, y: th.Tensor) -> Geometry:
    product = cut.product
    # Not the strides: of a dimension of size one they can be any.
    _, height, width, lanes = x.data.shape
    to_plane, to_row, to_pixel, _ = y.stride()
    return Geometry(
        rows=product.rows,
        n_blocks=cut.n_blocks,
        block_channels=cut.block_channels,
        channels=product.channels,
        plane=height * width * lanes,
        row=width * lanes,
        pixel=lanes,
        height=product.height,
        width=product.width,
        to_plane=to_plane,
        to_row=to_row,
        to_pixel=to_pixel,
        out_height=product.out_height,
        out_width=product.out_width,
        tiles_down=-(-product.out_height // cut.tile[0]),
        tiles_across=-(-product.out_width // cut.tile[1]),
        stride_y=product.stride[0],
        stride_x=product.stride[1],
        first_y=cut.first[0],
        first_x=cut.first[1],
        panel_rows=cut.panel_rows,
        part=cut.part,
    )
