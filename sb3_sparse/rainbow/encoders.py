"""Encoders of images by name, as features extractors of Stable-Baselines3."""

from collections.abc import Callable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_sparse.common.validation import choice
from sb3_sparse.networks.cnn import GridEncoder, ImpalaEncoder, NatureEncoder, channels_are_last

_BUILDERS: dict[str, Callable[[int, float], nn.Module]] = {
    "nature": lambda channels, scale: NatureEncoder(channels, scale),
    "nature_same": lambda channels, scale: NatureEncoder(channels, scale, padding="same"),
    "impala": lambda channels, scale: ImpalaEncoder(channels, scale),
    "grid": lambda channels, scale: GridEncoder(channels, scale),
}
ENCODERS = tuple(_BUILDERS)


class ImageEncoder(BaseFeaturesExtractor):
    """
    An encoder without the hidden layer behind it, which belongs to the network: there it can be noisy.

    Numbers of any type that stand for a picture will do, also the bools of MinAtar. Where channels are is told by the
    shape: beside a square, or else they are the smaller one of the first and the last dimension. If these are equal it is
    the first, as in SB3; in grids of bools, such as MinAtar's Seaquest of 10 x 10 x 10, the last.

    :param observation_space: A Box of three dimensions.
    :param encoder: ``"nature"`` (DQN's, padded as in SB3), ``"nature_same"`` (padded as in Dopamine), ``"impala"`` or
        ``"grid"`` (for grids such as MinAtar's).
    :param width_scale: Multiplies the channels of its layers.
    :raises ValueError: If the space is no image, too small for the encoder, or an argument out of range.
    """

    def __init__(self, observation_space: spaces.Space, encoder: str = "nature", width_scale: float = 1.0):
        choice("encoder", encoder, ENCODERS)
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 3:
            raise ValueError(
                f"encoder={encoder!r} for the observation space {observation_space}: expected images, a Box of three "
                "dimensions. Leave encoder out for vectors."
            )
        shape = observation_space.shape
        if shape[1] < min(shape[0], shape[2]):
            raise ValueError(
                f"encoder={encoder!r} for images of shape {shape}: expected channels, the smallest dimension, before or "
                "behind height and width."
            )
        if shape[0] == shape[2] < shape[1] and observation_space.dtype != bool:
            # SB3 puts what it takes for channels first, also where there are more of them than pixels on a side.
            raise ValueError(
                f"encoder={encoder!r} for images of shape {shape}, of which nobody can say where channels are: wrap the "
                "environment, and turn images to (height, width, channels)."
            )
        super().__init__(observation_space, features_dim=1)
        self.channels_last = channels_are_last(shape, is_grid=observation_space.dtype == bool)
        # Of updates, see `encode_in_pieces`. The others are too small to gain by it.
        self.piece_size = 16 if encoder == "impala" else None
        self.network = _BUILDERS[encoder](shape[2 if self.channels_last else 0], width_scale)
        example = th.zeros(1, *shape)
        try:
            with th.no_grad():
                self._features_dim = self.forward(example).shape[1]
        except RuntimeError as error:
            raise ValueError(
                f"encoder={encoder!r} cannot take images of shape {shape}: they are too small for it. Use 'grid' or 'impala'."
            ) from error

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(batch, *shape)``, preprocessed.
        :return: ``(batch, features_dim)``
        """
        images = observations.permute(0, 3, 1, 2) if self.channels_last else observations
        if images.device.type == "cpu" and (th.is_grad_enabled() or isinstance(self.network, ImpalaEncoder)):
            # With the channels of a pixel side by side, gradients of convolutions are faster there, and so is IMPALA's
            # pooling. Else the copy costs more than it saves.
            images = images.contiguous(memory_format=th.channels_last)
        return self.network(images)


def is_picture(space: spaces.Space) -> bool:
    """Whether a space is one of images or grids, of whole numbers or bools."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and (space.dtype == np.uint8 or space.dtype == bool)
