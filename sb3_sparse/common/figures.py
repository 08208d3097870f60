"""Figures of matplotlib, which is imported when the first one is made."""

import io
import os
from typing import TYPE_CHECKING, Any

from sb3_sparse.common.files import written_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(size: tuple[float, float] | None = None) -> "Figure":
    """
    An empty figure that belongs to no window and no global state, so that nobody has to close it.

    :param size: Width and height in inches.
    :raises ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "sb3-sparse[zoo]"') from error
    return Figure(figsize=size, layout="constrained")


def one_panel(size: tuple[float, float]) -> tuple["Figure", Any]:
    """
    A figure and its only axes.

    :param size: Width and height in inches.
    :raises ImportError: If matplotlib is missing.
    """
    figure = new_figure(size)
    return figure, figure.subplots()


def to_png(figure: "Figure") -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def save_figure(figure: "Figure", path: str | os.PathLike[str], dpi: int = 100) -> None:
    """
    Write a figure to a file, which is whole at any time; its folder is made.

    :param figure: The figure.
    :param path: With the ending of a format, such as ``.png``.
    :param dpi: Dots per inch.
    :raises OSError: If the file cannot be written.
    """
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=dpi)
