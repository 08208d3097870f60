"""
Batches of images as the kernels read them: vectors of ``LANES`` numbers that take part in the same multiply-adds.

Of ``LANES`` images and more, a vector holds the same pixel of as many images: batches lie ``(channels, height, width,
batch)``, padded to whole vectors. Of fewer, it holds as many numbers of a row of pixels, and there is a row for each remainder
of the stride: neighbours in the result then read neighbours, as kernels want it.
"""

from typing import NamedTuple

import torch as th

from sb3_sparse.sparse.kernels.native.code import LANES


class Images(NamedTuple):
    """A batch of images."""

    data: th.Tensor
    """``(channels, height, width, lanes)``, contiguous."""

    @property
    def vectors(self) -> int:
        """Vectors for one pixel of the batch, or one where a vector holds several pixels."""
        return self.data.shape[3] // LANES


def holds_images(batch: int) -> bool:
    """Whether a vector holds one pixel of several images, or several pixels of few images."""
    return batch >= LANES


def by_image(x: th.Tensor) -> Images:
    """
    A batch of at least ``LANES`` images; without a copy where it lies so already.

    :param x: ``(batch, channels, height, width)``
    """
    batch, channels, height, width = x.shape
    padded = -(-batch // LANES) * LANES
    if padded == batch:
        return Images(x.detach().permute(1, 2, 3, 0).contiguous())
    data = x.new_empty(channels, height, width, padded)
    data[..., :batch].copy_(x.detach().permute(1, 2, 3, 0))
    data[..., batch:].zero_()
    return Images(data)


def by_row(x: th.Tensor, stride: int = 1, left: int = 0) -> Images:
    """
    A batch of fewer images, in vectors of a row's pixels: those of one remainder of the stride, image by image.

    :param x: ``(batch, channels, height, width)``
    :param stride: Number of remainders. Channel ``c * stride + r`` of the result has the pixels of remainder ``r``.
    :param left: Columns of zeros to the left.
    """
    batch, channels, height, width = x.shape
    pixels = -(-(left + width) // stride)
    vectors = -(-pixels * batch // LANES)
    data = x.new_zeros(channels, stride, height, vectors * LANES)
    rows = data[..., : pixels * batch].view(channels, stride, height, pixels, batch)
    source = x.detach().permute(1, 2, 3, 0)
    for remainder in range(stride):
        # The first column of the image that has this remainder, counted with the zeros.
        first = (remainder - left) % stride
        columns = source[:, :, first::stride]
        begin = (first + left) // stride
        rows[:, remainder, :, begin : begin + columns.shape[2]].copy_(columns)
    return Images(data.view(channels * stride, height, vectors, LANES))


class Result:
    """
    Where kernels write images.

    :param like: Gives dtype and device.
    :param shape: ``(batch, channels, height, width)``
    """

    def __init__(self, like: th.Tensor, shape: tuple[int, int, int, int]):
        self.shape = shape
        batch, channels, height, width = shape
        self.holds_images = holds_images(batch)
        vectors = -(-batch // LANES) if self.holds_images else -(-width * batch // LANES)
        self.lanes = LANES * vectors
        #: ``(channels, height, width, lanes)``, or with vectors instead of pixels where a vector holds some of a row.
        self.data: th.Tensor
        if self.holds_images and batch == self.lanes:
            # What is returned must not be a view: autograd would not let anybody change it in place.
            strides = (1, height * width * batch, width * batch, batch)
            self._images = like.new_empty_strided(shape, strides)
            self.data = self._images.permute(1, 2, 3, 0)
        elif self.holds_images:
            self.data = like.new_empty(channels, height, width, self.lanes)
        else:
            self.data = like.new_empty(channels, height, vectors, LANES)

    def images(self) -> th.Tensor:
        """
        What was written, of shape ``(batch, channels, height, width)``. Of ``LANES`` images and more it lies
        ``(channels, height, width, batch)`` in memory.
        """
        batch, channels, height, width = self.shape
        if self.holds_images and batch == self.lanes:
            return self._images
        if self.holds_images:
            strides = (1, height * width * batch, width * batch, batch)
            return self.data.new_empty_strided(self.shape, strides).copy_(self.data[..., :batch].permute(3, 0, 1, 2))
        rows = self.data.view(channels, height, self.lanes)[..., : width * batch]
        return self.data.new_empty(self.shape).copy_(rows.view(channels, height, width, batch).permute(3, 0, 1, 2))
