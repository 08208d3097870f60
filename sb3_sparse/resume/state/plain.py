"""Which attributes of an object are its state: plain data, in contrast to networks, functions, files and the like."""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any

import numpy as np

_ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic, Enum, np.random.Generator, np.random.RandomState)


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


def is_plain(value: Any, also: Callable[[Any], bool] = _nothing_else) -> bool:
    """Whether a value is data and nothing else."""
    if isinstance(value, _ATOMS) or also(value):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype != object or all(is_plain(inner, also) for inner in value.flat)
    if type(value) in (dict, OrderedDict):
        items: Mapping[Any, Any] = value
        return all(is_plain(key, also) and is_plain(inner, also) for key, inner in items.items())
    # Tuples with names count, of any class.
    is_collection = type(value) in (list, set, frozenset, deque) or isinstance(value, tuple)
    return is_collection and all(is_plain(inner, also) for inner in value)
