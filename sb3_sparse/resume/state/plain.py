"""Which values are state that anybody can write (plain data), and which have none (code)."""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch as th

#: Classes of what cannot change.
CONSTANTS = (type(None), bool, int, float, complex, str, bytes, np.generic, Enum)
# Whose functions use what they were made with, and change nothing of it.
_LIBRARIES = ("gymnasium", "stable_baselines3", "sb3_contrib")
# What instances of their classes hold is written elsewhere, or made anew.
_KNOWN = ("stable_baselines3", "sb3_contrib", "sb3_sparse")
_ATOMS = (*CONSTANTS, np.random.Generator, np.random.RandomState)


def _nothing_else(value: Any) -> bool:
    return False


def plain_attributes(
    owner: object, without: Collection[str] = (), also: Callable[[Any], bool] = _nothing_else
) -> dict[str, Any]:
    """
    The attributes that hold plain data: numbers, text, arrays, random generators, and collections of these.

    :param owner: Of any class with a ``__dict__``.
    :param without: Names that are left out.
    :param also: What else is data.
    """
    return {name: value for name, value in vars(owner).items() if name not in without and is_plain(value, also)}


def is_plain(value: Any, also: Callable[[Any], bool] = _nothing_else, around: frozenset[int] = frozenset()) -> bool:
    """
    Whether a value is data and nothing else.

    :param value: The value.
    :param also: What else is data.
    :param around: The ``id`` of collections that it is in: a tree knows its parents.
    """
    if isinstance(value, _ATOMS) or also(value) or id(value) in around:
        return True
    if isinstance(value, np.ndarray) and value.dtype != object:
        return True
    inside: Iterable[Any]
    if type(value) in (dict, OrderedDict):
        items: Mapping[Any, Any] = value
        inside = chain(items.keys(), items.values())
    elif isinstance(value, np.ndarray):
        inside = value.flat
    # Tuples with names count, of any class.
    elif type(value) in (list, set, frozenset, deque) or isinstance(value, tuple):
        inside = value
    else:
        return False
    around |= {id(value)}
    return all(is_plain(inner, also, around) for inner in inside)


def is_from_library(kind: type) -> bool:
    """Whether a class is one of SB3, sb3-contrib or this package, whose states are known."""
    return kind.__module__.partition(".")[0] in _KNOWN


def is_code(value: Any, known: Collection[int] = ()) -> bool:
    """
    Whether a value is code that remembers nothing: a class, or a function that uses only constants of where it was made.

    :param value: The value.
    :param known: The ``id`` of objects that are written elsewhere, and may be used.
    """
    if isinstance(value, (type, ModuleType)):
        return True
    if isinstance(value, (MethodType, BuiltinFunctionType)):
        owner = value.__self__
        return owner is None or id(owner) in known or is_code(owner, known)
    if isinstance(value, partial):
        return all(_is_constant(each, known) for each in (value.func, *value.args, *value.keywords.values()))
    if not isinstance(value, FunctionType):
        return False
    if (value.__module__ or "").partition(".")[0] in _LIBRARIES:
        return True
    used = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    for cell in value.__closure__ or ():
        try:
            used.append(cell.cell_contents)
        except ValueError:
            # Of a name that was never given a value.
            continue
    return all(each is value or _is_constant(each, known) for each in used)


def _is_constant(value: Any, known: Collection[int]) -> bool:
    """Values that code does not change, or nearly never: arrays are factors and bounds."""
    if id(value) in known or isinstance(value, (*CONSTANTS, np.ndarray, th.dtype, th.device)):
        return True
    if isinstance(value, (tuple, frozenset)):
        return all(_is_constant(each, known) for each in value)
    return is_code(value, known)
