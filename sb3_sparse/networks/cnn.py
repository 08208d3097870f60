"""Convolutional encoders: that of DQN, IMPALA's, and a small one for grids."""

import math
from collections.abc import Callable, Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_sparse.common.validation import choice, positive

PADDINGS = ("valid", "same")


def scaled_channels(channels: Sequence[int], width_scale: float) -> list[int]:
    """
    Channels times a scale, rounded, at least 1.

    :param channels: Of each layer.
    :param width_scale: Multiplies them.
    :raises ValueError: If the scale is not positive.
    """
    width_scale = positive("width_scale", width_scale)
    return [max(1, round(n * width_scale)) for n in channels]


class NatureEncoder(nn.Sequential):
    """
    Three convolutions (Mnih et al. 2015): 32 of 8 x 8, 64 of 4 x 4, 64 of 3 x 3, strides 4, 2 and 1, with ReLU.

    :param in_channels: Channels of an image.
    :param width_scale: Multiplies the channels of the layers.
    :param padding: ``"valid"`` as in the paper and in SB3 (3,136 features of 84 x 84 pixels), or ``"same"`` as in
        Dopamine (7,744).
    :raises ValueError: If an argument is out of range.
    """

    def __init__(self, in_channels: int, width_scale: float = 1.0, padding: str = "valid"):
        choice("padding", padding, PADDINGS)
        layers: list[nn.Module] = []
        channels = scaled_channels((32, 64, 64), width_scale)
        for out_channels, kernel, stride in zip(channels, (8, 4, 3), (4, 2, 1), strict=True):
            if padding == "same":
                layers.append(_SamePadding(kernel, stride))
            layers += [nn.Conv2d(in_channels, out_channels, kernel, stride), nn.ReLU()]
            in_channels = out_channels
        super().__init__(*layers, nn.Flatten())


class _SamePadding(nn.Module):
    """As many outputs as inputs over the stride, rounded up; of an odd number of rows the greater part comes behind."""

    def __init__(self, kernel: int, stride: int, value: float = 0.0):
        super().__init__()
        self.kernel, self.stride, self.value = kernel, stride, value

    def forward(self, x: th.Tensor) -> th.Tensor:
        pads: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            missing = max(0, (-(-size // self.stride) - 1) * self.stride + self.kernel - size)
            pads += [missing // 2, missing - missing // 2]
        return _pixel_by_pixel(x, lambda x: F.pad(x, pads, value=self.value)) if any(pads) else x

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"


class _MaxPool(nn.MaxPool2d):
    """The pooling, on images in any layout."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        y = _pixel_by_pixel(x, super().forward)
        if y.requires_grad and not th.compiler.is_compiling() and y.is_contiguous(memory_format=th.channels_last):
            # Of a gradient in another layout torch would copy what is four times as large.
            y.register_hook(lambda grad: grad.contiguous(memory_format=th.channels_last))
        return y


def _pixel_by_pixel(x: th.Tensor, function: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
    """
    A function that treats each image and each of its channels alike, without a copy of what sparse convolutions make.

    That lies ``(channels, height, width, batch)``, which torch would copy first, and pool slowly then. With batch and channels
    exchanged it has the channels of a pixel side by side, the layout in which torch pools fast.
    """
    exchanged = x.transpose(0, 1) if x.dim() == 4 else x
    if exchanged is x or x.is_contiguous() or not exchanged.is_contiguous(memory_format=th.channels_last):
        return function(x)
    return function(exchanged).transpose(0, 1)


class _ImpalaBlock(nn.Module):
    """``x + conv(relu(conv(relu(x))))``"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for conv in (self.conv1, self.conv2):
            _lecun_normal_(conv)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class ImpalaEncoder(nn.Sequential):
    """
    IMPALA's residual encoder (Espeholt et al. 2018), 15 convolutions: three stacks of a convolution, a pooling that halves
    the image, and two residual blocks; one ReLU at the very end.

    :param in_channels: Channels of an image.
    :param width_scale: Multiplies the channels, 16, 32 and 32. 1 makes 3,872 features of 84 x 84 pixels.
    :raises ValueError: If the scale is not positive.
    """

    def __init__(self, in_channels: int, width_scale: float = 1.0):
        layers: list[nn.Module] = []
        for channels in scaled_channels((16, 32, 32), width_scale):
            conv = nn.Conv2d(in_channels, channels, 3, padding=1)
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            # Flax pads an even size behind only, where torch's own padding would shift all windows by a pixel.
            layers += [conv, _SamePadding(3, 2, -math.inf), _MaxPool(3, 2), _ImpalaBlock(channels), _ImpalaBlock(channels)]
            in_channels = channels
        super().__init__(*layers, nn.ReLU(), nn.Flatten())


class GridEncoder(nn.Sequential):
    """
    One convolution of 3 x 3 with 16 channels and ReLU, for grids such as MinAtar's (Young and Tian 2019).

    :param in_channels: Channels of a grid.
    :param width_scale: Multiplies the channels of the layer.
    :raises ValueError: If the scale is not positive.
    """

    def __init__(self, in_channels: int, width_scale: float = 1.0):
        (channels,) = scaled_channels((16,), width_scale)
        super().__init__(nn.Conv2d(in_channels, channels, 3), nn.ReLU(), nn.Flatten())


def _lecun_normal_(conv: nn.Conv2d) -> None:
    """Truncated normal with variance ``1 / fan_in``, biases 0: the default of flax."""
    # The standard deviation of a unit normal truncated at two of its own.
    std = 1.0 / math.sqrt(conv.weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


def channels_are_last(shape: tuple[int, ...], is_grid: bool) -> bool:
    """
    Where the channels of an image are: beside a square, or else at the smaller one of the first and the last dimension.

    :param shape: Of three dimensions.
    :param is_grid: Whether they are the last one where these are equal, as in MinAtar's Seaquest of 10 x 10 x 10; else they
        are the first one, as in SB3.
    """
    first, middle, last = shape
    if middle in (first, last) and first != last:
        # A square and its channels, which many frames make more than its sides.
        return middle == first
    return last < first or (last == first and is_grid)
