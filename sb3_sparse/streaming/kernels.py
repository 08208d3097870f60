"""
Compiled kernels for one sample at a time, through llvmlite.

An update of a small network takes microseconds, calling anything from Python takes one each. So a network becomes a
:class:`Program`, a list of instructions, which one call runs from the first to the last. An instruction is a kernel
and its arguments, 64-bit words: addresses of float32 arrays (double for sums, int32 for the beginnings of sparse rows,
uint16 for columns) and sizes.

What a kernel fuses, it fuses to read the weights and traces from memory once: they are most of the work.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from sb3_sparse.sparse.kernels.codegen import DOUBLE, FLOAT, INT16, INT32, POINTER, WORD, Code, number, word
from sb3_sparse.sparse.kernels.llvm_ir import compile_assembly

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
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(kernels["run"])
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
    """Addresses of all kernels by name, and of ``run``."""
    dense, sparse = ir.Module(), ir.Module()
    for pair in (False, True):
        _linear(dense, pair)
        _sparse_linear(sparse, pair)
    for with_input in (False, True):
        _learn_linear(dense, with_input)
        _learn_sparse_linear(sparse, with_input)
    _normalize(dense)
    _normalize_backward(dense)
    _clear(dense)
    _add_scaled(dense)
    # LLVM would gather with vector instructions, which take longer than one load after the other.
    engines = [(dense, compile_assembly(str(dense) + _RUN)), (sparse, compile_assembly(str(sparse), vectorize=False))]
    kernels = {
        function.name: engine.get_function_address(function.name)
        for module, engine in engines
        for function in module.functions
        if not function.is_declaration and function.linkage != "internal"
    }
    return {**kernels, "run": engines[0][1].get_function_address("run")}


# Kernels are called by address, for which llvmlite's builder has no words.
_RUN = f"""
define void @run(ptr %instructions, i64 %n) {{
entry:
  br label %head
head:
  %i = phi i64 [0, %entry], [%next, %body]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %exit
body:
  %first = mul nsw i64 %i, {WORDS}
  %words = getelementptr inbounds i64, ptr %instructions, i64 %first
  %kernel = load ptr, ptr %words
  call void %kernel(ptr %words)
  %next = add nsw i64 %i, 1
  br label %head
exit:
  ret void
}}
"""


def _define_kernel(module: ir.Module, name: str, arguments: str, body: Callable[..., None]) -> None:
    """
    Define a kernel.

    :param arguments: Names, in the order of an instruction; those that begin with ``n_`` are integers.
    :param body: Called with the code and the arguments.
    """
    names = arguments.split()
    kinds = [WORD if argument.startswith("n_") else POINTER for argument in names]
    inner = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name + ".inner")
    inner.linkage = "internal"
    # Inlined, it would lose the knowledge that its arrays do not overlap.
    inner.attributes.add("noinline")
    for argument, kind in zip(inner.args, kinds, strict=True):
        if kind is POINTER:
            argument.add_attribute("noalias")
    code = Code(module, inner)
    body(code, *inner.args)
    code.build.ret_void()
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
    code = Code(module, outer)
    code.build.call(inner, [code.load(outer.args[0], word(i + 1), kind) for i, kind in enumerate(kinds)])
    code.build.ret_void()


def _linear(module: ir.Module, pair: bool) -> None:
    """``y = W x + b``; of a pair, for two samples."""

    def body(code: Code, *arguments: ir.Value) -> None:
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

    if pair:
        _define_kernel(module, "linear_pair", "y0 y1 weights bias x0 x1 n_out n_in", body)
    else:
        _define_kernel(module, "linear", "y weights bias x n_out n_in", body)


# Weights of a sparse row that are worked on at the same time, so that sums need not wait for each other. Columns of
# four come with one load.
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
    begin, end = code.load_index(crow, i, INT32), code.load_index(crow, build.add(i, word(1)), INT32)
    left_over = build.and_(build.sub(end, begin), word(_UNROLL - 1))
    middle = build.sub(end, left_over)

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

    partial = code.loop(begin, middle, several, *[number(0.0)] * (n_sums * _UNROLL), step=_UNROLL)
    sums = code.loop(middle, end, lambda k, *sums: body(k, code.load_index(col, k, INT16), *sums), *[number(0.0)] * n_sums)
    for u in range(_UNROLL):
        sums = [code.add(total, more) for total, more in zip(sums, partial[n_sums * u :], strict=False)]
    return sums


def _sparse_linear(module: ir.Module, pair: bool) -> None:
    """The same for the living weights, row by row."""

    def body(code: Code, *arguments: ir.Value) -> None:
        n = 2 if pair else 1
        ys, (values, bias, crow, col), xs, n_out = arguments[:n], arguments[n : n + 4], arguments[n + 4 : -1], arguments[-1]

        def weight(k: ir.Value, j: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            value = code.load(values, k)
            return [code.add(total, code.mul(value, code.load(x, j))) for total, x in zip(sums, xs, strict=True)]

        def row(i: ir.Value) -> None:
            for y, total in zip(ys, _each_weight(code, crow, col, i, weight, n), strict=True):
                code.store(code.add(total, code.load(bias, i)), y, i)

        code.loop(word(0), n_out, row)

    if pair:
        _define_kernel(module, "sparse_linear_pair", "y0 y1 values bias crow col x0 x1 n_out", body)
    else:
        _define_kernel(module, "sparse_linear", "y values bias crow col x n_out", body)


def _normalize(module: ir.Module) -> None:
    """LayerNorm in place, ``x`` becoming ``(x - mean) / std``, and LeakyReLU into ``y``; keeps ``1 / std``."""

    def body(code: Code, y: ir.Value, x: ir.Value, inverse: ir.Value, settings: ir.Value, n: ir.Value) -> None:
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

    _define_kernel(module, "normalize", "y x inverse settings n_features", body)


def _normalize_backward(module: ir.Module) -> None:
    """In place, the gradient of what :func:`_normalize` returned becomes that of what it was given."""

    def body(code: Code, grad: ir.Value, normal: ir.Value, inverse: ir.Value, settings: ir.Value, n: ir.Value) -> None:
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

    _define_kernel(module, "normalize_backward", "grad normal inverse settings n_features", body)


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


def _learn_linear(module: ir.Module, with_input: bool) -> None:
    """
    ``z = decay * z + grad xᵀ`` for weights and bias, ``l1 += Σ|z|``, and, with input, ``grad_x += Wᵀ grad``.
    """

    def body(code: Code, *arguments: ir.Value) -> None:
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

    name = "learn_linear_and_input" if with_input else "learn_linear"
    arguments = "traces bias_traces grad x decay l1 n_out n_in" + " weights grad_x" * with_input
    _define_kernel(module, name, arguments, body)


def _learn_sparse_linear(module: ir.Module, with_input: bool) -> None:
    """The same for the living weights."""

    def body(code: Code, *arguments: ir.Value) -> None:
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

    name = "learn_sparse_linear_and_input" if with_input else "learn_sparse_linear"
    arguments = "traces bias_traces grad x decay l1 n_out crow col" + " values grad_x" * with_input
    _define_kernel(module, name, arguments, body)


def _clear(module: ir.Module) -> None:
    """``x = 0``."""

    def body(code: Code, x: ir.Value, n: ir.Value) -> None:
        code.loop(word(0), n, lambda i: code.store(number(0.0), x, i))

    _define_kernel(module, "clear", "x n_features", body)


def _add_scaled(module: ir.Module) -> None:
    """``parameters += scale * traces``."""

    def body(code: Code, parameters: ir.Value, traces: ir.Value, scale_at: ir.Value, n: ir.Value) -> None:
        scale = code.load(scale_at, word(0))

        def one(i: ir.Value) -> None:
            code.store(code.add(code.load(parameters, i), code.mul(scale, code.load(traces, i))), parameters, i)

        code.loop(word(0), n, one)

    _define_kernel(module, "add_scaled", "parameters traces scale n_parameters", body)
