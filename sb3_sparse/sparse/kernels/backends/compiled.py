"""Compiled backend: our own kernels for the CPU, row by row. For single samples, and weights that are nearly all gone."""

import itertools
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_sparse.sparse.kernels.backend import Backend, empty_result
from sb3_sparse.sparse.kernels.backends.half_precision import KERNEL_DTYPES, through_float32
from sb3_sparse.sparse.kernels.native import rows
from sb3_sparse.sparse.kernels.native.code import LANES
from sb3_sparse.sparse.kernels.native.kernel import Kernel
from sb3_sparse.sparse.kernels.native.sample import single
from sb3_sparse.sparse.kernels.native.threads import run, thread_count
from sb3_sparse.sparse.topology import Topology, tensor_bytes


class CompiledBackend(Backend):
    """
    float32 on the CPU, and through it 16 bits; any batch size and shape. Results do not depend on the number of threads.

    Activations are kept feature by feature, ``(features, batch)`` in memory, which is the layout of results, too, and
    which element-wise functions keep: nothing is transposed between two layers. Kernels work on whole vectors of
    samples: what a batch lacks to them is added before and left out behind, with a copy; other batches need none.
    """

    name = "compiled"

    def supports(self, device: th.device, dtype: th.dtype) -> bool:
        return device.type == "cpu" and dtype in KERNEL_DTYPES

    def pack(self, x: th.Tensor) -> th.Tensor:
        """``(batch, features)`` to ``(features, padded batch)``, without a copy where it already lies so. One sample stays."""
        batch, features = x.shape
        if batch == 1:
            # Kernels do not know the sign that torch keeps beside the memory of imaginary parts.
            return (x.detach() if x.requires_grad else x).contiguous().resolve_neg()
        padded = self.padded(batch)
        if padded == batch:
            return x.detach().t().contiguous().resolve_neg()
        packed = x.new_empty(features, padded)
        packed[:, :batch].copy_(x.detach().t())
        packed[:, batch:].zero_()
        return packed

    def unpack(self, packed: th.Tensor, batch: int) -> th.Tensor:
        """``(batch, features)``, the same memory."""
        return packed if batch == 1 else packed[:, :batch].t()

    def padded(self, batch: int) -> int:
        """Samples that a batch is filled up to: whole vectors."""
        return -(-batch // LANES) * LANES

    @through_float32
    def forward(self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int) -> th.Tensor:
        bias_pointer = 0 if bias is None else bias.data_ptr()
        if batch == 1:
            y = x.new_empty(1, topology.rows)
            pointers = (values.data_ptr(), *topology.addresses, x.data_ptr(), bias_pointer, y.data_ptr())
            run(_kernel_one("multiply", topology), pointers, _bounds_for_one(topology))
            return y
        result = Result(x, batch, topology.rows)
        _multiply("multiply", x, values, topology, "rows", bias_pointer, result.pointer)
        return result.unpacked()

    @through_float32
    def grad_input(self, grad: th.Tensor, values: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        if batch == 1:
            # One thread: rows add to the same dx, and at this size the sum of partial ones costs what they save.
            dx = grad.new_zeros(1, topology.columns)
            pointers = (values.data_ptr(), *topology.addresses, grad.data_ptr(), dx.data_ptr())
            run(_kernel_one("multiply_transposed", topology), pointers, (0, topology.rows))
            return dx
        result = Result(grad, batch, topology.columns)
        _multiply("multiply_transposed", grad, values, topology, "columns", 0, result.pointer)
        return result.unpacked()

    @through_float32
    def grad_values(self, grad: th.Tensor, x: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        dv = grad.new_empty(topology.nnz) if batch else grad.new_zeros(topology.nnz)
        if batch == 1:
            pointers = (dv.data_ptr(), *topology.addresses, grad.data_ptr(), x.data_ptr())
            run(_kernel_one("sample_product", topology), pointers, _bounds_for_one(topology))
            return dv
        bounds = _row_bounds(topology, "rows", thread_count(topology.nnz * batch))
        index, stride = topology.tensors(), x.shape[1]
        blocks = _blocks(topology, "rows", stride)
        for begin, end in itertools.pairwise(blocks):
            segment = tuple(t.data_ptr() for t in (dv, begin, end, index.col))
            for vectors, lane, tiles in _tiles(stride):
                shifted = (grad.data_ptr() + 4 * lane, x.data_ptr() + 4 * lane)
                run(rows.kernel("sample_product", vectors), (*segment, *shifted, stride, tiles, int(lane > 0)), bounds)
        return dv

    def memory(self, topology: Topology) -> int:
        return tensor_bytes(topology)


# So many multiply-adds of a batch take the time of one of a single sample, which are not done by vectors.
_TIME_OF_ONE = 8


def _bounds_for_one(topology: Topology) -> tuple[int, ...]:
    return _row_bounds(topology, "rows", thread_count(_TIME_OF_ONE * topology.nnz))


def _kernel_one(name: str, topology: Topology) -> Kernel:
    return single.kernel(name, 8 * topology.col.itemsize)


class Result:
    """
    Where a kernel writes a result of a batch: ``(features, padded batch)``, feature by feature.

    :param packed: What the kernel reads, packed likewise.
    :param batch: Samples without padding.
    :param features: Features of the result.
    """

    def __init__(self, packed: th.Tensor, batch: int, features: int):
        padded = packed.shape[1]
        self._result = empty_result(packed, batch, features)
        self._padded = None if padded == batch else packed.new_empty(features, padded)
        self._batch = batch
        #: Address of the first feature.
        self.pointer: int = (self._result if self._padded is None else self._padded).data_ptr()

    def unpacked(self) -> th.Tensor:
        """The result, once the kernel is done: ``(batch, features)`` in the memory layout of results."""
        if self._padded is not None:
            self._result.t().copy_(self._padded[:, : self._batch])
        return self._result


def _multiply(
    name: str, x: th.Tensor, values: th.Tensor, topology: Topology, side: str, bias_pointer: int, y_pointer: int
) -> None:
    """``y = W x`` (side "rows") or ``y = Wᵀ x`` (side "columns"), block of columns by block of columns."""
    index = topology.tensors()
    stride = x.shape[1]
    columns = index.col if side == "rows" else index.t_col
    bounds = _row_bounds(topology, side, thread_count(topology.nnz * stride))
    blocks = _blocks(topology, side, stride)
    for block, (begin, end) in enumerate(itertools.pairwise(blocks)):
        weights = tuple(t.data_ptr() for t in (values, index.t_order, begin, end, columns))
        for vectors, lane, tiles in _tiles(stride):
            batch = (x.data_ptr() + 4 * lane, bias_pointer, y_pointer + 4 * lane)
            run(rows.kernel(name, vectors), (*weights, *batch, stride, tiles, int(block > 0), topology.nnz - 1), bounds)


@cache
def _tiles(stride: int) -> list[tuple[int, int, int]]:
    """Cut a batch into tiles: (vectors per tile, first lane, number of tiles) for each size of tile that is used."""
    cuts, lane = [], 0
    for vectors in rows.tile_vectors():
        count = (stride - lane) // (vectors * LANES)
        if count:
            cuts.append((vectors, lane, count))
            lane += count * vectors * LANES
    return cuts


@cache
def _block_bytes() -> int:
    """How much of ``x`` a block of columns may take: three quarters of the second-level cache of a core."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        kilobytes = int(size.removesuffix("K"))
    except (OSError, ValueError):
        kilobytes = 1024
    return 1024 * kilobytes * 3 // 4


_derived: "weakref.WeakKeyDictionary[Topology, dict[tuple[str, int], Any]]" = weakref.WeakKeyDictionary()


def _blocks(topology: Topology, side: str, stride: int) -> list[th.Tensor]:
    """
    Where each block of columns begins in every row: tensor ``b`` and ``b + 1`` are begin and end of block ``b``.

    :param side: "rows" for the matrix, "columns" for its transpose.
    :param stride: Length of a row of the batch; longer rows make narrower blocks.
    """
    width = max(32, _block_bytes() // (4 * max(1, stride)))
    key = ("blocks " + side, width)
    per_topology = _derived.setdefault(topology, {})
    if key not in per_topology:
        index = topology.tensors()
        crow, col, columns = (
            (index.crow, index.col, topology.columns) if side == "rows" else (index.t_crow, index.t_col, topology.rows)
        )
        if width >= columns:
            per_topology[key] = [crow[:-1], crow[1:]]
        else:
            n_rows = len(crow) - 1
            # Weights before a block's edge in each row: counted by (row, block), then summed up along the row.
            n_blocks = -(-columns // width)
            row = np.repeat(np.arange(n_rows, dtype=np.int64), np.diff(crow.numpy()))
            counts = np.bincount(row * n_blocks + col.numpy() // width, minlength=n_rows * n_blocks)
            edges = crow[:-1].numpy()[:, None] + np.cumsum(counts.reshape(n_rows, n_blocks), axis=1)
            ends = np.ascontiguousarray(edges.T.astype(np.int32))
            per_topology[key] = [crow[:-1], *(th.from_numpy(end) for end in ends)]
    return per_topology[key]


def _row_bounds(topology: Topology, side: str, threads: int) -> tuple[int, ...]:
    """Cut the rows into ranges of about equally many weights, one per thread."""
    if threads == 1:
        # On the path of every single action: looking something up would take a tenth of a small product.
        return 0, topology.rows if side == "rows" else topology.columns
    key = ("bounds " + side, threads)
    per_topology = _derived.setdefault(topology, {})
    if key not in per_topology:
        crow = topology.crow if side == "rows" else topology.tensors().t_crow.numpy()
        cuts = np.searchsorted(crow, np.linspace(0, topology.nnz, threads + 1)[1:-1])
        per_topology[key] = tuple(sorted({0, *map(int, cuts), len(crow) - 1}))
    return per_topology[key]
