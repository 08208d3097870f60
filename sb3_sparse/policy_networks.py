"""
Actors, critics and Q-networks of SB3 with a sparse SimBa trunk.

``SimBaNetwork`` is the mixin that prunes and normalises; the classes at the end say which network of SB3 it is mixed
into. Each is a class of its own with its own constructor record, since SB3 promises ``type(policy.actor).load``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from sb3_contrib.crossq import policies as crossq
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn

from sb3_sparse.networks import SimBaEncoder, orthogonal_linear
from sb3_sparse.observations import ObservationNorm
from sb3_sparse.sparse.sparsity import sparsify_
from sb3_sparse.sparse.state.loading import LoadsWhole

WRONG_POLICY = "Is this the policy of another algorithm? The string 'SparseSimBaPolicy' names the right one on each."
# What algorithms ask their policies and networks for.
_ASKED_FOR = {
    *("actor", "actor_target", "critic", "critic_target"),
    *("q_net", "q_net_target", "quantile_net"),
    *("quantiles_total", "set_bn_training_mode"),
}


class HintsAtItsAlgorithm:
    """Mixin for a module that is asked for what it has not, since it was given to another algorithm than its own."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name in _ASKED_FOR and "_modules" in self.__dict__:
                raise AttributeError(f"{error}. {WRONG_POLICY}") from None
            raise


class ShowsItsSteps:
    """Mixin for a module with an optimizer whose steps move the statistics of observations."""

    def _norm_to_move(self) -> ObservationNorm | None:
        raise NotImplementedError

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """The optimizer. Another one may take its place at any time; in a copy it has to be followed anew."""
        try:
            optimizer = self.__dict__["optimizer"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'optimizer'") from None
        if (norm := self._norm_to_move()) is not None:
            norm.follow(optimizer)
        return optimizer

    @optimizer.setter
    def optimizer(self, optimizer: th.optim.Optimizer) -> None:
        if (norm := self._norm_to_move()) is not None:
            norm.follow(optimizer)
        self.__dict__["optimizer"] = optimizer

    @optimizer.deleter
    def optimizer(self) -> None:
        del self.__dict__["optimizer"]


class SimBaNetwork(ShowsItsSteps, HintsAtItsAlgorithm, LoadsWhole):
    """
    Mixin for a sub-network of SB3: SimBa trunk instead of the MLP, pruned, with normalised observations.

    :param net_arch: One entry per residual block, all equal; empty for a linear network.
    :param sparsity: Fraction of the weights of trunk and heads that is removed.
    :param obs_norm: Normalises observations; shared by all networks of a policy.
    :param feeds_obs_norm: Whether the batches that this network is trained on move the statistics of ``obs_norm``.
    """

    def __init__(
        self,
        *args: Any,
        net_arch: list[int],
        sparsity: float = 0.0,
        sparsity_distribution: str = "erdos_renyi",
        mask_seed: int | None = None,
        rescale: bool = False,
        obs_norm: ObservationNorm | None = None,
        feeds_obs_norm: bool = False,
        **kwargs: Any,
    ):
        # SB3 sizes the heads by the last entry; its small MLP trunk is replaced below.
        super().__init__(*args, net_arch=net_arch[-1:], **kwargs)
        self.net_arch = net_arch
        # The norm comes first in the state dict: being shared with other networks, it must not be the last entry,
        # which partial loading (`exact_match=False`) may leave out.
        modules = dict(self._modules)
        self._modules.clear()
        self.obs_norm = obs_norm
        self._modules.update(modules)
        self.simba_kwargs = {
            "sparsity": sparsity,
            "sparsity_distribution": sparsity_distribution,
            "mask_seed": mask_seed,
            "rescale": rescale,
            "feeds_obs_norm": feeds_obs_norm,
        }
        if net_arch:
            self._build_simba()
        sparsify_(
            self,
            sparsity,
            sparsity_distribution,
            exclude=("features_extractor",),
            seed=mask_seed,
            rescale=rescale,
        )

    def _build_simba(self) -> None:
        raise NotImplementedError

    def _encoder(self, in_features: int, activation_fn: type[nn.Module]) -> SimBaEncoder:
        return SimBaEncoder(in_features, self.net_arch[-1], len(self.net_arch), activation_fn)

    def _preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        return preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)

    def _norm_to_move(self) -> ObservationNorm | None:
        feeds = "simba_kwargs" in self.__dict__ and self.simba_kwargs["feeds_obs_norm"]
        return self.obs_norm if feeds and self.obs_norm is not None and self.obs_norm.keys else None

    def _observe(self, obs: PyTorchObs) -> None:
        """Show a batch to the statistics if this may be a training pass of the network that feeds them."""
        if not self.training or not th.is_grad_enabled() or th.jit.is_tracing():
            return
        if (norm := self._norm_to_move()) is not None:
            norm.observe(self._preprocess(obs))

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """Preprocess and normalise observations, then extract features."""
        preprocessed = self._preprocess(obs)
        return features_extractor(preprocessed if self.obs_norm is None else self.obs_norm(preprocessed))

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense network."""
        self.simba_kwargs["sparsity"] = 0.0

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {**data, **self.simba_kwargs, "obs_norm": self.obs_norm}


class _StochasticActor(SimBaNetwork):
    """
    Mixin for the Gaussian actors of SAC, TQC and CrossQ.

    :param squash_log_std: Map the log standard deviation to [-10, 2] with a tanh as SimBa does, instead of
        clipping it to [-20, 2] as SB3 does. Without effect with gSDE, which has no such output.
    """

    def __init__(self, *args: Any, squash_log_std: bool = True, **kwargs: Any):
        self.squash_log_std = squash_log_std
        super().__init__(*args, **kwargs)

    def _build_simba(self) -> None:
        self.latent_pi = self._encoder(self.features_dim, self.activation_fn)
        if not self.use_sde:
            action_dim = get_action_dim(self.action_space)
            self.mu = orthogonal_linear(self.net_arch[-1], action_dim)
            self.log_std = orthogonal_linear(self.net_arch[-1], action_dim)

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        self._observe(obs)
        if self.use_sde or not self.squash_log_std:
            return super().get_action_dist_params(obs)
        latent_pi = self.latent_pi(self.extract_features(obs, self.features_extractor))
        log_std = -10.0 + 6.0 * (1.0 + th.tanh(self.log_std(latent_pi)))
        return self.mu(latent_pi), log_std, {}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "squash_log_std": self.squash_log_std}


class _Critic(SimBaNetwork):
    """Mixin for the state-action critics. Their weights get no gradient from the actor's loss, which SB3 discards."""

    n_outputs = 1

    def __init__(self, *args: Any, features_dim: int, activation_fn: type[nn.Module] = nn.ReLU, **kwargs: Any):
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        super().__init__(*args, features_dim=features_dim, activation_fn=activation_fn, **kwargs)

    def _build_simba(self) -> None:
        in_features = self.features_dim + get_action_dim(self.action_space)
        for i in range(len(self.q_networks)):
            encoder = self._encoder(in_features, self.activation_fn)
            q_network = nn.Sequential(encoder, orthogonal_linear(self.net_arch[-1], self.n_outputs))
            self.q_networks[i] = q_network
            setattr(self, f"qf{i}", q_network)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> Any:
        """
        Q-values. Where ``actions`` carry a gradient, they are the actor's: only they get one.

        :param obs: Observations.
        :param actions: ``(batch, action_dim)``
        """
        if _from_actor(actions):
            with _frozen(self):
                return super().forward(obs, actions)
        self._observe(obs)
        return super().forward(obs, actions)


class SimBaSACActor(_StochasticActor, sac.Actor):
    """Actor of :class:`SparseSimBaPolicy`."""


class SimBaTQCActor(_StochasticActor, tqc.Actor):
    """Actor of :class:`SparseSimBaTQCPolicy`."""


class SimBaCrossQActor(_StochasticActor, crossq.Actor):
    """Actor of :class:`SparseSimBaCrossQPolicy`."""


class SimBaTD3Actor(SimBaNetwork, td3.Actor):
    """Actor of :class:`SparseSimBaTD3Policy`."""

    def _build_simba(self) -> None:
        encoder = self._encoder(self.features_dim, self.activation_fn)
        head = orthogonal_linear(self.net_arch[-1], get_action_dim(self.action_space))
        self.mu = nn.Sequential(encoder, head, nn.Tanh())


class SimBaContinuousCritic(_Critic, ContinuousCritic):
    """Critic of :class:`SparseSimBaPolicy` and :class:`SparseSimBaTD3Policy`."""

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q-values of the first critic, for the actor's loss of TD3 and DDPG."""
        if _from_actor(actions):
            with _frozen(self):
                return super().q1_forward(obs, actions)
        return super().q1_forward(obs, actions)


class SimBaTQCCritic(_Critic, tqc.Critic):
    """Quantile critic of :class:`SparseSimBaTQCPolicy`."""

    def _build_simba(self) -> None:
        self.n_outputs = self.n_quantiles
        super()._build_simba()


class SimBaCrossQCritic(_Critic, crossq.CrossQCritic):
    """Critic of :class:`SparseSimBaCrossQPolicy`."""


class SimBaQNetwork(SimBaNetwork, dqn.QNetwork):
    """Q-network of :class:`SparseSimBaDQNPolicy`."""

    def _build_simba(self) -> None:
        encoder = self._encoder(self.features_dim, self.activation_fn)
        self.q_net = nn.Sequential(encoder, orthogonal_linear(self.net_arch[-1], int(self.action_space.n)))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        self._observe(obs)
        return super().forward(obs)


class SimBaQuantileNetwork(SimBaNetwork, qrdqn.QuantileNetwork):
    """Quantile network of :class:`SparseSimBaQRDQNPolicy`."""

    def _build_simba(self) -> None:
        encoder = self._encoder(self.features_dim, self.activation_fn)
        self.n_actions = int(self.action_space.n)
        self.quantile_net = nn.Sequential(encoder, orthogonal_linear(self.net_arch[-1], self.n_actions * self.n_quantiles))

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        self._observe(obs)
        if not self.net_arch:
            return super().forward(obs)
        # As the parent does, with a number of Python's: torch.compile takes NumPy's for one that may be any.
        quantiles = self.quantile_net(self.extract_features(obs, self.features_extractor))
        return quantiles.view(-1, self.n_quantiles, self.n_actions)


def _from_actor(actions: th.Tensor) -> bool:
    return actions.requires_grad and th.is_grad_enabled()


@contextmanager
def _frozen(module: Any) -> Iterator[None]:
    """No graph to the module's parameters is recorded inside."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
