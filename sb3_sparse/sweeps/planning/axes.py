"""The axes of a plan: labels, and what each changes of a run."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sb3_sparse.common.validation import whole_number, whole_numbers

# What a run is made of; a point of an axis and a block of `also` may change any of it.
OF_RUN = ("algo", "env", "n_timesteps", "hyperparams", "evaluation", "callbacks", "device")
# Axes by a short name, and the hyperparameter that each is.
SHORT = {"width": "policy_kwargs.width_scale", "depth": "policy_kwargs.depth_scale", "sparsity": "policy_kwargs.sparsity"}
SEEDS = "expected a number of seeds, of at least 1, or a list of them"
Point = tuple[str, Any, dict[str, Any]]
"""The name of an axis, a label, and what that changes."""


def axes_of(block: Mapping[str, Any]) -> dict[str, list[Point]]:
    """
    The points of each axis of a block; one seed where it says nothing of seeds.

    :param block: Of a plan, or the plan.
    :raises ValueError: If an axis is none, has no points, or two of them are the same.
    """
    axes: dict[str, list[Point]] = {}
    for name, values in mapping("axes", block.get("axes")).items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"axes: {name!r} is no name.")
        axes[name] = _seeds(values) if name == "seed" else _points(name, values)
        if not axes[name]:
            raise ValueError(f"axes.{name} has no values: leave it out, or name some.")
    axes.setdefault("seed", _seeds([0]))
    return axes


def check_labels(points: Iterable[Mapping[str, Any]]) -> None:
    """
    See that no two labels of one axis, perhaps of two blocks, look the same, or have the same value.

    :param points: Of each run, its labels by axis.
    :raises ValueError: If two do.
    """
    known: dict[str, list[Any]] = {}
    for point in points:
        for name, label in point.items():
            others = known.setdefault(name, [])
            if any(type(label) is type(other) and label == other for other in others):
                continue
            for other in others:
                if (as_label(label) == as_label(other)) != (label == other):
                    raise ValueError(f"axes.{name} has {other!r} and {label!r}, which reports cannot tell apart: rename one.")
            others.append(label)


def as_label(value: Any) -> str:
    """A label as it stands in names."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def mapping(name: str, given: Any) -> Mapping[str, Any]:
    """
    Names with their values; none of None.

    :param name: For messages.
    :param given: Of a plan.
    :raises ValueError: If it is something else.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{name}={given!r}: expected names with their values.")
    return given


def check_names(place: str, given: Any, allowed: tuple[str, ...]) -> None:
    """
    See that no name is one that nothing knows.

    :param place: For messages.
    :param given: Names with their values.
    :param allowed: Names that there are.
    :raises ValueError: If one is unknown, or it is something else.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} is {given!r}: expected names with their values.")
    for name in given:
        if name not in allowed:
            close = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{place} has no entry {name!r}.{hint} It may have {', '.join(allowed)}.")


def _seeds(values: Any) -> list[Point]:
    if isinstance(values, Mapping):
        raise ValueError(f"axes.seed={values!r}: {SEEDS}. What changes more than the seed is an axis of its own.")
    if not isinstance(values, list):
        try:
            values = [*range(whole_number("axes.seed", values, 1))]
        except ValueError as error:
            raise ValueError(f"axes.seed={values!r}: {SEEDS}.") from error
    seeds = whole_numbers("axes.seed", values, 0)
    return [("seed", seed, {"seed": seed}) for seed in _different("seed", seeds)]


def _points(name: str, values: Any) -> list[Point]:
    if isinstance(values, Mapping):
        points = []
        for label in _different(name, [*values]):
            change, place = values[label] or {}, f"axes.{name}.{label}"
            if isinstance(change, Mapping) and "seed" in change:
                raise ValueError(
                    f"{place} has a seed: seeds are an axis of their own, axes.seed, a number of seeds or a list."
                )
            check_names(place, change, OF_RUN)
            points.append((name, label, dict(change)))
        return points
    if isinstance(values, list):
        return [(name, value, _change(name, value)) for value in _different(name, values)]
    raise ValueError(f"axes.{name}={values!r}: expected a list of values, or labels with what each changes.")


def _change(name: str, value: Any) -> dict[str, Any]:
    if name in ("algo", "env", "n_timesteps", "device"):
        return {name: value}
    return {"hyperparams": {SHORT.get(name, name): value}}


def _different(name: str, labels: Sequence[Any]) -> Sequence[Any]:
    """Labels, if they are numbers or words, and no two are the same."""
    for i, label in enumerate(labels):
        if not isinstance(label, (str, int, float, bool)) and label is not None:
            raise ValueError(f"axes.{name}: {label!r} is no number or word; give it a label, LABEL: {{hyperparams: ...}}.")
        if isinstance(label, float) and not math.isfinite(label):
            raise ValueError(f"axes.{name}: {label!r} is no finite number; give it another label.")
        for other in labels[:i]:
            if label == other or as_label(label) == as_label(other):
                raise ValueError(
                    f"axes.{name}: {as_label(label)} stands there twice, as {other!r} and {label!r}; leave one out, "
                    "or give them labels that differ."
                )
    return labels
