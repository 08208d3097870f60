"""Dense backend: spread the values over a dense weight, use the platform's matrix product. Runs everywhere."""

import threading
import weakref
from typing import Any

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend, empty_result
from sb3_sparse.sparse.topology import Topology


class _Scratch(threading.local):
    """
    Dense weight buffers, one per (topology, device, dtype), each dropped with its topology.

    A buffer is zeroed once: only living entries are ever written to it. It is per thread, and on CUDA per stream, since it
    holds the weights of whichever layer of that topology ran last (an online network and its target share a topology).
    """

    def __init__(self) -> None:
        self.buffers: weakref.WeakKeyDictionary[Topology, dict[tuple[Any, ...], th.Tensor]] = weakref.WeakKeyDictionary()

    def scatter(self, values: th.Tensor, topology: Topology) -> th.Tensor:
        per_topology = self.buffers.setdefault(topology, {})
        key: tuple[Any, ...] = (values.device, values.dtype)
        if values.is_cuda:
            # Two streams run one beside the other, also those of one thread.
            key = (*key, th.cuda.current_stream(values.device))
        if key not in per_topology:
            # A buffer made in inference mode could not be written to outside of it.
            with th.inference_mode(False):
                per_topology[key] = th.zeros(topology.numel, dtype=values.dtype, device=values.device)
        buffer = per_topology[key]
        # Not `Topology.scatter`, which would make and zero a new one each time. Always rewritten: whether the values changed
        # cannot be known, as SB3's `polyak_update` writes through `.data`, which does not advance a tensor's version.
        buffer.index_copy_(0, topology.flat_index(values.device, keep=True), values.detach())
        return buffer.view(topology.rows, topology.columns)


_scratch = _Scratch()


class DenseBackend(Backend):
    """Scatter, multiply densely, gather."""

    name = "dense"

    def supports(self, device: th.device, dtype: th.dtype) -> bool:
        return dtype.is_floating_point or dtype.is_complex

    def forward(self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int) -> th.Tensor:
        weight = _scratch.scatter(values, topology)
        if batch <= 1:
            return th.nn.functional.linear(x, weight, bias)
        y = empty_result(x, batch, topology.rows)
        if bias is None:
            th.mm(weight, x.t(), out=y.t())
        else:
            th.addmm(bias.detach().unsqueeze(1), weight, x.t(), out=y.t())
        return y

    def grad_input(self, grad: th.Tensor, values: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        weight = _scratch.scatter(values, topology)
        if batch <= 1:
            return grad @ weight
        dx = empty_result(grad, batch, topology.columns)
        th.mm(weight.t(), grad.t(), out=dx.t())
        return dx

    def grad_values(self, grad: th.Tensor, x: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        return (grad.t() @ x).view(-1).index_select(0, topology.flat_index(grad.device, keep=True))

    def memory(self, topology: Topology) -> int:
        return 8 * topology.nnz + 4 * topology.numel
