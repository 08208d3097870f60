"""
Kernels for batches, row by row.

Batches are stored feature by feature: ``x[c]`` is the row of all samples' values of feature ``c``, padded to whole
vectors. A weight ``v`` at ``(i, c)`` then adds ``v * x[c]`` to ``y[i]``: vector operations, whatever the topology. Sums of
one output row stay in registers over all weights of a row (a *tile* is as many lanes of the batch as fit), so that every
weight costs one load and one multiply-add per vector, nothing else.
"""

from collections.abc import Callable
from functools import cache

import llvmlite.binding as llvm
from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import LANES, VECTOR, Code, number, word
from sb3_sparse.sparse.kernels.native.kernel import Definition, Kernel

# How many weights ahead a scattered value is fetched into the cache.
_PREFETCH_DISTANCE = 16
# Partial sums, since a multiply-add takes longer than the next one can wait.
_CHAINS = 4


@cache
def tile_vectors() -> tuple[int, ...]:
    """Vectors per tile, largest first: half of the vector registers, and smaller ones for the rest of a batch."""
    return (16, 4, 1) if llvm.get_host_cpu_features().get("avx512f", False) else (4, 1)


def define(name: str, vectors: int = 4) -> Definition:
    """
    How to write a kernel.

    ``begin`` and ``end`` say which weights of a row to use, so that a call can be about a block of columns whose part of
    ``x`` stays in the cache. ``stride`` is the length of a row of a batch; ``accumulate`` adds to what the result holds.

    :param name: "multiply", "multiply_transposed" or "sample_product".
    :param vectors: Vectors per tile.
    """
    if name in ("multiply", "multiply_transposed"):
        write = _multiply(vectors, transposed=name == "multiply_transposed")
        return Definition("values order begin end col x bias y", "stride tiles accumulate last_weight", write)
    if name == "sample_product":
        return Definition("dv begin end col g x", "stride tiles accumulate", _sample_product(vectors))
    raise KeyError(name)


@cache
def kernel(name: str, vectors: int) -> Kernel:
    """A kernel, compiled once; arguments as for :func:`define`."""
    return define(name, vectors).compile()


def _multiply(vectors: int, transposed: bool) -> Callable[..., None]:
    """
    ``y[i] (+)= sum over weights k of row i: value(k) * x[col[k]]``.

    Without ``accumulate``, ``y`` starts from ``bias``, or from zero where that is a null pointer. Rows of the transpose have
    their values anywhere: ``value(k) = values[order[k]]``, which is fetched ahead up to ``last_weight``.
    """

    def write(code: Code, *arguments: ir.Value) -> None:
        values, order, begin, end, col, x, bias, y, stride, tiles, accumulate, last_weight, first, last = arguments
        build = code.build
        is_first = build.icmp_signed("==", accumulate, word(0))

        def value(k: ir.Value) -> ir.Value:
            if not transposed:
                return code.load(values, k)
            ahead = code.minimum(build.add(k, word(_PREFETCH_DISTANCE)), last_weight)
            code.prefetch(code.at(values, code.load_index(order, ahead)))
            return code.load(values, code.load_index(order, k))

        def row(i: ir.Value) -> None:
            start, stop = code.load_index(begin, i), code.load_index(end, i)
            bias_row = code.splat(code.load_or_zero(bias, i))

            def tile(t: ir.Value) -> None:
                lane = build.mul(t, word(vectors * LANES))
                place = code.at_lane(y, i, stride, lane)

                def weight(k: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                    factor, x_row = code.splat(value(k)), code.at_lane(x, code.load_index(col, k), stride, lane)
                    return [code.fma(factor, code.load_vector(x_row, u), total) for u, total in enumerate(sums)]

                sums = code.vectors_or(
                    is_first, lambda: bias_row, lambda: [code.load_vector(place, u) for u in range(vectors)]
                )
                for u, total in enumerate(code.loop(start, stop, weight, *sums)):
                    code.store_vector(total, place, u)

            code.loop(word(0), tiles, tile)

        code.loop(first, last, row)

    return write


def _sample_product(vectors: int) -> Callable[..., None]:
    """``dv[k] (+)= sum over the batch: g[i] * x[col[k]]``. Lanes beyond the batch have to be zero."""

    def write(code: Code, *arguments: ir.Value) -> None:
        dv, begin, end, col, g, x, stride, tiles, accumulate, first, last = arguments
        build = code.build
        resumes = build.icmp_signed("!=", accumulate, word(0))

        def row(i: ir.Value) -> None:
            start, stop = code.load_index(begin, i), code.load_index(end, i)

            def tile(t: ir.Value) -> None:
                lane = build.mul(t, word(vectors * LANES))
                adds = build.or_(build.icmp_signed(">", t, word(0)), resumes)
                g_row = code.at_lane(g, i, stride, lane)
                gradients = [code.load_vector(g_row, u) for u in range(vectors)]

                def weight(k: ir.Value) -> None:
                    x_row = code.at_lane(x, code.load_index(col, k), stride, lane)
                    sums = [ir.Constant(VECTOR, None)] * min(_CHAINS, vectors)
                    for u, gradient in enumerate(gradients):
                        sums[u % _CHAINS] = code.fma(gradient, code.load_vector(x_row, u), sums[u % _CHAINS])
                    while len(sums) > 1:
                        sums = [*sums[2:], build.fadd(sums[0], sums[1])]
                    before = build.select(adds, code.load(dv, k), number(0.0))
                    code.store(code.total(before, sums[0]), dv, k)

                code.loop(start, stop, weight)

            code.loop(word(0), tiles, tile)

        code.loop(first, last, row)

    return write
