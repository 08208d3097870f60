"""Runs that differ in nothing but their seed, put together; runs whose settings differ otherwise are never merged."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_sparse.results.aggregates import Estimate, estimate, iqm, score_matrix
from sb3_sparse.results.groups import flatten
from sb3_sparse.results.statistics import Curve, mean_curve
from sb3_sparse.results.studies.reading import FINISHED, PLASTICITY, POINTS, SEED, Label, Study, StudyRun, thinned

# Axes of a plan that only say in other words which task it is.
TASK_AXES = ("env", "environment", "algo", "algorithm", "task")
RETURN = "return"
# Differing settings in the name of a group, and how much of their values.
MAX_SETTINGS, MAX_LETTERS = 2, 40
MISSING = "–"
ALL = "all runs"


@dataclass(eq=False)
class Group:
    """Finished runs that differ in their seed alone: on one task, or on several ones."""

    algo: str
    env: str
    """ID of the environment, or which ones."""
    label: str
    """What tells it from the other groups of its task."""
    axes: dict[str, Label]
    """Without the seed, and without those that name the task."""
    variant: str
    """What tells it from groups of the same axes, whose other settings differ; usually empty."""
    runs: list[StudyRun]
    estimates: dict[str, Estimate] = field(default_factory=dict, repr=False)

    @property
    def task(self) -> str:
        """Algorithm and environment."""
        return f"{self.algo}, {self.env}"

    @property
    def total(self) -> float:
        """Parameters of all networks, were they dense; the mean over runs."""
        return self._parameters(0)

    @property
    def learnable(self) -> float:
        """Parameters of all networks that exist; the mean over runs."""
        return self._parameters(1)

    def _parameters(self, kind: int) -> float:
        return float(
            np.mean([sum(counts[kind] for counts in run.result.parameters.values()) for run in self.runs if run.result])
        )

    @property
    def seconds(self) -> float:
        """Of training, the mean over runs."""
        return float(np.mean([run.result.seconds for run in self.runs if run.result]))

    @property
    def metrics(self) -> list[str]:
        """What all of its runs have measured."""
        return [metric for metric in self.runs[0].values if all(metric in run.values for run in self.runs)]

    def scores(self, metric: str) -> dict[str, list[float]]:
        """
        Of every run, by environment.

        :param metric: One of ``metrics``.
        """
        found: dict[str, list[float]] = {env: [] for env in sorted({run.env for run in self.runs})}
        for run in self.runs:
            found[run.env].append(run.values[metric])
        return found

    def estimate(self, metric: str) -> Estimate:
        """
        The interquartile mean over runs and its interval.

        :param metric: One of ``metrics``.
        """
        if metric not in self.estimates:
            self.estimates[metric] = estimate(iqm, score_matrix(self.scores(metric)))
        return self.estimates[metric]

    def curves(self) -> dict[str, Curve]:
        """Means over runs while they were trained: ``"return"`` of evaluations, and ``plasticity/NAME``."""
        results = [run.result for run in self.runs if run.result]
        found = {}
        evaluations = [result.evaluations for result in results if result.evaluations is not None]
        if len(evaluations) == len(results):
            found[RETURN] = _curve([thinned(series) for series in evaluations])
        for name in results[0].plasticity:
            if all(name in result.plasticity for result in results):
                found[PLASTICITY + name] = _curve([result.plasticity[name] for result in results])
        return found


@dataclass(frozen=True)
class Grouping:
    """The finished runs of a study in groups."""

    groups: list[Group]
    """Task by task, in the order of their axes' values."""
    axes: list[str]
    """Names of the axes of all groups."""
    notes: list[str]
    """A sentence about each place where settings are mixed, or a run is there twice."""

    @property
    def tasks(self) -> dict[str, list[Group]]:
        """Groups by task."""
        return by_task(self.groups)


def by_task(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Groups by algorithm and environment."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return found


def group_study(study: Study) -> Grouping:
    """
    Put the finished runs of a study together.

    :param study: From :func:`~sb3_sparse.results.studies.reading.read_study`.
    """
    runs = study.in_state(FINISHED)
    left_out = {SEED, *_task_axes(runs)}
    axes = [name for name in dict.fromkeys(name for run in runs for name in run.axes) if name not in left_out]
    # By task and axes, then by what else may differ.
    places: dict[tuple[str, ...], dict[str, list[StudyRun]]] = {}
    notes = []
    for run in runs:
        place = (run.algo, run.env, *(_key(run.axes.get(name, MISSING)) for name in axes))
        same = places.setdefault(place, {}).setdefault(_key([run.study, _others(run)]), [])
        if (twin := next((other for other in same if other.seed == run.seed), None)) is not None:
            notes.append(f"{run.folder.name!r} has the settings and the seed of {twin.folder.name!r}: it is left out.")
        else:
            same.append(run)
    notes += _under_other_labels(run for variants in places.values() for same in variants.values() for run in same)
    varying = [name for name in axes if len({_key(run.axes.get(name, MISSING)) for run in runs}) > 1] or axes
    groups = []
    for variants in places.values():
        members = [sorted(same, key=lambda run: _rank(run.seed)) for same in variants.values()]
        names = _variants(members)
        for same, variant in zip(members, names, strict=True):
            found = {name: same[0].axes[name] for name in axes if name in same[0].axes}
            label = named(found, varying)
            groups.append(Group(same[0].algo, same[0].env, f"{label} [{variant}]" if variant else label, found, variant, same))
        if len(members) > 1:
            kept_apart = "; ".join(f"{len(same)} run(s) with {name}" for same, name in zip(members, names, strict=True))
            notes.append(f"Mixed settings of {groups[-1].task}, {label}: {kept_apart}. They are kept apart.")
    groups.sort(key=lambda group: (group.task, [_rank(group.axes.get(name, MISSING)) for name in axes]))
    for of_task in by_task(groups).values():
        _make_different(of_task)
    return Grouping(groups, axes, notes)


def _under_other_labels(runs: Iterable[StudyRun]) -> list[str]:
    """Runs of one study that are the same but for what the plan called them at the time."""
    first: dict[str, StudyRun] = {}
    notes = []
    for run in runs:
        known = first.setdefault(_key([run.study, run.settings, run.seed]), run)
        if known is not run:
            notes.append(
                f"{run.folder.name!r} has the settings and the seed of {known.folder.name!r}, under other labels: it counts "
                "in both groups. Remove one, or rename the axes as they were."
            )
    return notes


def named(axes: Mapping[str, Label], names: Iterable[str]) -> str:
    """
    A name of what has these values.

    :param axes: Values.
    :param names: Which of them; those that are not there are left out.
    """
    return " ".join(f"{name}={shown(axes[name])}" for name in names if name in axes) or ALL


def axes_key(axes: Mapping[str, Label]) -> str:
    """
    Equal for equal values of axes, in any order.

    :param axes: Values.
    """
    return _key(dict(axes))


def shown(value: Label) -> str:
    """A value of an axis, as it is read."""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _task_axes(runs: Sequence[StudyRun]) -> list[str]:
    """Axes named like a task whose values go one to one with algorithms, environments, or both."""
    found = []
    for name in TASK_AXES:
        values = {(run.algo, run.env): set() for run in runs}  # type: dict[tuple[str, str], set[str]]
        for run in runs:
            values[run.algo, run.env].add(_key(run.axes.get(name, MISSING)))
        pairs = {(task, value) for task, those in values.items() for value in those}
        for part in (lambda task: task[0], lambda task: task[1], lambda task: task):
            links = {(part(task), value) for task, value in pairs}
            if len(links) == len({link[0] for link in links}) == len({link[1] for link in links}):
                found.append(name)
                break
    return found


def _make_different(groups: Sequence[Group]) -> None:
    """Labels of one task name one group each, also where values only look the same, as True and "True" do."""
    for label in {group.label for group in groups}:
        same = [group for group in groups if group.label == label]
        for number, group in enumerate(same, 1):
            if len(same) > 1:
                group.label = f"{label} ({number} of {len(same)} that look alike)"


def _others(run: StudyRun) -> dict[str, Any]:
    return {name: value for name, value in run.settings.items() if name != SEED}


def _variants(members: Sequence[Sequence[StudyRun]]) -> list[str]:
    """What tells groups of the same axes apart: a setting or two, or the study. Empty if there is one."""
    if len(members) == 1:
        return [""]
    flat = [{"study": same[0].study, **flatten(_others(same[0]))} for same in members]
    names = dict.fromkeys(name for each in flat for name in each)
    different = [name for name in names if len({_key(each.get(name, MISSING)) for each in flat}) > 1]
    found = []
    for i, each in enumerate(flat):
        parts = [f"{name}={shown(each.get(name, MISSING))[:MAX_LETTERS]}" for name in different[:MAX_SETTINGS]]
        more = [f"{len(different) - MAX_SETTINGS} more"] if len(different) > MAX_SETTINGS else []
        text = ", ".join(parts + more)
        found.append(text if text not in found else f"{text}, {i + 1}")
    return found


def _curve(runs: list[Any]) -> Curve:
    curve = mean_curve(runs)
    if curve.low is None or curve.high is None:
        return curve
    # Runs that were measured at different places have been put at all of them.
    kept = np.unique(np.linspace(0, max(len(curve.x) - 1, 0), POINTS).round().astype(int))[: len(curve.x)]
    return Curve(curve.runs, curve.x[kept], curve.mean[kept], curve.low[kept], curve.high[kept])


def _key(value: Any) -> str:
    """Equal for equal values, where 1 is neither True nor "1", but 1.0."""
    return json.dumps(_plain_numbers(value), sort_keys=True)


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _rank(value: Label) -> tuple[int, float, str]:
    """Numbers in their order, then words in theirs."""
    is_number = isinstance(value, int | float)
    return (0, float(value), "") if is_number else (1, 0.0, str(value))  # type: ignore[arg-type]
