"""The networks of DrQ-v2 (Yarats et al. 2021): one encoder, and an actor and a critic on its features."""

import math
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_sparse.common.validation import whole_number
from sb3_sparse.networks.simba import orthogonal_linear

# Of height and width: below it, nothing is left of an image after the convolutions.
MIN_IMAGE_SIZE = 15


class DrQEncoder(nn.Sequential):
    """
    Four convolutions of 3 x 3 with ReLU, the first with stride 2, no padding: 39,200 features of 84 x 84 pixels.

    :param in_channels: Channels of an image, whose values are in [0, 1].
    :param channels: Of each layer; 32 in the paper.
    :raises ValueError: If a number is not positive.
    """

    def __init__(self, in_channels: int, channels: int = 32):
        channels = whole_number("channels", channels, 1)
        layers: list[nn.Module] = [_Centred()]
        for i in range(4):
            conv = nn.Conv2d(in_channels if i == 0 else channels, channels, 3, stride=2 if i == 0 else 1)
            nn.init.orthogonal_(conv.weight, math.sqrt(2))
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers += [conv, nn.ReLU()]
        super().__init__(*layers, nn.Flatten())


class _Centred(nn.Module):
    """From [0, 1] to [-0.5, 0.5]."""

    def forward(self, images: th.Tensor) -> th.Tensor:
        return images - 0.5


class DrQActor(nn.Module):
    """
    Means of actions: a bottleneck of normalised features, hidden layers with ReLU, tanh.

    :param n_features: Size of its input.
    :param n_actions: Numbers of an action.
    :param net_arch: Widths of the hidden layers.
    :param feature_dim: Width of the bottleneck.
    """

    optimizer: th.optim.Optimizer
    """What trains it, if somebody does."""

    def __init__(self, n_features: int, n_actions: int, net_arch: Sequence[int] = (1024, 1024), feature_dim: int = 50):
        super().__init__()
        self.trunk = bottleneck(n_features, feature_dim)
        self.mu = hidden_layers(feature_dim, net_arch, n_actions)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, n_features)``
        :return: ``(batch, n_actions)``, in (-1, 1).
        """
        return self.mu(self.trunk(features)).tanh()

    def chains(self) -> list[list[nn.Module]]:
        """Its layers from input to output."""
        return [[*self.trunk, *self.mu]]


class DrQCritic(nn.Module):
    """
    Q-values: a bottleneck of its own, which the heads share, and hidden layers with ReLU for each head.

    :param n_features: Size of its input.
    :param n_actions: Numbers of an action.
    :param net_arch: Widths of the hidden layers of each head.
    :param feature_dim: Width of the bottleneck.
    :param n_critics: Heads.
    """

    optimizer: th.optim.Optimizer
    """What trains it, if somebody does."""

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        net_arch: Sequence[int] = (1024, 1024),
        feature_dim: int = 50,
        n_critics: int = 2,
    ):
        super().__init__()
        self.trunk = bottleneck(n_features, feature_dim)
        self.q_networks = nn.ModuleList(hidden_layers(feature_dim + n_actions, net_arch, 1) for _ in range(n_critics))

    def forward(self, features: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param features: ``(batch, n_features)``
        :param actions: ``(batch, n_actions)``
        :return: ``(batch, 1)`` of each head.
        """
        inputs = th.cat([self.trunk(features), actions], dim=1)
        return tuple(q_network(inputs) for q_network in self.q_networks)

    def chains(self) -> list[list[nn.Module]]:
        """Its layers from input to output, by head."""
        return [[*self.trunk, *q_network] for q_network in self.q_networks]  # type: ignore[misc]


def bottleneck(n_features: int, feature_dim: int) -> nn.Sequential:
    """
    From many features to few, normalised and squashed.

    :param n_features: Size of the input.
    :param feature_dim: Size of the output.
    """
    return nn.Sequential(orthogonal_linear(n_features, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())


def hidden_layers(n_inputs: int, net_arch: Sequence[int], n_outputs: int) -> nn.Sequential:
    """
    Linear layers with ReLU between them.

    :param n_inputs: Size of the input.
    :param net_arch: Widths.
    :param n_outputs: Size of the output.
    """
    layers: list[nn.Module] = []
    for width in net_arch:
        layers += [orthogonal_linear(n_inputs, width), nn.ReLU()]
        n_inputs = width
    return nn.Sequential(*layers, orthogonal_linear(n_inputs, n_outputs))
