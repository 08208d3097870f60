"""
How a matrix is cut for the blocked kernels, and what all of them read.

The matrix is cut into blocks of ``BLOCK_COLUMNS`` columns and some hundred rows. The part of ``x`` that a block needs, for
a tile of a few vectors of samples, is copied into a *panel* that stays in the first-level cache while all weights of the
block use it. Weights of a block lie one after the other, with columns counted from the block's first in one byte: reading
them disturbs the panel as little as possible. Their values are copied into that order (*packed*) for a *group* of blocks
side by side at a time, which is used for all tiles while it is in the second-level cache.
"""

from collections.abc import Callable

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import FLOAT, INT8, LANES, WORD, Code, word

BLOCK_COLUMNS = 128
"""
Columns of a block: with the widest tile, the panel is as large as a first-level cache of 32 KiB. At most 255, since a row
that has all of them counts them in one byte (``counts``, in ``backends/blocked.py`` too).
"""
assert BLOCK_COLUMNS <= 255
BLOCK_ROWS = 512
"""Rows of a block at most: their outputs of one tile stay in the second-level cache."""
MIN_BLOCK_ROWS = 128
"""Rows of a block at least, if there are as many: filling a panel has to pay."""
GROUP_WEIGHTS = 1 << 16
"""Weights of a group of blocks, about: a quarter of a second-level cache of 1 MiB."""
TILE_VECTORS = 4
"""Vectors of samples per tile at most. Each is a chain of multiply-adds, which keep a core busy together."""


class Sizes:
    """Sizes of the matrix, the batch and the blocks."""

    NAMES = "stride tiles rows columns block_rows group"

    def __init__(self, code: Code, *sizes: ir.Value):
        self.stride, self.tiles, self.rows, self.columns, self.block_rows, self.group = sizes
        self.n_blocks = code.build.sdiv(code.build.add(self.columns, word(BLOCK_COLUMNS - 1)), word(BLOCK_COLUMNS))


class Arrays:
    """The arrays that all kernels have: where weights are, a place for their values, and local arrays."""

    def __init__(self, code: Code, packed: ir.Value, counts: ir.Value, local: ir.Value, crow: ir.Value, vectors: int):
        self.packed, self.counts, self.local, self.crow = packed, counts, local, crow
        self.panel = code.array(FLOAT, BLOCK_COLUMNS * vectors * LANES, align=4 * LANES)
        self.cursors = code.array(WORD, BLOCK_ROWS)


class Group:
    """
    A group of blocks side by side.

    :param index: Which row of blocks it is in.
    :param begin: Its first block in that.
    :param k: How many weights the blocks before it have.
    """

    def __init__(self, code: Code, sizes: Sizes, arrays: Arrays, index: ir.Value, begin: ir.Value, k: ir.Value):
        build = code.build
        self.index, self.begin = index, begin
        self.end = code.minimum(build.add(begin, sizes.group), sizes.n_blocks)
        self.row = build.mul(index, sizes.block_rows)
        self.rows = code.minimum(sizes.block_rows, build.sub(sizes.rows, self.row))
        first = code.load_index(arrays.crow, self.row)
        self.local = code.at(arrays.local, build.add(first, k), INT8)
        self._counts = code.at(arrays.counts, build.mul(self.row, sizes.n_blocks), INT8)

    def counts(self, code: Code, block: ir.Value) -> ir.Value:
        """Weights of each row in a block."""
        return code.at(self._counts, code.build.mul(block, self.rows), INT8)


def each_group(
    code: Code, sizes: Sizes, arrays: Arrays, first: ir.Value, last: ir.Value, body: Callable[[Group], ir.Value]
) -> None:
    """
    The groups of some rows of blocks. When a row of blocks begins, cursors are at the first weight of each of its rows.

    :param body: Returns how many weights a group has.
    """
    build = code.build
    # Each thread uses the beginning of its own part again and again. Between two parts there is room for a vector.
    begin = code.load_index(arrays.crow, build.mul(first, sizes.block_rows))
    arrays.packed = code.at(arrays.packed, build.add(begin, build.mul(first, word(LANES))))

    def row_of_blocks(index: ir.Value) -> None:
        row = build.mul(index, sizes.block_rows)
        rows = code.minimum(sizes.block_rows, build.sub(sizes.rows, row))

        def start(i: ir.Value) -> None:
            code.store(code.load_index(arrays.crow, build.add(row, i)), arrays.cursors, i)

        def group(begin: ir.Value, k: ir.Value) -> list[ir.Value]:
            return [build.add(k, body(Group(code, sizes, arrays, index, begin, k)))]

        code.loop(word(0), rows, start)
        code.loop(word(0), sizes.n_blocks, group, word(0), step=sizes.group)

    code.loop(first, last, row_of_blocks)
