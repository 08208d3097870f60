"""Kernels for batches, cut into blocks that fit the first-level cache."""

from sb3_sparse.sparse.kernels.native.blocked.layout import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    GROUP_WEIGHTS,
    MIN_BLOCK_ROWS,
    TILE_VECTORS,
)
from sb3_sparse.sparse.kernels.native.blocked.products import define, kernel

__all__ = ["BLOCK_COLUMNS", "BLOCK_ROWS", "GROUP_WEIGHTS", "MIN_BLOCK_ROWS", "TILE_VECTORS", "define", "kernel"]
