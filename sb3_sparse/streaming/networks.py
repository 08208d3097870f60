"""The networks of streaming agents (Elsayed et al. 2024): LayerNorm without parameters, LeakyReLU, separate heads."""

import math
from collections.abc import Mapping, Sequence

import torch as th
from torch import nn

LAYER_NORM_EPS = 1e-5
NEGATIVE_SLOPE = 0.01


class StreamNetwork(nn.Module):
    """
    A trunk and one linear layer for each head; the output is what the heads say, one after the other.

    :param trunk: From features to a latent vector.
    :param latent_dim: Size of that vector.
    :param heads: Size of each head by name, in the order of the output.
    """

    def __init__(self, trunk: nn.Sequential, latent_dim: int, heads: Mapping[str, int]):
        super().__init__()
        self.trunk = trunk
        self.head_names = list(heads)
        for name, size in heads.items():
            self.add_module(name, nn.Linear(latent_dim, size))

    @property
    def heads(self) -> list[nn.Module]:
        """The heads, in the order of the output."""
        return [self.get_submodule(name) for name in self.head_names]

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, ...)``
        :return: ``(batch, sum of the heads' sizes)``
        """
        latent = self.trunk(features)
        return th.cat([head(latent) for head in self.heads], dim=-1)


def _normalized(layer: nn.Module, shape: Sequence[int]) -> list[nn.Module]:
    norm = nn.LayerNorm(list(shape), eps=LAYER_NORM_EPS, elementwise_affine=False)
    return [layer, norm, nn.LeakyReLU(NEGATIVE_SLOPE)]


def mlp_trunk(in_features: int, widths: Sequence[int]) -> tuple[nn.Sequential, int]:
    """
    Linear layers, each with LayerNorm before its LeakyReLU.

    :param in_features: Size of the input.
    :param widths: Output size of each layer; none: the input is the latent vector.
    :return: The trunk, and the size of its latent vector.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += _normalized(nn.Linear(in_features, width), [width])
        in_features = width
    return nn.Sequential(*layers), in_features


# (channels, kernel, stride) of each convolution, and the width of the linear layer after them.
CONVOLUTIONS: dict[str, tuple[list[tuple[int, int, int]], int]] = {
    "atari": ([(32, 8, 5), (64, 4, 3), (64, 3, 2)], 256),
    "minatar": ([(16, 3, 1)], 128),
}


def cnn_trunk(image_shape: Sequence[int], network: str, width_scale: float = 1.0) -> tuple[nn.Sequential, int]:
    """
    Convolutions and a linear layer, each with LayerNorm over all of a sample before its LeakyReLU.

    :param image_shape: ``(channels, height, width)``
    :param network: ``"atari"`` or ``"minatar"``.
    :param width_scale: Multiplies the channels and the width of the linear layer.
    :return: The trunk, and the size of its latent vector.
    :raises ValueError: If the image is too small.
    """
    convolutions, width = CONVOLUTIONS[network]
    layers: list[nn.Module] = []
    channels, height, width_px = image_shape
    for out_channels, kernel, stride in convolutions:
        out_channels = scaled(out_channels, width_scale)
        height, width_px = (height - kernel) // stride + 1, (width_px - kernel) // stride + 1
        if min(height, width_px) < 1:
            hint = " Take network='minatar'." if network == "atari" else " Flatten it, and take MlpPolicy."
            raise ValueError(f"an image of shape {tuple(image_shape)} is too small for the {network!r} network." + hint)
        layers += _normalized(nn.Conv2d(channels, out_channels, kernel, stride), [out_channels, height, width_px])
        channels = out_channels
    width = scaled(width, width_scale)
    layers += [nn.Flatten(), *_normalized(nn.Linear(channels * height * width_px, width), [width])]
    return nn.Sequential(*layers), width


def scaled(width: int, scale: float) -> int:
    """A width times a scale, at least 1."""
    return max(1, round(width * scale))


@th.no_grad()
def lecun_uniform_(module: nn.Module) -> None:
    """Weights uniform in ±1/√fan_in, biases zero, in place, for every linear and convolutional layer."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound)
            if layer.bias is not None:
                layer.bias.zero_()


@th.no_grad()
def sparse_init_(module: nn.Module, sparsity: float = 0.9) -> None:
    """
    SparseInit: :func:`lecun_uniform_`, then ``ceil(sparsity * fan_in)`` random weights of every output unit are set
    to zero. They are trained like all others. With up to nine inputs and the default, none is left in the first layer. In
    those behind it one stays, other than in the published agents: where two layers of zeros follow each other, no gradient
    reaches either, and nothing is ever learned.

    :param module: Whose layers are in the order in which they are used.
    :param sparsity: Fraction of zeros, in [0, 1].
    """
    lecun_uniform_(module)
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    for i, layer in enumerate(layers):
        weight = layer.weight.view(len(layer.weight), -1)
        fan_in = weight.shape[1]
        order = th.rand(weight.shape, device=weight.device).argsort(dim=1)
        n_zeros = min(math.ceil(sparsity * fan_in), fan_in if i == 0 else fan_in - 1)
        weight.scatter_(1, order[:, :n_zeros], 0.0)
