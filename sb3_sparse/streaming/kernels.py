"""
Kernels of the streaming algorithms, for one sample: programs of them (``native/sample/program.py``) are whole updates.

What a kernel fuses, it fuses to read the weights and traces from memory once: they are most of the work.
"""

from collections.abc import Callable, Sequence
from functools import partial

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import DOUBLE, FLOAT, INT16, WORD, Code, number, word
from sb3_sparse.sparse.kernels.native.sample import program
from sb3_sparse.sparse.kernels.native.sample.forward import linear

# Weights of a sparse row that are worked on at the same time, so that sums need not wait for each other. Columns of
# four come with one load; each is cut out where it is used, as registers are scarce here.
_UNROLL, _COLUMNS_PER_WORD = 8, 4


def _each_weight(
    code: Code, crow: ir.Value, col: ir.Value, i: ir.Value, body: Callable[..., Sequence[ir.Value]], n_sums: int
) -> list[ir.Value]:
    """
    The weights of row ``i``.

    :param body: Called with a weight's position, its column, and sums so far; returns the next ones.
    :param n_sums: How many sums there are.
    :return: The sums over the row.
    """
    build = code.build
    begin, end = code.load_index(crow, i), code.load_index(crow, build.add(i, word(1)))
    middle = code.whole(begin, end, _UNROLL)

    def several(k: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        following: list[ir.Value] = []
        for u in range(_UNROLL):
            place = build.add(k, word(u), flags=("nsw",))
            if u % _COLUMNS_PER_WORD == 0:
                columns = build.load(code.at(col, place, INT16), typ=WORD, align=2)
            shifted = build.lshr(columns, word(16 * (u % _COLUMNS_PER_WORD)))
            j = build.and_(shifted, word(0xFFFF))
            following += body(place, j, *sums[n_sums * u : n_sums * (u + 1)])
        return following

    apart = code.loop(begin, middle, several, *[number(0.0)] * (n_sums * _UNROLL), step=_UNROLL)
    sums = code.loop(middle, end, lambda k, *sums: body(k, code.load_index(col, k, INT16), *sums), *[number(0.0)] * n_sums)
    for u in range(_UNROLL):
        sums = [code.add(total, more) for total, more in zip(sums, apart[n_sums * u :], strict=False)]
    return sums


def _sparse_linear(pair: bool, code: Code, *arguments: ir.Value) -> None:
    """``y = W x + b`` by the living weights, row by row; of a pair, for two samples."""
    n = 2 if pair else 1
    ys, (values, bias, crow, col), xs, n_out = arguments[:n], arguments[n : n + 4], arguments[n + 4 : -1], arguments[-1]

    def weight(k: ir.Value, j: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        value = code.load(values, k)
        return [code.add(total, code.mul(value, code.load(x, j))) for total, x in zip(sums, xs, strict=True)]

    def row(i: ir.Value) -> None:
        for y, total in zip(ys, _each_weight(code, crow, col, i, weight, n), strict=True):
            code.store(code.add(total, code.load(bias, i)), y, i)

    code.loop(word(0), n_out, row)


def _normalize(code: Code, y: ir.Value, x: ir.Value, inverse: ir.Value, settings: ir.Value, n: ir.Value) -> None:
    """LayerNorm in place, ``x`` becoming ``(x - mean) / std``, and LeakyReLU into ``y``; keeps ``1 / std``."""
    zero, length = word(0), code.build.sitofp(n, FLOAT)
    epsilon, slope = code.load(settings, zero), code.load(settings, word(1))
    (total,) = code.loop(zero, n, lambda i, s: [code.add(s, code.load(x, i))], number(0.0))
    mean = code.div(total, length)

    def center(i: ir.Value, squares: ir.Value) -> list[ir.Value]:
        centered = code.sub(code.load(x, i), mean)
        code.store(centered, x, i)
        return [code.add(squares, code.mul(centered, centered))]

    (squares,) = code.loop(zero, n, center, number(0.0))
    std = code.call("llvm.sqrt", code.add(code.div(squares, length), epsilon))
    scale = code.div(number(1.0), std)
    code.store(scale, inverse, zero)

    def activate(i: ir.Value) -> None:
        normal = code.mul(code.load(x, i), scale)
        code.store(normal, x, i)
        positive = code.build.fcmp_ordered(">", normal, number(0.0))
        code.store(code.build.select(positive, normal, code.mul(normal, slope)), y, i)

    code.loop(zero, n, activate)


def _normalize_backward(
    code: Code, grad: ir.Value, normal: ir.Value, inverse: ir.Value, settings: ir.Value, n: ir.Value
) -> None:
    """In place, the gradient of what :func:`_normalize` returned becomes that of what it was given."""
    zero, length = word(0), code.build.sitofp(n, FLOAT)
    slope, scale = code.load(settings, word(1)), code.load(inverse, zero)

    def activation(i: ir.Value, total: ir.Value, projection: ir.Value) -> list[ir.Value]:
        g, x = code.load(grad, i), code.load(normal, i)
        positive = code.build.fcmp_ordered(">", x, number(0.0))
        g = code.build.select(positive, g, code.mul(g, slope))
        code.store(g, grad, i)
        return [code.add(total, g), code.add(projection, code.mul(g, x))]

    total, projection = code.loop(zero, n, activation, number(0.0), number(0.0))
    mean, along = code.div(total, length), code.div(projection, length)

    def normalization(i: ir.Value) -> None:
        left = code.sub(code.sub(code.load(grad, i), mean), code.mul(code.load(normal, i), along))
        code.store(code.mul(left, scale), grad, i)

    code.loop(zero, n, normalization)


def _trace(code: Code, traces: ir.Value, k: ir.Value, decay: ir.Value, gradient: ir.Value) -> ir.Value:
    """``z = decay * z + gradient``, and returns ``|z|``."""
    trace = code.add(code.mul(decay, code.load(traces, k)), gradient)
    code.store(trace, traces, k)
    return code.call("llvm.fabs", trace)


def _learn_rows(
    code: Code,
    n_out: ir.Value,
    bias_traces: ir.Value,
    decay: ir.Value,
    grad: ir.Value,
    l1: ir.Value,
    row: Callable[[ir.Value, ir.Value], ir.Value],
) -> None:
    """Each row of weights, its bias, and the sum of absolute traces, which is added to ``l1``."""

    def one(i: ir.Value, total: ir.Value) -> list[ir.Value]:
        g = code.load(grad, i)
        absolute = code.add(_trace(code, bias_traces, i, decay, g), row(i, g))
        return [code.build.fadd(total, code.build.fpext(absolute, DOUBLE))]

    first = code.build.load(l1, typ=DOUBLE)
    (total,) = code.loop(word(0), n_out, one, first)
    code.build.store(total, l1)


def _learn_linear(with_input: bool, code: Code, *arguments: ir.Value) -> None:
    """
    ``z = decay * z + grad xᵀ`` for weights and bias, ``l1 += Σ|z|``, and, with input, ``grad_x += Wᵀ grad``.
    """
    traces, bias_traces, grad, x, decay_at, l1, n_out, n_in, *rest = arguments
    decay = code.load(decay_at, word(0))

    def row(i: ir.Value, g: ir.Value) -> ir.Value:
        begin = code.build.mul(i, n_in)
        row_traces = code.at(traces, begin)

        def column(j: ir.Value, total: ir.Value) -> list[ir.Value]:
            if with_input:
                weights, grad_x = rest
                by_x = code.mul(code.load(code.at(weights, begin), j), g)
                code.store(code.add(code.load(grad_x, j), by_x), grad_x, j)
            return [code.add(total, _trace(code, row_traces, j, decay, code.mul(g, code.load(x, j))))]

        return code.loop(word(0), n_in, column, number(0.0))[0]

    _learn_rows(code, n_out, bias_traces, decay, grad, l1, row)


def _learn_sparse_linear(with_input: bool, code: Code, *arguments: ir.Value) -> None:
    """The same for the living weights."""
    traces, bias_traces, grad, x, decay_at, l1, n_out, crow, col, *rest = arguments
    decay = code.load(decay_at, word(0))

    def row(i: ir.Value, g: ir.Value) -> ir.Value:
        def weight(k: ir.Value, j: ir.Value, total: ir.Value) -> list[ir.Value]:
            if with_input:
                values, grad_x = rest
                code.store(code.add(code.load(grad_x, j), code.mul(code.load(values, k), g)), grad_x, j)
            return [code.add(total, _trace(code, traces, k, decay, code.mul(g, code.load(x, j))))]

        return _each_weight(code, crow, col, i, weight, 1)[0]

    _learn_rows(code, n_out, bias_traces, decay, grad, l1, row)


def _clear(code: Code, x: ir.Value, n: ir.Value) -> None:
    """``x = 0``."""
    code.loop(word(0), n, lambda i: code.store(number(0.0), x, i))


def _add_scaled(code: Code, parameters: ir.Value, traces: ir.Value, scale_at: ir.Value, n: ir.Value) -> None:
    """``parameters += scale * traces``."""
    scale = code.load(scale_at, word(0))

    def one(i: ir.Value) -> None:
        code.store(code.add(code.load(parameters, i), code.mul(scale, code.load(traces, i))), parameters, i)

    code.loop(word(0), n, one)


_KERNELS: dict[str, tuple[str, Callable[..., None]]] = {
    "linear": ("y weights bias x n_out n_in", partial(linear, False)),
    "linear_pair": ("y0 y1 weights bias x0 x1 n_out n_in", partial(linear, True)),
    "sparse_linear": ("y values bias crow col x n_out", partial(_sparse_linear, False)),
    "sparse_linear_pair": ("y0 y1 values bias crow col x0 x1 n_out", partial(_sparse_linear, True)),
    "normalize": ("y x inverse settings n_features", _normalize),
    "normalize_backward": ("grad normal inverse settings n_features", _normalize_backward),
    "learn_linear": ("traces bias_traces grad x decay l1 n_out n_in", partial(_learn_linear, False)),
    "learn_linear_and_input": (
        "traces bias_traces grad x decay l1 n_out n_in weights grad_x",
        partial(_learn_linear, True),
    ),
    "learn_sparse_linear": ("traces bias_traces grad x decay l1 n_out crow col", partial(_learn_sparse_linear, False)),
    "learn_sparse_linear_and_input": (
        "traces bias_traces grad x decay l1 n_out crow col values grad_x",
        partial(_learn_sparse_linear, True),
    ),
    "clear": ("x n_features", _clear),
    "add_scaled": ("parameters traces scale n_parameters", _add_scaled),
}


class Program(program.Program):
    """A list of instructions: names of these kernels, and their arguments."""

    kernels = program.KernelSet(_KERNELS)


define = Program.kernels.define
"""How to write a kernel, by its name; a KeyError if there is none."""
