"""
Measuring backends, within bounds.

What is measured is a random weight of the same density, as large as the real one or as the bounds allow: neither the time
nor the memory of a measurement grows with the layer, and nothing of it stays.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.topology import Topology

MAX_BATCH = 1024
"""Larger batches are measured, and chosen for, as this one."""
# Of what is measured at most: multiply-adds of a dense product, entries of the weight, and of a batch.
_MAX_WORK = 1 << 30
_MAX_NUMEL = 1 << 22
_MAX_VALUES = 1 << 22
# Rows for each thread that are kept, if there are as many, before columns are left out: blocks of rows should be whole.
_MIN_ROWS = 512
# Contenders take turns, so many times at least and at most, until so many seconds have passed.
_MIN_ROUNDS, _MAX_ROUNDS, _SECONDS = 5, 50, 0.1
# Who takes so many times as long as the fastest one is out.
_FAR_WORSE = 2.0
# Another backend has to be faster than dense by this factor, or noise would decide.
_MARGIN = 1.05
# Sparse products of torch with more weights than this have lost before they began.
_MAX_DENSITY_OF_CSR = 0.5
# Nothing can be told from times whose median is so many times their minimum, or while so many processes per core run.
_MAX_SCATTER = 1.5
_MAX_LOAD = 1.5


class Measurement(NamedTuple):
    """What a measurement found."""

    best: str
    """The fastest backend; ``dense`` if no other is clearly faster."""
    seconds: dict[str, float]
    """The time of each."""
    is_clear: bool
    """Whether the times are fit to decide: they did not scatter."""
    times: str
    """All of them, for people."""

    def best_or(self, preferred: str) -> str:
        """
        The fastest backend, or a preferred one that is as fast but for noise, and not slower than ``dense``.

        :param preferred: Its name.
        """
        time = self.seconds.get(preferred, math.inf)
        is_as_fast = time < _MARGIN * self.seconds[self.best] and time <= self.seconds["dense"]
        return preferred if is_as_fast and self.best != "dense" else self.best


def is_busy() -> bool:
    """Whether so much else runs on this machine that times would mean little."""
    try:
        return os.getloadavg()[0] > _MAX_LOAD * (os.cpu_count() or 1)
    except (AttributeError, OSError):  # not on every platform
        return False


def can_time(device: th.device) -> bool:
    """Whether torch can wait until what was begun on a device is done: on the CPU, and on the accelerator that torch has."""
    accelerator = th.accelerator.current_accelerator()
    return device.type == "cpu" or (accelerator is not None and device.type == accelerator.type)


@th.no_grad()
def measure(
    backends: Iterable[Backend], device: th.device, dtype: th.dtype, topology: Topology, batch: int, training: bool
) -> Measurement:
    """
    Let backends take turns.

    :param backends: Those that can run there, ``dense`` among them.
    :param topology: Gives shape and density.
    :param batch: Samples, at most ``MAX_BATCH``.
    :param training: Whether gradients are wanted, or the output alone.
    """
    sample = _sample(topology, batch)

    def filled(*shape: int) -> th.Tensor:
        return th.linspace(-1, 1, math.prod(shape), device=device).to(dtype).view(shape)

    x, values = filled(batch, sample.columns), filled(sample.nnz)
    grad = filled(batch, sample.rows) if training else None
    steps = {
        backend.name: _step(backend, x, values, grad, sample)
        for backend in backends
        # A single sample runs on the same kernels with both of ours.
        if not (backend.name == "blocked" and batch == 1)
        and (backend.name != "csr" or topology.density <= _MAX_DENSITY_OF_CSR)
    }
    return compete(steps)


def compete(steps: dict[str, Callable[[], None]]) -> Measurement:
    """
    Let contenders take turns.

    :param steps: By name, what is timed; ``dense`` among them.
    """
    for step in steps.values():
        step()  # compiles, allocates, computes indices
    times: dict[str, list[float]] = {name: [] for name in steps}
    contenders = list(steps)
    rounds, begin = 0, time.perf_counter()
    while rounds < _MIN_ROUNDS or (rounds < _MAX_ROUNDS and time.perf_counter() - begin < _SECONDS):
        for name in contenders:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
        fastest = min(min(times[name]) for name in contenders)
        contenders = [name for name in contenders if min(times[name]) < _FAR_WORSE * fastest]
        rounds += 1
    seconds = {name: min(values) for name, values in times.items()}
    best = min(seconds, key=seconds.__getitem__)
    if seconds["dense"] < _MARGIN * seconds[best]:
        best = "dense"
    is_clear = all(statistics.median(times[name]) <= _MAX_SCATTER * seconds[name] for name in contenders)
    ranking = sorted(seconds.items(), key=lambda item: item[1])
    return Measurement(best, seconds, is_clear, ", ".join(f"{name} {1e3 * t:.3g} ms" for name, t in ranking))


def _sample(topology: Topology, batch: int) -> Topology:
    """A random topology of the same density, whose products with a batch are bounded in time and memory."""
    numel = min(_MAX_NUMEL, _MAX_WORK // batch)
    rows, columns = (min(size, _MAX_VALUES // batch) for size in (topology.rows, topology.columns))
    rows = min(rows, max(_MIN_ROWS * th.get_num_threads(), numel // columns))
    columns = min(columns, max(1, numel // rows))
    # A generator of its own: measuring must not change what a seed stands for.
    alive = np.random.default_rng(0).random(rows * columns, dtype=np.float32) < topology.density
    return Topology((rows, columns), np.flatnonzero(alive))


def _step(backend: Backend, x: th.Tensor, values: th.Tensor, grad: th.Tensor | None, topology: Topology) -> Callable[[], None]:
    """What is timed of a backend: one product, and the gradients if ``grad`` is given."""
    batch = len(x)

    def step() -> None:
        packed = backend.pack(x)
        backend.forward(packed, values, topology, None, batch)
        if grad is not None:
            packed_grad = backend.pack(grad)
            backend.grad_input(packed_grad, values, topology, batch)
            backend.grad_values(packed_grad, packed, topology, batch)
        if x.device.type != "cpu":
            th.accelerator.synchronize(x.device)

    return step
