"""Feed the metrics from a model, without a trace: training goes on as if nobody had looked."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from sb3_sparse.common.model_parts import HasPlasticityBatch, Network
from sb3_sparse.common.sb3_models import model_parts, n_stored
from sb3_sparse.common.validation import whole_number
from sb3_sparse.plasticity.measurement.batches import DEFAULT_N_SAMPLES, ObservedBatch, n_observed, sample_batch, undisturbed
from sb3_sparse.plasticity.measurement.first_statistics import first_statistics
from sb3_sparse.plasticity.measurement.losses import has_losses, has_own_losses, per_sample_losses
from sb3_sparse.plasticity.metrics.activations import Activations, record_activations
from sb3_sparse.plasticity.metrics.interference import Interference, gradient_interference
from sb3_sparse.plasticity.metrics.ranks import Spectrum, spectrum


def _why_too_few(model: BaseAlgorithm, n_samples: int) -> str:
    if isinstance(model, OnPolicyAlgorithm):
        size = model.rollout_buffer.buffer_size * model.n_envs
        return f"a rollout of this model has {size} samples (n_steps * n_envs) and has to be complete: take at most {size}."
    if isinstance(model, HasPlasticityBatch):
        return f"{type(model).__name__}.plasticity_batch({n_samples}) has not as many yet: train longer, or take fewer."
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

    def __init__(self, model: BaseAlgorithm, n_samples: int = DEFAULT_N_SAMPLES, batch: Any = None, seed: int = 0):
        self.model = model
        n_samples, self.seed = whole_number("n_samples", n_samples, 2), whole_number("seed", seed)
        networks = model_parts(model).networks
        if batch is None:
            batch = sample_batch(model, n_samples, self.seed)
            if batch is None:
                raise ValueError(f"n_samples={n_samples}: {_why_too_few(model, n_samples)}")
        self.batch = batch
        self.networks = {name: NetworkProbe(self, name, network) for name, network in networks.items()}

    def network(self, name: str) -> "NetworkProbe":
        """
        What there is to see of one network.

        :param name: ``"actor"``, ``"critic"``, or as the model calls it.
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
        return has_own_losses(model) or (has_losses(model, self.name) and not isinstance(batch, ObservedBatch))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, the network may be run on the batch: training does not notice, and observations are normalised as there."""
        probe = self.probe
        with undisturbed(probe.model, probe.seed), first_statistics(probe.model, self._network, probe.batch):
            yield

    @cached_property
    def activations(self) -> Activations:
        """Outputs of layers and of activation functions, and the features."""
        with self.looking():
            forward = self._network.forward
            return record_activations(
                self.module, lambda: forward(self.probe.batch), self._network.has_heads, n_observed(self.probe.batch)
            )

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
        with self.looking(), th.enable_grad():
            gradients = th.autograd.grad(self._losses().mean(), parameters, allow_unused=True)
        return [gradient for gradient in gradients if gradient is not None]

    @cached_property
    def interference(self) -> Interference:
        """Cosines of the gradients of single samples."""
        with self.looking():
            return gradient_interference(self.module, self._losses)

    def _losses(self) -> th.Tensor:
        return per_sample_losses(self.probe.model, self.name, self.probe.batch)
