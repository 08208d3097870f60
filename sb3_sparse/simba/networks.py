"""
Actors, critics and Q-networks of SB3's algorithms with a sparse SimBa trunk, which comes from ``network_mixin.py``.

Each is a class of its own with its own constructor record, since SB3 promises ``type(policy.actor).load``.
"""

import copy
from typing import Any

import torch as th
from sb3_contrib.crossq import policies as crossq
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn

from sb3_sparse.networks import orthogonal_linear
from sb3_sparse.networks.frozen import frozen
from sb3_sparse.simba.network_mixin import SimBaNetwork


class _StochasticActor(SimBaNetwork):
    """
    Mixin for the Gaussian actors of SAC, TQC and CrossQ.

    :param squash_log_std: Map the log standard deviation to [-10, 2] with a tanh as SimBa does, instead of
        clipping it to [-20, 2] as SB3 does. Without effect with gSDE, which has no such output.
    """

    def __init__(self, *args: Any, squash_log_std: bool = True, **kwargs: Any):
        self.squash_log_std = squash_log_std
        super().__init__(*args, **kwargs)

    def build_simba(self) -> None:
        """Trunk and heads."""
        self.latent_pi = self.make_trunk(self.features_dim)
        if not self.use_sde:
            action_dim = get_action_dim(self.action_space)
            self.mu = orthogonal_linear(self.net_arch[-1], action_dim)
            self.log_std = orthogonal_linear(self.net_arch[-1], action_dim)

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """
        What the distribution of actions is made from.

        :param obs: Observations.
        :return: Mean, log standard deviation, and further arguments of the distribution.
        """
        self.observe(obs)
        if self.use_sde or not self.squash_log_std:
            return super().get_action_dist_params(obs)
        latent_pi = self.latent_pi(self.extract_features(obs, self.features_extractor))
        log_std = -10.0 + 6.0 * (1.0 + th.tanh(self.log_std(latent_pi)))
        return self.mu(latent_pi), log_std, {}

    def __getstate__(self) -> dict[str, Any]:
        # The last distribution may lead on to all that it was made of, which torch does not copy. SB3 makes one for each pass,
        # the compiled pass none.
        content = vars(self.action_dist)
        kept = {name: each.detach() for name, each in content.items() if isinstance(each, th.Tensor) and not each.is_leaf}
        distribution = copy.copy(self.action_dist)
        vars(distribution).update(kept, distribution=None)
        return {**vars(self), "action_dist": distribution}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "squash_log_std": self.squash_log_std}


class _Critic(SimBaNetwork):
    """Mixin for the state-action critics. Their weights get no gradient from the actor's loss, which SB3 discards."""

    n_outputs = 1

    def __init__(self, *args: Any, features_dim: int, activation_fn: type[nn.Module] = nn.ReLU, **kwargs: Any):
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        super().__init__(*args, features_dim=features_dim, activation_fn=activation_fn, **kwargs)

    def build_simba(self) -> None:
        """Trunk and heads."""
        in_features = self.features_dim + get_action_dim(self.action_space)
        for i in range(len(self.q_networks)):
            trunk = self.make_trunk(in_features)
            q_network = nn.Sequential(trunk, orthogonal_linear(self.net_arch[-1], self.n_outputs))
            self.q_networks[i] = q_network
            setattr(self, f"qf{i}", q_network)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> Any:
        """
        Q-values. Where ``actions`` carry a gradient, they are the actor's: only they get one.

        :param obs: Observations.
        :param actions: ``(batch, action_dim)``
        """
        if _from_actor(actions):
            with frozen(self):
                return super().forward(obs, actions)
        self.observe(obs)
        return super().forward(obs, actions)


class SimBaSACActor(_StochasticActor, sac.Actor):
    """Actor of :class:`SparseSimBaPolicy`."""


class SimBaTQCActor(_StochasticActor, tqc.Actor):
    """Actor of :class:`SparseSimBaTQCPolicy`."""


class SimBaCrossQActor(_StochasticActor, crossq.Actor):
    """Actor of :class:`SparseSimBaCrossQPolicy`."""


class SimBaTD3Actor(SimBaNetwork, td3.Actor):
    """Actor of :class:`SparseSimBaTD3Policy`."""

    def build_simba(self) -> None:
        """Trunk and heads."""
        trunk = self.make_trunk(self.features_dim)
        head = orthogonal_linear(self.net_arch[-1], get_action_dim(self.action_space))
        self.mu = nn.Sequential(trunk, head, nn.Tanh())


class SimBaContinuousCritic(_Critic, ContinuousCritic):
    """Critic of :class:`SparseSimBaPolicy` and :class:`SparseSimBaTD3Policy`."""

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q-values of the first critic, for the actor's loss of TD3 and DDPG."""
        if _from_actor(actions):
            with frozen(self):
                return super().q1_forward(obs, actions)
        return super().q1_forward(obs, actions)


class SimBaTQCCritic(_Critic, tqc.Critic):
    """Quantile critic of :class:`SparseSimBaTQCPolicy`."""

    def build_simba(self) -> None:
        """Trunk and heads."""
        self.n_outputs = self.n_quantiles
        super().build_simba()


class SimBaCrossQCritic(_Critic, crossq.CrossQCritic):
    """Critic of :class:`SparseSimBaCrossQPolicy`."""


class SimBaQNetwork(SimBaNetwork, dqn.QNetwork):
    """Q-network of :class:`SparseSimBaDQNPolicy`."""

    def build_simba(self) -> None:
        """Trunk and heads."""
        trunk = self.make_trunk(self.features_dim)
        self.q_net = nn.Sequential(trunk, orthogonal_linear(self.net_arch[-1], int(self.action_space.n)))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """Values of all actions, ``(batch, n_actions)``."""
        self.observe(obs)
        return super().forward(obs)


class SimBaQuantileNetwork(SimBaNetwork, qrdqn.QuantileNetwork):
    """Quantile network of :class:`SparseSimBaQRDQNPolicy`."""

    def build_simba(self) -> None:
        """Trunk and heads."""
        trunk = self.make_trunk(self.features_dim)
        self.n_actions = int(self.action_space.n)
        self.quantile_net = nn.Sequential(trunk, orthogonal_linear(self.net_arch[-1], self.n_actions * self.n_quantiles))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """Quantiles of all actions, ``(batch, n_quantiles, n_actions)``."""
        self.observe(obs)
        if not self.net_arch:
            return super().forward(obs)
        # As the parent does, with a number of Python's: torch.compile takes NumPy's for one that may be any.
        quantiles = self.quantile_net(self.extract_features(obs, self.features_extractor))
        return quantiles.view(-1, self.n_quantiles, self.n_actions)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickled by version 0.1, which had no such attribute.
        super().__setstate__({"n_actions": int(state["action_space"].n), **state})


def _from_actor(actions: th.Tensor) -> bool:
    return actions.requires_grad and th.is_grad_enabled()
