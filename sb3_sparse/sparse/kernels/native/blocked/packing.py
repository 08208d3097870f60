"""Copying values between the order of the topology and the order of the blocks, a group of blocks at a time."""

from collections.abc import Callable

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.blocked.layout import BLOCK_COLUMNS, Arrays, Group, Sizes
from sb3_sparse.sparse.kernels.native.code import INT8, INT32, LANES, VECTOR, WORD, Code, word

# How many rows ahead scattered values are fetched into the cache.
_PREFETCH_DISTANCE = 8


def gather_rows(
    code: Code, sizes: Sizes, arrays: Arrays, here: Group, values: ir.Value, edges: ir.Value, col: ir.Value
) -> ir.Value:
    """Pack the values of a group, and return how many there are."""
    build = code.build
    nnz = code.load_index(arrays.crow, sizes.rows)

    def segment(i: ir.Value, place: ir.Value, k: ir.Value, count: ir.Value) -> None:
        # What is written too much is the place of the next segment, which is written next.
        readable = build.icmp_signed("<=", build.add(place, build.add(count, word(LANES - 1))), nnz)
        _copy(code, code.at(values, place), code.at(arrays.packed, k), count, readable)

    return _each_segment(code, arrays, here, segment)


def scatter_rows(code: Code, arrays: Arrays, here: Group, values: ir.Value) -> ir.Value:
    """The way back."""
    build = code.build

    def segment(i: ir.Value, place: ir.Value, k: ir.Value, count: ir.Value) -> None:
        # What is written too much is the place of the row's next segments, which are written later.
        row_end = code.load_index(arrays.crow, build.add(i, word(1)))
        writable = build.icmp_signed("<=", build.add(place, build.add(count, word(LANES - 1))), row_end)
        _copy(code, code.at(arrays.packed, k), code.at(values, place), count, writable)

    return _each_segment(code, arrays, here, segment)


def gather_columns(column_type: ir.IntType) -> Callable[..., ir.Value]:
    """
    Pack the values of a group of the transpose, whose rows are the matrix' columns.

    ``edges[i, j]`` is where row ``j`` of the matrix has its first weight at or after the columns of row ``i`` of
    blocks: those from there to ``edges[i + 1, j]`` are dealt out, each to the next place of its column.
    """

    def gather(
        code: Code, sizes: Sizes, arrays: Arrays, here: Group, values: ir.Value, edges: ir.Value, col: ir.Value
    ) -> ir.Value:
        build = code.build
        begins = code.at(edges, build.mul(here.index, sizes.columns), INT32)
        ends = code.at(begins, sizes.columns, INT32)

        def block(b: ir.Value, k: ir.Value) -> list[ir.Value]:
            counts = here.counts(code, b)

            def start(i: ir.Value, k: ir.Value) -> list[ir.Value]:
                code.store(k, arrays.cursors, i)
                return [build.add(k, code.load_index(counts, i, INT8))]

            (after,) = code.loop(word(0), here.rows, start, k)
            first = build.mul(b, word(BLOCK_COLUMNS))
            last = code.minimum(build.add(first, word(BLOCK_COLUMNS)), sizes.columns)

            def deal(j: ir.Value) -> None:
                soon = code.minimum(build.add(j, word(_PREFETCH_DISTANCE)), build.sub(sizes.columns, word(1)))
                soon_begin = code.load_index(begins, soon)
                for line in range(2):
                    ahead = build.add(soon_begin, word(LANES * line))
                    code.prefetch(code.at(values, ahead))
                code.prefetch(code.at(col, soon_begin, column_type))

                def weight(k: ir.Value) -> None:
                    i = build.sub(code.load_index(col, k, column_type), here.row)
                    place = code.load(arrays.cursors, i, WORD)
                    code.store(code.load(values, k), arrays.packed, place)
                    code.store(build.add(place, word(1)), arrays.cursors, i)

                code.loop(code.load_index(begins, j), code.load_index(ends, j), weight)

            code.loop(first, last, deal)
            return [after]

        return code.loop(here.begin, here.end, block, word(0))[0]

    return gather


def _each_segment(code: Code, arrays: Arrays, here: Group, body: Callable[..., None]) -> ir.Value:
    """
    The weights that a row has in a block of a group: neighbours among the values, row by row, and the packed ones.

    :param body: Called with the row, where the segment begins in the values and the packed ones, and its length.
    :return: How many weights the group has.
    """
    build = code.build

    def block(b: ir.Value, k: ir.Value) -> list[ir.Value]:
        counts = here.counts(code, b)

        def row(i: ir.Value, k: ir.Value) -> list[ir.Value]:
            count, place = code.load_index(counts, i, INT8), code.load(arrays.cursors, i, WORD)
            body(build.add(here.row, i), place, k, count)
            code.store(build.add(place, count), arrays.cursors, i)
            return [build.add(k, count)]

        return code.loop(word(0), here.rows, row, k)

    return code.loop(here.begin, here.end, block, word(0))[0]


def _copy(code: Code, source: ir.Value, target: ir.Value, count: ir.Value, roomy: ir.Value) -> None:
    """
    Copy ``count`` floats.

    :param roomy: Whether reading and writing up to 15 more does no harm: then whole vectors are copied.
    """
    build = code.build
    with build.if_else(roomy) as (vectors, scalars):
        with vectors:

            def vector(k: ir.Value) -> None:
                build.store(build.load(code.at(source, k), typ=VECTOR, align=4), code.at(target, k), align=4)

            code.loop(word(0), count, vector, step=LANES)
        with scalars:
            code.loop(word(0), count, lambda k: code.store(code.load(source, k), target, k))
