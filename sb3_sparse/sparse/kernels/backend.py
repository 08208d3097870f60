"""What a backend has to offer."""

from abc import ABC, abstractmethod

import torch as th

from sb3_sparse.sparse.topology import Topology


class Backend(ABC):
    """
    The three products of a sparse linear layer with weight ``W`` of shape ``(out, in)``.

    ``values`` are the ``nnz`` living weights of ``W``, row by row. ``x`` is ``(batch, in)`` and ``grad``
    ``(batch, out)``, both as :meth:`pack` returned them; all have one floating dtype and are on one device.
    Results have the same dtype and device. None of the methods records a graph.

    The memory layout of :meth:`forward` and :meth:`grad_input` is the same for every backend, device and dtype: more
    than one sample lies feature by feature, with strides of exactly ``(1, batch)``, a single one (or none) is
    contiguous. So ``reshape`` works on every result, and ``view(-1)`` of several samples on none, whichever backend
    was chosen. :func:`empty_result` makes such a tensor.
    """

    name: str

    @abstractmethod
    def supports(self, device: th.device, dtype: th.dtype) -> bool:
        """Whether this machine can run the backend on tensors of that kind."""

    def pack(self, x: th.Tensor) -> th.Tensor:
        """A batch ``(batch, features)`` in the memory layout that the products want, made once for all of them."""
        return x.detach()

    def unpack(self, packed: th.Tensor, batch: int) -> th.Tensor:
        """What :meth:`pack` was given."""
        return packed

    @abstractmethod
    def forward(self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int) -> th.Tensor:
        """``x Wᵀ + bias``, of shape ``(batch, out)``."""

    @abstractmethod
    def grad_input(self, grad: th.Tensor, values: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        """``grad W``, of shape ``(batch, in)``."""

    @abstractmethod
    def grad_values(self, grad: th.Tensor, x: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        """The entries of ``gradᵀ x`` where weights live, of shape ``(nnz,)``."""

    def forward_relu(
        self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int
    ) -> th.Tensor:
        """``relu(x Wᵀ + bias)``. Override it where that can be had in one pass, with the same numbers."""
        return self.forward(x, values, topology, bias, batch).relu_()

    def grad_input_relu(
        self, grad: th.Tensor, values: th.Tensor, topology: Topology, activation: th.Tensor, batch: int
    ) -> th.Tensor:
        """
        The gradient of what went into the ReLU before the layer: ``grad W`` where ``activation`` is above zero.

        Override it where that can be had in one pass, with the same numbers.

        :param activation: What came out of the ReLU, ``(batch, in)``, as :meth:`pack` returned it.
        """
        dx = self.grad_input(grad, values, topology, batch)
        return th.ops.aten.threshold_backward(dx, self.unpack(activation, batch), 0)

    @abstractmethod
    def memory(self, topology: Topology) -> int:
        """Bytes that the backend keeps for a topology, beside the topology itself, once it has trained in float32."""


def empty_result(like: th.Tensor, batch: int, features: int) -> th.Tensor:
    """
    An uninitialised ``(batch, features)`` in the memory layout of results.

    It is no view: autograd would not let anybody change a view in place that a function of its own returns.

    :param like: Gives dtype and device.
    """
    strides = (1, batch) if batch > 1 else (features, 1)
    return like.new_empty_strided((batch, features), strides)
