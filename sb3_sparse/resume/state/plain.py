"""Which attributes of an object are its state: plain data, in contrast to networks, functions, files and the like."""

from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

import numpy as np

_ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic, Enum, np.random.Generator, np.random.RandomState)


def plain_attributes(owner: object, without: Collection[str] = ()) -> dict[str, Any]:
    """
    The attributes that hold plain data: numbers, text, arrays, random generators, and collections of these.

    :param owner: Of any class with a ``__dict__``.
    :param without: Names that are left out.
    """
    return {name: value for name, value in vars(owner).items() if name not in without and is_plain(value)}


def is_plain(value: Any) -> bool:
    """Whether a value is data and nothing else."""
    if isinstance(value, _ATOMS):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype != object or all(map(is_plain, value.flat))
    if type(value) in (dict, OrderedDict):
        items: Mapping[Any, Any] = value
        return all(is_plain(key) and is_plain(inner) for key, inner in items.items())
    # Tuples with names count, of any class.
    return (type(value) in (list, set, frozenset, deque) or isinstance(value, tuple)) and all(map(is_plain, value))
