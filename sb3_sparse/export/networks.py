"""From observations to the scores that an action is chosen by: the part of each kind of policy that ``predict`` needs."""

from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_sparse.drqv2.policies import DrQv2Policy
from sb3_sparse.streaming.normalizers import EPSILON
from sb3_sparse.streaming.policies import StreamACPolicy, StreamPolicy, StreamQPolicy

Observation = th.Tensor | dict[str, th.Tensor]

ALLOWED = (
    "Policies of SAC, TD3, DDPG, DQN, QR-DQN, TQC, CrossQ, PPO, A2C, TRPO, Rainbow, DER, DrQv2, StreamAC, StreamQ and "
    "StreamSARSA can be."
)


class NetworkScores(nn.Module):
    """
    One network of a policy.

    :param network: The network.
    :param scores: Called with it and a batch of observations.
    """

    def __init__(self, network: nn.Module, scores: Callable[[Any, Observation], th.Tensor]):
        super().__init__()
        self.network = network
        self._scores = scores

    def forward(self, observation: Observation) -> th.Tensor:
        return self._scores(self.network, observation)


class ActorCriticScores(nn.Module):
    """The actor of an actor-critic policy: the mean of a Gaussian, or logits."""

    def __init__(self, policy: ActorCriticPolicy):
        super().__init__()
        self.observation_space = policy.observation_space
        self.normalize_images = policy.normalize_images
        self.squashed = policy.squash_output
        self.features_extractor = policy.pi_features_extractor
        # SB3's own has the critic's layers too; another may have whatever it likes.
        is_sb3 = type(policy.mlp_extractor) is MlpExtractor
        self.trunk = policy.mlp_extractor.policy_net if is_sb3 else None
        self.mlp_extractor = None if is_sb3 else policy.mlp_extractor
        self.action_net = policy.action_net

    def forward(self, observation: Observation) -> th.Tensor:
        features = self.features_extractor(preprocess_obs(observation, self.observation_space, self.normalize_images))
        latent = self.mlp_extractor.forward_actor(features) if self.trunk is None else self.trunk(features)  # type: ignore
        scores = self.action_net(latent)
        return th.tanh(scores) if self.squashed else scores


class DrQv2Scores(nn.Module):
    """Encoder and actor of DrQ-v2."""

    def __init__(self, policy: DrQv2Policy):
        super().__init__()
        self.observation_space = policy.observation_space
        self.normalize_images = policy.normalize_images
        self.encoder = policy.encoder
        self.actor = policy.actor

    def forward(self, observation: th.Tensor) -> th.Tensor:
        images = preprocess_obs(observation, self.observation_space, self.normalize_images)
        return self.actor(self.encoder(images))


class StreamScores(nn.Module):
    """
    The network of a streaming policy that acts, with the normalisation of its observations and the time feature.

    :param policy: The policy.
    """

    mean: th.Tensor
    scale: th.Tensor

    def __init__(self, policy: StreamPolicy):
        super().__init__()
        if isinstance(policy, StreamACPolicy):
            self.network: nn.Module = policy.actor
        elif isinstance(policy, StreamQPolicy):
            self.network = policy.q_net
        else:
            raise ValueError(f"{type(policy).__name__} is no policy of StreamAC, StreamQ or StreamSARSA.")
        self.is_gaussian = isinstance(policy.action_space, spaces.Box)
        self.feature_shape = tuple(policy.feature_shape)
        self.channels_first = getattr(policy, "channels_first", True)
        self.time_limit = policy.time_limit
        self.normalizes = policy.obs_norm is not None
        if policy.obs_norm is not None:
            count = float(policy.obs_norm.obs_count)
            variance = policy.obs_norm.obs_square / (count - 1.0) if count >= 2.0 else th.ones_like(policy.obs_norm.obs_square)
            self.register_buffer("mean", policy.obs_norm.obs_mean.clone())
            self.register_buffer("scale", (variance + EPSILON).sqrt())

    def forward(self, observation: th.Tensor, step: th.Tensor | None = None) -> th.Tensor:
        """
        :param observation: ``(batch, *observation_space.shape)``
        :param step: ``(batch,)``, with a time feature.
        """
        features = observation.reshape(-1, *self.feature_shape)
        features = ((features.double() - self.mean) / self.scale if self.normalizes else features).float()
        if step is not None:
            assert self.time_limit is not None
            share = (step - 1).clamp(min=0).double() / self.time_limit
            features = th.cat([features, (share.clamp(max=1.0) - 0.5).float().unsqueeze(1)], dim=1)
        if not self.channels_first:
            features = features.permute(0, 3, 1, 2)
        outputs = self.network(features)
        return outputs.chunk(2, dim=-1)[0] if self.is_gaussian else outputs


def _squashed_mean(actor: Any, observation: Observation) -> th.Tensor:
    return th.tanh(actor.get_action_dist_params(observation)[0])


def _outputs(network: Any, observation: Observation) -> th.Tensor:
    return network(observation)


def _mean_quantiles(network: Any, observation: Observation) -> th.Tensor:
    return network(observation).mean(dim=1)


def scores_module(policy: BasePolicy) -> nn.Module:
    """
    The part of a policy that chooses actions; it shares all tensors with the policy.

    :raises ValueError: If the kind of policy is not known.
    """
    if isinstance(policy, StreamPolicy):
        return StreamScores(policy)
    if isinstance(policy, DrQv2Policy):
        return DrQv2Scores(policy)
    if isinstance(policy, (SACPolicy, TQCPolicy, CrossQPolicy)):
        return NetworkScores(policy.actor, _squashed_mean)
    if isinstance(policy, TD3Policy):
        return NetworkScores(policy.actor, _outputs)
    if isinstance(policy, DQNPolicy):
        return NetworkScores(policy.q_net, _outputs)
    if isinstance(policy, QRDQNPolicy):
        return NetworkScores(policy.quantile_net, _mean_quantiles)
    if isinstance(policy, RecurrentActorCriticPolicy):
        raise ValueError(f"{type(policy).__name__} has a recurrent state, which what is exported would not keep. {ALLOWED}")
    if isinstance(policy, ActorCriticPolicy):
        return ActorCriticScores(policy)
    raise ValueError(f"{type(policy).__name__} cannot be exported. {ALLOWED}")
