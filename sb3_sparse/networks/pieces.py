"""Batches of images that are encoded piece by piece, so that activations stay in the processor's caches."""

from collections.abc import Callable

import torch as th
from torch import nn


def encode_in_pieces(encoder: nn.Module, encode: Callable[[th.Tensor], th.Tensor], images: th.Tensor) -> th.Tensor:
    """
    Features of a batch, ``encoder.piece_size`` images at a time on the CPU.

    Activations of a large batch are larger than the caches, and than what the allocator keeps for the next step. The graph of
    each piece goes backward as a whole, too, the last one first. It is one pass on other devices, and where the encoder has no
    ``piece_size``, or it is None.

    :param encoder: Treats each image on its own.
    :param encode: Makes features of images, with it.
    :param images: ``(batch, ...)``
    :return: ``(batch, features)``
    """
    size = getattr(encoder, "piece_size", None)
    if size is None or images.device.type != "cpu" or len(images) <= size:
        return encode(images)
    return th.cat([encode(piece) for piece in images.split(size)])
