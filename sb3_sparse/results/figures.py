"""Curves as a picture."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

from sb3_sparse.common.figures import new_figure
from sb3_sparse.results.statistics import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"]
# Of the lines that come when colours begin anew.
STYLES = ["-", "--", ":", "-."]
# Panels beside each other, more of them where there are many.
COLUMNS = 3
MANY = 9
# Letters of a title beside each other.
MAX_TITLE = 44
# Names below each other in a legend.
MAX_LEGEND = 16


def draw_curves(curves: dict[str, dict[str, Curve]], x: str, single_runs: bool = True, y: str = "") -> "Figure":
    """
    One panel per series: the mean of each group, its band, and single runs as thin lines.

    :param curves: By title of the series, by group.
    :param x: What the horizontal axis shows.
    :param single_runs: Without, there are only means and bands.
    :param y: What the vertical axes show, where the titles do not say it.
    """
    groups = list(dict.fromkeys(group for by_group in curves.values() for group in by_group))
    looks = {group: look(i) for i, group in enumerate(groups)}
    columns = min(COLUMNS + (len(curves) > MANY), len(curves))
    rows = math.ceil(len(curves) / columns)
    # Room for the legend, a line per group.
    beside = math.ceil(len(groups) / MAX_LEGEND)
    width = max(6.0, 4.2 * columns)
    figure = new_figure((width, 3.0 * rows + 0.25 * math.ceil(len(groups) / beside) + 0.2))
    handles: dict[str, Any] = {}
    for i, (title, by_group) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for group, curve in by_group.items():
            handles.setdefault(group, _draw_curve(axes, curve, looks[group], group, single_runs))
        axes.set_title(textwrap.fill(as_text(title), MAX_TITLE), fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y if i % columns == 0 else "")
        axes.grid(alpha=0.3)
        if x == "timesteps":
            axes.xaxis.set_major_formatter("{x:,.0f}" if _last(by_group) < 10_000 else thousands)
    labels = [textwrap.fill(as_text(group), int(13 * width / beside), break_long_words=True) for group in handles]
    figure.legend(handles.values(), labels, loc="outside upper center", fontsize=9, frameon=False, ncols=beside)
    return figure


def look(i: int) -> dict[str, str]:
    """
    Colour and style of a line; no two of the first 40 look alike.

    :param i: Its number.
    """
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}


def as_text(name: str) -> str:
    """A name whose dollars are no formula to matplotlib."""
    return name.replace("$", r"\$")


def _last(by_group: dict[str, Curve]) -> float:
    return max(float(run.x[-1]) for curve in by_group.values() for run in curve.runs)


def thousands(value: float, position: float) -> str:
    """For an axis of large numbers: ``20k``, ``1.5M``."""
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if value else "0"


def _draw_curve(axes: Any, curve: Curve, style: dict[str, str], label: str, single_runs: bool) -> Any:
    if curve.low is not None:
        for run in curve.runs if single_runs else ():
            axes.plot(run.x, run.y, **style, linewidth=0.6, alpha=0.5)
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0)
    marker = "." if len(curve.x) < 30 else None
    return axes.plot(curve.x, curve.mean, **style, linewidth=1.6, marker=marker, label=label)[0]
