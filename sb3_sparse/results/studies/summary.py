"""All that a report says about a study, put together once for tables, pictures and the page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sb3_sparse.results.statistics import Curve
from sb3_sparse.results.studies.comparing import Comparison, choose_baseline, compare, over_environments
from sb3_sparse.results.studies.grouping import Group, Grouping, by_task, group_study, shown
from sb3_sparse.results.studies.provenance import Used, all_used, mixtures
from sb3_sparse.results.studies.reading import FAILED, FINISHED, UNFINISHED, Label, Study, StudyRun
from sb3_sparse.results.studies.scaling import horizontal_axes

# Settings by which returns cannot be compared if they differ, unless they are what the study is about.
SAME = ("n_timesteps", "evaluation")


@dataclass(frozen=True)
class Summary:
    """A study with its groups and comparisons."""

    study: Study
    grouping: Grouping
    baseline: dict[str, Label]
    """Values of axes that the baseline of each group has."""
    tasks: dict[str, list[Comparison]]
    """The comparisons of all groups by task; then those over all environments of an algorithm."""
    apart: list[str]
    """A sentence about each group that cannot be put together over environments."""
    used: list[Used]
    """Versions, commits and machines."""

    @property
    def name(self) -> str:
        """What the plans of its runs were called."""
        return " and ".join(dict.fromkeys(run.study for run in self.study.runs))

    @property
    def groups(self) -> dict[str, list[Group]]:
        """Groups by task, as ``tasks``."""
        return {task: [comparison.group for comparison in found] for task, found in self.tasks.items()}

    @property
    def horizontals(self) -> list[str]:
        """What scaling curves can be drawn against."""
        return horizontal_axes(self.grouping.groups, self.grouping.axes)

    @cached_property
    def curves(self) -> dict[str, dict[str, dict[str, Curve]]]:
        """Means over runs while they were trained, by task, label of the group and name of the series."""
        return {task: {group.label: group.curves() for group in groups} for task, groups in self.grouping.tasks.items()}

    @property
    def counts(self) -> str:
        """How many runs there are, in words."""
        parts = [f"{len(self.study.in_state(state))} {state}" for state in (FINISHED, UNFINISHED, FAILED)]
        return f"{len(self.study.runs)} runs: {', '.join(parts)}; {len(self.study.damaged)} more cannot be read"

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know before any number."""
        found = [*self.grouping.notes, *_unequal(self.grouping), *mixtures(self.used)]
        if early := [run for run in self.study.in_state(FINISHED) if run.ended_early]:
            found.append(_ended_early(early))
        found += [_not_finite(run) for run in self.study.in_state(FINISHED) if run.result and run.result.not_finite]
        studies = dict.fromkeys(run.study for run in self.study.runs)
        if len(studies) > 1:
            found.append(f"Runs of several studies, which are kept apart: {', '.join(studies)}.")
        for state in (UNFINISHED, FAILED):
            if count := len(self.study.in_state(state)):
                found.append(f"{count} run(s) {state}: in no number and no curve.")
        return [*found, *(f"Left out: {problem}" for problem in self.study.damaged)]


def summarize(study: Study, baseline: Mapping[str, Label] | None = None) -> Summary:
    """
    Group the runs of a study, and compare the groups.

    :param study: From :func:`~sb3_sparse.results.studies.reading.read_study`.
    :param baseline: Values of axes that the baseline of each group has; None: see
        :func:`~sb3_sparse.results.studies.comparing.choose_baseline`.
    :raises ValueError: If no group has a value of the baseline.
    """
    grouping = group_study(study)
    chosen = choose_baseline(grouping, baseline)
    together, apart = over_environments(grouping.groups)
    tasks = {task: compare(groups, chosen) for task, groups in by_task([*grouping.groups, *together]).items()}
    return Summary(study, grouping, chosen, tasks, apart, all_used(study.in_state(FINISHED)))


def describe_baseline(baseline: Mapping[str, Label]) -> str:
    """The values of a baseline, as they are read."""
    return ", ".join(f"{name}={shown(value)}" for name, value in baseline.items()) or "the first group"


def _ended_early(runs: Sequence[StudyRun]) -> str:
    lengths = dict.fromkeys(f"{run.result.timesteps:,}" for run in runs if run.result)
    return (
        f"{len(runs)} run(s) ended before the steps of the plan, by stop_at, stop_after or a callback, after "
        f"{', '.join(lengths)} steps: means over training are over as much as there is, and their groups do not stand beside "
        "published returns."
    )


def _not_finite(run: StudyRun) -> str:
    assert run.result is not None
    lost = ", ".join(f"{name} (step {step:,.0f})" for name, step in run.result.not_finite.items())
    return f"{run.folder.name} has no finite number in {lost}: it may have diverged. These are in no table of its group."


def _unequal(grouping: Grouping) -> list[str]:
    """Groups of one task that were trained or evaluated for different times, which no axis says."""
    found = []
    for task, groups in grouping.tasks.items():
        for name in SAME:
            if name in grouping.axes:
                continue
            counts: dict[str, int] = {}
            for run in (run for group in groups for run in group.runs):
                setting = run.settings.get(name)
                if isinstance(setting, dict) and "n_timesteps" in grouping.axes:
                    # A part of each run.
                    setting = {key: value for key, value in setting.items() if key != "every"}
                value = json.dumps(setting, sort_keys=True)
                counts[value] = counts.get(value, 0) + 1
            if len(counts) > 1:
                values = "; ".join(f"{value} ({count} run(s))" for value, count in counts.items())
                found.append(f"Mixed {name} within {task}: {values}.")
    return found
