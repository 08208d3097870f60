"""
Compiled kernels for one sample at a time, through llvmlite.

An update of a small network takes microseconds, calling anything from Python takes one each. So a network becomes a
:class:`Program`, a list of instructions, which one call runs from the first to the last. An instruction is a kernel
and its arguments, 64-bit words: addresses of float32 arrays (double for sums, int32 for the beginnings of sparse rows,
uint16 for columns) and sizes.

What a kernel fuses, it fuses to read the weights and traces from memory once: they are most of the work.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import DOUBLE, FLOAT, INT16, POINTER, WORD, Code, number, word
from sb3_sparse.sparse.kernels.native.compile import compile_module
from sb3_sparse.sparse.kernels.native.entry import builtin, write_entry

# Words per instruction: the address of the kernel, then its arguments.
WORDS = 16


class Program:
    """
    A list of instructions.

    :param instructions: Each is the name of a kernel and its arguments: arrays, which are kept alive, or integers.
    """

    def __init__(self, instructions: Sequence[tuple[Any, ...]]):
        kernels = _compile()
        self._kept = instructions
        words = np.zeros((len(instructions), WORDS), dtype=np.int64)
        for line, (name, *arguments) in zip(words, instructions, strict=True):
            line[0] = kernels[name]
            line[1 : len(arguments) + 1] = [_address(argument) for argument in arguments]
        self._words = words
        self._run = _runner()
        self._arguments = (words.ctypes.data, len(words))

    def run(self) -> None:
        """Run all instructions, in order."""
        self._run(*self._arguments)


def _address(argument: Any) -> int:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return argument.ctypes.data
    return int(argument)


@cache
def _compile() -> dict[str, int]:
    """Addresses of all kernels by name, and of the entry to ``run``."""
    vectorized, scalar = ir.Module(), ir.Module()
    for name in _KERNELS:
        definition = define(name)
        definition.write_into(vectorized if definition.vectorize else scalar)
    write_entry(vectorized, _write_run(vectorized))
    engines = [compile_module(vectorized), compile_module(scalar, vectorize=False)]
    addresses = {name: engines[0 if define(name).vectorize else 1].get_function_address(name) for name in _KERNELS}
    return {**addresses, "entry": engines[0].get_function_address("entry")}


@cache
def _runner() -> Callable[..., None]:
    """``run``, as Python calls it."""
    return builtin(_compile()["entry"])


class Definition(NamedTuple):
    """How to write a kernel."""

    name: str
    arguments: str
    """Names, in the order of an instruction; those that begin with ``n_`` are integers."""
    write: Callable[..., None]
    """Called with the code and the arguments."""
    vectorize: bool
    """Whether LLVM may turn scalar operations into vector operations."""

    def module(self) -> ir.Module:
        """The kernel alone, to be read: ``python -m sb3_sparse.sparse.kernels.native sb3_sparse.streaming.kernels.NAME``."""
        module = ir.Module()
        self.write_into(module)
        return module

    def write_into(self, module: ir.Module) -> None:
        """Write the kernel into a module."""
        names = self.arguments.split()
        kinds = [WORD if name.startswith("n_") else POINTER for name in names]
        inner = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), self.name + ".inner")
        inner.linkage = "internal"
        # Inlined, it would lose the knowledge that its arrays do not overlap.
        inner.attributes.add("noinline")
        for argument, name, kind in zip(inner.args, names, kinds, strict=True):
            argument.name = name
            if kind is POINTER:
                argument.add_attribute("noalias")
        code = Code(module, inner)
        self.write(code, *inner.args)
        code.build.ret_void()
        outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), self.name)
        code = Code(module, outer)
        code.build.call(inner, [code.load(outer.args[0], word(i + 1), kind) for i, kind in enumerate(kinds)])
        code.build.ret_void()


def define(name: str) -> Definition:
    """
    How to write a kernel.

    :raises KeyError: If there is none of that name.
    """
    arguments, write = _KERNELS[name]
    # Of sparse ones LLVM would gather with vector instructions, which take longer than one load after the other.
    return Definition(name, arguments, write, vectorize="sparse" not in name)


def _write_run(module: ir.Module) -> ir.Function:
    """``run(instructions, n)``: calls the kernel of each instruction with the address of the instruction."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "run")
    code = Code(module, function)
    instructions, n = function.args

    def one(i: ir.Value) -> None:
        words = code.at(instructions, code.build.mul(i, word(WORDS)), WORD)
        code.call_address(code.load(words, word(0), POINTER), ir.VoidType(), words)

    code.loop(word(0), n, one)
    code.build.ret_void()
    return function


def _linear(pair: bool, code: Code, *arguments: ir.Value) -> None:
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
    """The same for the living weights, row by row."""
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
    "linear": ("y weights bias x n_out n_in", partial(_linear, False)),
    "linear_pair": ("y0 y1 weights bias x0 x1 n_out n_in", partial(_linear, True)),
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
