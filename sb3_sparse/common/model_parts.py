"""
What a model is made of: its networks with their targets and optimizers, what it learns from, and its losses.

Metrics, resets and tables ask for these parts here instead of looking for them. ``sb3_models.py`` knows the parts of the
algorithms of SB3 and sb3-contrib. An algorithm of its own says them by methods, each a protocol of this file: write those
that you need, none has to be inherited. docs/extending/algorithm.md has an example of each.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch as th
from torch import nn

from sb3_sparse.common import validation
from sb3_sparse.sparse.layers import WeightLayer

# The names that networks have on every algorithm of SB3. An algorithm may have others, such as "encoder".
NETWORKS = ("actor", "critic")


@dataclass(frozen=True)
class Network:
    """
    A network of a model: how to run it, and how it is trained.

    The first two are enough to measure it. A reset also needs ``place`` and ``optimizer``.
    """

    module: nn.Module
    """Its layers, which metrics look at."""
    forward: Callable[[Any], Any]
    """Runs it on a batch of what the model learns from. It should not sample actions."""
    place: str | None = None
    """
    Where in ``model.policy`` its parameters are: ``"critic"``, ``"critic.features_extractor"``, or ``""`` for the policy
    itself, where several networks are one module. A policy that is built anew has fresh values at the same place.
    """
    target: nn.Module | None = None
    """A copy that follows ``place``, with the same names of parameters."""
    optimizer: th.optim.Optimizer | None = None
    """What trains it."""
    parameters: Collection[str] | None = None
    """Names, seen from ``place``, of what belongs to it. None: what ``optimizer`` trains of the module at ``place``."""
    layers: Sequence[Sequence[nn.Module]] | None = None
    """
    From input to output, without a features extractor. Parallel heads are several sequences with a common beginning. None:
    in the order in which the modules were registered.
    """

    has_heads: bool = True
    """False for an encoder: its last layer counts as the others do, and what ``forward`` returns are its features."""

    def chains(self) -> list[list[nn.Module]]:
        """``layers``, or what stands for them."""
        return [leaves(self.module)] if self.layers is None else [list(chain) for chain in self.layers]

    def parameter_names(self, online: nn.Module) -> frozenset[str]:
        """
        ``parameters``, or what stands for them.

        :param online: The module at ``place``.
        """
        if self.parameters is not None:
            return frozenset(self.parameters)
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        trained = {parameter for group in groups for parameter in group["params"]}
        named = online.named_parameters(remove_duplicate=False)
        return frozenset(name for name, parameter in named if parameter in trained)


@dataclass(frozen=True)
class LearnedTensor:
    """A tensor outside the networks that has an optimizer of its own, such as SAC's entropy coefficient."""

    tensor: th.Tensor
    optimizer: th.optim.Optimizer
    initial: th.Tensor
    """What it was before training."""


@dataclass(frozen=True)
class ModelParts:
    """All parts of a model that are trained."""

    networks: Mapping[str, Network]
    """By the names that metrics and resets call them, in the order in which they are shown: ``"actor"``, ``"critic"``, ..."""
    others: Mapping[str, LearnedTensor] = field(default_factory=dict)
    """By name. The learned entropy coefficient is the ``"temperature"``."""
    build_policy: Callable[[], nn.Module] | None = None
    """Builds a policy as the model built its own, for the fresh values of a reset. None: the model cannot be reset."""


def check_parts(what: str, parts: object) -> ModelParts:
    """
    What a method ``model_parts`` returned.

    :param what: Whose method it is, for the message.
    :param parts: What it returned.
    :raises ValueError: If a field holds something else than it should.
    """
    if not isinstance(parts, ModelParts):
        raise ValueError(f"{what} returned {_short(parts)}: expected ModelParts(networks, ...).")
    if not isinstance(parts.networks, Mapping) or not parts.networks:
        raise ValueError(f"{what} has networks={_short(parts.networks)}: expected a dictionary of a Network by each name.")
    for name, network in parts.networks.items():
        if not isinstance(name, str) or not name or not isinstance(network, Network):
            raise ValueError(f"{what} has networks={{{name!r}: {_short(network)}}}: expected a name, and a Network.")
        for key, fits, expected in _FIELDS:
            if not fits(value := getattr(network, key)):
                raise ValueError(f"{what}: {name!r} has {key}={_short(value)}: expected {expected}.")
    if not isinstance(parts.others, Mapping) or not all(isinstance(o, LearnedTensor) for o in parts.others.values()):
        raise ValueError(f"{what} has others={_short(parts.others)}: expected a dictionary of a LearnedTensor by each name.")
    if parts.build_policy is not None and not callable(parts.build_policy):
        raise ValueError(f"{what} has build_policy={_short(parts.build_policy)}: expected a function, or None.")
    return parts


def _short(value: object) -> str:
    """A module would fill the screen."""
    return repr(value) if len(repr(value)) <= 60 else f"a {type(value).__name__}"


def _all(value: object, kind: type) -> bool:
    """Whether it can be gone through more than once, and holds nothing else."""
    return isinstance(value, Iterable) and isinstance(value, Sized) and all(isinstance(entry, kind) for entry in value)


# Each field of a network, whether a value fits, and what is expected.
_FIELDS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("module", lambda value: isinstance(value, nn.Module), "a torch module"),
    ("forward", callable, "a function of a batch"),
    ("place", lambda value: value is None or isinstance(value, str), 'a name such as "critic", or None'),
    ("target", lambda value: value is None or isinstance(value, nn.Module), "a torch module, or None"),
    ("optimizer", lambda value: value is None or hasattr(value, "param_groups"), "an optimizer, or None"),
    (
        "parameters",
        lambda value: value is None or (not isinstance(value, str) and _all(value, str)),
        "a list of names, or None",
    ),
    (
        "layers",
        lambda value: value is None or (_all(value, object) and all(_all(chain, nn.Module) for chain in value)),
        "a list of lists of modules, or None",
    ),
)


class NoKnownNetworks(ValueError):
    """Nobody knows the networks of a model."""


@runtime_checkable
class HasModelParts(Protocol):
    """An algorithm that says what it is made of."""

    def model_parts(self) -> ModelParts:
        """The parts as they are now."""
        ...


@runtime_checkable
class HasPerSampleLosses(Protocol):
    """An algorithm that says what it trains its networks on: needed by metrics of gradients."""

    def per_sample_losses(self, network: str, batch: Any) -> th.Tensor:
        """
        The loss of one network for every sample of a batch, ``(samples,)``, with a graph to its parameters.

        :param network: Its name in :class:`ModelParts`.
        :param batch: What the model learns from.
        """
        ...


@runtime_checkable
class HasPlasticityBatch(Protocol):
    """An algorithm that keeps what it learns from elsewhere than in ``replay_buffer`` or ``rollout_buffer`` of SB3."""

    def plasticity_batch(self, n_samples: int) -> Any:
        """
        A batch drawn at random with NumPy's or torch's global generator, or None if there are not enough samples yet.

        :param n_samples: How many samples.
        """
        ...


@runtime_checkable
class HasPlasticityObservations(Protocol):
    """An algorithm that keeps nothing, and whose networks see something else than the observation."""

    def plasticity_observations(self) -> Any:
        """What the networks see in this step, as a batch of NumPy arrays."""
        ...


def leaves(module: nn.Module) -> list[nn.Module]:
    """
    The modules without submodules, and layers that multiply with a weight, whatever computes that (parametrizations), in the
    order in which they were registered.
    """
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for part in module.modules():
        if part not in inside and (isinstance(part, WeightLayer) or next(part.children(), None) is None):
            found.append(part)
            inside.update(part.modules())
    return found


def runs_on_observations(module: nn.Module) -> Callable[[Any], Any]:
    """A :attr:`Network.forward` for a module that takes observations."""
    return lambda batch: module(batch.observations)


def runs_on_actions_too(module: nn.Module) -> Callable[[Any], Any]:
    """A :attr:`Network.forward` for a module that takes observations and actions."""

    def forward(batch: Any) -> Any:
        if batch.actions is None:
            raise ValueError("a critic of observations and actions needs both: this batch has no actions.")
        return module(batch.observations, batch.actions)

    return forward


def check_networks(networks: str | Sequence[str]) -> list[str]:
    """
    Names of networks, each once. Whether a model has them is known once there is a model.

    :param networks: ``"actor"``, ``"critic"``, another name that an algorithm gives, or several.
    :raises ValueError: If there is none, or one is an attribute of SB3 that goes by another name.
    """
    found = validation.names("networks", networks)
    for name in found:
        if name in ("q_net", "quantile_net"):
            raise ValueError(f"unknown network {name!r} ({name} goes by the name 'critic'): expected e.g. {list(NETWORKS)}.")
    return found
