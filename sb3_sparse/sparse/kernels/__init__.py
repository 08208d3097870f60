"""
Multiplying with a sparse weight: ``y = x Wᵀ``, and the gradients of ``x`` and of the living weights.

``autograd.py`` holds the one function that layers call, ``chooser.py`` decides which backend runs it, and each
other file is a backend.
"""

from sb3_sparse.sparse.kernels.autograd import scatter_dense, sparse_linear
from sb3_sparse.sparse.kernels.chooser import BACKEND_VARIABLE, available_backends, choose_backend, peek_backend

__all__ = ["BACKEND_VARIABLE", "available_backends", "choose_backend", "peek_backend", "scatter_dense", "sparse_linear"]
