"""
Changes of networks that are made as a whole or not at all.

A :class:`Swap` collects new topologies, new values and optimiser state to forget. Nothing moves until
:meth:`Swap.apply`, which Ctrl-C cannot divide, and which takes everything back if something fails.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.sparse.layers import SparseLayer
from sb3_sparse.sparse.state.loading import all_or_nothing
from sb3_sparse.sparse.topology import Topology


class Swap:
    """What is going to change, prepared."""

    def __init__(self) -> None:
        self._topologies: dict[SparseLayer, Topology] = {}
        self._values: dict[th.Tensor, th.Tensor] = {}
        self._forgotten: list[tuple[th.optim.Optimizer, nn.Parameter]] = []
        self._finally: list[Callable[[], Any]] = []

    def __contains__(self, tensor: th.Tensor) -> bool:
        """Whether a tensor gets new values."""
        return tensor in self._values

    def topology_of(self, layer: SparseLayer) -> Topology:
        """The topology that a layer will have."""
        return self._topologies.get(layer, layer.topology)

    def value_of(self, tensor: th.Tensor) -> th.Tensor:
        """The values that a parameter or buffer will have."""
        return self._values.get(tensor, tensor.detach())

    def set_topology(self, layer: SparseLayer, topology: Topology) -> None:
        """Give a sparse layer another topology; its values should be set, too."""
        self._topologies[layer] = topology

    @th.no_grad()
    def set(self, tensor: th.Tensor, value: th.Tensor) -> None:
        """Give a parameter or buffer other values, in place; their dtype and device become its own."""
        if value.shape != tensor.shape:
            raise ValueError(f"values of shape {tuple(value.shape)} for a tensor of shape {tuple(tensor.shape)}.")
        self._values[tensor] = value.detach().to(tensor)

    def forget(self, optimizer: th.optim.Optimizer | None, parameter: nn.Parameter) -> None:
        """Let an optimiser forget what it remembers of a parameter, the step count included."""
        if optimizer is not None:
            self._forgotten.append((optimizer, parameter))

    def then(self, function: Callable[[], Any]) -> None:
        """Call a function after all the rest, as a part of it."""
        self._finally.append(function)

    def apply(self) -> None:
        """Make all the changes, or none."""
        remembered = [(optimizer, p, optimizer.state[p]) for optimizer, p in self._forgotten if p in optimizer.state]

        def remember() -> None:
            for optimizer, parameter, state in remembered:
                optimizer.state[parameter] = state

        with uninterrupted(), th.no_grad(), all_or_nothing(*self._topologies, tensors=self._values, undo=remember):
            for layer, topology in self._topologies.items():
                layer.set_topology(topology)
            for tensor, value in self._values.items():
                tensor.copy_(value)
            for optimizer, parameter, _ in remembered:
                optimizer.state.pop(parameter, None)
            for function in self._finally:
                function()
