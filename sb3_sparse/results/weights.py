"""Where the living weights of a network are."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.common.figures import new_figure
from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Cells of a picture along one axis, about half as many as a panel has dots. Matrices up to this size are drawn exactly.
MAX_CELLS = 128
MAX_BARS = 30
# Layers beside each other, two panels each.
LAYERS_PER_ROW = 2
LAYERS = (SparseLinear, SparseConv2d, nn.Linear, nn.Conv2d)


def density_image(topology: Topology, max_cells: int = MAX_CELLS) -> np.ndarray:
    """
    Fraction of living weights in each cell of a grid laid over the weight matrix.

    :param topology: Of a layer; a convolution counts as the matrix (out, everything else).
    :param max_cells: Most cells along one axis. An axis that is not longer has one cell per entry, so that the
        picture of a small matrix holds zeros and ones.
    :return: ``(min(rows, max_cells), min(columns, max_cells))``, between 0 and 1.
    """
    n_rows, n_columns = min(topology.rows, max_cells), min(topology.columns, max_cells)
    row_cell = np.arange(topology.rows) * n_rows // topology.rows
    column_cell = np.arange(topology.columns) * n_columns // topology.columns
    cell = np.repeat(row_cell, np.diff(topology.crow)) * n_columns + column_cell[topology.col]
    living = np.bincount(cell, minlength=n_rows * n_columns).reshape(n_rows, n_columns)
    return living / np.outer(np.bincount(row_cell), np.bincount(column_cell))


def fan_in(topology: Topology) -> np.ndarray:
    """Number of living inputs of each output unit, ``(rows,)``."""
    return np.diff(topology.crow)


def draw_weights(networks: Mapping[str, nn.Module]) -> "Figure":
    """
    For every linear and convolutional layer: its matrix, and how many inputs its units have.

    :param networks: By name.
    :raises ValueError: If there is no such layer.
    """
    layers = [
        (f"{network}.{name}" if name else network, layer)
        for network, module in networks.items()
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS)
    ]
    if not layers:
        raise ValueError(f"no linear or convolutional layer in {list(networks)}: there is nothing to draw.")
    rows = math.ceil(len(layers) / LAYERS_PER_ROW)
    figure = new_figure((12, 2.4 * rows))
    # The histogram beside a matrix is half as wide.
    grid = figure.add_gridspec(rows, 2 * LAYERS_PER_ROW, width_ratios=[2, 1] * LAYERS_PER_ROW)
    for i, (name, layer) in enumerate(layers):
        # One at a time: the indices of a dense layer are larger than its weights.
        topology = _topology(layer)
        row, column = divmod(i, LAYERS_PER_ROW)
        _draw_matrix(figure, figure.add_subplot(grid[row, 2 * column]), name, topology)
        _draw_fan_in(figure.add_subplot(grid[row, 2 * column + 1]), topology)
    return figure


def _topology(layer: Any) -> Topology:
    if isinstance(layer, (SparseLinear, SparseConv2d)):
        return layer.topology
    return Topology.from_mask(th.ones(layer.weight.shape, dtype=th.bool))


def _draw_matrix(figure: Any, axes: Any, name: str, topology: Topology) -> None:
    image = density_image(topology)
    is_exact = max(topology.rows, topology.columns) <= MAX_CELLS
    # In the middle of a scale of shares is the density of the layer, so that emptier and fuller places are both seen.
    top = 1.0 if is_exact or not topology.nnz else min(1.0, 2 * topology.density)
    extent = (0, topology.columns, topology.rows, 0)
    picture = axes.imshow(
        image, cmap="Blues", vmin=0.0, vmax=top, aspect="auto", interpolation="nearest", extent=extent, rasterized=True
    )
    shape = "x".join(map(str, topology.shape))
    axes.set_title(f"{name}\n{shape}, density {topology.density:.4g}, {topology.nnz:,} weights", fontsize=8)
    _label(axes, "input", "output")
    if not is_exact and topology.density < 1.0:
        bar = figure.colorbar(picture, ax=axes, pad=0.01, fraction=0.04)
        bar.set_label("density", fontsize=7)
        bar.ax.tick_params(labelsize=6)


def _draw_fan_in(axes: Any, topology: Topology) -> None:
    counts = fan_in(topology)
    smallest, largest = int(counts.min()), int(counts.max())
    # Bins of whole numbers of inputs, so that none is empty only for its place.
    step = math.ceil((largest - smallest + 1) / MAX_BARS)
    edges = np.arange(smallest, largest + step + 1, step) - 0.5
    axes.hist(counts, bins=edges, color="#1f77b4")
    if smallest == largest:
        axes.set_xlim(smallest - 3, largest + 3)
    axes.set_title(f"fan-in {smallest:,} to {largest:,}\nmean {counts.mean():,.4g}", fontsize=8)
    _label(axes, "living inputs", "units")


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(integer=True, nbins=5)
