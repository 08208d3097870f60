"""Blocked backend: our own kernels for batches, cut into blocks that fit the first-level cache. The fastest one."""

import weakref
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_sparse.sparse.kernels.backends.compiled import CompiledBackend, Result
from sb3_sparse.sparse.kernels.backends.half_precision import through_float32
from sb3_sparse.sparse.kernels.native.blocked import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    GROUP_WEIGHTS,
    MIN_BLOCK_ROWS,
    TILE_VECTORS,
    kernel,
)
from sb3_sparse.sparse.kernels.native.code import LANES
from sb3_sparse.sparse.kernels.native.kernel import Kernel
from sb3_sparse.sparse.kernels.native.threads import run, thread_count
from sb3_sparse.sparse.topology import Topology


class BlockedBackend(CompiledBackend):
    """
    float32 on the CPU, and through it 16 bits; any batch size and shape. A batch of one runs as in
    :class:`CompiledBackend`, whose memory layout of activations is used too. Results do not depend on the number of threads.
    """

    name = "blocked"

    def padded(self, batch: int) -> int:
        """Whole vectors, and whole tiles if it is more than one."""
        lanes = LANES if batch <= TILE_VECTORS * LANES else TILE_VECTORS * LANES
        return -(-batch // lanes) * lanes

    @through_float32
    def forward(self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int) -> th.Tensor:
        if batch == 1:
            return super().forward(x, values, topology, bias, batch)
        return _multiply("multiply", x, values, topology, bias, batch)

    @through_float32
    def forward_relu(
        self, x: th.Tensor, values: th.Tensor, topology: Topology, bias: th.Tensor | None, batch: int
    ) -> th.Tensor:
        if batch == 1:
            return super().forward_relu(x, values, topology, bias, batch)
        return _multiply("multiply_relu", x, values, topology, bias, batch)

    @through_float32
    def grad_input(self, grad: th.Tensor, values: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        if batch == 1:
            return super().grad_input(grad, values, topology, batch)
        return _multiply("multiply_transposed", grad, values, topology, None, batch)

    @through_float32
    def grad_input_relu(
        self, grad: th.Tensor, values: th.Tensor, topology: Topology, activation: th.Tensor, batch: int
    ) -> th.Tensor:
        if batch == 1:
            return super().grad_input_relu(grad, values, topology, activation, batch)
        return _multiply("multiply_transposed_gated", grad, values, topology, None, batch, activation)

    @through_float32
    def grad_values(self, grad: th.Tensor, x: th.Tensor, topology: Topology, batch: int) -> th.Tensor:
        if batch == 1:
            return super().grad_values(grad, x, topology, batch)
        if batch == 0:
            return grad.new_zeros(topology.nnz)
        blocks = _blocks(topology, "rows")
        dv, packed = grad.new_empty(topology.nnz), _place_for_packed(topology, blocks)
        pointers = (dv.data_ptr(), packed.ctypes.data, *blocks.addresses[:3], grad.data_ptr(), x.data_ptr())
        _run("sample_product", pointers, topology, blocks, x.shape[1])
        return dv

    def memory(self, topology: Topology) -> int:
        rows, columns = topology.rows, topology.columns
        counts = rows * -(-columns // BLOCK_COLUMNS) + columns * -(-rows // BLOCK_COLUMNS)
        edges = rows * (-(-columns // _block_rows(columns, th.get_num_threads())) + 1)
        return counts + 2 * (topology.nnz + LANES) + 4 * (columns + 1 + edges)


class _Blocks(NamedTuple):
    """A weight matrix, or its transpose, cut into blocks."""

    rows: int
    columns: int
    block_rows: int
    """Rows of a block; the last ones may have fewer."""
    counts: np.ndarray
    """uint8: weights of each row in each block, block after block along a row of blocks."""
    local: np.ndarray
    """uint8: columns of the weights in their block, block after block, row by row; and some zeros."""
    crow: np.ndarray
    """``(rows + 1,)`` int32: how many weights there are before each row."""
    edges: np.ndarray
    """Of the transpose: ``(rows of blocks + 1, columns)`` int32, see ``native/blocked/packing.py``."""
    addresses: tuple[int, int, int, int]
    """Of ``counts``, ``local``, ``crow`` and ``edges``."""


_kept: "weakref.WeakKeyDictionary[Topology, dict[str, _Blocks]]" = weakref.WeakKeyDictionary()


def _blocks(topology: Topology, side: str) -> _Blocks:
    """
    The blocks of a topology, kept until the number of threads changes.

    :param side: "rows" for the matrix, "columns" for its transpose.
    """
    block_rows = _block_rows(topology.rows if side == "rows" else topology.columns, th.get_num_threads())
    per_topology = _kept.setdefault(topology, {})
    blocks = per_topology.get(side)
    if blocks is None or blocks.block_rows != block_rows:
        per_topology[side] = blocks = _cut(topology, side, block_rows)
    return blocks


@lru_cache
def _block_rows(rows: int, threads: int) -> int:
    """As many rows of blocks for every thread, unless they got too short to be worth a panel."""
    threads = max(1, min(threads, rows // MIN_BLOCK_ROWS))
    n_blocks = -(-rows // (BLOCK_ROWS * threads)) * threads
    return -(-rows // n_blocks)


def _cut(topology: Topology, side: str, block_rows: int) -> _Blocks:
    rows, columns, crow, column = topology.rows, topology.columns, topology.crow, topology.col
    edges = np.zeros((0, 0), dtype=np.int32)
    if side == "columns":
        n_edges = -(-columns // block_rows) + 1
        # Weights before a row of blocks: counted by (row of the matrix, row of blocks), then summed up.
        begins = np.repeat(np.arange(rows) * n_edges + 1, np.diff(crow))
        counts = np.bincount(begins + column // block_rows, minlength=rows * n_edges)
        edges = np.ascontiguousarray((crow[:-1] + counts.reshape(rows, n_edges).cumsum(axis=1).T).astype(np.int32))
        crow = np.zeros(columns + 1, dtype=np.int32)
        np.cumsum(np.bincount(column, minlength=columns), out=crow[1:])
        column = topology.row_of_weights()[topology.column_order()]
        rows, columns = columns, rows
    n_columns = -(-columns // BLOCK_COLUMNS)
    # Of each row: the row of blocks that it is in, and that one's first row and height. Weights lie row by row.
    row, per_row = np.arange(rows), np.diff(crow)
    block_row = row // block_rows
    first = block_row * block_rows
    block = column // BLOCK_COLUMNS
    height = np.repeat(np.minimum(block_rows, rows - first).astype(np.int32), per_row)
    begin = np.repeat((first * n_columns + row - first).astype(np.int32), per_row)
    counts = np.bincount(begin + block * height, minlength=rows * n_columns).astype(np.uint8)
    # NumPy sorts 16-bit keys by radix, ten times faster than others.
    kind = np.uint16 if (block_row[-1] + 1) * n_columns <= 2**16 else np.int64
    key = np.repeat((block_row * n_columns).astype(kind), per_row) + block.astype(kind)
    order = np.argsort(key, kind="stable")
    # Kernels read some more, which have to be columns too.
    local = np.zeros(len(order) + LANES, dtype=np.uint8)
    local[: len(order)] = (column % BLOCK_COLUMNS).astype(np.uint8)[order]
    addresses = (counts.ctypes.data, local.ctypes.data, crow.ctypes.data, edges.ctypes.data)
    return _Blocks(rows, columns, block_rows, counts, local, crow, edges, addresses)


def _multiply(
    name: str,
    x: th.Tensor,
    values: th.Tensor,
    topology: Topology,
    bias: th.Tensor | None,
    batch: int,
    gate: th.Tensor | None = None,
) -> th.Tensor:
    """``x Wᵀ + bias`` or ``x W`` for a packed ``x``, by one of the kernels."""
    blocks = _blocks(topology, "columns" if name.startswith("multiply_transposed") else "rows")
    y, packed = Result(x, batch, blocks.rows), _place_for_packed(topology, blocks)
    bias_pointer, gate_pointer = (0 if tensor is None else tensor.data_ptr() for tensor in (bias, gate))
    indices = (*blocks.addresses, topology.addresses[1])
    pointers = (values.data_ptr(), packed.ctypes.data, *indices, x.data_ptr(), bias_pointer, y.pointer, gate_pointer)
    _run(name, pointers, topology, blocks, x.shape[1])
    return y.unpacked()


def _place_for_packed(topology: Topology, blocks: _Blocks) -> np.ndarray:
    """Room for packed values of every thread. Only the beginning of each part is touched: most never takes memory."""
    return np.empty(topology.nnz + LANES * (-(-blocks.rows // blocks.block_rows) + 1), dtype=np.float32)


def _run(name: str, pointers: tuple[int, ...], topology: Topology, blocks: _Blocks, stride: int) -> None:
    if stride < LANES:
        return
    # The others read no columns: there is one of each for all topologies.
    bits = 8 * topology.col.itemsize if name.startswith("multiply_transposed") else 16
    shape = (blocks.rows, blocks.columns, blocks.block_rows, topology.nnz)
    which, sizes, bounds = _plan(name, bits, *shape, stride, thread_count(topology.nnz * stride))
    run(which, (*pointers, *sizes), bounds)


@lru_cache(maxsize=1024)
def _plan(
    name: str, bits: int, rows: int, columns: int, block_rows: int, nnz: int, stride: int, threads: int
) -> tuple[Kernel, tuple[int, ...], tuple[int, ...]]:
    """The kernel for a product, the integers that it is called with, and each thread's rows of blocks."""
    vectors = min(TILE_VECTORS, stride // LANES)
    # So many weights are in a block on average.
    block_weights = nnz / (rows * columns) * block_rows * BLOCK_COLUMNS
    group = max(1, int(GROUP_WEIGHTS / max(1.0, block_weights)))
    sizes = (stride, stride // (vectors * LANES), rows, columns, block_rows, group)
    n_blocks = -(-rows // block_rows)
    threads = min(n_blocks, threads)
    return kernel(name, vectors, bits), sizes, tuple(n_blocks * part // threads for part in range(threads + 1))
