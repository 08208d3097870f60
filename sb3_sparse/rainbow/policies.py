"""Policies of Rainbow: SB3's policies of DQN with another network, other encoders, and sparsity."""

import sys
from types import FrameType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, MultiInputPolicy

from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import flag, no_array, non_negative, positive, whole_numbers
from sb3_sparse.networks.heads import Support
from sb3_sparse.rainbow.encoders import ImageEncoder, is_picture
from sb3_sparse.rainbow.networks import RainbowNetwork
from sb3_sparse.replay.owner import algorithm_behind
from sb3_sparse.sparse.sparsity import Sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole


def checked_rainbow_keywords(
    distributional: bool, dueling: bool, noisy: bool, n_atoms: int, v_min: float, v_max: float, sigma: float
) -> dict[str, Any]:
    """
    Which parts of Rainbow the network of a policy has, as plain values that are saved. Its constructor calls this.

    :raises ValueError: If a value is out of range, or an algorithm of SB3 makes the policy that cannot train it.
    """
    _refuse_who_cannot_train(sys._getframe(1), {"distributional": distributional, "noisy": noisy})
    support = Support(n_atoms, v_min, v_max)
    return {
        "distributional": flag("distributional", distributional),
        "dueling": flag("dueling", dueling),
        "noisy": flag("noisy", noisy),
        "n_atoms": support.n_atoms,
        "v_min": support.v_min,
        "v_max": support.v_max,
        "sigma": non_negative("sigma", sigma),
    }


def _refuse_who_cannot_train(caller: FrameType, parts: dict[str, bool]) -> None:
    """SB3's DQN knows nothing of these parts: it would go by the means of the distributions, with the same noise for long."""
    algorithm = algorithm_behind(caller)
    if algorithm is None:
        return
    name, on = type(algorithm).__name__, [part for part, is_on in parts.items() if is_on]
    if not isinstance(algorithm, DQN):
        raise ValueError(f"{name} cannot train a policy of Rainbow, which has a Q-network: use Rainbow, DER or SB3's DQN.")
    if on and type(algorithm).train is DQN.train:
        raise ValueError(
            f"{name} trains no {' or '.join(on)} network, so {', '.join(f'{part}=True' for part in on)} would be silently "
            "wrong with it. Use Rainbow or DER, or leave it out."
        )


def _hidden_layers(net_arch: Any) -> list[int]:
    try:
        return whole_numbers("net_arch", no_array("net_arch", net_arch), 1)
    except ValueError as error:
        raise ValueError(
            f"net_arch={net_arch!r}: expected a list of positive whole numbers, the units of hidden layers, such as [64, 64]."
        ) from error


class RainbowPolicy(LoadsWhole, DQNPolicy):
    """
    Policy of :class:`Rainbow`, for vectors, and by ``encoder`` for images. The algorithm says which parts of the network
    there are.

    :param observation_space: Any space that SB3's DQN takes.
    :param action_space: Discrete actions.
    :param lr_schedule: Learning rate schedule.
    :param distributional: Whether the network predicts distributions over returns (C51).
    :param dueling: Whether values are learned apart from advantages.
    :param noisy: Whether hidden layers and head are noisy.
    :param n_atoms: Of the distributions, at least 2.
    :param v_min: Smallest return of the distributions.
    :param v_max: Largest return of the distributions.
    :param sigma: Size of the noise at first.
    :param encoder: Of images: ``"nature"``, ``"nature_same"``, ``"impala"`` or ``"grid"``, see
        :class:`~sb3_sparse.rainbow.encoders.ImageEncoder`; one hidden layer of 512 units follows it (128 for grids), unless
        ``net_arch`` says otherwise. None: SB3's features extractor.
    :param width_scale: Multiplies the channels of the encoder.
    :param sparsity: Fraction of the weights of encoder, hidden layers and head that is removed, once, at random, in [0, 1).
    :param sparsity_distribution: ``"erdos_renyi"`` or ``"uniform"``: how it is spread over the layers. Weights and
        deviations of a noisy layer live at the same positions and count once.
    :param mask_seed: Fixes which weights exist, apart from the initial values. None: follows SB3's ``seed=``.
    :param rescale: Multiply the surviving initial weights of a layer by ``1 / sqrt(density)``.
    :param kwargs: Of SB3's ``DQNPolicy``. With ``distributional`` or ``noisy``, where SB3's DQN cannot be met bit by bit, Adam
        is torch's fused one, unless ``optimizer_kwargs`` say otherwise.
    :raises ValueError: If a value is out of range.
    """

    q_net: RainbowNetwork
    q_net_target: RainbowNetwork
    __signature__ = FullSignature()

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        *args: Any,
        distributional: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        n_atoms: int = 51,
        v_min: float = -10.0,
        v_max: float = 10.0,
        sigma: float = 0.5,
        encoder: str | None = None,
        width_scale: float = 1.0,
        sparsity: float = 0.0,
        sparsity_distribution: str = "erdos_renyi",
        mask_seed: int | None = None,
        rescale: bool = False,
        **kwargs: Any,
    ):
        net_arch = None if net_arch is None else _hidden_layers(net_arch)
        if encoder is None:
            self._check_space(observation_space, kwargs.get("features_extractor_class"))
        # Before the constructor, which makes the networks.
        self.rainbow_kwargs = checked_rainbow_keywords(distributional, dueling, noisy, n_atoms, v_min, v_max, sigma)
        self.sparsity = Sparsity.from_keywords(sparsity, sparsity_distribution, mask_seed, rescale)
        self.encoder_kwargs: dict[str, Any] = {"encoder": encoder, "width_scale": positive("width_scale", width_scale)}
        if encoder is not None:
            kwargs |= self._encoder_arguments(observation_space, kwargs)
            net_arch = [128 if encoder == "grid" else 512] if net_arch is None else net_arch
        elif width_scale != 1.0:
            raise ValueError(f"width_scale={width_scale!r} multiplies the channels of an encoder: name one by encoder=.")
        given = kwargs.get("optimizer_kwargs") or {}
        is_adam = kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam
        if is_adam and (distributional or noisy) and not (given.get("foreach") or given.get("differentiable")):
            # A third of the time, and no memory that is asked for anew in each step.
            kwargs["optimizer_kwargs"] = {"fused": True, **given}
        super().__init__(observation_space, action_space, lr_schedule, net_arch, *args, **kwargs)

    def _check_space(self, space: spaces.Space, extractor: type | None) -> None:
        """See whether SB3's features extractor takes the observations, where the user names no other."""
        if isinstance(space, spaces.Dict) and extractor is None:
            raise ValueError(f"{type(self).__name__} for the observation space {space}: it has parts. Use 'MultiInputPolicy'.")

    def _encoder_arguments(self, space: spaces.Space, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not is_picture(space):
            raise ValueError(
                f"encoder={self.encoder_kwargs['encoder']!r} for the observation space {space}: expected images of uint8, or "
                "grids of bool, with three dimensions. Leave encoder out for anything else."
            )
        scales = self.encoder_kwargs["encoder"] != "grid" and space.dtype == np.uint8 and kwargs.get("normalize_images", True)
        if scales and not is_image_space(space, check_channels=False):
            # SB3 leaves them as they are, where these encoders expect [0, 1].
            raise ValueError(
                f"encoder={self.encoder_kwargs['encoder']!r} for the observation space {space}: expected bounds of 0 and 255, "
                "by which SB3 knows what to divide by 255. Say spaces.Box(0, 255, shape, np.uint8) in the environment, or "
                "encoder='grid', which takes numbers as they are."
            )
        if kwargs.get("features_extractor_class", ImageEncoder) is not ImageEncoder:
            raise ValueError("encoder= and features_extractor_class= are two ways to say the same: leave one of them out.")
        return {"features_extractor_class": ImageEncoder, "features_extractor_kwargs": dict(self.encoder_kwargs)}

    def make_q_net(self) -> RainbowNetwork:
        """Build a network; SB3 calls this, once more for the target."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return RainbowNetwork(**net_args, **self.rainbow_kwargs, **self.sparsity.keywords).to(self.device)

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense policy."""
        self.sparsity = self.sparsity.dense()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = {**super()._get_constructor_parameters(), **self.rainbow_kwargs, **self.encoder_kwargs}
        if self.encoder_kwargs["encoder"] is not None:
            # It follows from the encoder.
            del data["features_extractor_class"], data["features_extractor_kwargs"]
        return {**data, **self.sparsity.keywords}


class RainbowCnnPolicy(RainbowPolicy, CnnPolicy):
    """:class:`RainbowPolicy` for images, through SB3's NatureCNN unless ``encoder`` names another."""

    def _check_space(self, space: spaces.Space, extractor: type | None) -> None:
        if extractor not in (None, NatureCNN):
            return
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(
                f"'CnnPolicy' for the observation space {space}: expected images, a Box of (channels, height, width). Use "
                "'MlpPolicy' for anything else, of a Dict 'MultiInputPolicy'."
            )
        if min(space.shape[1:]) < 36:
            raise ValueError(
                f"'CnnPolicy' for images of shape {space.shape}: NatureCNN needs at least 36 x 36 pixels. Name another "
                "encoder: policy_kwargs=dict(encoder='grid') or 'impala'."
            )


class RainbowMultiInputPolicy(RainbowPolicy, MultiInputPolicy):
    """:class:`RainbowPolicy` for Dict observations."""

    def _check_space(self, space: spaces.Space, extractor: type | None) -> None:
        if not isinstance(space, spaces.Dict) and extractor is None:
            raise ValueError(
                f"'MultiInputPolicy' for the observation space {space}: expected a Dict. Use 'CnnPolicy' for images, "
                "'MlpPolicy' for anything else."
            )
