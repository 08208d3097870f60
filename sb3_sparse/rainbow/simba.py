"""Rainbow with SimBa's trunk, for vectors: residual blocks, normalised observations, and Rainbow's head on top."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from sb3_sparse.networks import orthogonal_linear
from sb3_sparse.rainbow.networks import RainbowParts
from sb3_sparse.rainbow.policies import checked_rainbow_keywords
from sb3_sparse.simba.network_mixin import SimBaNetwork
from sb3_sparse.simba.policy_mixin import SimBaPolicy


class SimBaRainbowNetwork(SimBaNetwork, RainbowParts):
    """Q-network of :class:`SparseSimBaRainbowPolicy`."""

    def build_simba(self) -> None:
        """Trunk and head; of these the head alone is noisy."""
        self.q_net = nn.Sequential(
            self.make_trunk(self.features_dim), self.make_head(self.net_arch[-1], self.linear(orthogonal_linear))
        )

    def log_probabilities(self, obs: PyTorchObs) -> th.Tensor:
        """
        Of every atom of every action, where the network is distributional.

        :param obs: Observations.
        :return: ``(batch, n_actions, n_atoms)``
        """
        self.observe(obs)
        return super().log_probabilities(obs)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        Q-values; of distributions the means.

        :param obs: Observations.
        :return: ``(batch, n_actions)``
        """
        if self.support is None:
            self.observe(obs)
        return super().forward(obs)


class SparseSimBaRainbowPolicy(SimBaPolicy, DQNPolicy):
    """
    Sparse SimBa policy for :class:`Rainbow`. Its one network has the size of SimBa's critic.

    Its keywords are those of :class:`SimBaPolicy`; the algorithm says which parts of Rainbow there are.

    :param args: Of :class:`SimBaPolicy`.
    :param distributional: Whether the network predicts distributions over returns (C51).
    :param dueling: Whether values are learned apart from advantages.
    :param noisy: Whether the head is noisy.
    :param n_atoms: Of the distributions, at least 2.
    :param v_min: Smallest return of the distributions.
    :param v_max: Largest return of the distributions.
    :param sigma: Size of the noise at first.
    :param kwargs: Of :class:`SimBaPolicy`.
    :raises ValueError: If a value is out of range.
    """

    network_classes = {"qf": SimBaRainbowNetwork}
    q_net: SimBaRainbowNetwork
    q_net_target: SimBaRainbowNetwork

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
        # Before the constructor, which makes the networks.
        self.rainbow_kwargs = checked_rainbow_keywords(distributional, dueling, noisy, n_atoms, v_min, v_max, sigma)
        super().__init__(*args, **kwargs)

    def make_q_net(self) -> SimBaRainbowNetwork:
        """Build a network; SB3 calls this, once more for the target."""
        return self.make_network("qf", {**self.net_args, **self.rainbow_kwargs})

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.rainbow_kwargs}
