"""Each group against a baseline, and groups over several environments together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sb3_sparse.results.aggregates import Estimate, estimate, mean, probability_of_improvement, score_matrix
from sb3_sparse.results.studies.grouping import Group, Grouping, axes_key, by_task, named, shown
from sb3_sparse.results.studies.reading import FINAL, Label

SPARSITY = "sparsity"


@dataclass(frozen=True)
class Comparison:
    """A group against its baseline, by the final return."""

    group: Group
    baseline: Group | None
    """None if there is none."""
    probability: Estimate | None
    """Of a run of the group being better than one of the baseline."""
    difference: Estimate | None
    """Of the mean returns."""
    reason: str
    """Why there is no comparison; empty if there is one."""


def parse_baseline(arguments: Sequence[str]) -> dict[str, Label]:
    """
    Values of axes from a command line.

    >>> parse_baseline(["sparsity=0", "net=large"])
    {'sparsity': 0, 'net': 'large'}

    :param arguments: Each as ``AXIS=VALUE``.
    :raises ValueError: If one is something else.
    """
    found: dict[str, Label] = {}
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or not name:
            raise ValueError(f"--baseline {argument!r}: expected AXIS=VALUE, such as sparsity=0.")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[name] = value if isinstance(value, str | int | float | bool | None) else text
    return found


def choose_baseline(grouping: Grouping, chosen: Mapping[str, Label] | None) -> dict[str, Label]:
    """
    The values of axes that a baseline has; its other values are those of the group that is compared with it.

    :param grouping: The groups.
    :param chosen: The user's choice; None: the lowest sparsity, or without such an axis all values of the first group.
    :raises ValueError: If no group has a value that was chosen.
    """
    if not chosen:
        densities = {group.axes.get(SPARSITY) for group in grouping.groups}
        numbers = [value for value in densities if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(densities) > 1 and numbers:
            return {SPARSITY: min(numbers)}
        return dict(grouping.groups[0].axes) if grouping.groups else {}
    for name, value in chosen.items():
        values = {shown(group.axes[name]): None for group in grouping.groups if name in group.axes}
        if not any(name in group.axes and _equal(group.axes[name], value) for group in grouping.groups):
            known = f"{name!r} has the values {', '.join(values)}" if values else f"the axes are {grouping.axes}"
            raise ValueError(f"--baseline {name}={shown(value)}: no group has it; {known}.")
    return dict(chosen)


def compare(groups: Sequence[Group], baseline: Mapping[str, Label]) -> list[Comparison]:
    """
    Each group against the one that has the baseline's values, and its own ones of the other axes.

    :param groups: Of one task.
    :param baseline: From :func:`choose_baseline`.
    """
    return [_compare(group, groups, baseline) for group in groups]


def _compare(group: Group, groups: Sequence[Group], baseline: Mapping[str, Label]) -> Comparison:
    wanted = {**group.axes, **baseline}
    there = [other for other in groups if _same_axes(other.axes, wanted)]
    # Where settings are mixed, those of the group itself.
    found = [other for other in there if other.variant == group.variant]
    if not found:
        mixed = " of the same other settings: settings are mixed" if there else ""
        return Comparison(group, None, None, None, f"no run with {named(wanted, wanted)}{mixed}")
    if found[0] is group:
        return Comparison(group, group, None, None, "is the baseline")
    scores, others = (score_matrix(each.scores(FINAL)) for each in (group, found[0]))
    return Comparison(
        group,
        found[0],
        estimate(probability_of_improvement, scores, others),
        estimate(lambda first, second: mean(first) - mean(second), scores, others),
        "",
    )


def over_environments(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """
    Groups that are there in every environment of an algorithm, as groups over all of them.

    :param groups: Of all tasks.
    :return: The groups, and a sentence about each that cannot be put together, or of runs of different lengths.
    """
    found: list[Group] = []
    reasons: list[str] = []
    for algo in dict.fromkeys(group.algo for group in groups):
        tasks = by_task(group for group in groups if group.algo == algo)
        alike: dict[tuple[str, ...], list[Group]] = {}
        for group in (group for group in groups if group.algo == algo and len(tasks) > 1):
            alike.setdefault((group.runs[0].study, axes_key(group.axes), group.variant), []).append(group)
        for parts in alike.values():
            label = parts[0].label
            missing = sorted({members[0].env for members in tasks.values()} - {part.env for part in parts})
            runs = [run for part in parts for run in part.runs]
            together = Group(algo, f"all {len(tasks)} environments", label, parts[0].axes, parts[0].variant, runs)
            try:
                if missing:
                    raise ValueError(f"no finished run in {', '.join(missing)}")
                score_matrix(together.scores(FINAL), "final returns")
            except ValueError as error:
                reasons.append(f"{algo}, {label}: {error}")
            else:
                found.append(together)
                if len(lengths := {str(run.settings.get("n_timesteps")) for run in runs}) > 1:
                    reasons.append(f"{algo}, {label}: put together, though n_timesteps is {', '.join(sorted(lengths))}")
    return found, reasons


def _same_axes(first: Mapping[str, Label], second: Mapping[str, Label]) -> bool:
    return set(first) == set(second) and all(_equal(first[name], second[name]) for name in first)


def _equal(first: Any, second: Any) -> bool:
    """As numbers, where True is none."""
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)
