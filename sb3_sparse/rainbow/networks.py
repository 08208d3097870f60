"""The network of Rainbow: an encoder, hidden layers, and a head; each part of it may be switched off."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import QNetwork
from torch import nn

from sb3_sparse.common.model_parts import leaves
from sb3_sparse.networks.heads import DuelingHead, Linear, PlainHead, Support
from sb3_sparse.networks.noisy import NoisyLinear, noisy_layers
from sb3_sparse.networks.pieces import encode_in_pieces
from sb3_sparse.sparse.sparsity import Sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole


class RainbowParts(QNetwork):
    """
    What Rainbow's networks share, whatever their trunk is. With everything switched off it is SB3's network, bit by bit.

    :param args: Of SB3's ``QNetwork``.
    :param distributional: Whether it predicts distributions over returns (C51).
    :param dueling: Whether values are learned apart from advantages.
    :param noisy: Whether hidden layers and head are noisy.
    :param n_atoms: Of the distributions.
    :param v_min: Smallest return of the distributions.
    :param v_max: Largest return of the distributions.
    :param sigma: Size of the noise at first.
    :param kwargs: Of SB3's ``QNetwork``.
    :raises ValueError: If actions do not begin with 0.
    """

    _in_pieces = False

    def __init__(
        self,
        *args: Any,
        distributional: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        n_atoms: int = 51,
        v_min: float = -10.0,
        v_max: float = 10.0,
        sigma: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if self.action_space.start:
            raise ValueError(
                f"{self.action_space}: Q-values are of actions that begin with 0, as in SB3. Wrap the environment in "
                "gymnasium.wrappers.TransformAction."
            )
        self.rainbow_kwargs: dict[str, Any] = {
            "distributional": distributional,
            "dueling": dueling,
            "noisy": noisy,
            "n_atoms": n_atoms,
            "v_min": v_min,
            "v_max": v_max,
            "sigma": sigma,
        }
        self.support = Support(n_atoms, v_min, v_max) if distributional else None
        if distributional or dueling or noisy:
            linear = self.linear()
            layers: list[nn.Module] = []
            width = self.features_dim
            for units in self.net_arch:
                layers += [linear(width, units), self.activation_fn()]
                width = units
            self.q_net = nn.Sequential(*layers, self.make_head(width, linear))

    def linear(self, plain: Linear = nn.Linear) -> Linear:
        """
        What makes a layer of its sizes.

        :param plain: The same without noise.
        """
        return partial(NoisyLinear, sigma=self.rainbow_kwargs["sigma"]) if self.rainbow_kwargs["noisy"] else plain

    def make_head(self, width: int, linear: Linear) -> nn.Module:
        """
        The last layers.

        :param width: Size of their input.
        :param linear: Makes a layer of its sizes.
        """
        head = DuelingHead if self.rainbow_kwargs["dueling"] else PlainHead
        n_numbers = 1 if self.support is None else self.support.n_atoms
        return head(width, int(self.action_space.n), n_numbers, linear)

    def log_probabilities(self, obs: PyTorchObs) -> th.Tensor:
        """
        Of every atom of every action, where the network is distributional.

        :param obs: Observations.
        :return: ``(batch, n_actions, n_atoms)``
        """
        return self.q_net(self.extract_features(obs, self.features_extractor)).log_softmax(dim=2)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        Q-values; of distributions the means.

        :param obs: Observations.
        :return: ``(batch, n_actions)``
        """
        if self.support is not None:
            return self.support.mean(self.log_probabilities(obs).exp())
        values = super().forward(obs)
        return values.squeeze(2) if values.dim() == 3 else values

    def chains(self) -> list[list[nn.Module]]:
        """Its layers from input to output, without the encoder; a dueling head has two ends."""
        *hidden, head = self.q_net
        ends = [head.advantage, head.value] if isinstance(head, DuelingHead) else [head]
        return [[leaf for part in (*hidden, end) for leaf in leaves(part)] for end in ends]

    def reset_noise(self) -> None:
        """Draw another noise for all noisy layers."""
        for layer in noisy_layers(self):
            layer.reset_noise()

    @contextmanager
    def without_noise(self) -> Iterator[None]:
        """The means of the weights alone, inside."""
        layers = list(noisy_layers(self))
        before = [layer.noisy for layer in layers]
        try:
            for layer in layers:
                layer.noisy = False
            yield
        finally:
            for layer, noisy in zip(layers, before, strict=True):
                layer.noisy = noisy

    @contextmanager
    def in_pieces(self) -> Iterator[None]:
        """Inside, batches are encoded as updates do it on the CPU, see :func:`encode_in_pieces`."""
        self._in_pieces = True
        try:
            yield
        finally:
            self._in_pieces = False

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """
        Preprocess and encode.

        :param obs: Observations.
        :param features_extractor: The encoder.
        :return: ``(batch, features)``
        """
        if not self._in_pieces or not isinstance(obs, th.Tensor):
            return super().extract_features(obs, features_extractor)
        encode = super().extract_features
        return encode_in_pieces(features_extractor, lambda obs: encode(obs, features_extractor), obs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        if deterministic:
            with self.without_noise():
                return super()._predict(observation)
        self.reset_noise()
        return super()._predict(observation)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.rainbow_kwargs}


class RainbowNetwork(LoadsWhole, RainbowParts):
    """
    Q-network of :class:`Rainbow`: encoder, hidden layers and head, pruned together.

    :param args: Of SB3's ``QNetwork``.
    :param kwargs: Of :class:`RainbowParts`, and the keywords of :class:`Sparsity`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.sparsity = Sparsity.from_keywords(**Sparsity.take_keywords(kwargs))
        super().__init__(*args, **kwargs)
        self.sparsity.apply_(self)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.sparsity.keywords}

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense network."""
        self.sparsity = self.sparsity.dense()
