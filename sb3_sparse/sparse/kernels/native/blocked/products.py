"""The three products, block by block."""

from collections.abc import Callable, Sequence
from functools import cache, partial

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.blocked.layout import BLOCK_COLUMNS, Arrays, Group, Sizes, each_group
from sb3_sparse.sparse.kernels.native.blocked.packing import gather_columns, gather_rows, scatter_rows
from sb3_sparse.sparse.kernels.native.code import INT8, INT32, LANES, Code, column_type, word
from sb3_sparse.sparse.kernels.native.kernel import Definition, Kernel

# How many weights are reduced to their sums at the same time.
_SUMS = 4
# How many rows ahead of a batch are fetched into the cache.
_ROWS_AHEAD = 16


def define(name: str, vectors: int = 4, column_bits: int = 16) -> Definition:
    """
    How to write a kernel. ``first`` and ``last`` are rows of blocks.

    :param name: "multiply", "multiply_transposed" or "sample_product"; "multiply_relu", which ends with a ReLU, and
        "multiply_transposed_gated", which ends with the ReLU's gradient.
    :param vectors: Vectors per tile.
    :param column_bits: Size of the columns of the topology, 16 or 32; only products with the transpose read them.
    """
    pointers = "values packed counts local crow edges col x bias y gate"
    if name in ("multiply", "multiply_relu"):
        write = _multiply(vectors, gather_rows, _relu if name == "multiply_relu" else None)
    elif name in ("multiply_transposed", "multiply_transposed_gated"):
        gather = gather_columns(column_type(column_bits))
        write = _multiply(vectors, gather, _gated if name == "multiply_transposed_gated" else None)
    elif name == "sample_product":
        pointers, write = "dv packed counts local crow g x", _sample_product(vectors)
    else:
        raise KeyError(name)
    return Definition(pointers, Sizes.NAMES, partial(_with_sizes, write, len(pointers.split())))


@cache
def kernel(name: str, vectors: int, column_bits: int = 16) -> Kernel:
    """A kernel, compiled once; arguments as for :func:`define`."""
    return define(name, vectors, column_bits).compile()


def _with_sizes(write: Callable[..., None], n_pointers: int, code: Code, *arguments: ir.Value) -> None:
    """Calls ``write`` with the integers as :class:`Sizes`, before the pointers and the range."""
    sizes = Sizes(code, *arguments[n_pointers:-2])
    write(code, sizes, *arguments[:n_pointers], *arguments[-2:])


def _multiply(
    vectors: int, gather: Callable[..., ir.Value], finish: Callable[..., ir.Value] | None = None
) -> Callable[..., None]:
    """
    ``y[i] = bias[i] + sum over weights k of row i: value(k) * x[col[k]]``; ``bias`` may be null.

    :param gather: Packs the values of a group and returns how many there are.
    :param finish: What becomes of whole sums, by their numbers and where ``gate`` has one for each; without it, ``gate`` is
        not read.
    """

    def write(code: Code, sizes: Sizes, *arguments: ir.Value) -> None:
        values, packed, counts, local, crow, edges, col, x, bias, y, gate, first, last = arguments
        arrays = Arrays(code, packed, counts, local, crow, vectors)
        last_block = code.build.sub(sizes.n_blocks, word(1))

        def group(here: Group) -> ir.Value:
            size = gather(code, sizes, arrays, here, values, edges, col)

            def row(t: ir.Value, b: ir.Value, i: ir.Value, lane: ir.Value, k: ir.Value, stop: ir.Value) -> None:
                place = code.at_lane(y, i, sizes.stride, lane)
                _fetch_row(code, sizes, y, i, lane, vectors, code.build.icmp_signed("==", b, word(0)), write=True)
                if finish is _gated:
                    is_whole = code.build.icmp_signed("==", b, last_block)
                    _fetch_row(code, sizes, gate, i, lane, vectors, is_whole)

                # In the first block from the bias, then from what the blocks before have left.
                is_first = code.build.icmp_signed("==", b, word(0))
                sums = code.vectors_or(
                    is_first,
                    partial(_splat_bias, code, bias, i),
                    lambda: [code.load_vector(place, vector) for vector in range(vectors)],
                )
                sums = _add_weights(code, arrays, here, k, stop, sums)
                if finish is None:
                    _store(code, sums, place)
                    return
                is_whole = code.build.icmp_signed("==", b, last_block)
                with code.build.if_else(is_whole) as (whole, part):
                    with whole:
                        gates = code.at_lane(gate, i, sizes.stride, lane)
                        _store(code, [finish(code, total, gates, vector) for vector, total in enumerate(sums)], place)
                    with part:
                        _store(code, sums, place)

            _each_row(code, sizes, arrays, here, x, vectors, row)
            return size

        each_group(code, sizes, arrays, first, last, group)

    return write


def _add_weights(code: Code, arrays: Arrays, here: Group, k: ir.Value, stop: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
    """Sums with all weights from ``k`` to ``stop`` added, each times its row of the panel."""

    def add(value: ir.Value, local: ir.Value, sums: Sequence[ir.Value]) -> Sequence[ir.Value]:
        factor, x_row = code.splat(value), _panel_row(code, arrays.panel, local, len(sums))
        return [code.fma(factor, code.load_vector(x_row, u, align=4 * LANES), total) for u, total in enumerate(sums)]

    def one(k: ir.Value, *sums: ir.Value) -> Sequence[ir.Value]:
        return add(code.load(arrays.packed, k), code.load_index(here.local, k, INT8), sums)

    def four(k: ir.Value, *sums: ir.Value) -> Sequence[ir.Value]:
        # The loads are what takes the time: two for four values and their columns, instead of eight.
        values = code.elements(code.load_four(arrays.packed, k))
        totals: Sequence[ir.Value] = sums
        for value, local in zip(values, code.load_four_indices(here.local, k, INT8), strict=True):
            totals = add(value, local, totals)
        return totals

    whole = code.whole(k, stop, 4)
    return code.loop(whole, stop, one, *code.loop(k, whole, four, *sums, step=4))


def _fetch_row(
    code: Code,
    sizes: Sizes,
    batch: ir.Value,
    row: ir.Value,
    lane: ir.Value,
    vectors: int,
    wanted: ir.Value,
    write: bool = False,
) -> None:
    """Fetch a row of a batch that comes soon, where it is used for the first time: from afar."""
    build = code.build
    with build.if_then(wanted):
        soon = code.minimum(build.add(row, word(_ROWS_AHEAD)), build.sub(sizes.rows, word(1)))
        place = code.at_lane(batch, soon, sizes.stride, lane)
        for vector in range(vectors):
            code.prefetch(code.at(place, word(vector * LANES)), write=write)


def _store(code: Code, sums: list[ir.Value], place: ir.Value) -> None:
    for vector, total in enumerate(sums):
        code.store_vector(total, place, vector)


def _relu(code: Code, total: ir.Value, gates: ir.Value, vector: int) -> ir.Value:
    """As torch's: what is not below zero stays, NaN and the negative zero too."""
    zero = ir.Constant(total.type, None)
    return code.build.select(code.build.fcmp_ordered("<", total, zero), zero, total)


def _gated(code: Code, total: ir.Value, gates: ir.Value, vector: int) -> ir.Value:
    """The gradient of a ReLU, whose result is the gate."""
    zero = ir.Constant(total.type, None)
    return code.build.select(code.build.fcmp_ordered("<=", code.load_vector(gates, vector), zero), zero, total)


def _sample_product(vectors: int) -> Callable[..., None]:
    """``dv[k] = sum over the batch: g[i] * x[col[k]]``. Lanes beyond the batch have to be zero."""

    def write(code: Code, sizes: Sizes, *arguments: ir.Value) -> None:
        dv, packed, counts, local, crow, g, x, first, last = arguments
        build = code.build
        arrays = Arrays(code, packed, counts, local, crow, vectors)

        def group(here: Group) -> ir.Value:
            def row(t: ir.Value, b: ir.Value, i: ir.Value, lane: ir.Value, k: ir.Value, stop: ir.Value) -> None:
                g_row = code.at_lane(g, i, sizes.stride, lane)
                _fetch_row(code, sizes, g, i, lane, vectors, build.icmp_signed("==", b, here.begin))
                gradients = [code.load_vector(g_row, vector) for vector in range(vectors)]
                resumes = build.icmp_signed(">", t, word(0))

                def products(local: ir.Value) -> ir.Value:
                    x_row = _panel_row(code, arrays.panel, local, vectors)
                    total = build.fmul(gradients[0], code.load_vector(x_row, 0, align=4 * LANES))
                    for vector in range(1, vectors):
                        total = code.fma(gradients[vector], code.load_vector(x_row, vector, align=4 * LANES), total)
                    return total

                def several(k: ir.Value) -> None:
                    # Behind the last weight of a row are those of the next: they are multiplied too, and not used.
                    total = code.sums_of_four([products(local) for local in code.load_four_indices(here.local, k, INT8)])
                    place = code.at(arrays.packed, k)
                    before = build.load(place, typ=total.type, align=4)
                    zero = ir.Constant(total.type, None)
                    total = code.add(total, build.select(resumes, before, zero))
                    left = build.trunc(build.sub(stop, k), INT32)
                    lanes = ir.Constant(ir.VectorType(INT32, _SUMS), list(range(_SUMS)))
                    build.store(
                        build.select(build.icmp_signed("<", lanes, code.splat(left, _SUMS)), total, before), place, align=4
                    )

                code.loop(k, stop, several, step=_SUMS)

            _each_row(code, sizes, arrays, here, x, vectors, row)
            return scatter_rows(code, arrays, here, dv)

        each_group(code, sizes, arrays, first, last, group)

    return write


def _each_row(
    code: Code, sizes: Sizes, arrays: Arrays, here: Group, x: ir.Value, vectors: int, body: Callable[..., None]
) -> None:
    """
    The rows of each block of a group, tile by tile, with the panel filled from ``x``.

    :param body: Called with the tile, the block, the row, where the tile begins in a batch, and where the row's
        weights begin and end in the group.
    """
    build = code.build

    def tile(t: ir.Value) -> None:
        lane = build.mul(t, word(vectors * LANES))

        def block(b: ir.Value, k: ir.Value) -> list[ir.Value]:
            _fill_panel(code, sizes, arrays.panel, x, b, lane, vectors)
            counts = here.counts(code, b)
            after = build.add(b, word(1))
            is_last = build.icmp_signed("==", after, here.end)
            next_first = build.mul(build.select(is_last, here.begin, after), word(BLOCK_COLUMNS))
            next_lane = build.select(is_last, build.add(lane, word(vectors * LANES)), lane)

            def row(i: ir.Value, k: ir.Value) -> list[ir.Value]:
                with build.if_then(build.icmp_signed("<", i, word(BLOCK_COLUMNS))):
                    # The panel of the next block comes from afar: a column of it per row of this one.
                    column = code.minimum(build.add(next_first, i), build.sub(sizes.columns, word(1)))
                    soon = code.at_lane(x, column, sizes.stride, next_lane)
                    for vector in range(vectors):
                        code.prefetch(code.at(soon, word(vector * LANES)), locality=2)
                stop = build.add(k, code.load_index(counts, i, INT8))
                body(t, b, build.add(here.row, i), lane, k, stop)
                return [stop]

            return code.loop(word(0), here.rows, row, k)

        code.loop(here.begin, here.end, block, word(0))

    code.loop(word(0), sizes.tiles, tile)


def _fill_panel(code: Code, sizes: Sizes, panel: ir.Value, x: ir.Value, block: ir.Value, lane: ir.Value, vectors: int) -> None:
    """Copy the tile's part of the rows of ``x`` that belong to a block of columns."""
    build = code.build
    first = build.mul(block, word(BLOCK_COLUMNS))
    count = code.minimum(word(BLOCK_COLUMNS), build.sub(sizes.columns, first))

    def column(c: ir.Value) -> None:
        row = code.at_lane(x, build.add(first, c), sizes.stride, lane)
        place = code.at(panel, build.mul(c, word(vectors * LANES)))
        for vector in range(vectors):
            code.store_vector(code.load_vector(row, vector), place, vector, align=4 * LANES)

    code.loop(word(0), count, column)


def _splat_bias(code: Code, bias: ir.Value, row: ir.Value) -> ir.Value:
    return code.splat(code.load_or_zero(bias, row))


def _panel_row(code: Code, panel: ir.Value, local: ir.Value, vectors: int) -> ir.Value:
    """Where the row of ``x`` is that belongs to a column of the block."""
    return code.at(panel, code.build.mul(local, word(vectors * LANES)))
