"""The backends by name. What one has to offer is in ``../backend.py``; others come by ``register_backend``."""

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.kernels.backends.blocked import BlockedBackend
from sb3_sparse.sparse.kernels.backends.compiled import CompiledBackend
from sb3_sparse.sparse.kernels.backends.csr import CsrBackend
from sb3_sparse.sparse.kernels.backends.dense import DenseBackend

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (DenseBackend(), CsrBackend(), CompiledBackend(), BlockedBackend())
}
OURS = tuple(BACKENDS)
"""Names of those that this package brings."""


def available_backends(device: th.device | str, dtype: th.dtype = th.float32) -> list[str]:
    """Names of the backends that can run on this machine for tensors of that device and dtype."""
    return [name for name, backend in BACKENDS.items() if backend.supports(th.device(device), dtype)]
