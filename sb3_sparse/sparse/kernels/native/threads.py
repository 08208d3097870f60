"""
Sharing a kernel's rows among threads.

Torch's own OpenMP threads do the work where they can be reached: they spin for a while after each operation of
torch, and a second set of threads would have to compete with them. Otherwise Python's threads do. Either way a
call uses ``torch.get_num_threads()`` threads at most, and ends with all of them done.
"""

import ctypes
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch as th

from sb3_sparse.sparse.kernels.native.kernel import Kernel

# Below this many multiply-adds per thread, waking it takes longer than it saves.
MIN_WORK = 1 << 18


def thread_count(work: int) -> int:
    """
    How many threads to use.

    :param work: Number of multiply-adds.
    """
    if work < 2 * MIN_WORK or _in_forked_child:
        return 1
    return max(1, min(th.get_num_threads(), work // MIN_WORK))


def run(kernel: Kernel, arguments: tuple[int, ...], bounds: tuple[int, ...]) -> None:
    """
    Call a kernel on every range of rows ``bounds[i]`` to ``bounds[i + 1]``, at the same time.

    :param kernel: What to call.
    :param arguments: Its arguments before the rows: pointers and integers.
    :param bounds: Where the ranges begin and end. Each is worked on by one thread.
    """
    n_parts = len(bounds) - 1
    if n_parts == 1:
        kernel.call(*arguments, *bounds)
        return
    openmp = _openmp()
    if openmp is None:
        others: list[Future[None]] = []
        try:
            for i in range(1, n_parts):
                others.append(_pool().submit(kernel.call, *arguments, *bounds[i : i + 2]))
            kernel.call(*arguments, *bounds[:2])
        finally:
            _wait_for(others)
        return
    word_bounds = (ctypes.c_int64 * len(bounds))(*bounds)
    words = (*openmp.functions, n_parts, ctypes.addressof(word_bounds), *arguments)
    data = (ctypes.c_int64 * len(words))(*words)
    openmp.parallel(kernel.task, data, n_parts, 0)


def _wait_for(others: list["Future[None]"]) -> None:
    """Until all are done, whatever interrupts: they write into memory that the caller may free then."""
    try:
        wait(others)
    except BaseException:
        _wait_for(others)
        raise
    for other in others:
        other.result()


class _OpenMP:
    """The OpenMP library that torch has loaded."""

    def __init__(self, path: str):
        library = ctypes.CDLL(path)
        self.parallel: Any = library.GOMP_parallel
        self.parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.parallel.restype = None
        self.functions = tuple(
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
            for name in ("omp_get_thread_num", "omp_get_num_threads")
        )


@cache
def _openmp() -> _OpenMP | None:
    folder = Path(th.__file__).parent
    files = [*folder.glob("lib/lib*"), *folder.parent.glob("torch.libs/lib*")]
    for library in sorted(file for file in files if re.match(r"lib[gi]?omp\d*[.-]", file.name)):
        try:
            return _OpenMP(str(library))
        except (OSError, AttributeError):
            continue
    return None


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="sb3-sparse")


_in_forked_child = False


def _enter_forked_child() -> None:
    # The threads of the parent do not exist here, and OpenMP would wait for them for ever.
    global _in_forked_child
    _in_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_forked_child)
