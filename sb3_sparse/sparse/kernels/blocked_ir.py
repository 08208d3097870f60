"""
The kernels of the blocked backend as LLVM assembly.

The weight matrix is cut into blocks of ``BLOCK_COLUMNS`` columns and some hundred rows. The part of ``x`` that a block
needs, for a tile of a few vectors of samples, is copied into a *panel* that stays in the first-level cache while all
weights of the block use it. Weights of a block lie one after the other, with columns counted from the block's first in
one byte: reading them disturbs the panel as little as possible. Their values are copied into that order (*packed*) for
a group of blocks side by side at a time, which is used for all tiles while it is in the second-level cache.
"""

from collections.abc import Callable
from functools import cache

from llvmlite import ir

from sb3_sparse.sparse.kernels.codegen import FLOAT, INT8, INT16, INT32, POINTER, WORD, Code, number, word
from sb3_sparse.sparse.kernels.llvm_ir import LANES, Kernel, make_kernel

BLOCK_COLUMNS = 128
"""Columns of a block: with the widest tile, the panel is as large as a first-level cache of 32 KiB. At most 255."""
BLOCK_ROWS = 512
"""Rows of a block at most: their outputs of one tile stay in the second-level cache."""
MIN_BLOCK_ROWS = 128
"""Rows of a block at least, if there are as many: filling a panel has to pay."""
GROUP_WEIGHTS = 1 << 16
"""Weights of a group of blocks, about: a quarter of a second-level cache of 1 MiB."""
TILE_VECTORS = 4
"""Vectors of samples per tile at most. Each is a chain of multiply-adds, which keep a core busy together."""

VECTOR = ir.VectorType(FLOAT, LANES)
# How many weights are reduced to their sums at the same time.
_SUMS = 4
# How many rows ahead scattered values are fetched into the cache.
_PREFETCH_DISTANCE = 8


@cache
def blocked_kernel(name: str, vectors: int, column_bits: int = 0) -> Kernel:
    """
    Compile a kernel for this processor, once.

    :param name: "multiply_rows" for ``y = W x``, "multiply_columns" for ``y = Wᵀ x``, or "sample_product".
    :param vectors: Vectors per tile.
    :param column_bits: Size of the columns of the topology, 16 or 32, for "multiply_columns", which alone reads them.
    """
    if name == "sample_product":
        return _define("dv packed counts local crow g x", _sample_product(vectors))
    gather = _gather_rows if name == "multiply_rows" else _gather_columns(INT16 if column_bits == 16 else INT32)
    return _define("values packed counts local crow edges col x bias y", _multiply(vectors, gather))


class _Sizes:
    """Sizes of the matrix, the batch and the blocks."""

    NAMES = "stride tiles rows columns block_rows group"

    def __init__(self, code: Code, *sizes: ir.Value):
        self.stride, self.tiles, self.rows, self.columns, self.block_rows, self.group = sizes
        self.n_blocks = code.build.sdiv(code.build.add(self.columns, word(BLOCK_COLUMNS - 1)), word(BLOCK_COLUMNS))


class _Arrays:
    """The arrays that all kernels have: where weights are, a place for their values, and local arrays."""

    def __init__(self, code: Code, packed: ir.Value, counts: ir.Value, local: ir.Value, crow: ir.Value, vectors: int):
        self.packed, self.counts, self.local, self.crow = packed, counts, local, crow
        self.panel = code.array(FLOAT, BLOCK_COLUMNS * vectors * LANES, align=4 * LANES)
        self.cursors = code.array(WORD, BLOCK_ROWS)


class _Group:
    """
    A group of blocks side by side.

    :param index: Which row of blocks it is in.
    :param begin: Its first block in that.
    :param k: How many weights the blocks before it have.
    """

    def __init__(self, code: Code, sizes: _Sizes, arrays: _Arrays, index: ir.Value, begin: ir.Value, k: ir.Value):
        build = code.build
        self.index, self.begin = index, begin
        self.end = code.minimum(build.add(begin, sizes.group), sizes.n_blocks)
        self.row = build.mul(index, sizes.block_rows)
        self.rows = code.minimum(sizes.block_rows, build.sub(sizes.rows, self.row))
        first = code.load_index(arrays.crow, self.row, INT32)
        self.local = code.at(arrays.local, build.add(first, k), INT8)
        self._counts = code.at(arrays.counts, build.mul(self.row, sizes.n_blocks), INT8)

    def counts(self, code: Code, block: ir.Value) -> ir.Value:
        """Weights of each row in a block."""
        return code.at(self._counts, code.build.mul(block, self.rows), INT8)


def _define(pointers: str, write: Callable[..., None]) -> Kernel:
    """A kernel of these pointers, the sizes, and a range of rows of blocks, which ``write`` writes."""
    module = ir.Module()
    n_pointers, n_integers = len(pointers.split()), len(_Sizes.NAMES.split())
    kinds = [POINTER] * n_pointers + [WORD] * (n_integers + 2)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "kernel")
    for pointer in function.args[:n_pointers]:
        pointer.add_attribute("noalias")
    code = Code(module, function)
    sizes = _Sizes(code, *function.args[n_pointers : n_pointers + n_integers])
    write(code, sizes, *function.args[:n_pointers], *function.args[n_pointers + n_integers :])
    code.build.ret_void()
    return make_kernel(str(module), n_pointers, n_integers)


def _each_group(
    code: Code, sizes: _Sizes, arrays: _Arrays, first: ir.Value, last: ir.Value, body: Callable[[_Group], ir.Value]
) -> None:
    """
    The groups of some rows of blocks. When a row of blocks begins, cursors are at the first weight of each of its rows.

    :param body: Returns how many weights a group has.
    """
    build = code.build
    # Each thread uses the beginning of its own part again and again. Between two parts there is room for a vector.
    begin = code.load_index(arrays.crow, build.mul(first, sizes.block_rows), INT32)
    arrays.packed = code.at(arrays.packed, build.add(begin, build.mul(first, word(LANES))))

    def row_of_blocks(index: ir.Value) -> None:
        row = build.mul(index, sizes.block_rows)
        rows = code.minimum(sizes.block_rows, build.sub(sizes.rows, row))

        def start(i: ir.Value) -> None:
            code.store(code.load_index(arrays.crow, build.add(row, i), INT32), arrays.cursors, i)

        def group(begin: ir.Value, k: ir.Value) -> list[ir.Value]:
            return [build.add(k, body(_Group(code, sizes, arrays, index, begin, k)))]

        code.loop(word(0), rows, start)
        code.loop(word(0), sizes.n_blocks, group, word(0), step=sizes.group)

    code.loop(first, last, row_of_blocks)


def _each_row(
    code: Code, sizes: _Sizes, arrays: _Arrays, here: _Group, x: ir.Value, vectors: int, body: Callable[..., None]
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
                    soon = _lanes(code, sizes, x, column, next_lane)
                    for vector in range(vectors):
                        code.prefetch(code.at(soon, word(vector * LANES)), locality=2)
                stop = build.add(k, code.load_index(counts, i, INT8))
                body(t, b, build.add(here.row, i), lane, k, stop)
                return [stop]

            return code.loop(word(0), here.rows, row, k)

        code.loop(here.begin, here.end, block, word(0))

    code.loop(word(0), sizes.tiles, tile)


def _fill_panel(
    code: Code, sizes: _Sizes, panel: ir.Value, x: ir.Value, block: ir.Value, lane: ir.Value, vectors: int
) -> None:
    """Copy the tile's part of the rows of ``x`` that belong to a block of columns."""
    build = code.build
    first = build.mul(block, word(BLOCK_COLUMNS))
    count = code.minimum(word(BLOCK_COLUMNS), build.sub(sizes.columns, first))

    def column(c: ir.Value) -> None:
        row = _lanes(code, sizes, x, build.add(first, c), lane)
        place = code.at(panel, build.mul(c, word(vectors * LANES)))
        for vector in range(vectors):
            _store(code, _load(code, row, vector), place, vector, align=4 * LANES)

    code.loop(word(0), count, column)


def _multiply(vectors: int, gather: Callable[..., ir.Value]) -> Callable[..., None]:
    """
    ``y[i] = bias[i] + sum over weights k of row i: value(k) * x[col[k]]``; ``bias`` may be null.

    :param gather: Packs the values of a group and returns how many there are.
    """

    def write(code: Code, sizes: _Sizes, *arguments: ir.Value) -> None:
        values, packed, counts, local, crow, edges, col, x, bias, y, first, last = arguments
        arrays = _Arrays(code, packed, counts, local, crow, vectors)

        def group(here: _Group) -> ir.Value:
            size = gather(code, sizes, arrays, here, values, edges, col)

            def row(t: ir.Value, b: ir.Value, i: ir.Value, lane: ir.Value, k: ir.Value, stop: ir.Value) -> None:
                place = _lanes(code, sizes, y, i, lane)

                def weight(k: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                    value = _splat(code, code.load(arrays.packed, k))
                    x_row = _panel_row(code, arrays.panel, here.local, k, vectors)
                    return [
                        _fma(code, value, _load(code, x_row, vector, align=4 * LANES), total)
                        for vector, total in enumerate(sums)
                    ]

                sums = _sums_so_far(code, b, i, bias, place, vectors)
                for vector, total in enumerate(code.loop(k, stop, weight, *sums)):
                    _store(code, total, place, vector)

            _each_row(code, sizes, arrays, here, x, vectors, row)
            return size

        _each_group(code, sizes, arrays, first, last, group)

    return write


def _sums_so_far(code: Code, block: ir.Value, row: ir.Value, bias: ir.Value, place: ir.Value, vectors: int) -> list[ir.Value]:
    """What a row of outputs starts from: its bias in the first block, else what previous blocks have left."""
    build = code.build
    with build.if_else(build.icmp_signed("==", block, word(0))) as (first, later):
        with first:
            start = _splat(code, _bias(code, bias, row))
            first_end = build.block
        with later:
            before = [_load(code, place, vector) for vector in range(vectors)]
            later_end = build.block
    sums = [build.phi(VECTOR) for _ in range(vectors)]
    for total, previous in zip(sums, before, strict=True):
        total.add_incoming(start, first_end)
        total.add_incoming(previous, later_end)
    return sums


def _sample_product(vectors: int) -> Callable[..., None]:
    """``dv[k] = sum over the batch: g[i] * x[col[k]]``. Lanes beyond the batch have to be zero."""

    def write(code: Code, sizes: _Sizes, *arguments: ir.Value) -> None:
        dv, packed, counts, local, crow, g, x, first, last = arguments
        build = code.build
        arrays = _Arrays(code, packed, counts, local, crow, vectors)

        def group(here: _Group) -> ir.Value:
            def row(t: ir.Value, b: ir.Value, i: ir.Value, lane: ir.Value, k: ir.Value, stop: ir.Value) -> None:
                g_row = _lanes(code, sizes, g, i, lane)
                gradients = [_load(code, g_row, vector) for vector in range(vectors)]
                resumes = build.icmp_signed(">", t, word(0))

                def products(k: ir.Value) -> ir.Value:
                    x_row = _panel_row(code, arrays.panel, here.local, k, vectors)
                    total = build.fmul(gradients[0], _load(code, x_row, 0, align=4 * LANES))
                    for vector in range(1, vectors):
                        total = _fma(code, gradients[vector], _load(code, x_row, vector, align=4 * LANES), total)
                    return total

                def several(k: ir.Value) -> None:
                    # Behind the last weight of a row are those of the next: they are multiplied too, and not used.
                    total = _sums_of_four(code, [products(build.add(k, word(j), flags=("nsw",))) for j in range(_SUMS)])
                    place = code.at(arrays.packed, k)
                    before = build.load(place, typ=total.type, align=4)
                    zero = ir.Constant(total.type, None)
                    total = code.add(total, build.select(resumes, before, zero))
                    left = build.trunc(build.sub(stop, k), INT32)
                    lanes = ir.Constant(ir.VectorType(INT32, _SUMS), list(range(_SUMS)))
                    build.store(
                        build.select(build.icmp_signed("<", lanes, _splat(code, left, _SUMS)), total, before), place, align=4
                    )

                code.loop(k, stop, several, step=_SUMS)

            _each_row(code, sizes, arrays, here, x, vectors, row)
            return _scatter_rows(code, arrays, here, dv)

        _each_group(code, sizes, arrays, first, last, group)

    return write


def _each_segment(code: Code, arrays: _Arrays, here: _Group, body: Callable[..., None]) -> ir.Value:
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


def _gather_rows(
    code: Code, sizes: _Sizes, arrays: _Arrays, here: _Group, values: ir.Value, edges: ir.Value, col: ir.Value
) -> ir.Value:
    """Pack the values of a group, and return how many there are."""
    build = code.build
    nnz = code.load_index(arrays.crow, sizes.rows, INT32)

    def segment(i: ir.Value, place: ir.Value, k: ir.Value, count: ir.Value) -> None:
        # What is written too much is the place of the next segment, which is written next.
        readable = build.icmp_signed("<=", build.add(place, build.add(count, word(LANES - 1))), nnz)
        _copy(code, code.at(values, place), code.at(arrays.packed, k), count, readable)

    return _each_segment(code, arrays, here, segment)


def _scatter_rows(code: Code, arrays: _Arrays, here: _Group, values: ir.Value) -> ir.Value:
    """The way back."""
    build = code.build

    def segment(i: ir.Value, place: ir.Value, k: ir.Value, count: ir.Value) -> None:
        # What is written too much is the place of the row's next segments, which are written later.
        row_end = code.load_index(arrays.crow, build.add(i, word(1)), INT32)
        writable = build.icmp_signed("<=", build.add(place, build.add(count, word(LANES - 1))), row_end)
        _copy(code, code.at(arrays.packed, k), code.at(values, place), count, writable)

    return _each_segment(code, arrays, here, segment)


def _gather_columns(column_type: ir.IntType) -> Callable[..., ir.Value]:
    """
    Pack the values of a group of the transpose, whose rows are the matrix' columns.

    ``edges[i, j]`` is where row ``j`` of the matrix has its first weight at or after the columns of row ``i`` of
    blocks: those from there to ``edges[i + 1, j]`` are dealt out, each to the next place of its column.
    """

    def gather(
        code: Code, sizes: _Sizes, arrays: _Arrays, here: _Group, values: ir.Value, edges: ir.Value, col: ir.Value
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
                soon_begin = code.load_index(begins, soon, INT32)
                for line in range(2):
                    ahead = build.add(soon_begin, word(LANES * line))
                    code.prefetch(code.at(values, ahead))
                code.prefetch(code.at(col, soon_begin, column_type))

                def weight(k: ir.Value) -> None:
                    i = build.sub(code.load_index(col, k, column_type), here.row)
                    place = code.load(arrays.cursors, i, WORD)
                    code.store(code.load(values, k), arrays.packed, place)
                    code.store(build.add(place, word(1)), arrays.cursors, i)

                code.loop(code.load_index(begins, j, INT32), code.load_index(ends, j, INT32), weight)

            code.loop(first, last, deal)
            return [after]

        return code.loop(here.begin, here.end, block, word(0))[0]

    return gather


def _lanes(code: Code, sizes: _Sizes, batch: ir.Value, row: ir.Value, lane: ir.Value) -> ir.Value:
    """Where the tile begins in a row of a batch that is stored feature by feature."""
    return code.at(batch, code.build.add(code.build.mul(row, sizes.stride), lane))


def _panel_row(code: Code, panel: ir.Value, local: ir.Value, k: ir.Value, vectors: int) -> ir.Value:
    return code.at(panel, code.build.mul(code.load_index(local, k, INT8), word(vectors * LANES)))


def _load(code: Code, row: ir.Value, vector: int, align: int = 4) -> ir.Value:
    return code.build.load(code.at(row, word(vector * LANES)), typ=VECTOR, align=align)


def _store(code: Code, value: ir.Value, row: ir.Value, vector: int, align: int = 4) -> None:
    code.build.store(value, code.at(row, word(vector * LANES)), align=align)


def _splat(code: Code, value: ir.Value, lanes: int = LANES) -> ir.Value:
    """A vector of the same number."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = code.build.insert_element(undefined, value, ir.Constant(INT32, 0))
    return code.build.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def _bias(code: Code, bias: ir.Value, row: ir.Value) -> ir.Value:
    """``bias[row]``, or zero without biases."""
    build = code.build
    before = build.block
    with build.if_then(build.icmp_unsigned("!=", build.ptrtoint(bias, WORD), word(0))):
        given = code.load(bias, row)
        inside = build.block
    value = build.phi(FLOAT)
    value.add_incoming(given, inside)
    value.add_incoming(number(0.0), before)
    return value


def _fma(code: Code, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    name = f"llvm.fma.v{LANES}f32"
    fma = code.module.globals.get(name) or ir.Function(code.module, ir.FunctionType(VECTOR, [VECTOR] * 3), name)
    return code.build.call(fma, [a, b, c])


def _sums_of_four(code: Code, vectors: list[ir.Value]) -> ir.Value:
    """
    The sums of the elements of four vectors, as a vector of four.

    The first steps are made for two and for four vectors at once, within groups of four lanes, where processors
    shuffle fastest.
    """
    a, b, c, d = vectors
    groups = range(0, LANES, 4)

    def pairs(first: ir.Value, second: ir.Value, lanes: tuple[int, int, int, int]) -> ir.Value:
        return _shuffle(code, first, second, [group + lane for group in groups for lane in lanes])

    low, high = (0, LANES, 1, LANES + 1), (2, LANES + 2, 3, LANES + 3)
    ab = code.add(pairs(a, b, low), pairs(a, b, high))
    cd = code.add(pairs(c, d, low), pairs(c, d, high))
    low, high = (0, 1, LANES, LANES + 1), (2, 3, LANES + 2, LANES + 3)
    total = code.add(pairs(ab, cd, low), pairs(ab, cd, high))
    half = LANES // 2
    while half >= len(vectors):
        first, second = (_shuffle(code, total, total, range(begin, begin + half)) for begin in (0, half))
        total, half = code.add(first, second), half // 2
    return total


def _shuffle(code: Code, a: ir.Value, b: ir.Value, lanes: "list[int] | range") -> ir.Value:
    mask = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
    return code.build.shuffle_vector(a, b, mask)
