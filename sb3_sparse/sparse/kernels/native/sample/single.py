"""
Kernels for one sample: weight by weight along the rows of the topology.

Neighbours of a row have their columns anywhere, and everything that they need comes from the first-level cache: what counts
is the number of loads. Columns and values of four weights come with one each, as they lie side by side; what they are
multiplied with is loaded number by number, into a vector.
"""

from collections.abc import Callable
from functools import cache

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import FOUR, Code, column_type, number, word
from sb3_sparse.sparse.kernels.native.kernel import Definition, Kernel


def define(name: str, column_bits: int = 16) -> Definition:
    """
    How to write a kernel.

    :param name: "multiply", "multiply_transposed" or "sample_product".
    :param column_bits: Size of the columns of the topology, 16 or 32.
    """
    column = column_type(column_bits)
    if name == "multiply":
        return Definition("values crow col x bias y", "", _multiply(column), vectorize=False)
    if name == "multiply_transposed":
        return Definition("values crow col g dx", "", _multiply_transposed(column), vectorize=False)
    if name == "sample_product":
        return Definition("dv crow col g x", "", _sample_product(column), vectorize=False)
    raise KeyError(name)


@cache
def kernel(name: str, column_bits: int) -> Kernel:
    """A kernel, compiled once; arguments as for :func:`define`."""
    return define(name, column_bits).compile()


def _multiply(column: ir.IntType) -> Callable[..., None]:
    """
    ``y[i] = bias[i] + sum over weights k of row i: values[k] * x[col[k]]``; ``bias`` may be null.

    Eight sums are kept apart, so that a multiply-add need not wait for the one before.
    """

    def write(code: Code, *arguments: ir.Value) -> None:
        values, crow, col, x, bias, y, first, last = arguments
        build = code.build

        def four(k: ir.Value, sums: ir.Value) -> ir.Value:
            return code.fma(code.load_four(values, k), code.gather(x, code.load_four_indices(col, k, column)), sums)

        def eight(k: ir.Value, low: ir.Value, high: ir.Value) -> list[ir.Value]:
            return [four(k, low), four(build.add(k, word(4)), high)]

        def one(k: ir.Value, total: ir.Value) -> list[ir.Value]:
            return [code.fma(code.load(values, k), code.load(x, code.load_index(col, k, column)), total)]

        def row(i: ir.Value) -> None:
            begin, end = code.load_index(crow, i), code.load_index(crow, build.add(i, word(1)))
            middle = code.whole(begin, end, 8)
            low, high = code.loop(begin, middle, eight, *[ir.Constant(FOUR, [0.0] * 4)] * 2, step=8)
            (rest,) = code.loop(middle, end, one, number(0.0))
            total = code.load_or_zero(bias, i)
            for part in (*code.elements(low), *code.elements(high), rest):
                total = build.fadd(total, part)
            code.store(total, y, i)

        code.loop(first, last, row)

    return write


def _multiply_transposed(column: ir.IntType) -> Callable[..., None]:
    """
    ``dx[col[k]] += values[k] * g[i]``: values are read in order, unlike through the transposed topology.

    Four are read before the first is written, since the columns of a row differ.
    """

    def write(code: Code, *arguments: ir.Value) -> None:
        values, crow, col, g, dx, first, last = arguments

        def four(g_row: ir.Value, k: ir.Value, columns: list[ir.Value]) -> None:
            sums = code.fma(code.load_four(values, k), code.splat(g_row, 4), code.gather(dx, columns))
            for j, total in zip(columns, code.elements(sums), strict=True):
                code.store(total, dx, j)

        def one(g_row: ir.Value, k: ir.Value, j: ir.Value) -> None:
            code.store(code.fma(code.load(values, k), g_row, code.load(dx, j)), dx, j)

        _each_weight(code, (crow, col, g, first, last), column, four, one)

    return write


def _sample_product(column: ir.IntType) -> Callable[..., None]:
    """``dv[k] = g[i] * x[col[k]]``."""

    def write(code: Code, *arguments: ir.Value) -> None:
        dv, crow, col, g, x, first, last = arguments

        def four(g_row: ir.Value, k: ir.Value, columns: list[ir.Value]) -> None:
            code.store_four(code.build.fmul(code.splat(g_row, 4), code.gather(x, columns)), dv, k)

        def one(g_row: ir.Value, k: ir.Value, j: ir.Value) -> None:
            code.store(code.build.fmul(g_row, code.load(x, j)), dv, k)

        _each_weight(code, (crow, col, g, first, last), column, four, one)

    return write


def _each_weight(
    code: Code,
    arguments: tuple[ir.Value, ...],
    column: ir.IntType,
    four: Callable[[ir.Value, ir.Value, list[ir.Value]], None],
    one: Callable[[ir.Value, ir.Value, ir.Value], None],
) -> None:
    """
    The weights of some rows.

    :param arguments: ``crow col g first last`` of the kernel.
    :param four: Called for each four weights side by side, with the gradient of the row's output, the position of the
        first, and their columns.
    :param one: Called for each of the rest, likewise.
    """
    crow, col, g, first, last = arguments

    def row(i: ir.Value) -> None:
        begin, end = code.load_index(crow, i), code.load_index(crow, code.build.add(i, word(1)))
        g_row, middle = code.load(g, i), code.whole(begin, end, 4)
        code.loop(begin, middle, lambda k: four(g_row, k, code.load_four_indices(col, k, column)), step=4)
        code.loop(middle, end, lambda k: one(g_row, k, code.load_index(col, k, column)))

    code.loop(first, last, row)
