"""The augmentation of DrQ (Kostrikov et al. 2020): each image is moved by a few pixels, at random."""

import torch as th
from torch import nn

from sb3_sparse.common.validation import whole_number


class RandomShift(nn.Module):
    """
    Moves each image of a batch by up to ``pad`` pixels in both directions; its edge is repeated into what becomes free.

    In training only: in evaluation mode images pass as they are. All channels of an image move together, and so do stacked
    frames. Shifts are whole pixels, so that this is one gather, of any type of numbers; DrQ-v2's published augmentation
    resamples a padded image, to the same pixels within rounding.

    >>> images = th.randint(0, 256, (2, 9, 84, 84), dtype=th.uint8)
    >>> RandomShift(4)(images).shape
    torch.Size([2, 9, 84, 84])

    :param pad: Pixels, at most, in each direction. 0 moves nothing.
    :raises ValueError: If it is no whole number from 0 on.
    """

    def __init__(self, pad: int = 4):
        super().__init__()
        self.pad = whole_number("pad", pad, 0)

    def forward(self, images: th.Tensor) -> th.Tensor:
        """
        :param images: ``(batch, channels, height, width)``
        :return: The same shape and type.
        :raises ValueError: If there are other than four dimensions.
        """
        if images.dim() != 4:
            raise ValueError(f"images of shape {tuple(images.shape)}: expected (batch, channels, height, width).")
        if not self.training or self.pad == 0:
            return images
        return shifted(images, *th.randint(-self.pad, self.pad + 1, (2, images.shape[0]), device=images.device))

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"pad={self.pad}"


def shifted(images: th.Tensor, right: th.Tensor, down: th.Tensor) -> th.Tensor:
    """
    Windows of images, each moved by so many pixels; beyond the edge, the edge is repeated.

    :param images: ``(batch, channels, height, width)``
    :param right: ``(batch,)``, of whole numbers: how far the window of each image is moved to the right.
    :param down: ``(batch,)``: how far it is moved down.
    :return: The same shape and type.
    """
    batch, channels, height, width = images.shape
    rows = (th.arange(height, device=images.device) + down[:, None]).clamp(0, height - 1)
    columns = (th.arange(width, device=images.device) + right[:, None]).clamp(0, width - 1)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    return images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)
