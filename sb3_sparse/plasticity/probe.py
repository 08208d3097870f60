"""
Feed the metrics from a model of SB3, without a trace: training goes on as if nobody had looked.

Networks go by the names ``"actor"`` and ``"critic"`` on every algorithm; the Q-network of DQN and the quantile network
of QR-DQN answer to ``"critic"``.
"""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_sparse.common.validation import whole_number
from sb3_sparse.plasticity.activations import Activations, record_activations
from sb3_sparse.plasticity.batches import ObservedBatch, n_stored, sample_batch, undisturbed
from sb3_sparse.plasticity.interference import gradient_interference
from sb3_sparse.plasticity.losses import has_losses, has_own_losses, per_sample_losses
from sb3_sparse.plasticity.metrics import Interference, Spectrum, spectrum

NETWORKS = ("actor", "critic")


class Network(NamedTuple):
    """A network of a model, and how it is run on a batch."""

    module: nn.Module
    forward: Callable[[Any], Any]


def find_networks(model: BaseAlgorithm) -> dict[str, Network]:
    """
    The networks of a model by name.

    :param model: Any model whose policy has ``actor`` and ``critic``, ``q_net`` or ``quantile_net``, or is an
        ``ActorCriticPolicy`` (PPO, A2C, TRPO). One whose networks do not take observations (and actions) may have a
        method ``plasticity_networks()`` that returns what this function does.
    :raises ValueError: If the policy is recurrent, or has none of these.
    """
    own = getattr(model, "plasticity_networks", None)
    if callable(own):
        return own()
    policy: Any = model.policy
    if hasattr(policy, "lstm_actor"):
        raise ValueError(f"{type(policy).__name__} is recurrent: the plasticity probe needs networks without a state.")
    if isinstance(policy, ActorCriticPolicy):
        return {
            "actor": Network(_actor_part(policy), lambda batch: policy.get_distribution(batch.observations)),
            "critic": Network(_critic_part(policy), lambda batch: policy.predict_values(batch.observations)),
        }
    networks = {}
    for name, attributes in (("actor", ("actor",)), ("critic", ("critic", "q_net", "quantile_net"))):
        for attribute in attributes:
            module = getattr(policy, attribute, None)
            if isinstance(module, nn.Module):
                networks[name] = Network(module, _forward(module))
                break
    if not networks:
        raise ValueError(
            f"{type(policy).__name__} has no network that the plasticity probe knows: expected an attribute actor, "
            "critic, q_net or quantile_net."
        )
    return networks


def _why_too_few(model: BaseAlgorithm) -> str:
    if isinstance(model, OnPolicyAlgorithm):
        size = model.rollout_buffer.buffer_size * model.n_envs
        return f"a rollout of this model has {size} samples (n_steps * n_envs) and has to be complete: take at most {size}."
    stored = n_stored(model.replay_buffer)  # type: ignore[attr-defined]
    return f"the replay buffer holds {stored} transitions: train longer, load_replay_buffer after loading, or take fewer."


class Probe:
    """
    One look at a model: a batch, and everything the metrics are computed from. Each part is computed when asked for.

    >>> from stable_baselines3 import DQN
    >>> model = DQN("MlpPolicy", "CartPole-v1", buffer_size=300, learning_starts=300, seed=0).learn(300)
    >>> probe = Probe(model)
    >>> probe.network("critic").features[0].shape
    torch.Size([256, 64])

    :param model: The model. It is left as it is: random states, modes, gradients and statistics.
    :param n_samples: Size of the batch.
    :param batch: A batch instead of a drawn one.
    :param seed: Of the draw, and of the actions in the losses.
    :raises ValueError: If the buffer of the model does not hold ``n_samples``.
    """

    def __init__(self, model: BaseAlgorithm, n_samples: int = 256, batch: Any = None, seed: int = 0):
        self.model = model
        n_samples, self.seed = whole_number("n_samples", n_samples, 1), whole_number("seed", seed)
        if batch is None:
            batch = sample_batch(model, n_samples, self.seed)
            if batch is None:
                raise ValueError(f"n_samples={n_samples}: {_why_too_few(model)}")
        self.batch = batch
        self.networks = {name: NetworkProbe(self, name, network) for name, network in find_networks(model).items()}

    def network(self, name: str) -> "NetworkProbe":
        """
        What there is to see of one network.

        :param name: ``"actor"`` or ``"critic"``.
        :raises ValueError: If the model has no such network.
        """
        if name not in self.networks:
            raise ValueError(f"{type(self.model).__name__} has no network {name!r}, it has: {', '.join(self.networks)}.")
        return self.networks[name]


class NetworkProbe:
    """
    One network of a :class:`Probe`.

    :param probe: Whose part this is.
    :param name: Name of the network.
    :param network: The network.
    """

    def __init__(self, probe: Probe, name: str, network: Network):
        self.probe = probe
        self.name = name
        self._network = network

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._network.module

    @property
    def has_losses(self) -> bool:
        """Whether there are gradients to look at."""
        model, batch = self.probe.model, self.probe.batch
        return has_own_losses(model) or (has_losses(model) and not isinstance(batch, ObservedBatch))

    @cached_property
    def activations(self) -> Activations:
        """Outputs of layers and of activation functions, and the features."""
        with undisturbed(self.probe.model, self.probe.seed):
            return record_activations(self.module, lambda: self._network.forward(self.probe.batch))

    @property
    def features(self) -> list[th.Tensor]:
        """What the heads see, ``(samples, features)``: one matrix for each critic."""
        return self.activations.features

    @cached_property
    def spectra(self) -> list[Spectrum]:
        """Singular values of the features, which all ranks are computed from."""
        return [spectrum(features) for features in self.features]

    @cached_property
    def gradients(self) -> list[th.Tensor]:
        """Gradient of the mean loss, one tensor for each parameter that has one."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        with undisturbed(self.probe.model, self.probe.seed), th.enable_grad():
            gradients = th.autograd.grad(self._losses().mean(), parameters, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    @cached_property
    def interference(self) -> Interference:
        """Cosines of the gradients of single samples."""
        with undisturbed(self.probe.model, self.probe.seed):
            return gradient_interference(self.module, self._losses)

    def _losses(self) -> th.Tensor:
        return per_sample_losses(self.probe.model, self.name, self.probe.batch)


class _Part(nn.Module):
    """The part of a policy that one of its two networks is made of, for its names and parameters."""

    def __init__(self, **modules: nn.Module):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def _actor_part(policy: Any) -> nn.Module:
    part = _Part(
        features_extractor=policy.pi_features_extractor,
        policy_net=getattr(policy.mlp_extractor, "policy_net", policy.mlp_extractor),
        action_net=policy.action_net,
    )
    if isinstance(getattr(policy, "log_std", None), nn.Parameter):
        part.register_parameter("log_std", policy.log_std)
    return part


def _critic_part(policy: Any) -> nn.Module:
    return _Part(
        features_extractor=policy.vf_features_extractor,
        value_net=getattr(policy.mlp_extractor, "value_net", policy.mlp_extractor),
        head=policy.value_net,
    )


def _forward(module: nn.Module) -> Callable[[Any], Any]:
    parameters = inspect.signature(module.forward).parameters.values()
    if sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) > 1:
        return lambda batch: module(batch.observations, batch.actions)
    return lambda batch: module(batch.observations)
