"""
Layer normalisation of a batch that lies feature by feature, ``(features, samples)``, as results of sparse layers do.

Each lane of a vector is a sample, so that sums over features are sums of vectors. A *tile* is a few vectors of samples; where
the last one would go beyond the batch, it begins earlier and computes some samples again.
"""

from collections.abc import Callable
from functools import cache

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import FLOAT, INT32, LANES, VECTOR, Code, number, word
from sb3_sparse.sparse.kernels.native.kernel import Definition, Kernel

_ZEROS = ir.Constant(VECTOR, None)
# So many are added up one after the other, before their sum is added to those of others.
_FEATURES = 64


def define(name: str, vectors: int = 4) -> Definition:
    """
    How to write a kernel. ``stride`` is the number of samples, at least as many as a tile has.

    :param name: "normalize" and "grad_input", where ``first`` and ``last`` are tiles; "grad_parameters", where they are
        features.
    :param vectors: Vectors per tile.
    """
    if name == "normalize":
        # `epsilon` is the number's bits.
        return Definition("x weight bias y mean inverse", "features stride epsilon", _normalize(vectors))
    if name == "grad_input":
        return Definition("grad x weight mean inverse dx", "features stride", _grad_input(vectors))
    if name == "grad_parameters":
        return Definition("grad x mean inverse dweight dbias", "stride", _grad_parameters)
    raise KeyError(name)


@cache
def kernel(name: str, vectors: int = 4) -> Kernel:
    """A kernel, compiled once; arguments as for :func:`define`."""
    return define(name, vectors).compile()


class _Tile:
    """The samples of a tile: where they begin, and the vectors of one feature."""

    def __init__(self, code: Code, t: ir.Value, stride: ir.Value, vectors: int):
        lanes = word(vectors * LANES)
        self.code, self.stride, self.vectors = code, stride, vectors
        self.lane = code.minimum(code.build.mul(t, lanes), code.build.sub(stride, lanes))

    def place(self, batch: ir.Value, feature: ir.Value) -> ir.Value:
        return self.code.at_lane(batch, feature, self.stride, self.lane)

    def load(self, batch: ir.Value, feature: ir.Value) -> list[ir.Value]:
        place = self.place(batch, feature)
        return [self.code.load_vector(place, v) for v in range(self.vectors)]

    def store(self, values: list[ir.Value], batch: ir.Value, feature: ir.Value) -> None:
        place = self.place(batch, feature)
        for v, value in enumerate(values):
            self.code.store_vector(value, place, v)

    def sums(self, features: ir.Value, terms: Callable[..., list[ir.Value]], n_sums: int = 1) -> list[list[ir.Value]]:
        """
        Sums over the features: ``terms(feature, sums)`` returns the next ones of each of ``n_sums``.

        Of some features at a time, which takes no longer: a single sum of thousands would lose a digit.
        """
        code, zeros = self.code, [_ZEROS] * (n_sums * self.vectors)

        def some(begin: ir.Value, *totals: ir.Value) -> list[ir.Value]:
            end = code.minimum(code.build.add(begin, word(_FEATURES)), features)
            sums = code.loop(begin, end, terms, *zeros)
            return [code.build.fadd(total, more) for total, more in zip(totals, sums, strict=True)]

        flat = code.loop(word(0), features, some, *zeros, step=_FEATURES)
        return [flat[i * self.vectors : (i + 1) * self.vectors] for i in range(n_sums)]


def _normalize(vectors: int) -> Callable[..., None]:
    """``y = (x - mean) * inverse * weight + bias`` with ``inverse = 1 / sqrt(variance + epsilon)``; both are kept."""

    def write(code: Code, *arguments: ir.Value) -> None:
        x, weight, bias, y, mean, inverse, features, stride, epsilon, first, last = arguments
        build = code.build
        share = _share(code, features)
        epsilon = code.splat(build.bitcast(build.trunc(epsilon, INT32), FLOAT))

        def tile(t: ir.Value) -> None:
            tile = _Tile(code, t, stride, vectors)

            def add(f: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                return [build.fadd(total, value) for total, value in zip(sums, tile.load(x, f), strict=True)]

            (sums,) = tile.sums(features, add)
            means = [build.fmul(total, share) for total in sums]

            def add_square(f: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                offsets = [build.fsub(value, m) for value, m in zip(tile.load(x, f), means, strict=True)]
                return [code.fma(offset, offset, total) for offset, total in zip(offsets, sums, strict=True)]

            (squares,) = tile.sums(features, add_square)
            roots = [code.sqrt(code.fma(total, share, epsilon)) for total in squares]
            inverses = [build.fdiv(code.splat(number(1.0)), r) for r in roots]
            tile.store(means, mean, word(0))
            tile.store(inverses, inverse, word(0))

            def write_feature(f: ir.Value) -> None:
                factor, start = code.splat(code.load(weight, f)), code.splat(code.load(bias, f))
                values = _standardized(code, tile.load(x, f), means, inverses)
                tile.store([code.fma(value, factor, start) for value in values], y, f)

            code.loop(word(0), features, write_feature)

        code.loop(first, last, tile)

    return write


def _grad_input(vectors: int) -> Callable[..., None]:
    """``dx = inverse * (g - mean of g - z * mean of g * z)`` with ``g = grad * weight`` and the standardised ``z``."""

    def write(code: Code, *arguments: ir.Value) -> None:
        grad, x, weight, mean, inverse, dx, features, stride, first, last = arguments
        build = code.build
        share = _share(code, features)

        def tile(t: ir.Value) -> None:
            tile = _Tile(code, t, stride, vectors)
            means, inverses = tile.load(mean, word(0)), tile.load(inverse, word(0))

            def terms(f: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
                factor = code.splat(code.load(weight, f))
                scaled = [build.fmul(value, factor) for value in tile.load(grad, f)]
                return scaled, _standardized(code, tile.load(x, f), means, inverses)

            def add(f: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                scaled, z = terms(f)
                totals = [build.fadd(total, value) for total, value in zip(sums[:vectors], scaled, strict=True)]
                return totals + [code.fma(*three) for three in zip(scaled, z, sums[vectors:], strict=True)]

            grads, products = ([build.fmul(total, share) for total in sums] for sums in tile.sums(features, add, 2))

            def write_feature(f: ir.Value) -> None:
                scaled, z = terms(f)
                results = []
                for g, z_v, grad_mean, product_mean, inv in zip(scaled, z, grads, products, inverses, strict=True):
                    centred = build.fsub(build.fsub(g, grad_mean), build.fmul(z_v, product_mean))
                    results.append(build.fmul(inv, centred))
                tile.store(results, dx, f)

            code.loop(word(0), features, write_feature)

        code.loop(first, last, tile)

    return write


def _grad_parameters(code: Code, *arguments: ir.Value) -> None:
    """``dweight = sum over the batch: grad * z``, ``dbias = sum over the batch: grad``."""
    grad, x, mean, inverse, dweight, dbias, stride, first, last = arguments
    build = code.build
    whole = code.whole(word(0), stride, LANES)

    def feature(f: ir.Value) -> None:
        begin = build.mul(f, stride)
        grad_row, x_row = code.at(grad, begin), code.at(x, begin)

        def vector(s: ir.Value, products: ir.Value, total: ir.Value) -> list[ir.Value]:
            g, value, m, inv = (code.load_vector(code.at(array, s), 0) for array in (grad_row, x_row, mean, inverse))
            (z,) = _standardized(code, [value], [m], [inv])
            return [code.fma(g, z, products), build.fadd(total, g)]

        def sample(s: ir.Value, products: ir.Value, total: ir.Value) -> list[ir.Value]:
            g, value, m, inv = (code.load(array, s) for array in (grad_row, x_row, mean, inverse))
            (z,) = _standardized(code, [value], [m], [inv])
            return [code.fma(g, z, products), build.fadd(total, g)]

        vectors = code.loop(word(0), whole, vector, _ZEROS, _ZEROS, step=LANES)
        start = [code.total(number(0.0), value) for value in vectors]
        for value, place in zip(code.loop(whole, stride, sample, *start), (dweight, dbias), strict=True):
            code.store(value, place, f)

    code.loop(first, last, feature)


def _standardized(code: Code, values: list[ir.Value], means: list[ir.Value], inverses: list[ir.Value]) -> list[ir.Value]:
    build = code.build
    return [build.fmul(build.fsub(v, m), inv) for v, m, inv in zip(values, means, inverses, strict=True)]


def _share(code: Code, features: ir.Value) -> ir.Value:
    """``1 / features``, in all lanes."""
    return code.splat(code.build.fdiv(number(1.0), code.build.sitofp(features, FLOAT)))
