"""A study as pictures: scaling curves, learning curves, plasticity."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sb3_sparse.common.figures import new_figure
from sb3_sparse.results.figures import as_text, draw_curves, look, thousands
from sb3_sparse.results.statistics import Curve
from sb3_sparse.results.studies.grouping import RETURN, Group
from sb3_sparse.results.studies.reading import FINAL, METRICS, PLASTICITY
from sb3_sparse.results.studies.scaling import LEARNABLE, TOTAL, place, scaling_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the paper draws comes first (Figures 4, 5, 7 and 9); the page has all of them.
PREFERRED = (
    "critic*srank",
    "critic*dormant_redo",
    "critic*gradient_norm",
    "critic*parameter_norm",
    "critic*interference_abs",
    "critic*",
    "*srank*",
    "*dormant*",
    "*norm*",
)
MAX_SERIES = 5
# Panels that a picture has room for, and lines that a legend inside of a panel has room for.
MAX_TASKS, MAX_LINES = 12, 12
MAX_NAME = 32
# So much larger is the largest network of a logarithmic axis on which powers of ten are named alone.
WIDE = 40


def draw_scaling(tasks: Mapping[str, Sequence[Group]], axes: Sequence[str], horizontals: Sequence[str]) -> "Figure":
    """
    Final return against the size of the network and the other axes: a row for each task, of the first 12.

    :param tasks: Groups by task.
    :param axes: Names.
    :param horizontals: What to draw against.
    :raises ImportError: If matplotlib is missing.
    """
    shown = dict(list(tasks.items())[:MAX_TASKS])
    # Parameters on a logarithmic axis and a linear one, as in the paper's Figures 1 and 14.
    columns = [
        (name, is_log) for name in horizontals for is_log in ((True, False) if name in (TOTAL, LEARNABLE) else (False,))
    ]
    figure = new_figure((3.8 * len(columns), 3.2 * len(shown) + 0.3))
    panels = figure.subplots(len(shown), len(columns), squeeze=False)
    for row, (task, groups) in zip(panels, shown.items(), strict=True):
        explained: list[list[str]] = []
        for panel, (horizontal, is_log) in zip(row, columns, strict=True):
            lines = scaling_lines(groups, axes, horizontal)
            _draw_lines(panel, lines, horizontal, is_log)
            panel.set_title(as_text(task), fontsize=9)
            if 1 < len(lines) <= MAX_LINES and list(lines) not in explained:
                explained.append(list(lines))
                # Names must not make the panel smaller.
                panel.legend(fontsize=7, frameon=False, loc="upper left").set_in_layout(False)
    return figure


def _draw_lines(panel: Any, lines: Mapping[str, Sequence[Group]], horizontal: str, is_log: bool) -> None:
    for i, (name, groups) in enumerate(lines.items()):
        style = look(i)
        x = [place(group, horizontal) for group in groups]
        found = [group.estimate(FINAL) for group in groups]
        label = as_text(name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…")
        values = [float(each.value) for each in found]
        ends = [(each.value, each.value) if each.low is None else (each.low, each.high) for each in found]
        bars = [[value - low for value, (low, _) in zip(values, ends, strict=True)]]
        bars.append([high - value for value, (_, high) in zip(values, ends, strict=True)])
        panel.errorbar(x, values, bars, marker="o", markersize=4, **style, elinewidth=0.8, label=label)
    if is_log:
        sizes = [place(group, horizontal) for groups in lines.values() for group in groups]
        # As many names as there is room for.
        panel.set_xscale("log", subs=[])
        panel.xaxis.get_major_locator().set_params(subs=(1, 2, 5) if max(sizes) < WIDE * min(sizes) else (1,))
    if horizontal in (TOTAL, LEARNABLE):
        panel.xaxis.set_major_formatter(thousands)
    panel.set_xlabel(as_text(horizontal))
    panel.set_ylabel(f"{METRICS[FINAL]} (IQM)")
    panel.grid(alpha=0.3)


def draw_learning(curves: Mapping[str, Mapping[str, Mapping[str, Curve]]]) -> "Figure | None":
    """
    Evaluation returns while agents were trained, a panel for each task; None if there is none.

    :param curves: By task, by label of the group, by name of the series.
    :raises ImportError: If matplotlib is missing.
    """
    found = {task: _series(by_group, RETURN) for task, by_group in list(curves.items())[:MAX_TASKS]}
    found = {task: by_group for task, by_group in found.items() if by_group}
    return draw_curves(found, "timesteps", single_runs=False, y="return of evaluations") if found else None


def draw_plasticity(curves: Mapping[str, Mapping[str, Mapping[str, Curve]]]) -> "Figure | None":
    """
    Up to five plasticity series, those that the paper draws first, a panel for each of them and each task; None if there
    is none.

    :param curves: By task, by label of the group, by name of the series.
    :raises ImportError: If matplotlib is missing.
    """
    names = {name for by_group in curves.values() for series in by_group.values() for name in series if name != RETURN}
    chosen = preferred(sorted(name.removeprefix(PLASTICITY) for name in names))[:MAX_SERIES]
    found = {
        f"{task}: {name}": by_group
        for task, groups in list(curves.items())[:MAX_TASKS]
        for name in chosen
        if (by_group := _series(groups, PLASTICITY + name))
    }
    return draw_curves(found, "timesteps", single_runs=False) if found else None


def preferred(names: Sequence[str]) -> list[str]:
    """Names of plasticity series, with those in front that the paper draws."""
    ranks = {name: next((i for i, p in enumerate(PREFERRED) if fnmatch.fnmatch(name, p)), len(PREFERRED)) for name in names}
    return sorted(names, key=lambda name: (ranks[name], name))


def _series(groups: Mapping[str, Mapping[str, Curve]], name: str) -> dict[str, Curve]:
    return {label: series[name] for label, series in groups.items() if name in series and len(series[name].x)}
