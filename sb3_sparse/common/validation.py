"""
Checks of arguments: one sentence for each kind of mistake, wherever it is made.

Each function returns the value as a plain Python object, or raises a ``ValueError`` that names the argument, what was
given and what is allowed. NumPy's scalars, and arrays without dimensions, count as the numbers that they hold; a bool is
no number.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def whole_number(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """
    An integer. A float without a fraction counts as one, such as the 1.0e5 of a YAML file.

    :param minimum: The smallest that is allowed.
    :param maximum: The largest that is allowed.
    :raises ValueError: If it is no such number.
    """
    number = _plain(value)
    if (
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and (isinstance(number, int) or number.is_integer())
        and (minimum is None or number >= minimum)
        and (maximum is None or number <= maximum)
    ):
        return int(number)
    expected = "a whole number"
    if minimum is not None and maximum is not None:
        expected += f" from {minimum} to {maximum}"
    elif minimum == 1:
        expected = "a positive whole number"
    elif minimum is not None:
        expected += f" of at least {minimum}"
    raise ValueError(f"{name}={value!r}: expected {expected}.")


def whole_numbers(name: str, value: Any, minimum: int | None = None) -> list[int]:
    """
    A list of integers, from a list, tuple or array of them.

    :raises ValueError: If it is something else.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        kind = "positive whole numbers" if minimum == 1 else "whole numbers"
        raise ValueError(f"{name}={value!r}: expected a list of {kind}.")
    return [whole_number(f"{name}[{i}]", entry, minimum) for i, entry in enumerate(value)]


def no_array(name: str, value: T) -> T:
    """
    A list that SB3 keeps as it is given. When it loads an agent it asks whether it is true, which an array does not answer.

    :raises ValueError: If it is an array.
    """
    if isinstance(value, np.ndarray):
        given = np.atleast_1d(value).tolist()
        raise ValueError(
            f"{name}={value!r}: expected a list of positive whole numbers, {given}. SB3 cannot load agents of arrays."
        )
    return value


def fraction(name: str, value: Any) -> float:
    """
    :raises ValueError: If it is not a number in [0, 1].
    """
    return _number(name, value, lambda number: 0.0 <= number <= 1.0, "a number in [0, 1]")


def finite(name: str, value: Any) -> float:
    """
    :raises ValueError: If it is not a finite number.
    """
    return _number(name, value, lambda number: abs(number) <= sys.float_info.max, "a finite number")


def positive(name: str, value: Any) -> float:
    """
    :raises ValueError: If it is not a finite number above 0.
    """
    return _number(name, value, lambda number: 0.0 < number <= sys.float_info.max, "a positive number")


def non_negative(name: str, value: Any) -> float:
    """
    :raises ValueError: If it is not a finite number of at least 0.
    """
    return _number(name, value, lambda number: 0.0 <= number <= sys.float_info.max, "a number that is not negative")


def flag(name: str, value: Any) -> bool:
    """
    :raises ValueError: If it is neither True nor False.
    """
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise ValueError(f"{name}={value!r}: expected True or False.")
    return plain


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """
    :raises ValueError: If it is none of the names that are allowed.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {sorted(allowed)}.")
    return str(value)


def names(name: str, value: Any) -> list[str]:
    """
    Names, each once: from one of them, or a list, tuple or array.

    :raises ValueError: If it is something else, or there is none.
    """
    entries = [value] if isinstance(value, str) else plain(value)
    if not isinstance(entries, (list, tuple)) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"{name}={value!r}: expected a name, or a list of names.")
    return list(dict.fromkeys(map(str, entries)))


def number_in(name: str, value: Any, low: float, high: float) -> float:
    """
    :raises ValueError: If it is not a number in [low, high).
    """
    return _number(name, value, lambda number: low <= number < high, f"a number in [{low:g}, {high:g})")


def per_network(
    name: str, value: Any, networks: Collection[str], check: Callable[[str, Any], T], one: str = "a number"
) -> dict[str, T]:
    """
    A keyword's value for every network of a policy: one for all of them, or one for each by the name of the network.

    >>> per_network("width_scale", {"pi": 1, "qf": 4}, ["pi", "qf"], positive)
    {'pi': 1.0, 'qf': 4.0}

    :param networks: Their names.
    :param check: Takes the name for messages and one value, and returns it as plain Python.
    :param one: What one value is, in words.
    :raises ValueError: If a value is wrong, or the networks that are named are not those that there are.
    """
    if not isinstance(value, Mapping):
        return {network: check(name, value) for network in networks}
    if set(value) != set(networks):
        raise ValueError(f"{name}={dict(value)!r}: expected {one}, or one for each of {list(networks)}.")
    return {network: check(f"{name}[{network!r}]", value[network]) for network in networks}


def plain(value: Any) -> Any:
    """The same as plain Python, as it is written to files: NumPy's scalars and arrays, also inside of lists and dicts."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {_plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    return _plain(value)


def _number(name: str, value: Any, is_allowed: Any, expected: str) -> float:
    number = _plain(value)
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not is_allowed(number):
        raise ValueError(f"{name}={value!r}: expected {expected}.")
    return float(number)


def _plain(value: Any) -> Any:
    """What a NumPy scalar, or an array without dimensions, holds; anything else as it is."""
    is_scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if is_scalar else value


def check_off_policy(model: Any) -> None:
    """
    Settings that SB3's ``OffPolicyAlgorithm`` takes as they are, from its constructor, ``load`` or ``custom_objects``. Whole
    numbers become Python's.

    :param model: An agent of it.
    :raises ValueError: If one is out of range.
    """
    smallest = {"batch_size": 1, "buffer_size": 1, "learning_starts": 0, "gradient_steps": -1}
    for name, minimum in smallest.items():
        setattr(model, name, whole_number(name, getattr(model, name), minimum))
    for name in ("tau", "gamma"):
        fraction(name, getattr(model, name))
    frequency = model.train_freq
    if isinstance(frequency, tuple):
        whole_number("train_freq[0]", frequency[0] if frequency else None, 1)
    else:
        whole_number("train_freq", frequency, 1)


def refuse_at_load(fixed: Collection[str], given: Mapping[str, Any], what: str) -> None:
    """
    See whether keywords of ``load`` are settings that a saved agent keeps: SB3 would write them down, and not use them.

    :param fixed: Names of those that it keeps.
    :param given: The keywords.
    :param what: What they made, for the message.
    :raises ValueError: If one is given.
    """
    if named := sorted(set(fixed) & given.keys()):
        values = ", ".join(f"{name}={given[name]!r}" for name in named)
        raise ValueError(
            f"load(..., {values}): the saved agent has its own, which made {what}. Leave them out, or make a new agent."
        )
