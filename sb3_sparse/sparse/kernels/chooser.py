"""
Which backend runs a product: the fastest one, found by a short measurement the first time a kind of product is needed.

A kind is a device, dtype, number of threads, batch size (rounded up to a power of two), weight shape and number of
living weights. Choices are kept in memory and in a file of the user's cache folder, so that the next run on the machine
starts with them, and computes with the same backends.
"""

import json
import logging
import os
import tempfile
import time
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.kernels.blocked import BlockedBackend
from sb3_sparse.sparse.kernels.compiled import CompiledBackend
from sb3_sparse.sparse.kernels.csr import CsrBackend
from sb3_sparse.sparse.kernels.dense import DenseBackend
from sb3_sparse.sparse.kernels.llvm_ir import host_cpu
from sb3_sparse.sparse.topology import Topology

logger = logging.getLogger("sb3_sparse")

BACKEND_VARIABLE = "SB3_SPARSE_BACKEND"
"""Environment variable that names one backend for everything, instead of the automatic choice."""
CACHE_VARIABLE = "SB3_SPARSE_CACHE"
"""Environment variable with the folder for measured choices, instead of one in the user's cache folder; empty: none."""

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (DenseBackend(), CsrBackend(), CompiledBackend(), BlockedBackend())
}

# Of the backends: what an older generation's measurements chose is forgotten.
_GENERATION = 2
# A measurement repeats each product so often, or until so much time has passed.
_REPEATS = 5
_SECONDS = 0.05
# Another backend has to be faster than dense by this factor, or noise would decide.
_MARGIN = 1.05
# Smaller weights than this are not worth a measurement: a product takes microseconds on any path.
_MIN_NUMEL = 1024


def available_backends(device: th.device | str, dtype: th.dtype = th.float32) -> list[str]:
    """Names of the backends that can run on this machine for tensors of that device and dtype."""
    return [name for name, backend in BACKENDS.items() if backend.supports(th.device(device), dtype)]


def choose_backend(device: th.device, dtype: th.dtype, topology: Topology, batch: int = 256, training: bool = True) -> Backend:
    """
    The fastest backend for a weight of that topology. Never one that was measured to be slower than ``dense``.

    :param batch: Number of samples.
    :param training: Whether gradients are wanted, or the output alone.
    :raises ValueError: If the environment variable ``SB3_SPARSE_BACKEND`` names a backend that does not exist or
        cannot run here.
    """
    forced = os.environ.get(BACKEND_VARIABLE) or "auto"
    if forced != "auto":
        return _forced_backend(forced, device, dtype)
    bucket = 1 << (batch - 1).bit_length()
    key = (device, dtype, bucket, training, th.get_num_threads())
    known = _chosen.get(topology)
    if known is not None and key in known:
        return known[key]
    candidates = available_backends(device, dtype)
    if len(candidates) == 1 or topology.numel < _MIN_NUMEL or batch == 0:
        return BACKENDS[_first_guess(candidates, topology)]
    kind = _kind(device, dtype, topology, bucket, training)
    choices = _choices()
    if choices.get(kind) not in candidates:
        choices[kind] = _measure(candidates, device, dtype, topology, bucket, training)
        _save_choices(choices)
    _chosen.setdefault(topology, {})[key] = backend = BACKENDS[choices[kind]]
    return backend


# What `choose_backend` answered, for the next call: it is on the path of every single action.
_chosen: "weakref.WeakKeyDictionary[Topology, dict[tuple[Any, ...], Backend]]" = weakref.WeakKeyDictionary()


def _forced_backend(name: str, device: th.device, dtype: th.dtype) -> Backend:
    if name not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}={name!r}: expected 'auto' or one of {sorted(BACKENDS)}.")
    if not BACKENDS[name].supports(device, dtype):
        raise ValueError(
            f"{BACKEND_VARIABLE}={name!r} cannot run {dtype} on {device}: "
            f"expected one of {available_backends(device, dtype)}, or unset it."
        )
    return BACKENDS[name]


def _first_guess(candidates: list[str], topology: Topology) -> str:
    """Without a measurement: our kernels where at least half of the weights are gone, else dense."""
    return "compiled" if "compiled" in candidates and topology.density <= 0.5 else "dense"


def _kind(device: th.device, dtype: th.dtype, topology: Topology, bucket: int, training: bool) -> str:
    place = f"cpu x{th.get_num_threads()}" if device.type == "cpu" else th.cuda.get_device_name(device)
    shape = f"{topology.rows}x{topology.columns}:{topology.nnz}"
    return f"{place} {str(dtype).removeprefix('torch.')} batch {bucket} {shape} {'training' if training else 'forward'}"


@th.no_grad()
def _measure(candidates: list[str], device: th.device, dtype: th.dtype, topology: Topology, batch: int, training: bool) -> str:
    # Filled without the random generator: measuring must not change what a seed stands for.
    x = th.linspace(-1, 1, batch * topology.columns, device=device).to(dtype).view(batch, topology.columns)
    grad = th.linspace(-1, 1, batch * topology.rows, device=device).to(dtype).view(batch, topology.rows)
    values = th.linspace(-1, 1, topology.nnz, device=device).to(dtype)

    def seconds(backend: Backend) -> float:
        def step() -> None:
            packed = backend.pack(x)
            backend.forward(packed, values, topology, None, batch)
            if training:
                packed_grad = backend.pack(grad)
                backend.grad_input(packed_grad, values, topology, batch)
                backend.grad_values(packed_grad, packed, topology, batch)
            if device.type == "cuda":
                th.cuda.synchronize(device)

        step()  # compiles, allocates, computes indices
        times: list[float] = []
        while len(times) < _REPEATS and sum(times) < _SECONDS:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return min(times)

    measured = {name: seconds(BACKENDS[name]) for name in candidates}
    best = min(measured, key=measured.__getitem__)
    if measured["dense"] < _MARGIN * measured[best]:
        best = "dense"
    in_use = {best, *(backend.name for backend in _chosen.get(topology, {}).values())}
    for name in candidates:
        if name not in in_use:
            BACKENDS[name].forget(topology)
    times = ", ".join(f"{name} {1e3 * t:.3g} ms" for name, t in sorted(measured.items(), key=lambda item: item[1]))
    logger.info("%s: chose %s (%s)", _kind(device, dtype, topology, batch, training), best, times)
    return best


def _cache_file() -> Path | None:
    """Where the choices of this machine, processor and version of torch are kept."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder == "":
        return None
    if folder is None:
        try:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # no home directory
            return None
        folder = str(base / "sb3-sparse")
    return Path(folder) / f"backends-{_GENERATION}-{host_cpu()}-torch{th.__version__.partition('+')[0]}.json"


def forget_choices() -> None:
    """Forget what is in memory; the file is read again."""
    _chosen.clear()
    _choices.cache_clear()


@cache
def _choices() -> dict[str, str]:
    path = _cache_file()
    try:
        loaded = json.loads(path.read_text()) if path is not None else {}
        return {str(kind): str(name) for kind, name in loaded.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("ignoring the backend choices in %s: %s", path, error)
        return {}


def _save_choices(choices: dict[str, str]) -> None:
    path = _cache_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(choices, file, indent=1, sort_keys=True)
        Path(file.name).replace(path)
    except OSError as error:
        logger.warning("cannot keep the backend choices in %s, they are measured again next time: %s", path, error)
