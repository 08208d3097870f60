"""Observation and action spaces as plain values, and back."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

# What each kind of space is made of, by the names of its constructor.
_PARTS: dict[type[spaces.Space], tuple[str, ...]] = {
    spaces.Box: ("low", "high", "dtype"),
    spaces.Discrete: ("n", "start", "dtype"),
    spaces.MultiDiscrete: ("nvec", "start", "dtype"),
    spaces.MultiBinary: ("n",),
    spaces.Dict: ("spaces",),
    spaces.Tuple: ("spaces",),
}
_KINDS = {kind.__name__: kind for kind in _PARTS}
# Which bounds count as bounds: of integers, the limits of the type may stand for infinity.
_BOUNDED = ("bounded_below", "bounded_above")


def is_space(value: Any) -> bool:
    """Whether it is of one of the kinds that are known here, not of a subclass."""
    return type(value) in _PARTS


def space_parts(space: spaces.Space) -> dict[str, Any]:
    """
    What a space is made of: its kind, the arguments of its constructor, and its random state if it has one.

    :param space: One that :func:`is_space`.
    """
    parts: dict[str, Any] = {"space": type(space).__name__}
    for name in _PARTS[type(space)]:
        # Versions of gymnasium differ in whether a Discrete has a dtype.
        if hasattr(space, name):
            parts[name] = getattr(space, name)
    if isinstance(space, spaces.Dict):
        # In their order, which a dictionary would lose in the constructor.
        parts["spaces"] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts["spaces"] = tuple(space.spaces)
    elif isinstance(space, spaces.Box):
        again = spaces.Box(space.low, space.high, dtype=space.dtype)
        for name in _BOUNDED:
            if not np.array_equal(getattr(again, name), getattr(space, name)):
                parts[name] = getattr(space, name)
    generator = getattr(space, "_np_random", None)
    if generator is not None:
        parts["random"] = generator
    return parts


def space_from(parts: dict[str, Any]) -> spaces.Space:
    """
    The space that :func:`space_parts` took apart.

    :raises ValueError: If it is none.
    """
    kind: Callable[..., Any] | None = _KINDS.get(parts.get("space", ""))
    if kind is None:
        raise ValueError(f"it has a space of the kind {parts.get('space')!r}: expected one of {sorted(_KINDS)}.")
    given = {name: value for name, value in parts.items() if name not in ("space", "random", *_BOUNDED)}
    if unknown := given.keys() - set(_PARTS[_KINDS[parts["space"]]]):
        raise ValueError(f"it has a {parts['space']} with {sorted(unknown)}, which is no part of one.")
    if isinstance(given.get("n"), np.ndarray) and kind is spaces.Discrete:
        raise ValueError("it has a Discrete with several numbers.")
    try:
        space = kind(**given)
    except (AssertionError, AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"it has a {parts['space']} that cannot be: {error}") from error
    for name in _BOUNDED:
        if name in parts:
            if np.shape(parts[name]) != space.shape:
                raise ValueError(f"{name} of its Box has another shape.")
            setattr(space, name, parts[name])
    if "random" in parts:
        if not isinstance(parts["random"], np.random.Generator):
            raise ValueError("the random state of its space is none.")
        space._np_random = parts["random"]
    return space
