"""Batches to look at a model with, taken from where it keeps what it learns from, and the guard that leaves no trace."""

import random
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch as th
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.common.model_parts import HasPlasticityBatch, HasPlasticityObservations
from sb3_sparse.common.sb3_models import keeps_samples, n_stored, replay_batch
from sb3_sparse.networks.noisy import noisy_layers
from sb3_sparse.plasticity.event_callbacks import hidden_steps

# Samples that metrics are measured on, if nothing else is said.
DEFAULT_N_SAMPLES = 256


class ObservedBatch(NamedTuple):
    """
    A batch for algorithms without a buffer: enough for all metrics that need no loss.

    >>> from sb3_sparse.plasticity import measure
    >>> from sb3_sparse.streaming import StreamQ
    >>> model = StreamQ("MlpPolicy", "CartPole-v1", seed=0)
    >>> observations = th.rand(32, 4).numpy()
    >>> batch = ObservedBatch(th.as_tensor(model.policy.features(observations)))
    >>> sorted(measure(model, batch=batch, metrics=["srank", "fau"]))
    ['critic_fau', 'critic_srank', 'critic_srank_normalized']
    """

    observations: PyTorchObs
    """What the networks are given, ``(batch, ...)``: of the streaming algorithms ``policy.features(obs)``."""
    actions: th.Tensor | None = None
    """``(batch, ...)``, for critics of state and action."""


def sample_batch(model: BaseAlgorithm, n_samples: int = DEFAULT_N_SAMPLES, seed: int = 0) -> Any:
    """
    A batch of what the model learns from: of the replay buffer, or of the last rollout.

    :param model: A model with a buffer. No random state of it moves.
    :param n_samples: How many samples.
    :param seed: Of the draw.
    :return: What the buffer calls a batch, or None if it does not hold as many samples.
    :raises ValueError: If the model has no buffer.
    """
    if isinstance(model, OnPolicyAlgorithm) and not keeps_samples(model):
        return _rollout_batch(model.rollout_buffer, n_samples, seed)
    if not isinstance(model, HasPlasticityBatch):
        buffer = getattr(model, "replay_buffer", None)
        if buffer is None:
            raise ValueError(
                f"{type(model).__name__} has no buffer to sample from: pass batch=ObservedBatch(...), see its documentation."
            )
        if n_stored(buffer) < n_samples:
            return None
    with undisturbed(model, seed):
        return replay_batch(model, n_samples)


def _uncompiled() -> AbstractContextManager[None]:
    """
    What ``torch.compile`` made runs as it was written: a compiled graph is differentiated once and then gone, and each look
    from outside at what happens in it would have it compiled anew.
    """
    # Where nobody compiles, this is not loaded for it.
    return th.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def undisturbed(model: BaseAlgorithm, seed: int = 0) -> Iterator[None]:
    """
    Evaluation mode and random numbers of its own inside; afterwards everything is as it was before.

    Noisy layers have one noise all the time inside, which follows from the seed: it would otherwise be that of the last step.

    :param model: The model.
    :param seed: Of the random numbers inside.
    """
    noises = [(layer, layer.noise_in.clone(), layer.noise_out.clone()) for layer in noisy_layers(model.policy)]
    modes = [(module, module.training) for module in model.policy.modules()]
    # Actors keep their last distribution and the noise of gSDE there.
    owners: list[Any] = [model.policy, getattr(model.policy, "actor", None)]
    distributions = [owner.action_dist for owner in owners if hasattr(owner, "action_dist")]
    contents = [dict(vars(distribution)) for distribution in distributions]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    generators = _generators(getattr(model, "replay_buffer", None))
    states = [generator.bit_generator.state for generator in generators]
    cuda = [model.device] if model.device.type == "cuda" else []
    with th.random.fork_rng(devices=cuda), _uncompiled():
        try:
            np.random.seed(seed % 2**32)
            random.seed(seed)
            th.default_generator.manual_seed(seed)
            for device in cuda:
                with th.cuda.device(device):
                    th.cuda.manual_seed(seed)
            for module, _ in modes:
                module.training = False
            for layer, *_ in noises:
                layer.reset_noise()
            yield
        finally:
            with uninterrupted():
                for module, mode in modes:
                    module.training = mode
                for layer, noise_in, noise_out in noises:
                    layer.noise_in.copy_(noise_in)
                    layer.noise_out.copy_(noise_out)
                for distribution, content in zip(distributions, contents, strict=True):
                    vars(distribution).clear()
                    vars(distribution).update(content)
                np.random.set_state(numpy_state)
                random.setstate(python_state)
                for generator, state in zip(generators, states, strict=True):
                    generator.bit_generator.state = state


def _generators(owner: Any) -> list[np.random.Generator]:
    return [] if owner is None else [value for value in vars(owner).values() if isinstance(value, np.random.Generator)]


class BatchSource(ABC):
    """
    Where the callback gets its batches from.

    :param model: The model.
    :param n_samples: Size of a batch.
    :param log_freq: Timesteps between two batches.
    """

    # Whether there is something to see at the end of a rollout only.
    at_rollout_end = False

    def __init__(self, model: BaseAlgorithm, n_samples: int, log_freq: int):
        self.model: Any = model
        self.n_samples = n_samples
        self.log_freq = log_freq

    def observe(self, local_variables: Mapping[str, Any], remaining: int) -> None:  # noqa: B027
        """
        Called after every step, or at the end of every rollout.

        :param local_variables: Of the loop that collects experience.
        :param remaining: Timesteps to the next batch.
        """

    def get_state(self) -> dict[str, Any]:
        """What was gathered for the next batch, for a run that goes on in another process."""
        return {name: vars(self)[name] for name in ("pieces", "steps") if name in vars(self)}

    def set_state(self, state: dict[str, Any]) -> None:
        """The reverse."""
        vars(self).update(state)

    @abstractmethod
    def batch(self, seed: int) -> Any:
        """
        A batch, or None if there are not enough samples yet.

        :param seed: Of the draw.
        """


def batch_source(model: BaseAlgorithm, n_samples: int, log_freq: int) -> BatchSource:
    """
    The source that fits a model: its replay buffer, its rollouts, or else what it observes.

    :param model: The model.
    :param n_samples: Size of a batch.
    :param log_freq: Timesteps between two batches.
    """
    if keeps_samples(model):
        return _Replay(model, n_samples, log_freq)
    if isinstance(model, OnPolicyAlgorithm):
        return _Rollouts(model, n_samples, log_freq)
    return _Observations(model, n_samples, log_freq)


class _Replay(BatchSource):
    def batch(self, seed: int) -> Any:
        return sample_batch(self.model, self.n_samples, seed)


class _Rollouts(BatchSource):
    """The rollout that was just collected, or the last few where one is smaller than a batch, as those of A2C are."""

    at_rollout_end = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.size = self.model.rollout_buffer.buffer_size * self.model.n_envs
        self.pieces: deque[Any] = deque(maxlen=-(-self.n_samples // self.size))

    def observe(self, local_variables: Mapping[str, Any], remaining: int) -> None:
        if self.size < self.n_samples and remaining < self.n_samples + self.size:
            self.pieces.append(sample_batch(self.model, self.size))

    def batch(self, seed: int) -> Any:
        if self.size >= self.n_samples:
            return sample_batch(self.model, self.n_samples, seed)
        if len(self.pieces) < (self.pieces.maxlen or 0):
            return None
        return _first(_concatenated(list(self.pieces)), self.n_samples)


class _Observations(BatchSource):
    """What was observed between two batches, for algorithms that keep nothing."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.pieces: deque[ObservedBatch] = deque(maxlen=-(-self.n_samples // self.model.n_envs))
        self.steps, self.seen = 0, self.model.num_timesteps

    def observe(self, local_variables: Mapping[str, Any], remaining: int) -> None:
        # As the streaming algorithms, whose networks do not see the observation itself.
        says = isinstance(self.model, HasPlasticityObservations)
        if says and self.model.num_timesteps - self.seen > self.model.n_envs:
            raise hidden_steps("PlasticityCallback", "log_freq")
        self.steps, self.seen = self.steps + 1, self.model.num_timesteps
        # Spread over the whole interval: steps in a row are much alike.
        if self.steps % max(1, self.log_freq // self.n_samples) == 0:
            observation = self.model.plasticity_observations() if says else self.model._last_obs
            self.pieces.append(ObservedBatch(_to_torch(observation), _to_torch(local_variables.get("actions"))))

    def batch(self, seed: int) -> Any:
        if sum(_length(piece.observations) for piece in self.pieces) < self.n_samples:
            return None
        batch = _first(_concatenated(list(self.pieces)), self.n_samples)
        return _mapped(lambda part: part.to(self.model.device), batch)


def _rollout_batch(
    buffer: RolloutBuffer, n_samples: int, seed: int
) -> RolloutBufferSamples | MaskableRolloutBufferSamples | None:
    """Like ``buffer.get``, which cannot be used: it reshapes the buffer."""
    size = buffer.buffer_size * buffer.n_envs
    if not buffer.full or size < n_samples:
        return None
    indices = np.random.default_rng(seed).permutation(size)[:n_samples]

    def take(array: np.ndarray) -> th.Tensor:
        return buffer.to_torch((array if buffer.generator_ready else buffer.swap_and_flatten(array))[indices])

    observations: Any = _mapped(take, buffer.observations)
    # As the buffer itself does.
    actions = take(buffer.actions.astype(np.float32))
    flat = (take(getattr(buffer, name)).flatten() for name in ("values", "log_probs", "advantages", "returns"))
    if (masks := getattr(buffer, "action_masks", None)) is not None:
        return MaskableRolloutBufferSamples(observations, actions, *flat, take(masks).flatten(1))  # type: ignore[call-arg]
    return RolloutBufferSamples(observations, actions, *flat)


def _to_torch(values: Any) -> Any:
    return _mapped(_copied, values)


def _copied(array: np.ndarray) -> th.Tensor:
    # A copy: environments may write their next observation into the same array.
    tensor = th.tensor(np.asarray(array))
    return tensor.float() if tensor.dtype == th.float64 else tensor


def _first(batch: Any, n_samples: int) -> Any:
    return _mapped(lambda part: part[:n_samples], batch)


def _concatenated(pieces: Sequence[Any]) -> Any:
    head = pieces[0]
    if head is None:
        return None
    if isinstance(head, dict):
        return {key: _concatenated([piece[key] for piece in pieces]) for key in head}
    if isinstance(head, tuple):
        return type(head)(*map(_concatenated, zip(*pieces, strict=True)))
    return th.cat(list(pieces))


def _mapped(function: Any, values: Any) -> Any:
    """Apply a function to every array of a batch."""
    if values is None:
        return None
    if isinstance(values, dict):
        return {key: _mapped(function, part) for key, part in values.items()}
    if isinstance(values, tuple):
        return type(values)(*(_mapped(function, part) for part in values))
    return function(values)


def n_observed(batch: Any) -> int | None:
    """
    How many samples a batch has; None if it has no observations.

    :param batch: Of any kind.
    """
    observations = getattr(batch, "observations", None)
    return None if observations is None else _length(observations)


def _length(observations: Any) -> int:
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
