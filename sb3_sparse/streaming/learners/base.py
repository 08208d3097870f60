"""What an algorithm does with a network: ask for its outputs, and learn from one of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from sb3_sparse.sparse import SparseConv2d, SparseLinear
from sb3_sparse.streaming.obgd import ObGD

# Of modules: what a forward pass of a stream network depends on, besides its parts.
_SETTINGS = ("eps", "negative_slope")


def hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    """What torch calls before and after a module, by kind."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


class Learner(ABC):
    """
    A network with its optimiser, for one observation at a time.

    A learner knows parts of both by heart. After others may have changed them, as callbacks do, ask
    :meth:`notice_changes` first; nothing else looks.

    ``step_size`` and ``trace_l1`` are those of the last step, for logging.

    :param network: The network.
    :param optimizer: Optimiser of all its parameters.
    """

    step_size = 0.0
    trace_l1 = 0.0

    def __init__(self, network: nn.Module, optimizer: ObGD):
        self.network, self.optimizer = network, optimizer
        self._parameters = list(network.parameters())
        self._kept: tuple[Any, ...] = (None, None)
        self._kept_weights: list[tuple[int, int]] = []
        # What others can change: the parts of the network, what hangs on them, and a few numbers.
        modules = list(network.modules())
        self._places: list[Mapping[Any, Any]] = [place for m in modules for place in (m._modules, m._parameters)]
        self._parts = [(place, name, part) for place in self._places for name, part in place.items()]
        self._parts += [(vars(m), "forward", vars(m).get("forward")) for m in modules]
        self._parts += [(vars(m), name, vars(m)[name]) for m in modules for name in _SETTINGS if name in vars(m)]
        self._places += [hooks for m in modules for hooks in hooks_of(m)]
        self._sizes = list(map(len, self._places))
        self._trained = [p.requires_grad for p in self._parameters]
        self._topologies = [(m, m.topology) for m in modules if isinstance(m, (SparseLinear, SparseConv2d))]

    def notice_changes(self) -> bool:
        """
        Forget what was computed with other weights.

        :return: Whether the learner can go on. If not, network or optimiser are not what they were: make another one.
        """
        if self._kept[0] is not None and self._kept_weights != self._weights():
            self._kept = (None, None)
        return self._fits()

    def _fits(self) -> bool:
        groups = self.optimizer.param_groups
        return (
            list(map(len, self._places)) == self._sizes
            and all([place.get(name) is part for place, name, part in self._parts])
            and [p.requires_grad for p in self._parameters] == self._trained
            and all([layer.topology is topology for layer, topology in self._topologies])
            and len(groups) == 1
            and len(groups[0]["params"]) == len(self._parameters)
        )

    def outputs(self, features: np.ndarray, keep: bool = False) -> Any:
        """
        What the heads say.

        :param features: float32, without batch dimension.
        :param keep: Whether to keep what :meth:`learn` needs, for the same features.
        :return: ``(n_outputs,)``, as an array.
        """
        if not keep:
            return self._forward(features)
        outputs = self._kept_outputs(features)
        if outputs is None:
            outputs = self._forward_and_keep(features)
            self._keep(features, outputs)
        return outputs

    def both_outputs(self, features: np.ndarray, next_features: np.ndarray) -> tuple[Any, Any]:
        """:meth:`outputs` of both, where only what :meth:`learn` needs of the first is kept."""
        return self.outputs(features, keep=True), self.outputs(next_features)

    def _kept_outputs(self, features: np.ndarray) -> Any:
        kept, outputs = self._kept
        return outputs if kept is features else None

    def _keep(self, features: np.ndarray, outputs: Any) -> None:
        self._kept, self._kept_weights = (features, outputs), self._weights()

    def _weights(self) -> list[tuple[int, int]]:
        """Says whether weights were changed between acting and learning: torch counts operations in place."""
        return [(p._version, p.data_ptr()) for p in self._parameters]

    def learn(self, features: np.ndarray, direction: np.ndarray, delta: float, reset: bool) -> None:
        """
        One step of ObGD, with the gradient of ``direction · outputs(features)``.

        :param features: float32, without batch dimension.
        :param direction: ``(n_outputs,)``: derivative of what is learned by each output.
        :param delta: TD error.
        :param reset: Whether to clear the traces afterwards.
        """
        self.outputs(features, keep=True)
        self._step(features, direction, delta, reset)
        self._kept = (None, None)

    @abstractmethod
    def _forward(self, features: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _forward_and_keep(self, features: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _step(self, features: np.ndarray, direction: np.ndarray, delta: float, reset: bool) -> None: ...

    @abstractmethod
    def reset_traces(self) -> None:
        """Clear the traces."""
