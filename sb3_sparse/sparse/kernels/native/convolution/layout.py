"""
How images are cut for the convolution kernels, and what all of them read.

Images lie as ``(channels, height, width, samples)``. A weight that lives at tap ``(ky, kx)`` of input channel ``c`` then adds
its value times row ``y + ky`` of the channel, shifted by ``kx`` pixels, to row ``y`` of its output channel: multiply-adds of
vectors of ``LANES`` samples, wherever the weight is.

Outputs are made tile by tile: some rows and columns of pixels, of ``LANES`` samples, for all output channels. What a tile
needs of some input channels (a *block*) is copied into a *panel* that stays in the first-level cache while all weights of the
block use it; what lies outside the image is zero there. Where the convolution strides, columns of the image are dealt out to
one part of a panel row for each remainder: pixels that neighbouring outputs need lie side by side for every tap. So a weight
is one number, the distance of its pixels from the panel's first.
"""

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import FLOAT, LANES, VECTOR, Code, word

SMALL_PANEL = 6144
"""Numbers in a panel that leaves some of a first-level cache of 32 KiB to other things."""
PANEL = 1 << 14
"""
Numbers in a panel at most. Distances in it fit into 16 bits. Where a block has few weights it pays to leave the first-level
cache, as sums are stored and loaded less often then.
"""
MAX_VECTORS = 21
"""Vectors in a tile at most, if there are 32 registers of their size: all of them are sums of one row."""


class Geometry(NamedTuple):
    """Sizes of one product, in the order in which kernels take them."""

    rows: int
    """Channels of the result."""
    n_blocks: int
    block_channels: int
    """Channels of a block; the last one may have fewer."""
    channels: int
    """Channels that are read."""
    plane: int
    """Of what is read, numbers from one channel to the next; then to the next row of pixels, and pixel."""
    row: int
    pixel: int
    height: int
    width: int
    to_plane: int
    """Of the result, likewise."""
    to_row: int
    to_pixel: int
    out_height: int
    """Pixels of the result, of those that this product makes."""
    out_width: int
    tiles_down: int
    tiles_across: int
    stride_y: int
    """How many pixels further the next row and the next pixel of the result read."""
    stride_x: int
    first_y: int
    """Where the first tap of the first pixel is; negative in the padding."""
    first_x: int
    panel_rows: int
    """Rows of pixels that a tile reads of a channel."""
    part: int
    """Pixels in each part of a panel row."""


class Tile:
    """
    A tile of pixels of the result, and the panel.

    :param vectors: Rows and columns of pixels.
    """

    def __init__(self, code: Code, sizes: Geometry, x: ir.Value, edges: ir.Value, vectors: tuple[int, int]):
        self.code, self.sizes, self.x, self.edges, self.vectors = code, sizes, x, edges, vectors
        self.panel = code.array(FLOAT, PANEL, align=4 * LANES)
        build = code.build
        self.part = build.mul(sizes.part, word(LANES))
        self.panel_row = build.mul(self.part, sizes.stride_x)
        self.panel_step = build.mul(self.panel_row, sizes.stride_y)
        self.panel_channel = build.mul(self.panel_row, sizes.panel_rows)

    def fill(self, block: ir.Value, y: ir.Value, x: ir.Value, lane: ir.Value) -> None:
        """
        Copy what the tile whose first pixel is ``(y, x)`` needs of a block of channels, for the samples from ``lane`` on.
        """
        code, build, sizes = self.code, self.code.build, self.sizes
        first = build.mul(block, sizes.block_channels)
        end = code.minimum(build.add(first, sizes.block_channels), sizes.channels)
        top = build.add(build.mul(y, sizes.stride_y), sizes.first_y)
        step = build.mul(sizes.stride_x, sizes.pixel)
        zero = ir.Constant(VECTOR, None)
        # The same pixels of the next block; after the last one, those of the first block for the next tile.
        is_last = build.icmp_signed("==", build.add(block, word(1)), sizes.n_blocks)
        forward = build.mul(sizes.block_channels, sizes.plane)
        back = build.sub(build.mul(step, word(self.vectors[1])), build.mul(block, forward))
        ahead = build.select(is_last, back, forward)

        def channel(c: ir.Value) -> None:
            place = code.at(self.panel, build.mul(build.sub(c, first), self.panel_channel))
            plane = code.at(self.x, build.add(build.mul(c, sizes.plane), lane))

            def row(r: ir.Value) -> None:
                here = build.add(top, r)
                inside = build.and_(build.icmp_signed(">=", here, word(0)), build.icmp_signed("<", here, sizes.height))
                source = code.at(plane, build.mul(here, sizes.row))

                def part(p: ir.Value) -> None:
                    target = code.at(place, build.add(build.mul(r, self.panel_row), build.mul(p, self.part)))
                    begin, stop = self._inside(p, x)
                    begin, stop = (build.select(inside, edge, word(0)) for edge in (begin, stop))
                    left = build.add(build.add(build.mul(x, sizes.stride_x), sizes.first_x), p)
                    pixels = code.at(source, build.mul(left, sizes.pixel))

                    def blank(m: ir.Value) -> None:
                        code.store_vector(zero, code.at(target, build.mul(m, word(LANES))), 0, align=4 * LANES)

                    def copy(m: ir.Value) -> None:
                        pixel = code.at(pixels, build.mul(m, step))
                        code.prefetch(code.at(pixel, ahead), locality=2)
                        vector = code.load_vector(pixel, 0)
                        code.store_vector(vector, code.at(target, build.mul(m, word(LANES))), 0, align=4 * LANES)

                    code.loop(word(0), begin, blank)
                    code.loop(begin, stop, copy)
                    code.loop(stop, sizes.part, blank)

                code.loop(word(0), sizes.stride_x, part)

            code.loop(word(0), sizes.panel_rows, row)

        code.loop(first, end, channel)

    def _inside(self, part: ir.Value, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Which pixels of a part of a panel row are inside the image."""
        code, build, sizes = self.code, self.code.build, self.sizes
        begin, stop = (code.load_index(self.edges, build.add(build.mul(part, word(2)), word(side))) for side in (0, 1))
        begin = code.minimum(code.maximum(build.sub(begin, x), word(0)), sizes.part)
        return begin, code.minimum(code.maximum(build.sub(stop, x), begin), sizes.part)

    def pixels(self, offset: ir.Value) -> list[ir.Value]:
        """The addresses in the panel of what a weight multiplies, row by row: aligned as numbers are, for few images."""
        rows, columns = self.vectors
        addresses = []
        start = self.code.at(self.panel, offset)
        for r in range(rows):
            if r:
                start = self.code.at(start, self.panel_step)
            addresses += [self.code.at(start, word(LANES * u)) for u in range(columns)]
        return addresses


def each_tile(
    code: Code, sizes: Geometry, vectors: tuple[int, int], first: ir.Value, last: ir.Value, body: Callable[..., None]
) -> None:
    """
    Tiles of a range of rows of tiles, of which there are ``tiles_down`` for every vector of samples.

    :param body: Called with the first sample of a tile, and the numbers of its row and column of tiles.
    """
    build = code.build

    def down(index: ir.Value) -> None:
        lane = build.mul(build.sdiv(index, sizes.tiles_down), word(LANES))
        row = build.srem(index, sizes.tiles_down)
        code.loop(word(0), sizes.tiles_across, lambda column: body(lane, row, column))

    code.loop(first, last, down)
