"""SimBa: residual feed-forward blocks with pre-layer-normalisation (Lee et al. 2024; sizes of the paper, Table 2)."""

import math
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.common.validation import positive
from sb3_sparse.networks.fused import LayerNorm, laid_for, linear_relu_linear

# Default of the reference implementation (flax); torch's own default is 1e-5.
LAYER_NORM_EPS = 1e-6
# A block widens its input this many times and narrows it again.
EXPANSION = 4
# Width and number of blocks of actor and critic (paper, Table 2).
_DEFAULT_SIZES = {"pi": (128, 1), "qf": (512, 2)}
# Standard deviation of a unit normal truncated at +-2.
_TRUNCATED_STD = 0.87962566103423978


def orthogonal_linear(in_features: int, out_features: int) -> nn.Linear:
    """
    A linear layer with orthogonal weight (gain 1) and zero bias: SimBa's stem and heads.

    :param in_features: Number of inputs.
    :param out_features: Number of outputs.
    """
    layer = _empty_linear(in_features, out_features)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def he_linear(in_features: int, out_features: int) -> nn.Linear:
    """
    A linear layer with truncated He-normal weight (variance ``2 / in_features``) and zero bias.

    :param in_features: Number of inputs.
    :param out_features: Number of outputs.
    """
    layer = _empty_linear(in_features, out_features)
    with th.no_grad():
        _unit_truncated_normal_(layer.weight).mul_(math.sqrt(2.0 / in_features) / _TRUNCATED_STD)
    nn.init.zeros_(layer.bias)
    return layer


def _empty_linear(in_features: int, out_features: int) -> nn.Linear:
    """Without drawing values that nobody sees; not by ``skip_init``, which tensors without data do not pass."""
    layer = nn.Linear(in_features, out_features, device="meta")
    layer.weight, layer.bias = nn.Parameter(th.empty(out_features, in_features)), nn.Parameter(th.empty(out_features))
    return layer


def _unit_truncated_normal_(weight: th.Tensor) -> th.Tensor:
    """Fill with unit normals, redrawn beyond +-2: eight times as fast as inverting the error function."""
    flat = weight.normal_().view(-1)
    if type(weight).__name__ == "FakeTensor":
        return weight  # of torch's FakeTensorMode, without data: nothing is outside
    outside = (flat.abs() > 2).nonzero().view(-1)
    while len(outside):
        redrawn = th.randn(len(outside), device=weight.device)
        flat[outside] = redrawn
        outside = outside[redrawn.abs() > 2]
    return weight


class ResidualBlock(nn.Module):
    """
    ``x + W2 relu(W1 LN(x) + b1) + b2`` with a hidden layer four times as wide as ``x``.

    :param width: Number of features in and out.
    :param activation_fn: Between the two linear layers.
    """

    def __init__(self, width: int, activation_fn: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.norm = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.fc1 = he_linear(width, EXPANSION * width)
        self.activation = activation_fn()
        self.fc2 = he_linear(EXPANSION * width, width)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if type(self.activation) is nn.ReLU:
            # Pickled by an earlier version, where hooks found their tensors changed.
            self.activation.inplace = False

    def forward(self, x: th.Tensor) -> th.Tensor:
        """``(batch, width)`` to ``(batch, width)``."""
        x = laid_for(self.fc2, x)
        return x + linear_relu_linear(self.norm(x), self.fc1, self.activation, self.fc2)


class SimBaEncoder(nn.Module):
    """
    Linear stem, residual blocks, final layer normalisation. Its output is what the paper calls the feature.

    :param in_features: Number of inputs.
    :param width: Number of features.
    :param n_blocks: Number of residual blocks, at least 1.
    :param activation_fn: Inside the blocks.
    """

    def __init__(self, in_features: int, width: int, n_blocks: int, activation_fn: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.stem = orthogonal_linear(in_features, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, activation_fn) for _ in range(n_blocks)))
        self.norm = LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """``(batch, in_features)`` to ``(batch, width)``."""
        return self.norm(self.blocks(self.stem(x)))


def simba_sizes(width_scale: float = 1.0, depth_scale: float = 1.0) -> dict[str, list[int]]:
    """
    Width of every residual block of actor (``"pi"``) and critic (``"qf"``) at a scale (paper, Tables 2 and 3).

    Scale 1 is SimBa's default: actor 128 wide with 1 block, critic 512 wide with 2. Width multiplies the
    first, depth the second. The paper goes up to width 5 and depth 4.

    >>> simba_sizes(width_scale=5)
    {'pi': [640], 'qf': [2560, 2560]}

    :param width_scale: Positive; widths are rounded to whole units.
    :param depth_scale: Positive; numbers of blocks are rounded, at least 1.
    :raises ValueError: If a scale is not positive, or leaves a network without units.
    """
    return {network: simba_size(network, width_scale, depth_scale) for network in _DEFAULT_SIZES}


def simba_size(network: str, width_scale: float = 1.0, depth_scale: float = 1.0) -> list[int]:
    """
    The same for one network.

    :param network: ``"pi"`` or ``"qf"``.
    """
    width_scale, depth_scale = positive("width_scale", width_scale), positive("depth_scale", depth_scale)
    width, n_blocks = _DEFAULT_SIZES[network]
    scaled = round(width * width_scale)
    if scaled < 1:
        raise ValueError(f"width_scale={width_scale!r} leaves no unit of the {width} in '{network}': use a larger one.")
    return [scaled] * max(1, round(n_blocks * depth_scale))
