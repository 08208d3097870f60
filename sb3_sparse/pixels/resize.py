"""Frames in another size."""

from functools import cache

import numpy as np


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    Average over the area that each pixel covers, parts of pixels included. Where a frame grows, pixels are repeated.

    :param frame: Of shape (rows, columns, channels), uint8.
    :param height: Rows of the result.
    :param width: Columns of the result.
    """
    if frame.shape[:2] == (height, width):
        return frame
    rows, columns, channels = frame.shape
    # The longer side first, which leaves the second product little to do.
    across = _weights(rows, height) @ frame.reshape(rows, -1).astype(np.float32)
    along = across.reshape(height, columns, channels).swapaxes(0, 1).reshape(columns, -1)
    mean = (_weights(columns, width) @ along).reshape(width, height, channels).swapaxes(0, 1)
    return np.rint(mean).astype(np.uint8)


@cache
def _weights(before: int, after: int) -> np.ndarray:
    """
    How much of each pixel of a line is in each pixel of the new one, as a matrix (after, before) whose rows sum to 1.

    New pixel i covers [i, i + 1) * before / after of the old line, old pixel j covers [j, j + 1).
    """
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
