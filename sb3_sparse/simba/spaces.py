"""Which spaces a policy can observe, and the features extractor that fits each."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

# What NatureCNN's kernels need. Smaller images, such as the grids of MiniGrid, are flattened.
MIN_IMAGE_SIZE = 36


class FlatSmallImages(CombinedExtractor):
    """
    SB3's extractor for Dict observations; images that are too small for NatureCNN are flattened.

    :param observation_space: The space.
    :param cnn_output_dim: Features of each image that is not small.
    :param normalized_image: Whether images are floats.
    """

    def __init__(self, observation_space: spaces.Dict, cnn_output_dim: int = 256, normalized_image: bool = False):
        subspaces = observation_space.spaces
        small = {key for key, space in subspaces.items() if is_small_image(space, normalized_image)}
        others = {key: space for key, space in subspaces.items() if key not in small}
        super().__init__(spaces.Dict(others), cnn_output_dim, normalized_image)
        self._observation_space = observation_space
        self._features_dim += sum(get_flattened_obs_dim(subspaces[key]) for key in small)
        self.extractors.update({key: nn.Flatten() for key in small})


def default_features_extractor(observation_space: spaces.Space, normalize_images: bool) -> type[BaseFeaturesExtractor]:
    """The features extractor that fits a space."""
    if isinstance(observation_space, spaces.Dict):
        any_small = any(is_small_image(space, not normalize_images) for space in observation_space.spaces.values())
        return FlatSmallImages if any_small else CombinedExtractor
    if is_image_space(observation_space, normalized_image=not normalize_images):
        return FlattenExtractor if is_small_image(observation_space, not normalize_images) else NatureCNN
    return FlattenExtractor


def is_small_image(space: spaces.Space, normalized_image: bool) -> bool:
    """Whether a space is one of images that NatureCNN cannot take."""
    if not is_image_space(space, normalized_image=normalized_image):
        return False
    return min(sorted(space.shape or ())[-2:]) < MIN_IMAGE_SIZE


def check_observations(space: spaces.Space) -> None:
    """
    :raises ValueError: If SB3's replay buffers and networks have no place for such observations.
    """
    parts = parts_of(space)
    if not parts:
        raise ValueError("the observation space is a Dict without parts: nothing can be learned from it.")
    for key, part in parts.items():
        where = f"the part {key!r} of the observation" if isinstance(space, spaces.Dict) else "the observation"
        if not isinstance(part, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise ValueError(
                f"{where} is a {type(part).__name__} space, which SB3's replay buffers and networks cannot hold: wrap the "
                "environment in gymnasium.wrappers.FlattenObservation."
            )
        if isinstance(part, spaces.Box) and part.shape == ():
            raise ValueError(
                f"{where} is a Box of shape (), which SB3's replay buffer cannot hold: wrap the environment, in "
                "sb3_sparse.dmc.DMCWrapper if it is one of DeepMind Control, else in gymnasium.wrappers.FlattenObservation."
            )
        if isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim > 1:
            raise ValueError(
                f"{where} is a MultiDiscrete space of shape {part.shape}, and SB3's networks take one dimension: wrap the "
                "environment in gymnasium.wrappers.FlattenObservation."
            )
        if isinstance(part, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(part.start):
            raise ValueError(
                f"{where} is a {type(part).__name__} space that starts at {part.start}, and SB3's networks count from 0: wrap "
                "the environment in gymnasium.wrappers.FlattenObservation."
            )
        check_size(where, part)


def check_actions(space: spaces.Space) -> None:
    """
    :raises ValueError: If there are none, or they are counted from elsewhere than SB3 does.
    """
    check_size("the action", space)
    if isinstance(space, spaces.Discrete) and space.start:
        raise ValueError(
            f"{space}: Q-values are of actions that begin with 0, as in SB3. Wrap the environment in "
            "gymnasium.wrappers.TransformAction."
        )


def check_size(what: str, space: spaces.Space) -> None:
    """
    :raises ValueError: If there is nothing in what the space describes.
    """
    if 0 in (space.shape or ()):
        raise ValueError(f"{what} is a {type(space).__name__} space of shape {space.shape}: expected at least one number.")


def parts_of(space: spaces.Space) -> dict[str, spaces.Space]:
    """The parts of a Dict by key; of any other space, itself."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
