"""Which backend runs a product."""

import os

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.kernels.compiled import CompiledBackend
from sb3_sparse.sparse.kernels.csr import CsrBackend
from sb3_sparse.sparse.kernels.dense import DenseBackend
from sb3_sparse.sparse.topology import Topology

BACKEND_VARIABLE = "SB3_SPARSE_BACKEND"
"""Environment variable that names one backend for everything, instead of the automatic choice."""

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (DenseBackend(), CsrBackend(), CompiledBackend())}

# Above this density torch's sparse products are not faster than dense ones (measured on 2 cores, 10240x2560).
_MAX_CSR_DENSITY = 0.15


def available_backends(device: th.device | str, dtype: th.dtype = th.float32) -> list[str]:
    """Names of the backends that can run on this machine for tensors of that device and dtype."""
    return [name for name, backend in BACKENDS.items() if backend.supports(th.device(device), dtype)]


def choose_backend(device: th.device, dtype: th.dtype, topology: Topology) -> Backend:
    """
    The backend for a product with a weight of that topology.

    :raises ValueError: If the environment variable ``SB3_SPARSE_BACKEND`` names a backend that does not exist or
        cannot run here.
    """
    forced = os.environ.get(BACKEND_VARIABLE, "auto")
    if forced != "auto":
        if forced not in BACKENDS:
            raise ValueError(f"{BACKEND_VARIABLE}={forced!r}: expected 'auto' or one of {sorted(BACKENDS)}.")
        if not BACKENDS[forced].supports(device, dtype):
            raise ValueError(
                f"{BACKEND_VARIABLE}={forced!r} cannot run {dtype} on {device}: "
                f"expected one of {available_backends(device, dtype)}, or unset it."
            )
        return BACKENDS[forced]
    if BACKENDS["compiled"].supports(device, dtype):
        return BACKENDS["compiled"]
    csr = BACKENDS["csr"]
    if device.type == "cpu" and topology.density <= _MAX_CSR_DENSITY and csr.supports(device, dtype):
        return csr
    return BACKENDS["dense"]
