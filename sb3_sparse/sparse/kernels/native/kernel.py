"""
What a kernel is and how it is called.

A kernel works on a range of rows and is called as ``kernel(*pointers, *integers, first, last)``. Its arrays do not overlap.
"""

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import INT32, POINTER, WORD, Code, word
from sb3_sparse.sparse.kernels.native.compile import compile_module
from sb3_sparse.sparse.kernels.native.entry import builtin, write_entry


class Definition(NamedTuple):
    """How to write a kernel."""

    pointers: str
    """Names of the arrays that it is given, in order."""
    integers: str
    """Names of the integers that follow."""
    write: Callable[..., None]
    """Called with the code, the pointers, the integers, and the first row and the one after the last."""
    vectorize: bool = True
    """Whether LLVM may turn scalar operations into vector operations."""

    def module(self) -> ir.Module:
        """The kernel, as function ``kernel``, and ``task``, see :func:`_write_task`."""
        module = ir.Module()
        n_pointers, n_integers = len(self.pointers.split()), len(self.integers.split())
        kinds = [POINTER] * n_pointers + [WORD] * (n_integers + 2)
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "kernel")
        for argument, name in zip(function.args, f"{self.pointers} {self.integers} first last".split(), strict=True):
            argument.name = name
        for pointer in function.args[:n_pointers]:
            pointer.add_attribute("noalias")
        code = Code(module, function)
        self.write(code, *function.args)
        code.build.ret_void()
        _write_task(module, function)
        return module

    def compile(self) -> "Kernel":
        """The kernel, for this processor."""
        module = self.module()
        write_entry(module, module.get_global("kernel"))
        engine = compile_module(module, self.vectorize)
        return Kernel(builtin(engine.get_function_address("entry")), engine.get_function_address("task"))


class Kernel(NamedTuple):
    """Two ways to call a compiled kernel."""

    call: Callable[..., None]
    """``call(*arguments, first, last)``, all integers; releases Python's lock."""
    task: int
    """Address of a C function ``void task(int64_t *data)`` for a thread pool, see :func:`_write_task`."""


def _write_task(module: ir.Module, kernel: ir.Function) -> None:
    """
    ``task(data)``: the share of one thread of a pool in a kernel call.

    ``data`` is an array of 64-bit words: the addresses of ``omp_get_thread_num`` and ``omp_get_num_threads``, the
    number of row ranges, the address of their bounds, and the arguments of the kernel before the range.
    """
    task = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "task")
    code = Code(module, task)
    kinds = [POINTER, POINTER, WORD, POINTER, *(argument.type for argument in kernel.args[:-2])]
    words = [code.load(task.args[0], word(i), kind) for i, kind in enumerate(kinds)]
    thread_num, num_threads, parts, bounds, *arguments = words
    thread, threads = (code.build.zext(code.call_address(ask, INT32), WORD) for ask in (thread_num, num_threads))

    def part(i: ir.Value) -> None:
        begin = code.load(bounds, i, WORD)
        end = code.load(bounds, code.build.add(i, word(1)), WORD)
        code.build.call(kernel, [*arguments, begin, end])

    code.loop(thread, parts, part, step=threads)
    code.build.ret_void()
