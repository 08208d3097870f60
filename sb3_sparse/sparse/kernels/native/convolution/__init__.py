"""Kernels for convolutions with a sparse weight, on images that lie pixel by pixel with their samples side by side."""

from sb3_sparse.sparse.kernels.native.convolution.layout import MAX_VECTORS, PANEL, SMALL_PANEL, Geometry
from sb3_sparse.sparse.kernels.native.convolution.products import SUMS, define, kernel

__all__ = ["MAX_VECTORS", "PANEL", "SMALL_PANEL", "SUMS", "Geometry", "define", "kernel"]
