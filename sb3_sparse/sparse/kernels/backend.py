"""What a backend has to offer."""

from abc import ABC, abstractmethod

import torch as th

from sb3_sparse.sparse.topology import Topology


class Backend(ABC):
    """
    The three products of a sparse linear layer with weight ``W`` of shape ``(out, in)``.

    ``values`` are the ``nnz`` living weights of ``W``, row by row; ``x`` is ``(batch, in)``, ``grad`` is
    ``(batch, out)``, all of one floating dtype and on one device. Results have the same dtype and device; their
    memory layout is free.
    """

    name: str

    @abstractmethod
    def supports(self, device: th.device, dtype: th.dtype) -> bool:
        """Whether this machine can run the backend on tensors of that kind."""

    @abstractmethod
    def forward(self, x: th.Tensor, values: th.Tensor, topology: Topology) -> th.Tensor:
        """``x Wᵀ``, of shape ``(batch, out)``."""

    @abstractmethod
    def grad_input(self, grad: th.Tensor, values: th.Tensor, topology: Topology) -> th.Tensor:
        """``grad W``, of shape ``(batch, in)``."""

    @abstractmethod
    def grad_values(self, grad: th.Tensor, x: th.Tensor, topology: Topology) -> th.Tensor:
        """The entries of ``gradᵀ x`` where weights live, of shape ``(nnz,)``."""
