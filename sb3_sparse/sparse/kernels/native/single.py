"""
Kernels for one sample: weight by weight along the rows of the topology.

Nothing here is a vector operation, as neighbours of a row have their columns anywhere: LLVM would gather them with vector
instructions, which take longer than one load after the other.
"""

from collections.abc import Callable
from functools import cache

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import Code, column_type, number, word
from sb3_sparse.sparse.kernels.native.kernel import Definition, Kernel

# Sums of a row that are kept apart, so that a multiply-add need not wait for the one before.
_UNROLL = 8


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
    """``y[i] = bias[i] + sum over weights k of row i: values[k] * x[col[k]]``; ``bias`` may be null."""

    def write(code: Code, *arguments: ir.Value) -> None:
        values, crow, col, x, bias, y, first, last = arguments
        build = code.build

        def weight(k: ir.Value, total: ir.Value) -> ir.Value:
            return code.fma(code.load(values, k), code.load(x, code.load_index(col, k, column)), total)

        def several(k: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            return [weight(build.add(k, word(u), flags=("nsw",)), total) for u, total in enumerate(sums)]

        def row(i: ir.Value) -> None:
            begin, end = code.load_index(crow, i), code.load_index(crow, build.add(i, word(1)))
            middle = build.sub(end, build.srem(build.sub(end, begin), word(_UNROLL)))
            apart = code.loop(begin, middle, several, *[number(0.0)] * _UNROLL, step=_UNROLL)
            (rest,) = code.loop(middle, end, lambda k, total: [weight(k, total)], number(0.0))
            total = code.load_or_zero(bias, i)
            for part in (*apart, rest):
                total = build.fadd(total, part)
            code.store(total, y, i)

        code.loop(first, last, row)

    return write


def _multiply_transposed(column: ir.IntType) -> Callable[..., None]:
    """``dx[col[k]] += values[k] * g[i]``: values are read in order, unlike through the transposed topology."""

    def write(code: Code, *arguments: ir.Value) -> None:
        values, crow, col, g, dx, first, last = arguments

        def weight(g_row: ir.Value, k: ir.Value, j: ir.Value) -> None:
            code.store(code.fma(code.load(values, k), g_row, code.load(dx, j)), dx, j)

        _each_weight(code, crow, col, column, g, first, last, weight)

    return write


def _sample_product(column: ir.IntType) -> Callable[..., None]:
    """``dv[k] = g[i] * x[col[k]]``."""

    def write(code: Code, *arguments: ir.Value) -> None:
        dv, crow, col, g, x, first, last = arguments

        def weight(g_row: ir.Value, k: ir.Value, j: ir.Value) -> None:
            code.store(code.build.fmul(g_row, code.load(x, j)), dv, k)

        _each_weight(code, crow, col, column, g, first, last, weight)

    return write


def _each_weight(
    code: Code,
    crow: ir.Value,
    col: ir.Value,
    column: ir.IntType,
    g: ir.Value,
    first: ir.Value,
    last: ir.Value,
    body: Callable[[ir.Value, ir.Value, ir.Value], None],
) -> None:
    """
    The weights of some rows.

    :param body: Called with the gradient of the row's output, the weight's position and its column.
    """

    def row(i: ir.Value) -> None:
        begin, end = code.load_index(crow, i), code.load_index(crow, code.build.add(i, word(1)))
        g_row = code.load(g, i)
        code.loop(begin, end, lambda k: body(g_row, k, code.load_index(col, k, column)))

    code.loop(first, last, row)
