"""
Multiplying with a sparse weight: ``y = x Wᵀ``, and the gradients of ``x`` and of the living weights.

``autograd.py`` holds the one function that layers call, with ``operation.py`` and ``formula.py`` for torch's tools.
``choosing/`` decides which backend runs it, ``backend.py`` says what a backend is, ``backends/`` has ours, and ``native/`` the
kernels that two of them run on.
"""

from sb3_sparse.sparse.kernels.autograd import scatter_dense, sparse_linear
from sb3_sparse.sparse.kernels.backend import Backend, empty_result
from sb3_sparse.sparse.kernels.backends import available_backends
from sb3_sparse.sparse.kernels.choosing.chooser import (
    BACKEND_VARIABLE,
    choose_backend,
    kernels_allowed,
    peek_backend,
    register_backend,
    unregister_backend,
)

__all__ = [
    "BACKEND_VARIABLE",
    "Backend",
    "available_backends",
    "choose_backend",
    "empty_result",
    "kernels_allowed",
    "peek_backend",
    "register_backend",
    "scatter_dense",
    "sparse_linear",
    "unregister_backend",
]
