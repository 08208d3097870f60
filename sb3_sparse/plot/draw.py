"""Curves as a picture and as a page."""

import base64
import html
import io
import math
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from sb3_sparse.plot.groups import Curve
from sb3_sparse.plot.runs import RETURNS, Run

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"]
# Panels beside each other, more of them where there are many.
COLUMNS = 3
MANY = 9
STYLE = """\
body { font-family: sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left; vertical-align: top }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
"""


def new_figure(*args: Any, **kwargs: Any) -> Any:
    """A matplotlib figure that belongs to no window and no global state, or the way to get matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit('sb3-sparse: pictures need matplotlib: pip install "sb3-sparse[zoo]"')
    return Figure(*args, **kwargs)


def to_png(figure: Any) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write beside, then rename, so that no half-written file is ever seen; makes the folder. Ends the program on failure."""
    try:
        _write(path, content)
    except (OSError, ValueError) as error:
        sys.exit(f"sb3-sparse: cannot write {str(path)!r} ({error}): name another file.")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)


def draw_curves(curves: dict[str, dict[str, Curve]], x: str) -> Any:
    """
    One panel per series: the mean of each group, its band, and single runs as thin lines.

    :param curves: By title of the series, by group.
    :param x: What the horizontal axis shows.
    """
    groups = list(dict.fromkeys(group for by_group in curves.values() for group in by_group))
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    columns = min(COLUMNS + (len(curves) > MANY), len(curves))
    rows = math.ceil(len(curves) / columns)
    # Room for the legend, a line per group.
    figure = new_figure(figsize=(max(6.0, 4.2 * columns), 3.0 * rows + 0.25 * len(groups) + 0.2), layout="constrained")
    handles: dict[str, Any] = {}
    for i, (title, by_group) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for group, curve in by_group.items():
            handles.setdefault(group, _draw_curve(axes, curve, colours[group], group))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        axes.grid(alpha=0.3)
        if x == "timesteps":
            axes.xaxis.set_major_formatter("{x:,.0f}" if _last(by_group) < 10_000 else _thousands)
    labels = [textwrap.fill(group, int(13 * figure.get_figwidth()), break_long_words=True) for group in handles]
    figure.legend(handles.values(), labels, loc="outside upper center", fontsize=9, frameon=False)
    return figure


def _last(by_group: dict[str, Curve]) -> float:
    return max(float(run.x[-1]) for curve in by_group.values() for run in curve.runs)


def _thousands(value: float, position: int) -> str:
    return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k" if value else "0"


def _draw_curve(axes: Any, curve: Curve, colour: str, label: str) -> Any:
    if curve.low is not None:
        for run in curve.runs:
            axes.plot(run.x, run.y, color=colour, linewidth=0.6, alpha=0.5)
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    marker = "." if len(curve.x) < 30 else None
    return axes.plot(curve.x, curve.mean, color=colour, linewidth=1.6, marker=marker, label=label)[0]


def to_html(curves: dict[str, dict[str, Curve]], groups: dict[str, list[Run]], png: bytes, x: str, smooth: int) -> bytes:
    """
    A page that needs no other file: the picture, a table of the last values, and the runs.

    :param curves: By title of the series, by group.
    :param groups: The runs of each group.
    :param png: The picture.
    :param x: What the horizontal axis shows.
    :param smooth: Points in the rolling mean.
    """
    header = "".join(f"<th>{html.escape(group)}</th>" for group in groups)
    values = "\n".join(
        f"<tr><td>{html.escape(title)}</td>{''.join(_cell(by_group.get(group), x) for group in groups)}</tr>"
        for title, by_group in curves.items()
    )
    runs = "\n".join(
        f"<tr><td>{html.escape(group)}</td><td>{html.escape(str(run.folder))}</td><td>{html.escape(_kinds(run))}</td></tr>"
        for group, members in groups.items()
        for run in members
    )
    smoothing = f" Each point is the mean of itself and up to {smooth - 1} before it." if smooth > 1 else ""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>sb3-sparse plot</title><style>{STYLE}</style></head>
<body>
<h1>Runs</h1>
<img alt="Curves of all series over {x}" src="data:image/png;base64,{base64.b64encode(png).decode()}">
<p>Thick lines are means over the runs of a group, thin ones single runs, and bands 95 % bootstrap intervals of the mean over
runs. A group of one run has no band.{smoothing}</p>
<h2>Last values</h2>
<table>
<tr><th>series</th>{header}</tr>
{values}
</table>
<p>The mean at the last place that all runs of the group reached, and the interval there.</p>
<h2>Folders</h2>
<table>
<tr><th>group</th><th>run</th><th>returns found</th></tr>
{runs}
</table>
</body>
</html>
"""
    return page.encode()


def _cell(curve: Curve | None, x: str) -> str:
    if curve is None or not len(curve.x):
        return '<td class="number">–</td>'
    text = f"{curve.mean[-1]:.4g}"
    if curve.low is not None and curve.high is not None:
        text += f" [{curve.low[-1]:.4g}, {curve.high[-1]:.4g}]"
    place = f"{curve.x[-1]:,.0f}" if x == "timesteps" else f"{curve.x[-1]:.3g}"
    return f'<td class="number">{text}<br><small>{len(curve.runs)} run(s), {place} {x}</small></td>'


def _kinds(run: Run) -> str:
    return ", ".join(RETURNS[kind] for kind in RETURNS if kind in run.returns) or "none"
