"""What a convolution slides over an image: everything about it but the weights."""

from typing import NamedTuple


class Window(NamedTuple):
    """Settings of a 2-D convolution, vertical first in each pair."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    """Rows of zeros above the image, and columns to its left."""
    after: tuple[int, int] = (0, 0)
    """Rows below and columns to the right."""
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def out_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """
        Height and width of the result; not positive where the window is larger than the image.

        :param size: Height and width of the image.
        """
        height, width = (
            (pixels + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for pixels, before, after, dilation, kernel, stride in zip(
                size, self.before, self.after, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width
