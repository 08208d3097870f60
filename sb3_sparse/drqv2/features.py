"""Encoders as features extractors of Stable-Baselines3: DrQ-v2's own, and any of SB3's behind random shifts."""

import inspect
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from sb3_sparse.networks.drq import MIN_IMAGE_SIZE, DrQEncoder
from sb3_sparse.networks.random_shift import RandomShift


class DrQFeatures(BaseFeaturesExtractor):
    """
    DrQ-v2's encoder: 39,200 features of 84 x 84 pixels, 20,000 of 64 x 64.

    :param observation_space: Images, channels first.
    :param channels: Of each of its four convolutions.
    :raises ValueError: If the images are too small.
    """

    piece_size: ClassVar[int | None] = 16
    """Images that an update of :class:`DrQv2` on the CPU encodes at a time, whose activations stay in its caches. None, as of
    encoders that do not have it: all. So it must be where images of a batch change each other's features."""

    def __init__(self, observation_space: spaces.Box, channels: int = 32):
        n_channels, *size = observation_space.shape
        if min(size) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels: DrQ-v2's encoder needs at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE}."
            )
        # What its layers make of the smaller numbers of rows and columns.
        rows, columns = ((n - 3) // 2 - 5 for n in size)
        super().__init__(observation_space, channels * rows * columns)
        self.encoder = DrQEncoder(n_channels, channels)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(batch, channels, height, width)``, in [0, 1].
        :return: ``(batch, features_dim)``
        """
        if observations.device.type == "cpu" and th.is_grad_enabled():
            # With the channels of a pixel side by side, gradients of convolutions take two thirds of the time there.
            observations = observations.contiguous(memory_format=th.channels_last)
        return self.encoder(observations)


def _takes_scaled(kind: type[BaseFeaturesExtractor]) -> bool:
    return issubclass(kind, NatureCNN) and "normalized_image" in inspect.signature(kind).parameters


def _is_scaled(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and is_image_space(space, normalized_image=True) and not is_image_space(space)


class ShiftedFeatures(BaseFeaturesExtractor):
    """
    Random shifts in front of another features extractor, for any algorithm of SB3 that learns from images.

    .. code-block:: python

        SAC("CnnPolicy", env, policy_kwargs=dict(features_extractor_class=ShiftedFeatures))

    Images are shifted in ``train()`` alone. SB3's target networks see them as they are.

    :param observation_space: Images, channels first.
    :param extractor_class: What comes behind.
    :param pad: Pixels that an image is shifted by, at most.
    :param kwargs: Of ``extractor_class``.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        pad: int = 4,
        **kwargs: Any,
    ):
        if _takes_scaled(extractor_class) and _is_scaled(observation_space):
            # As SB3 says it to these classes where images are no bytes.
            kwargs.setdefault("normalized_image", True)
        extractor = extractor_class(observation_space, **kwargs)
        super().__init__(observation_space, extractor.features_dim)
        self.shift, self.extractor = RandomShift(pad), extractor

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(batch, channels, height, width)``
        :return: ``(batch, features_dim)``
        """
        return self.extractor(self.shift(observations))
