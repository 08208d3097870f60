"""
Policies of streaming agents: the networks, and the normalisation of what they see.

Everything that ``predict`` needs is inside, so it takes raw observations.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import choice, flag, fraction, per_network, plain, positive, whole_number, whole_numbers
from sb3_sparse.networks.cnn import channels_are_last
from sb3_sparse.sparse.sparsity import Sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole
from sb3_sparse.streaming.networks import (
    CONVOLUTIONS,
    StreamNetwork,
    cnn_trunk,
    lecun_uniform_,
    mlp_trunk,
    scaled,
    sparse_init_,
)
from sb3_sparse.streaming.normalizers import HUGE, ORDINARY, ObservationNormalizer, RewardScaler, magnitude, time_feature
from sb3_sparse.streaming.obgd import ObGD

INITIALIZATIONS = ("sparse_init", "lecun_uniform")


class StreamPolicy(LoadsWhole, BasePolicy):
    """
    Base of the streaming policies. The keywords here are those of all of them.

    What is one value here may be one for each network: ``{"pi": 0.5, "vf": 0.9}`` for actor and critic, ``{"qf": 0.9}``
    for policies with a network of action values alone.

    :param observation_space: A Box of any shape.
    :param action_space: Action space.
    :param lr_schedule: Not used: optimisers belong to the algorithm.
    :param net_arch: Widths of the hidden layers. Default: two layers of 128 for continuous actions, of 32 for discrete ones.
    :param width_scale: Multiplies the default widths.
    :param initialization: ``"sparse_init"`` (the default without ``sparsity``): most weights start at zero and are
        trained. ``"lecun_uniform"``: all weights start from a uniform distribution.
    :param init_sparsity: Fraction of zeros per output unit at first, with ``"sparse_init"``.
    :param sparsity: Fraction of the weights that do not exist, in [0, 1): drawn once, at random, over a
        ``"lecun_uniform"`` start. Excludes ``"sparse_init"``.
    :param sparsity_distribution: ``"erdos_renyi"`` or ``"uniform"``: how ``sparsity`` is spread over the layers.
    :param mask_seed: Fixes which weights exist, apart from the initial values. None: follows SB3's ``seed=``.
    :param rescale: With ``sparsity``, multiply the initial weights of a layer by ``1 / sqrt(density)``.
    :param normalize_observations: Whether to normalise observations by running statistics.
    :param time_limit: Steps of an episode for the time feature, None: no such feature.
    :param gamma: Discount factor, for the scaling of rewards. Default: 0.99.
    :raises ValueError: If a value is out of range, or both kinds of sparsity are asked for.
    """

    __signature__ = FullSignature()
    # Short names of the networks, as keywords call them.
    network_names: tuple[str, ...] = ("pi", "vf")
    algorithm_names: tuple[str, ...] = ("StreamAC",)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule | None = None,
        *,
        net_arch: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        width_scale: float | Mapping[str, float] = 1.0,
        initialization: str | None = None,
        init_sparsity: float = 0.9,
        sparsity: float | Mapping[str, float] = 0.0,
        sparsity_distribution: str = "erdos_renyi",
        mask_seed: int | None = None,
        rescale: bool = False,
        normalize_observations: bool = True,
        time_limit: int | None = None,
        gamma: float | None = None,
        **unknown: Any,
    ):
        if lr_schedule is not None and gamma is None:
            # As algorithms of Stable-Baselines3 build policies.
            self._refuse_other_algorithms()
        if unknown:
            names = sorted(unknown)
            raise TypeError(f"{type(self).__name__} has no keywords {names}: see its documentation for those that it has.")
        super().__init__(observation_space, action_space, normalize_images=False)
        observation_shape = _checked_shape(observation_space, action_space)
        self.width_scale = per_network("width_scale", width_scale, self.network_names, positive)
        self.sparsity = Sparsity.per_network(
            self.network_names,
            sparsity,
            sparsity_distribution=sparsity_distribution,
            mask_seed=mask_seed,
            rescale=rescale,
        )
        self._constructor_kwargs: dict[str, Any] = {
            "net_arch": plain(net_arch),
            "width_scale": plain(width_scale),
            "initialization": None if initialization is None else choice("initialization", initialization, INITIALIZATIONS),
            "init_sparsity": fraction("init_sparsity", init_sparsity),
            "normalize_observations": flag("normalize_observations", normalize_observations),
            "time_limit": None if time_limit is None else whole_number("time_limit", time_limit, 1),
            "gamma": fraction("gamma", 0.99 if gamma is None else gamma),
        }
        is_sparse = any(sparsity.amount for sparsity in self.sparsity.values())
        self.initialization = initialization or ("lecun_uniform" if is_sparse else "sparse_init")
        if self.initialization == "sparse_init" and is_sparse:
            raise ValueError(
                f"initialization='sparse_init' together with sparsity={sparsity!r}: the first starts with trainable zeros, "
                "the second removes weights for good. Leave one of them out."
            )
        self.net_arch = self._resolve_net_arch(net_arch)
        self.time_limit: int | None = self._constructor_kwargs["time_limit"]
        self.feature_shape = self._feature_shape(observation_shape)
        self.obs_norm = ObservationNormalizer(self.feature_shape) if normalize_observations else None
        self.reward_scaler = RewardScaler(self._constructor_kwargs["gamma"])
        self._steps: np.ndarray | None = None
        self._build()

    def _refuse_other_algorithms(self) -> None:
        name, algorithms = type(self).__name__, self.algorithm_names
        loads = " or ".join(f"{algorithm}.load" for algorithm in algorithms)
        raise ValueError(
            f"{name} is a policy of {' and '.join(algorithms)}, and no other algorithm learns with it. If it comes from a "
            f"file, the file holds an agent that is loaded by {loads}."
        )

    def _resolve_net_arch(self, net_arch: Any) -> dict[str, list[int]]:
        if net_arch is None:
            width = 128 if isinstance(self.action_space, spaces.Box) else 32
            return {name: 2 * [scaled(width, self.width_scale[name])] for name in self.network_names}
        if any(scale != 1 for scale in self.width_scale.values()):
            raise ValueError(
                f"net_arch={net_arch!r} together with width_scale={self.width_scale}: "
                "the scale multiplies the default widths, net_arch replaces them. Give one or the other."
            )
        return per_network("net_arch", net_arch, self.network_names, partial(whole_numbers, minimum=1), "a list")

    def _feature_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of an observation as the normaliser sees it."""
        return (math.prod(shape),)

    def _build(self) -> None:
        raise NotImplementedError

    def make_trunk(self, network: str) -> tuple[nn.Sequential, int]:
        """
        The layers below the heads. Override for another network.

        :param network: Which network, ``"pi"``, ``"vf"`` or ``"qf"``.
        :return: The trunk, and the size of its latent vector.
        """
        return mlp_trunk(self.feature_shape[0] + (self.time_limit is not None), self.net_arch[network])

    def make_network(self, network: str, heads: Mapping[str, int]) -> StreamNetwork:
        """
        Build and initialise a network.

        :param network: Which network, ``"pi"``, ``"vf"`` or ``"qf"``.
        :param heads: Size of each head by name.
        """
        trunk, latent_dim = self.make_trunk(network)
        net = StreamNetwork(trunk, latent_dim, heads)
        if self.initialization == "sparse_init":
            sparse_init_(net, self._constructor_kwargs["init_sparsity"])
            return net
        lecun_uniform_(net)
        return self.sparsity[network].apply_(net, name=network)

    def features(self, observations: np.ndarray, steps: np.ndarray | int = 0) -> np.ndarray:
        """
        What the networks see: normalised observations, with the time feature.

        :param observations: ``(batch, *observation_space.shape)``
        :param steps: Steps taken in the episode, one number or ``(batch,)``.
        :return: float32, ``(batch, n_features)``
        """
        features = observations.reshape(len(observations), *self.feature_shape)
        if self._normalizer is not None:
            features = self._normalizer.normalize(features)
        elif not magnitude(features) <= ORDINARY:
            # A layer normalisation squares them, in float32.
            features = np.clip(features, -HUGE, HUGE)
        if self.time_limit is None:
            return features.astype(np.float32)
        with_time = np.empty((len(features), features.shape[1] + 1), dtype=np.float32)
        with_time[:, :-1] = features
        with_time[:, -1] = time_feature(steps, self.time_limit)
        return with_time

    def observe(self, observation: np.ndarray) -> None:
        """Take one observation of the training environment into the statistics."""
        if self._normalizer is not None:
            self._normalizer.update(observation.reshape(self.feature_shape))

    @property
    def _normalizer(self) -> ObservationNormalizer | None:
        # `self.obs_norm` takes several times as long, and this is asked for in every step.
        return self._modules.get("obs_norm")  # type: ignore[return-value]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for raw observations.

        The state counts the steps of each episode, for the time feature. Pass back the one that was returned, and
        say where episodes start, as ``evaluate_policy`` does; without it, every observation counts as an episode's
        first.

        :param observation: Raw observations.
        :param state: What the last call returned, or None.
        :param episode_start: ``(n_envs,)``: whether an episode starts with this observation.
        :param deterministic: Whether to take the mean or mode instead of a sample.
        :return: Actions, and the state for the next call.
        """
        steps = np.zeros(1, dtype=np.int64) if state is None else state[0]
        if episode_start is not None:
            steps = np.where(np.asarray(episode_start, dtype=bool), 0, steps)
        self._steps = steps
        try:
            actions, _ = super().predict(observation, deterministic=deterministic)
        finally:
            self._steps = None
        return actions, (steps + 1,)

    def _features_tensor(self, observation: PyTorchObs) -> th.Tensor:
        assert isinstance(observation, th.Tensor)
        features = self.features(observation.cpu().numpy(), 0 if self._steps is None else self._steps)
        return th.from_numpy(features).to(self.device)

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense policy."""
        # Not the start that goes with dense networks by default: as these were made.
        self._constructor_kwargs["initialization"] = self.initialization
        self.sparsity = {network: sparsity.dense() for network, sparsity in self.sparsity.items()}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["normalize_images"]
        return {**data, **Sparsity.keywords_of(self.sparsity), **self._constructor_kwargs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "sparsity" in state["_constructor_kwargs"]:
            # Pickled by an earlier version, which kept the keywords.
            keywords = dict(state["_constructor_kwargs"])
            sparsity = Sparsity.per_network(self.network_names, **Sparsity.take_keywords(keywords))
            state = {**state, "sparsity": sparsity, "_constructor_kwargs": keywords}
        super().__setstate__(state)


class StreamACPolicy(StreamPolicy):
    """
    Policy of :class:`StreamAC`: an actor and a critic that share nothing.

    Its keywords are those of :class:`StreamPolicy`.
    """

    actor_optimizer: ObGD
    critic_optimizer: ObGD

    def _build(self) -> None:
        self.actor = self.make_actor()
        self.critic = self.make_critic()

    def make_actor(self) -> StreamNetwork:
        """Build the actor: mean and deviation (before softplus) of a Gaussian, or the logits of a categorical."""
        n_actions = get_action_dim(self.action_space)
        if isinstance(self.action_space, spaces.Box):
            return self.make_network("pi", {"mu": n_actions, "pre_std": n_actions})
        assert isinstance(self.action_space, spaces.Discrete)
        return self.make_network("pi", {"logits": int(self.action_space.n)})

    def make_critic(self) -> StreamNetwork:
        """Build the critic: the value of a state."""
        return self.make_network("vf", {"value": 1})

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        outputs = self.actor(self._features_tensor(observation))
        if isinstance(self.action_space, spaces.Discrete):
            return outputs.argmax(dim=-1) if deterministic else th.multinomial(outputs.softmax(dim=-1), 1).squeeze(-1)
        mean, pre_std = outputs.chunk(2, dim=-1)
        return mean if deterministic else th.normal(mean, nn.functional.softplus(pre_std))


class StreamQPolicy(StreamPolicy):
    """
    Policy of :class:`StreamQ` and :class:`StreamSARSA`: action values.

    Its keywords are those of :class:`StreamPolicy`.
    """

    network_names = ("qf",)
    algorithm_names = ("StreamQ", "StreamSARSA")
    q_optimizer: ObGD

    def _build(self) -> None:
        self.q_net = self.make_q_net()

    def make_q_net(self) -> StreamNetwork:
        """Build the network: a value for each action."""
        assert isinstance(self.action_space, spaces.Discrete)
        return self.make_network("qf", {"q": int(self.action_space.n)})

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.q_net(self._features_tensor(observation)).argmax(dim=-1)


def _checked_shape(observation_space: spaces.Space, action_space: spaces.Space) -> tuple[int, ...]:
    """Shape of an observation."""
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"observation space {observation_space}: streaming policies take a Box. "
            "Wrap the environment in gymnasium.wrappers.FlattenObservation."
        )
    for what, space in (("observation", observation_space), ("action", action_space)):
        if 0 in (space.shape or ()):
            raise ValueError(f"{what} space {space}: expected one with at least one number.")
    return observation_space.shape


class ImagePolicy(StreamPolicy):
    """
    Mixin for a policy that sees images: convolutions instead of the hidden layers, and no time feature.

    :param network: ``"atari"`` (84 × 84, three convolutions) or ``"minatar"`` (10 × 10, one). None: by the size of
        the image, ``"minatar"`` up to 16 pixels.
    """

    def __init__(self, observation_space: spaces.Space, *args: Any, network: str | None = None, **kwargs: Any):
        shape = observation_space.shape
        if not isinstance(observation_space, spaces.Box) or shape is None or len(shape) != 3:
            raise ValueError(f"observation space {observation_space}: CnnPolicy takes images, a Box with three dimensions.")
        if network is not None:
            choice("network", network, CONVOLUTIONS)
        if kwargs.get("net_arch") is not None:
            raise ValueError(f"net_arch={kwargs['net_arch']!r}: CnnPolicy has its own layers, use width_scale.")
        self.channels_first = not channels_are_last(shape, is_grid=True)
        self.network = network
        kwargs["time_limit"] = None
        super().__init__(observation_space, *args, **kwargs)

    def _resolve_net_arch(self, net_arch: Any) -> dict[str, list[int]]:
        return {}

    def _feature_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def make_trunk(self, network: str) -> tuple[nn.Sequential, int]:
        """Convolutions and a linear layer."""
        shape = self.feature_shape
        image_shape = shape if self.channels_first else (shape[2], *shape[:2])
        kind = self.network or ("minatar" if max(image_shape[1:]) <= 16 else "atari")
        return cnn_trunk(image_shape, kind, self.width_scale[network])

    def features(self, observations: np.ndarray, steps: np.ndarray | int = 0) -> np.ndarray:
        """Normalised images, ``(batch, channels, height, width)``."""
        features = super().features(observations, steps)
        return features if self.channels_first else np.ascontiguousarray(features.transpose(0, 3, 1, 2))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "network": self.network}


class StreamACCnnPolicy(ImagePolicy, StreamACPolicy):
    """Policy of :class:`StreamAC` for images. Its keywords are those of :class:`ImagePolicy` and :class:`StreamPolicy`."""


class StreamQCnnPolicy(ImagePolicy, StreamQPolicy):
    """
    Policy of :class:`StreamQ` and :class:`StreamSARSA` for images.

    Its keywords are those of :class:`ImagePolicy` and :class:`StreamPolicy`.
    """
