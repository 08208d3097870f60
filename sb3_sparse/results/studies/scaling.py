"""Scaling curves: which groups lie on one line, and where along it."""

from collections.abc import Iterable, Sequence

from sb3_sparse.results.studies.grouping import MISSING, Group, named, shown
from sb3_sparse.results.studies.reading import Label

# Horizontal axes that every study has.
TOTAL, LEARNABLE = "total parameters", "learnable parameters"


def horizontal_axes(groups: Sequence[Group], axes: Sequence[str]) -> list[str]:
    """
    What scaling curves of a study can be drawn against: parameters, then axes of numbers that have several values.

    :param groups: All of them.
    :param axes: Names.
    """
    found = [TOTAL, LEARNABLE]
    for name in axes:
        # An arm of its own, such as SB3's policy, may have no such axis, and is not drawn against it.
        values = {group.axes[name] for group in groups if name in group.axes}
        if len(values) > 1 and _are_numbers(values):
            found.append(name)
    return found


def _are_numbers(values: Iterable[Label | None]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def place(group: Group, horizontal: str) -> float:
    """
    Where a group lies.

    :param group: The group.
    :param horizontal: One of :func:`horizontal_axes`.
    """
    if horizontal in (TOTAL, LEARNABLE):
        return group.total if horizontal == TOTAL else group.learnable
    return float(group.axes[horizontal] or 0)


def has_place(group: Group, horizontal: str) -> bool:
    """
    Whether a group lies anywhere along an axis, which only some may have.

    :param group: The group.
    :param horizontal: One of :func:`horizontal_axes`.
    """
    return horizontal in (TOTAL, LEARNABLE) or horizontal in group.axes


def scaling_lines(groups: Sequence[Group], axes: Sequence[str], horizontal: str) -> dict[str, list[Group]]:
    """
    Groups on lines, by what those on a line have in common.

    A line goes along the axis that is drawn. Against parameters it goes along all axes of numbers by which the total number
    of parameters changes, such as width and depth; sparsity does not change that number, and labels have no order, so that
    each of them has its own line.

    :param groups: Of one task.
    :param axes: Names.
    :param horizontal: One of :func:`horizontal_axes`.
    :return: Each line from left to right. Groups without the axis are on none.
    """
    groups = [group for group in groups if has_place(group, horizontal)]
    along = {horizontal} if horizontal not in (TOTAL, LEARNABLE) else _size_axes(groups, axes)
    fixed = [
        name for name in axes if name not in along and len({shown(group.axes.get(name, MISSING)) for group in groups}) > 1
    ]
    found: dict[str, list[Group]] = {}
    for group in groups:
        name = named(group.axes, fixed)
        found.setdefault(f"{name} [{group.variant}]" if group.variant else name, []).append(group)
    return {name: sorted(members, key=lambda group: place(group, horizontal)) for name, members in found.items()}


def _size_axes(groups: Sequence[Group], axes: Sequence[str]) -> set[str]:
    """Axes of numbers along which, all others equal, the number of parameters changes, or of which no two groups tell it."""
    found = set()
    for name in axes:
        if not _are_numbers(group.axes[name] for group in groups if name in group.axes):
            continue
        totals: dict[tuple[str, ...], list[float]] = {}
        for group in groups:
            others = tuple(shown(group.axes.get(other, MISSING)) for other in axes if other != name)
            totals.setdefault((*others, group.variant), []).append(group.total)
        told = [those for those in totals.values() if len(those) > 1]
        if not told or any(len(set(those)) > 1 for those in told):
            found.add(name)
    return found
