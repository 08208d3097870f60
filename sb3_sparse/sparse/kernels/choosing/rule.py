"""A backend without a measurement: the same in every process."""

import torch as th

from sb3_sparse.sparse.kernels.backends import available_backends
from sb3_sparse.sparse.topology import Topology

# Below so many multiply-adds of a dense product, calls cost more than what sparse products save.
_MIN_WORK = 1 << 18


def backend_by_rule(device: th.device, dtype: th.dtype, topology: Topology, batch: int) -> str:
    """
    A backend that suits most processors, one of those that this package brings.

    Where our kernels run (float32 and 16 bits on the CPU): ``compiled`` for a single sample; for a batch ``dense`` if the
    product is tiny or more than three quarters of the weights live (in 16 bits, which torch may be faster with and our
    kernels are not: half of them), ``compiled`` if they are nearly all gone, else ``blocked``.
    For float64 on the CPU ``csr`` where it can run and at most a tenth of the weights live. Else ``dense``. Whether
    gradients are wanted makes no difference that would hold on all processors.

    :param batch: Number of samples; the chooser rounds it up to a power of two.
    :return: Its name.
    """
    candidates = available_backends(device, dtype)
    is_tiny = topology.numel * batch < _MIN_WORK
    if "blocked" in candidates and "compiled" in candidates:
        if batch <= 1:
            return "compiled"
        if is_tiny or topology.density > (0.75 if dtype is th.float32 else 0.5):
            return "dense"
        return "compiled" if topology.density <= (0.1 if batch <= 16 else 0.03) else "blocked"
    if "csr" in candidates and device.type == "cpu" and not is_tiny and topology.density <= 0.1:
        return "csr"
    return "dense"
