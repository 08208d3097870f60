"""
Convolutions with a sparse weight.

``autograd.py`` holds the function that layers call, ``window.py`` what a convolution slides over an image, ``shifted.py`` the
three products on our kernels (``native/convolution/``), with ``images.py`` and ``cut.py`` for what those read.
"""

from sb3_sparse.sparse.kernels.convolution.autograd import sparse_conv2d
from sb3_sparse.sparse.kernels.convolution.window import Window

__all__ = ["Window", "sparse_conv2d"]
