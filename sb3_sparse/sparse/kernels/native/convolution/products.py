"""The products of a sparse convolution, tile by tile."""

from collections.abc import Callable
from functools import cache, partial

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import INT16, LANES, VECTOR, Code, word
from sb3_sparse.sparse.kernels.native.convolution.layout import Geometry, Tile, each_tile
from sb3_sparse.sparse.kernels.native.kernel import Definition, Kernel

SUMS = 4
"""How many weights are reduced to their sums at the same time."""


def define(name: str, vectors: int = 4, down: int = 1) -> Definition:
    """
    How to write a kernel.

    Row ``i`` has the weights ``starts[b * rows + i]`` to ``stops[b * rows + i]`` in block ``b`` of channels, and begins at a
    multiple of ``SUMS``. ``offsets`` says where in the panel a weight's pixels are, ``edges`` which pixels of a part of a
    panel row are inside the image, for a tile at 0. Values lie in the order of ``offsets``.

    :param name: "multiply", of which ``first`` and ``last`` are rows of tiles, or "sample_product", of which they are rows of
        the weight.
    :param vectors: Columns of pixels in a tile.
    :param down: Rows of pixels in a tile.
    """
    if name == "multiply":
        pointers, write = "values starts stops offsets edges x bias y", _multiply
    elif name == "sample_product":
        pointers, write = "dv starts stops offsets edges g x", _sample_product
    else:
        raise KeyError(name)
    return Definition(
        pointers, " ".join(Geometry._fields), partial(_with_sizes, write, (down, vectors), len(pointers.split()))
    )


@cache
def kernel(name: str, tile: tuple[int, int]) -> Kernel:
    """
    A kernel, compiled once.

    :param name: As for :func:`define`.
    :param tile: Rows and columns of pixels in a tile.
    """
    return define(name, tile[1], tile[0]).compile()


def _with_sizes(
    write: Callable[..., None], vectors: tuple[int, int], n_pointers: int, code: Code, *arguments: ir.Value
) -> None:
    sizes = Geometry(*arguments[n_pointers:-2])
    write(code, sizes, vectors, *arguments[:n_pointers], *arguments[-2:])


def _multiply(code: Code, sizes: Geometry, vectors: tuple[int, int], *arguments: ir.Value) -> None:
    """``y[i] = bias[i] + sum over weights k of row i: values[k] * (what k shifts)``; ``bias`` may be null."""
    values, starts, stops, offsets, edges, x, bias, y, first, last = arguments
    build = code.build
    tile = Tile(code, sizes, x, edges, vectors)

    def one(lane: ir.Value, down: ir.Value, across: ir.Value) -> None:
        # The last ones begin earlier: what they share with those before is computed twice.
        new_top = build.mul(down, word(vectors[0]))
        top = code.minimum(new_top, build.sub(sizes.out_height, word(vectors[0])))
        left = code.minimum(build.mul(across, word(vectors[1])), build.sub(sizes.out_width, word(vectors[1])))
        corner = build.add(build.add(build.mul(top, sizes.to_row), build.mul(left, sizes.to_pixel)), lane)

        def block(b: ir.Value) -> None:
            tile.fill(b, top, left, lane)
            is_first = build.icmp_signed("==", b, word(0))

            def row(i: ir.Value) -> None:
                k, stop = _weights(code, sizes, starts, stops, b, i)
                places = _places(code, sizes, vectors, code.at(y, build.add(build.mul(i, sizes.to_plane), corner)))

                def weight(k: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                    value = code.splat(code.load(values, k))
                    pixels = tile.pixels(code.load_index(offsets, k, INT16))
                    return [
                        code.fma(value, code.load_vector(pixel, 0), total) for pixel, total in zip(pixels, sums, strict=True)
                    ]

                sums = code.vectors_or(
                    is_first,
                    lambda: code.splat(code.load_or_zero(bias, i)),
                    lambda: [code.load_vector(place, 0) for place in places],
                )
                _store(code, vectors, code.loop(k, stop, weight, *sums), places, build.sub(new_top, top))

            code.loop(word(0), sizes.rows, row)

        code.loop(word(0), sizes.n_blocks, block)

    each_tile(code, sizes, vectors, first, last, one)


def _store(code: Code, vectors: tuple[int, int], sums: list[ir.Value], places: list[ir.Value], first_new: ir.Value) -> None:
    """
    Store a tile from the row of pixels on that it does not share with the one above: another thread may be adding up sums
    of further blocks in those, where they are.
    """
    for r in range(vectors[0]):
        with code.build.if_then(code.build.icmp_signed(">=", word(r), first_new)):
            for place, total in list(zip(places, sums, strict=True))[r * vectors[1] : (r + 1) * vectors[1]]:
                code.store_vector(total, place, 0)


def _weights(
    code: Code, sizes: Geometry, starts: ir.Value, stops: ir.Value, block: ir.Value, row: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Where the weights of a row in a block begin and end."""
    place = code.build.add(code.build.mul(block, sizes.rows), row)
    return code.load_index(starts, place), code.load_index(stops, place)


def _places(code: Code, sizes: Geometry, vectors: tuple[int, int], corner: ir.Value) -> list[ir.Value]:
    """The addresses of a tile's pixels in the result."""
    build = code.build
    return [
        code.at(corner, build.add(build.mul(sizes.to_row, word(r)), build.mul(sizes.to_pixel, word(u))))
        for r in range(vectors[0])
        for u in range(vectors[1])
    ]


def _sample_product(code: Code, sizes: Geometry, vectors: tuple[int, int], *arguments: ir.Value) -> None:
    """``dv[k] += sum over samples and pixels: g[i] * (what k shifts)``."""
    dv, starts, stops, offsets, edges, g, x, first, last = arguments
    build = code.build
    tile = Tile(code, sizes, x, edges, vectors)
    zero = ir.Constant(VECTOR, None)
    end = build.mul(build.sdiv(sizes.pixel, word(LANES)), sizes.tiles_down)

    def one(lane: ir.Value, down: ir.Value, across: ir.Value) -> None:
        # The last ones begin earlier, with zeros for what those before had: beyond the last pixel a weight would be
        # multiplied with pixels that it never sees, which may be infinite.
        new_top, new_left = build.mul(down, word(vectors[0])), build.mul(across, word(vectors[1]))
        top = code.minimum(new_top, build.sub(sizes.out_height, word(vectors[0])))
        left = code.minimum(new_left, build.sub(sizes.out_width, word(vectors[1])))
        corner = build.add(build.add(build.mul(top, sizes.to_row), build.mul(left, sizes.to_pixel)), lane)
        is_new = [
            build.and_(
                build.icmp_signed(">=", build.add(top, word(r)), new_top),
                build.icmp_signed(">=", build.add(left, word(u)), new_left),
            )
            for r in range(vectors[0])
            for u in range(vectors[1])
        ]

        def block(b: ir.Value) -> None:
            tile.fill(b, top, left, lane)

            def row(i: ir.Value) -> None:
                k, stop = _weights(code, sizes, starts, stops, b, i)
                places = _places(code, sizes, vectors, code.at(g, build.add(build.mul(i, sizes.to_plane), corner)))
                gradients = [
                    build.select(new, code.load_vector(place, 0), zero) for new, place in zip(is_new, places, strict=True)
                ]

                def products(k: ir.Value) -> ir.Value:
                    pixels = [code.load_vector(p, 0) for p in tile.pixels(code.load_index(offsets, k, INT16))]
                    total = build.fmul(gradients[0], pixels[0])
                    for gradient, pixel in zip(gradients[1:], pixels[1:], strict=True):
                        total = code.fma(gradient, pixel, total)
                    return total

                def several(k: ir.Value) -> None:
                    # Behind the last weight of a row is room for what is multiplied too, and not used.
                    total = code.sums_of_four([products(build.add(k, word(j), flags=("nsw",))) for j in range(SUMS)])
                    code.store_four(code.add(code.load_four(dv, k), total), dv, k)

                code.loop(k, stop, several, step=SUMS)

            code.loop(first, last, row)

        code.loop(word(0), sizes.n_blocks, block)

    each_tile(code, sizes, vectors, word(0), end, one)
