"""
Kernels of a forward pass of one sample, layer by layer; :class:`ForwardProgram` is a whole network made of them.

NaN and infinity go through them as through torch's operations. ``check_finite`` says whether some arrived.
"""

from collections.abc import Callable
from functools import partial

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import DOUBLE, FLOAT, Code, number, word
from sb3_sparse.sparse.kernels.native.sample import single
from sb3_sparse.sparse.kernels.native.sample.program import KernelSet, Program

# Of the columns of sparse layers in a program: half of what would be read otherwise.
COLUMN_BITS = 16


def linear(pair: bool, code: Code, *arguments: ir.Value) -> None:
    """``y = W x + b``; of a pair, for two samples."""
    n = 2 if pair else 1
    ys, (weights, bias), xs, (n_out, n_in) = arguments[:n], arguments[n : n + 2], arguments[n + 2 : -2], arguments[-2:]

    def row(i: ir.Value) -> None:
        begin = code.at(weights, code.build.mul(i, n_in))

        def column(j: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            weight = code.load(begin, j)
            return [code.add(total, code.mul(weight, code.load(x, j))) for total, x in zip(sums, xs, strict=True)]

        for y, total in zip(ys, code.loop(word(0), n_in, column, *[number(0.0)] * n), strict=True):
            code.store(code.add(total, code.load(bias, i)), y, i)

    code.loop(word(0), n_out, row)


def _sparse_linear(code: Code, *arguments: ir.Value) -> None:
    """The same for the living weights: the kernel that a sparse layer takes for one sample, for all rows."""
    y, values, bias, crow, col, x, n_out = arguments
    single.define("multiply", COLUMN_BITS).write(code, values, crow, col, x, bias, y, word(0), n_out)


def _cast(code: Code, y: ir.Value, x: ir.Value, n: ir.Value) -> None:
    """``y = x``, where ``x`` is of doubles."""
    code.loop(word(0), n, lambda i: code.store(code.build.fptrunc(code.load(x, i, DOUBLE), FLOAT), y, i))


def _running_norm(code: Code, *arguments: ir.Value) -> None:
    """``RunningNorm`` of an observation in doubles: float32 first, then as torch's module, in its order."""
    y, x, mean, mean_rest, var, settings, n = arguments
    build, epsilon, largest = code.build, code.load(settings, word(0)), code.load(settings, word(1))
    smallest = build.fneg(largest)

    def one(i: ir.Value) -> None:
        deviation = build.fsub(build.fptrunc(code.load(x, i, DOUBLE), FLOAT), code.load(mean, i))
        deviation = build.fsub(deviation, code.load(mean_rest, i))
        scale = code.div(number(1.0), code.call("llvm.sqrt", build.fadd(code.load(var, i), epsilon)))
        normal = build.fmul(deviation, scale)
        # Comparisons with NaN are false: it stays.
        normal = build.select(build.fcmp_ordered(">", normal, largest), largest, normal)
        code.store(build.select(build.fcmp_ordered("<", normal, smallest), smallest, normal), y, i)

    code.loop(word(0), n, one)


def _layer_norm(code: Code, *arguments: ir.Value) -> None:
    """``LayerNorm`` with weight and bias."""
    y, x, weight, bias, settings, n = arguments
    zero, length = word(0), code.build.sitofp(n, FLOAT)
    (total,) = code.loop(zero, n, lambda i, s: [code.add(s, code.load(x, i))], number(0.0))
    mean = code.div(total, length)

    def center(i: ir.Value, squares: ir.Value) -> list[ir.Value]:
        centered = code.sub(code.load(x, i), mean)
        code.store(centered, y, i)
        return [code.add(squares, code.mul(centered, centered))]

    (squares,) = code.loop(zero, n, center, number(0.0))
    scale = code.div(number(1.0), code.call("llvm.sqrt", code.add(code.div(squares, length), code.load(settings, zero))))
    # NaN if the squares became infinite, instead of zeros: then torch is asked, which adds them up otherwise.
    scale = code.build.fadd(scale, code.build.fsub(squares, squares))

    def scaled(i: ir.Value) -> None:
        normal = code.mul(code.load(y, i), scale)
        code.store(code.add(code.mul(normal, code.load(weight, i)), code.load(bias, i)), y, i)

    code.loop(zero, n, scaled)


def _relu(code: Code, x: ir.Value, n: ir.Value) -> None:
    """``x = max(x, 0)``; NaN stays."""

    def one(i: ir.Value) -> None:
        value = code.load(x, i)
        code.store(code.build.select(code.build.fcmp_ordered("<", value, number(0.0)), number(0.0), value), x, i)

    code.loop(word(0), n, one)


def _add(code: Code, y: ir.Value, x: ir.Value, n: ir.Value) -> None:
    """``y += x``."""
    code.loop(word(0), n, lambda i: code.store(code.build.fadd(code.load(y, i), code.load(x, i)), y, i))


def _check_finite(code: Code, result: ir.Value, x: ir.Value, n: ir.Value) -> None:
    """``result = 0``, or NaN if any ``x`` is infinite or NaN."""

    def one(i: ir.Value, total: ir.Value) -> list[ir.Value]:
        value = code.load(x, i)
        return [code.build.fadd(total, code.build.fsub(value, value))]

    (total,) = code.loop(word(0), n, one, number(0.0))
    code.store(total, result, word(0))


_KERNELS: dict[str, tuple[str, Callable[..., None]]] = {
    "linear": ("y weights bias x n_out n_in", partial(linear, False)),
    "sparse_linear": ("y values bias crow col x n_out", _sparse_linear),
    "cast": ("y x n_features", _cast),
    "running_norm": ("y x mean mean_rest var settings n_features", _running_norm),
    "layer_norm": ("y x weight bias settings n_features", _layer_norm),
    "relu": ("x n_features", _relu),
    "add": ("y x n_features", _add),
    "check_finite": ("result x n_features", _check_finite),
}


class ForwardProgram(Program):
    """A network's pass for one sample: names of these kernels, and their arguments."""

    kernels = KernelSet(_KERNELS)


define = ForwardProgram.kernels.define
"""How to write a kernel, by its name; a KeyError if there is none."""
