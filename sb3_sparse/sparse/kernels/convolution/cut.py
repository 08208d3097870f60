"""
Where the kernels find the weights of a convolution: cut into blocks of channels, each with its distance in the panel.

Derived from topology, settings and size of the images, and kept as long as the topology lives.
"""

import math
import weakref
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch as th

from sb3_sparse.sparse.kernels.convolution.window import Window
from sb3_sparse.sparse.kernels.native.code import LANES
from sb3_sparse.sparse.kernels.native.convolution import MAX_VECTORS, PANEL, SMALL_PANEL, SUMS
from sb3_sparse.sparse.topology import Topology

# What a weight costs in a tile beside its multiply-adds, in multiply-adds; from timings of tiles of 4 to 21 vectors.
_PER_WEIGHT = 2.5

# So many weights of a row in a block make up for storing and loading its sums once.
_WEIGHTS_OF_ROW = 24


class Size(NamedTuple):
    """Images that a convolution is applied to."""

    height: int
    width: int
    few: int
    """How many, if a vector holds pixels of a row; 0 if it holds images."""


class Taps(NamedTuple):
    """The weights of one product: each adds its value times pixels of ``channel`` to pixels of ``row``."""

    row: np.ndarray
    channel: np.ndarray
    y: np.ndarray
    """Which row of pixels is read for the first one of the result, and which pixel; negative in the padding."""
    x: np.ndarray
    """Counted in numbers instead of pixels where a vector holds pixels of a row."""
    weight: np.ndarray
    """Which of the topology's weights it is."""


class Product(NamedTuple):
    """Sizes of one product. Widths are in pixels where a vector holds images, in vectors otherwise."""

    rows: int
    channels: int
    height: int
    """Of the images that are read."""
    width: int
    out_height: int
    out_width: int
    stride: tuple[int, int]


class Cut(NamedTuple):
    """The weights of one product as kernels read them."""

    product: Product
    tile: tuple[int, int]
    """Rows and columns of pixels in a tile."""
    n_blocks: int
    block_channels: int
    first: tuple[int, int]
    """Row and column of the first tap."""
    panel_rows: int
    part: int
    order: th.Tensor
    """int64: which weight is at each place; places that fill up a row have any."""
    places: th.Tensor
    """int64: the place of each weight of the topology, or of those that this product has."""
    arrays: tuple[np.ndarray, ...]
    """``starts``, ``stops``, ``offsets`` and ``edges``, see ``native/convolution/products.py``."""
    addresses: tuple[int, ...]
    """Theirs."""


class Phase(NamedTuple):
    """Of a gradient with respect to images: the pixels that lie at the same remainder of the stride."""

    top: int
    left: int
    """The first one. The others follow at distances of the stride."""
    cut: Cut | None
    """None if no pixel is there."""


class Cuts(NamedTuple):
    """All that the three products of a convolution need."""

    forward: Cut
    phases: tuple[Phase, ...]
    left: int
    """Columns of zeros that the gradient of the result is read with, where a vector holds pixels of a row."""


_kept: "weakref.WeakKeyDictionary[Topology, dict[tuple[Window, Size], Cuts | None]]" = weakref.WeakKeyDictionary()


def cuts(topology: Topology, window: Window, size: Size) -> Cuts | None:
    """
    The cuts for images of a size.

    :return: None if the window is too large for the kernels, or larger than the image.
    """
    per_topology = _kept.setdefault(topology, {})
    key = (window, size)
    if key not in per_topology:
        per_topology[key] = _make_cuts(topology, window, size)
    return per_topology[key]


def kept_bytes(topology: Topology) -> int:
    """Memory of what is kept for a topology."""
    made = [cuts for cuts in _kept.get(topology, {}).values() if cuts is not None]
    all_cuts = [cut for cuts in made for cut in (cuts.forward, *(phase.cut for phase in cuts.phases)) if cut is not None]
    return sum(sum(a.nbytes for a in cut.arrays) + 8 * (cut.order.numel() + cut.places.numel()) for cut in all_cuts)


def _make_cuts(topology: Topology, window: Window, size: Size) -> Cuts | None:
    out = window.out_size((size.height, size.width))
    if min(out) < 1:
        return None
    columns = topology.col.astype(np.int64)
    rows = topology.row_of_weights().astype(np.int64)
    per_group, taps = topology.shape[1], topology.shape[2] * topology.shape[3]
    channels = columns // taps + rows // (topology.rows // window.groups) * per_group
    y, x = np.divmod(columns % taps, topology.shape[3])
    weights = Taps(rows, channels, y * window.dilation[0], x * window.dilation[1], np.arange(topology.nnz))
    forward = _forward(topology, window, size, out, weights)
    left = int(window.dilation[1] * (window.kernel[1] - 1)) // window.stride[1]
    phases = [
        _phase(topology, window, size, out, weights, (down, across), left)
        for down in range(window.stride[0])
        for across in range(window.stride[1])
    ]
    if forward is None or any(phase is None for phase in phases):
        return None
    return Cuts(forward, tuple(phase for phase in phases if phase is not None), left)


def _forward(topology: Topology, window: Window, size: Size, out: tuple[int, int], weights: Taps) -> Cut | None:
    height, width, few = size
    channels = topology.shape[1] * window.groups
    y = weights.y - window.before[0]
    if not few:
        product = Product(topology.rows, channels, height, width, *out, window.stride)
        return _cut(weights._replace(y=y, x=weights.x - window.before[1]), product, few)
    step = window.stride[1]
    pixels = -(-(window.before[1] + width) // step)
    product = Product(
        topology.rows, channels * step, height, _vectors(pixels, few), out[0], _vectors(out[1], few), (window.stride[0], 1)
    )
    channel = weights.channel * step + weights.x % step
    return _cut(weights._replace(channel=channel, y=y, x=weights.x // step * few), product, few)


def _phase(
    topology: Topology,
    window: Window,
    size: Size,
    out: tuple[int, int],
    weights: Taps,
    remainder: tuple[int, int],
    left: int,
) -> Phase | None:
    # A pixel of remainder r lies at q * stride + r in the padded image. A tap at distance t, which has that remainder
    # too, let it take part in the result's pixel q - (t - r) / stride.
    firsts, counts, begins = [], [], []
    for pixels, before, stride, rest in zip(size[:2], window.before, window.stride, remainder, strict=True):
        first = (rest - before) % stride
        firsts.append(first)
        counts.append(len(range(first, pixels, stride)))
        begins.append((first + before - rest) // stride)
    if min(counts) < 1:
        return Phase(firsts[0], firsts[1], None)
    has = (weights.y % window.stride[0] == remainder[0]) & (weights.x % window.stride[1] == remainder[1])
    taps = Taps(*(values[has] for values in weights))
    y = begins[0] - (taps.y - remainder[0]) // window.stride[0]
    x = begins[1] - (taps.x - remainder[1]) // window.stride[1]
    few, channels = size.few, topology.shape[1] * window.groups
    widths = (out[1], counts[1])
    if few:
        x, widths = (x + left) * few, (_vectors(left + out[1], few), _vectors(counts[1], few))
    product = Product(channels, topology.rows, out[0], widths[0], counts[0], widths[1], (1, 1))
    cut = _cut(Taps(taps.channel, taps.row, y, x, taps.weight), product, few)
    return None if cut is None else Phase(firsts[0], firsts[1], cut)


def _vectors(pixels: int, few: int) -> int:
    return -(-pixels * few // LANES)


def _cut(taps: Taps, product: Product, few: int) -> Cut | None:
    """None if not even one channel fits into the panel."""
    y, x = (values if len(values) else np.zeros(1, np.int64) for values in (taps.y, taps.x))
    stride_y, stride_x = product.stride
    # Distances in a row of numbers are counted from its beginning: its vectors are where they are.
    first_y, first_x = int(y.min()), 0 if few else int(x.min())
    reach_y = int(y.max()) - first_y
    reach_x = -(-int(x.max()) // LANES) if few else (int(x.max()) - first_x) // stride_x

    def channel_panel(tile: tuple[int, int]) -> int:
        return ((tile[0] - 1) * stride_y + reach_y + 1) * (tile[1] + reach_x) * stride_x * LANES

    tiles = [tile for tile in _tiles() if channel_panel(tile) <= PANEL]
    tiles = [tile for tile in tiles if tile[0] <= product.out_height and tile[1] <= product.out_width]
    if not tiles:
        return None
    tile = min(tiles, key=lambda tile: _cost(tile, product))
    per_channel = channel_panel(tile)
    n_blocks = -(-product.channels // _block_channels(len(taps.row), product, per_channel))
    block_channels = -(-product.channels // n_blocks)
    part, panel_row = tile[1] + reach_x, (tile[1] + reach_x) * stride_x * LANES
    block = taps.channel // block_channels
    order = np.lexsort((taps.x, taps.y, taps.channel, taps.row, block))
    counts = np.bincount(block * product.rows + taps.row, minlength=n_blocks * product.rows)
    rooms = -(-counts // SUMS) * SUMS
    starts = np.cumsum(rooms) - rooms
    places = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(len(order))
    distance = taps.x if few else (taps.x - first_x) // stride_x * LANES + (taps.x - first_x) % stride_x * part * LANES
    distance = (taps.channel - block * block_channels) * per_channel + (taps.y - first_y) * panel_row + distance
    offsets, indices = np.zeros(int(rooms.sum()), np.uint16), np.zeros(int(rooms.sum()), np.int64)
    offsets[places], indices[places] = distance[order], taps.weight[order]
    of_weights = np.empty_like(places)
    of_weights[order] = places
    arrays = (starts.astype(np.int32), (starts + counts).astype(np.int32), offsets, _edges(first_x, stride_x, product.width))
    return Cut(
        product,
        tile,
        n_blocks,
        block_channels,
        (first_y, first_x),
        (tile[0] - 1) * stride_y + reach_y + 1,
        part,
        th.from_numpy(indices),
        th.from_numpy(of_weights),
        arrays,
        tuple(array.ctypes.data for array in arrays),
    )


def _block_channels(nnz: int, product: Product, per_channel: int) -> int:
    """
    How many channels a block has at most: enough weights of a row for one load and store of its sums, in a small panel if that
    is possible.

    :param per_channel: Numbers in the panel for each.
    """
    weights = max(1, nnz) / (product.rows * product.channels)
    enough = math.ceil(_WEIGHTS_OF_ROW / weights)
    return max(1, min(max(enough, SMALL_PANEL // per_channel), PANEL // per_channel))


def _edges(first_x: int, stride: int, width: int) -> np.ndarray:
    """For each part of a panel row of a tile at 0, its first pixel inside the image and the one after the last."""
    edges = []
    for part in range(stride):
        edges += [max(0, -((first_x + part) // stride)), max(0, (width - 1 - first_x - part) // stride + 1)]
    return np.array(edges, dtype=np.int32)


@cache
def _tiles() -> list[tuple[int, int]]:
    """Tiles whose sums fit into the vector registers."""
    wide = llvm.get_host_cpu_features().get("avx512f", False)
    most = MAX_VECTORS if wide else MAX_VECTORS // 3
    return [(down, across) for down in (1, 2, 3) for across in range(1, 9) if down * across <= most]


def _cost(tile: tuple[int, int], product: Product) -> float:
    """Time of a product, up to a factor: what is computed, the pixels beyond the last ones too."""
    pixels = math.prod(
        -(-size // part) * part for size, part in zip((product.out_height, product.out_width), tile, strict=True)
    )
    return pixels * (1 + _PER_WEIGHT / math.prod(tile))
