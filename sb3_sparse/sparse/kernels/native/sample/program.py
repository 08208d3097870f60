"""
Programs: many kernels in a row, run by one call from Python.

A pass of a small network takes microseconds, calling anything from Python takes one each. So a network becomes a
:class:`Program`, a list of instructions, which one call runs from the first to the last. An instruction is a kernel
and its arguments, 64-bit words: addresses of float32 arrays (double for sums, int32 for the beginnings of sparse rows,
uint16 for columns) and sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import POINTER, WORD, Code, word
from sb3_sparse.sparse.kernels.native.compile import compile_module
from sb3_sparse.sparse.kernels.native.entry import builtin, write_entry

# Words per instruction: the address of the kernel, then its arguments.
WORDS = 16


class Definition(NamedTuple):
    """How to write a kernel."""

    name: str
    arguments: str
    """Names, in the order of an instruction; those that begin with ``n_`` are integers."""
    write: Callable[..., None]
    """Called with the code and the arguments."""
    vectorize: bool
    """Whether LLVM may turn scalar operations into vector operations."""

    def module(self) -> ir.Module:
        """The kernel alone, to be read: ``python -m sb3_sparse.sparse.kernels.native MODULE.NAME``."""
        module = ir.Module()
        self.write_into(module)
        return module

    def write_into(self, module: ir.Module) -> None:
        """Write the kernel into a module."""
        names = self.arguments.split()
        kinds = [WORD if name.startswith("n_") else POINTER for name in names]
        inner = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), self.name + ".inner")
        inner.linkage = "internal"
        # Inlined, it would lose the knowledge that its arrays do not overlap.
        inner.attributes.add("noinline")
        for argument, name, kind in zip(inner.args, names, kinds, strict=True):
            argument.name = name
            if kind is POINTER:
                argument.add_attribute("noalias")
        code = Code(module, inner)
        self.write(code, *inner.args)
        code.build.ret_void()
        outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), self.name)
        code = Code(module, outer)
        code.build.call(inner, [code.load(outer.args[0], word(i + 1), kind) for i, kind in enumerate(kinds)])
        code.build.ret_void()


class KernelSet:
    """
    Kernels that programs are made of, compiled together when the first program is made.

    :param written: Of each name the arguments, see :class:`Definition`, and what writes it.
    """

    def __init__(self, written: Mapping[str, tuple[str, Callable[..., None]]]):
        self.written = written

    def define(self, name: str) -> Definition:
        """
        How to write a kernel.

        :raises KeyError: If there is none of that name.
        """
        arguments, write = self.written[name]
        # Of sparse ones LLVM would gather with vector instructions, which take longer than one load after the other.
        return Definition(name, arguments, write, vectorize="sparse" not in name)

    @cached_property
    def addresses(self) -> dict[str, int]:
        """Addresses of all kernels by name, and of the entry to ``run``."""
        modules = {True: ir.Module(), False: ir.Module()}
        definitions = [self.define(name) for name in self.written]
        for definition in definitions:
            definition.write_into(modules[definition.vectorize])
        write_entry(modules[True], _write_run(modules[True]))
        engines = {vectorize: compile_module(module, vectorize) for vectorize, module in modules.items()}
        addresses = {each.name: engines[each.vectorize].get_function_address(each.name) for each in definitions}
        return {**addresses, "entry": engines[True].get_function_address("entry")}

    @cached_property
    def run(self) -> Callable[..., None]:
        """``run``, as Python calls it."""
        return builtin(self.addresses["entry"])

    def why_not_compiled(self) -> str | None:
        """What LLVM says if it has no code for this processor; else None."""
        try:
            _ = self.addresses
        except RuntimeError as error:
            return str(error)
        return None


class Program:
    """
    A list of instructions. A subclass says which kernels there are.

    :param instructions: Each is the name of a kernel and its arguments: arrays, which are kept alive, or integers, such as
        the addresses of what somebody else keeps.
    """

    kernels: ClassVar[KernelSet]

    def __init__(self, instructions: Sequence[tuple[Any, ...]]):
        addresses = self.kernels.addresses
        self._kept = instructions
        words = np.zeros((len(instructions), WORDS), dtype=np.int64)
        for line, (name, *arguments) in zip(words, instructions, strict=True):
            line[0] = addresses[name]
            line[1 : len(arguments) + 1] = [_address(argument) for argument in arguments]
        self._words = words
        self._run = self.kernels.run
        self._arguments = (words.ctypes.data, len(words))

    def run(self) -> None:
        """Run all instructions, in order."""
        self._run(*self._arguments)


def _address(argument: Any) -> int:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return argument.ctypes.data
    return int(argument)


def _write_run(module: ir.Module) -> ir.Function:
    """``run(instructions, n)``: calls the kernel of each instruction with the address of the instruction."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, WORD]), "run")
    code = Code(module, function)
    instructions, n = function.args

    def one(i: ir.Value) -> None:
        words = code.at(instructions, code.build.mul(i, word(WORDS)), WORD)
        code.call_address(code.load(words, word(0), POINTER), ir.VoidType(), words)

    code.loop(word(0), n, one)
    code.build.ret_void()
    return function
