"""Runs that differ in nothing but their seed, put together; runs whose settings differ otherwise are never merged."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_sparse.results.aggregates import Estimate, estimate, iqm, score_matrix
from sb3_sparse.results.statistics import Curve, mean_curve
from sb3_sparse.results.studies.reading import FINISHED, PLASTICITY, POINTS, SEED, Label, Study, StudyRun, thinned

# Axes of a plan that only say in other words which task it is.
TASK_AXES = ("env", "environment", "algo", "algorithm", "task")
RETURN = "return"
# Differing settings in the name of a group, how much of their values, and groups in a sentence about them.
MAX_SETTINGS, MAX_LETTERS, MAX_PLACES = 2, 40, 3
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
    """What tells it from groups of the same labels whose other settings differ, as axes do not say; usually empty."""
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
    for members in places.values():
        for same in members.values():
            found = {name: same[0].axes[name] for name in axes if name in same[0].axes}
            ordered = sorted(same, key=lambda run: _rank(run.seed))
            groups.append(Group(same[0].algo, same[0].env, named(found, varying), found, "", ordered))
    for task, of_task in by_task(groups).items():
        notes += _keep_apart(of_task, [run for run in study.runs if f"{run.algo}, {run.env}" == task], varying)
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


def _keep_apart(groups: Sequence[Group], runs: Iterable[StudyRun], varying: Sequence[str]) -> list[str]:
    """
    Name groups of one task by what differs besides their axes, and say where: a plan was changed while its runs were made.

    Groups of other labels differ in whatever these stand for, and those of other axes are different things anyway.
    """
    said, labelled = _said_by_axes(runs)
    alike: dict[str, list[Group]] = {}
    for group in groups:
        labels = {name: group.axes[name] for name in labelled if name in group.axes}
        alike.setdefault(_key([sorted(group.axes), labels]), []).append(group)
    notes = []
    for members in alike.values():
        for group, name in zip(members, _names([_beside(group.runs[0].flat, said) for group in members]), strict=True):
            group.variant = name
        # What is left of settings may be the same where all of them differ.
        same: dict[str, list[Group]] = {}
        for group in members:
            same.setdefault(_key([group.axes, group.variant]), []).append(group)
        for twins in same.values():
            for group, name in zip(twins, _names([group.runs[0].flat for group in twins]), strict=True):
                group.variant = ", ".join(filter(None, [group.variant, name]))
        notes += _mixed(members, varying)
    for group in groups:
        group.label += f" [{group.variant}]" if group.variant else ""
    return notes


def _mixed(groups: Sequence[Group], varying: Sequence[str]) -> list[str]:
    """A sentence about groups, if they are kept apart."""
    variants: dict[str, list[Group]] = {}
    for group in groups:
        variants.setdefault(group.variant, []).append(group)
    if len(variants) == 1:
        return []
    differing = [name for name in varying if len({_key(group.axes.get(name, MISSING)) for group in groups}) > 1]
    parts = []
    for variant, those in variants.items():
        places = [named(group.axes, differing) for group in those[:MAX_PLACES]]
        more = [f"{len(those) - MAX_PLACES} more"] if len(those) > MAX_PLACES else []
        where = f" ({'; '.join([*places, *more])})" if differing else ""
        parts.append(f"{sum(len(group.runs) for group in those)} run(s) with {variant}{where}")
    common = named(groups[0].axes, [name for name in varying if name not in differing])
    return [f"Mixed settings of {groups[0].task}, {common}: {'; '.join(parts)}. They are kept apart."]


def _said_by_axes(runs: Iterable[StudyRun]) -> tuple[set[str], list[str]]:
    """
    Settings that axes set, and those axes whose values are labels of settings that stand in the plan.

    An axis whose value is that of a setting in all runs stands for it. What the labels of another one stand for is what
    differs between two of them wherever all other axes are the same.

    :param runs: Of one task, unfinished ones as well.
    """
    told = [*{_key([_without_seed(run), run.flat]): (_without_seed(run), run.flat) for run in runs}.values()]
    said: set[str] = set()
    labelled = []
    for name in dict.fromkeys(name for axes, _ in told for name in axes):
        having = [(flat, axes[name]) for axes, flat in told if name in axes]
        settings = {path for path in having[0][0] if all(_is(flat, path, value) for flat, value in having)}
        said |= settings
        labelled += [] if settings else [name]
    for name in labelled:
        said |= _of_labels(told, name)
    return said, labelled


def _of_labels(told: Sequence[tuple[dict[str, Label], dict[str, Any]]], axis: str) -> set[str]:
    """Settings by which two labels of an axis differ, wherever there are both."""
    places: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for axes, flat in told:
        if axis in axes:
            others = {name: value for name, value in axes.items() if name != axis}
            places.setdefault(_key(others), []).append((_key(axes[axis]), flat))
    differing: dict[tuple[str, str], set[str]] = {}
    for there in places.values():
        for (label, one), (other_label, other) in itertools.combinations(sorted(there, key=lambda pair: pair[0]), 2):
            if label != other_label:
                found = {path for path in {**one, **other} if not _is(one, path, other.get(path, MISSING))}
                differing[label, other_label] = differing.get((label, other_label), found) & found
    return set().union(*differing.values())


def _beside(flat: dict[str, Any], said: set[str]) -> dict[str, Any]:
    """What of some settings axes do not set. With the length of runs, an axis sets what was a part of them: ``"10%"``."""
    left = {path: value for path, value in flat.items() if path not in said}
    steps = ("evaluation.every", "callbacks") if "n_timesteps" in said else ()
    return {path: _without_numbers(value) if path in steps else value for path, value in left.items()}


def _without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_numbers(entry) for entry in value]
    return None if isinstance(value, int) and not isinstance(value, bool) else value


def _without_seed(run: StudyRun) -> dict[str, Label]:
    return {name: value for name, value in run.axes.items() if name != SEED}


def _is(settings: Mapping[str, Any], path: str, value: Any) -> bool:
    return _key(settings.get(path, MISSING)) == _key(value)


def _others(run: StudyRun) -> dict[str, Any]:
    return {name: value for name, value in run.settings.items() if name != SEED}


def _names(settings: Sequence[dict[str, Any]]) -> list[str]:
    """What tells settings apart: one or two of them, the same for equal ones. Empty if all are equal."""
    distinct = {_key(each): each for each in settings}
    names = dict.fromkeys(name for each in distinct.values() for name in each)
    different = [name for name in names if len({_key(each.get(name, MISSING)) for each in distinct.values()}) > 1]
    found: dict[str, str] = {}
    for i, (key, each) in enumerate(distinct.items()):
        parts = [f"{name}={shown(each.get(name, MISSING))[:MAX_LETTERS]}" for name in different[:MAX_SETTINGS]]
        more = [f"{len(different) - MAX_SETTINGS} more"] if len(different) > MAX_SETTINGS else []
        text = ", ".join(parts + more)
        found[key] = text if text not in found.values() else f"{text}, {i + 1}"
    return [found[_key(each)] for each in settings]


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
