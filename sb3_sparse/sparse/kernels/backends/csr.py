"""CSR backend: torch's own sparse products. On CPU they come from MKL."""

import warnings
from functools import cache

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend, empty_result
from sb3_sparse.sparse.topology import Topology, tensor_bytes


class CsrBackend(Backend):
    """Sparse matrix products of torch, the transpose from precomputed indices."""

    name = "csr"

    def supports(self, device: th.device, dtype: th.dtype) -> bool:
        if dtype not in (th.float32, th.float64):
            return False
        return device.type == "cuda" or (device.type == "cpu" and th.backends.mkl.is_available())

    def forward(self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int) -> th.Tensor:
        index = topology.tensors(values.device)
        weight = _csr(index.crow, index.col, values, (topology.rows, topology.columns))
        y = empty_result(x, batch, topology.rows)
        th.mm(weight, x.t(), out=y.t())
        return y if bias is None else y.add_(bias.detach())

    def grad_input(self, grad: th.Tensor, values: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        index = topology.tensors(values.device)
        # index_select is several times faster than values[t_order].
        transposed_values = values.index_select(0, index.t_order)
        transposed = _csr(index.t_crow, index.t_col, transposed_values, (topology.columns, topology.rows))
        dx = empty_result(grad, batch, topology.columns)
        th.mm(transposed, grad.t(), out=dx.t())
        return dx

    def grad_values(self, grad: th.Tensor, x: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        if topology.nnz == 0:
            return grad.new_zeros(0)
        index = topology.tensors(grad.device)
        pattern = _csr(index.crow, index.col, grad.new_zeros(topology.nnz), (topology.rows, topology.columns))
        product = th.sparse.sampled_addmm(pattern, grad.t().contiguous(), x.contiguous(), beta=0.0)
        return product.values()

    def memory(self, topology: Topology) -> int:
        return tensor_bytes(topology)


@cache
def _silence_beta_warning() -> None:
    # Torch says once per process that its sparse tensors are in beta. Users did not ask for them; we tested them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        th.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=th.float32, device="cpu")


def _csr(crow: th.Tensor, col: th.Tensor, values: th.Tensor, size: tuple[int, int]) -> th.Tensor:
    _silence_beta_warning()
    return th.sparse_csr_tensor(crow, col, values.detach(), size, device=values.device, check_invariants=False)
