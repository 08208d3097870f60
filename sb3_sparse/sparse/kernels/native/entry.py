"""
How Python calls a kernel: as a builtin of its own, such as ``len``.

Calling through ctypes takes longer than a small product: it converts arguments one by one, by rules that it looks up. Here
the conversion is machine code, too, of the same module as the kernel.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from sb3_sparse.sparse.kernels.native.code import POINTER, WORD, Code, word

_METH_FASTCALL = 0x80  # called with an array of arguments and their number


class _MethodDefinition(ctypes.Structure):
    """CPython's ``PyMethodDef``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("documentation", ctypes.c_char_p),
    )


_definitions: list[_MethodDefinition] = []  # read at every call, so they live as long as the code: for ever


def write_entry(module: ir.Module, function: ir.Function) -> None:
    """
    Add ``PyObject *entry(PyObject *self, PyObject **arguments, ssize_t n)``, which calls a function of pointers and words.

    It returns None, releases Python's lock meanwhile, and raises a TypeError if the arguments are not so many integers.
    """
    entry = ir.Function(module, ir.FunctionType(POINTER, [POINTER, POINTER, WORD]), "entry")
    code = Code(module, entry)
    build, null = code.build, ir.Constant(POINTER, None)
    _, given, n_given = entry.args
    with build.if_then(build.icmp_unsigned("!=", n_given, word(len(function.args)))):
        _python(code, "PyErr_BadArgument", WORD)
        build.ret(null)
    objects = [code.load(given, word(i), POINTER) for i in range(len(function.args))]
    words = [_python(code, "PyLong_AsUnsignedLongLongMask", WORD, each) for each in objects]
    error = build.ptrtoint(_python(code, "PyErr_Occurred", POINTER), WORD)
    with build.if_then(build.icmp_unsigned("!=", error, word(0))):
        build.ret(null)
    state = _python(code, "PyEval_SaveThread", POINTER)
    kinds = [argument.type for argument in function.args]
    build.call(function, [build.inttoptr(w, POINTER) if kind is POINTER else w for w, kind in zip(words, kinds, strict=True)])
    _python(code, "PyEval_RestoreThread", ir.VoidType(), state)
    none = build.inttoptr(word(id(None)), POINTER)
    _python(code, "Py_IncRef", ir.VoidType(), none)
    build.ret(none)


def builtin(entry: int) -> Callable[..., None]:
    """
    What Python calls.

    :param entry: Address of what :func:`write_entry` wrote.
    """
    definition = _MethodDefinition(b"kernel", entry, _METH_FASTCALL, None)
    _definitions.append(definition)
    make: Any = ctypes.pythonapi.PyCFunction_NewEx
    make.argtypes, make.restype = [ctypes.c_void_p] * 3, ctypes.py_object
    function: Callable[..., None] = make(ctypes.addressof(definition), None, None)
    return function


def _python(code: Code, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """A call of a function of CPython's."""
    address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
    return code.call_address(code.build.inttoptr(word(address or 0), POINTER), result, *arguments)
