"""A study as one page that needs no other file and no connection."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_sparse.results.page import html_page, table
from sb3_sparse.results.statistics import CONFIDENCE, RESAMPLES, Curve
from sb3_sparse.results.studies.figures import preferred
from sb3_sparse.results.studies.grouping import MISSING, RETURN, Group, named, shown
from sb3_sparse.results.studies.reading import FAILED, METRICS, PLASTICITY, UNFINISHED, log_end
from sb3_sparse.results.studies.references import HEADER, Beside
from sb3_sparse.results.studies.scaling import LEARNABLE, TOTAL, has_place, place, scaling_lines
from sb3_sparse.results.studies.summary import Summary, describe_baseline
from sb3_sparse.results.studies.tables import MAX_RETURNS, result_rows

# An axis with more values than this cannot be filtered by ticking them.
MAX_VALUES = 30
DIGITS = 5
ABOUT_NUMBERS = f"""\
Intervals are {CONFIDENCE:.0%} percentile intervals of {RESAMPLES:,} stratified bootstrap draws: runs are drawn anew, those of
each environment on their own. A single run has none; of two or three runs an interval is too narrow for what it claims. P is
the probability that a run is better than one of the baseline (BASELINE; its other axes are those of the group). Returns are
not normalised: over several environments their means tell something only where all have the same scale, as those of the
DeepMind Control Suite do; P does not depend on it. Parameters are summed over the networks that the study counted: all of
them, were they dense, and the learnable ones, which exist. Time is that of training, evaluations included."""


def plotting_library() -> str:
    """
    Source of plotly.js.

    :raises ImportError: If plotly is missing.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError('the page of a report needs plotly: pip install "sb3-sparse[sweeps]"') from error
    return str(get_plotlyjs())


def to_html(summary: Summary, made_by: str, library: str, beside: Sequence[Beside] = ()) -> bytes:
    """
    The page.

    :param summary: What it shows.
    :param made_by: Command and versions that made it, plain text.
    :param library: From :func:`plotting_library`.
    :param beside: From :func:`~sb3_sparse.results.studies.references.beside_references`.
    """
    scripts = [library, Path(__file__).with_name("page.js").read_text(encoding="utf-8")]
    # Nothing runs but these scripts, whatever names and logs contain, and nothing is fetched from anywhere.
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    body = "\n".join(
        [
            f"<h1>{html.escape(summary.name)}</h1>",
            f"<p>{html.escape(summary.counts)}.</p>",
            _warnings(summary.warnings),
            "<noscript><p>The plots need JavaScript; the tables are all there without.</p></noscript>",
            *(_plots(summary) if summary.tasks else ["<p>No run has finished yet.</p>"]),
            *_references(beside),
            *_without_result(summary),
            *_origins(summary, made_by),
            f'<script type="application/json" id="data">{_embedded(page_data(summary))}</script>',
            *(f"<script>{script}</script>" for script in scripts),
        ]
    )
    return html_page(f"{summary.name}: report", body, head)


def page_data(summary: Summary) -> dict[str, Any]:
    """
    What the page draws, as plain data.

    :param summary: Of the study.
    """
    return {
        "parameters": [TOTAL, LEARNABLE],
        "tasks": [
            {
                "name": task,
                "groups": [_group(group, summary) for group in groups],
                "lines": {
                    horizontal: [
                        [name, [groups.index(group) for group in members]]
                        for name, members in scaling_lines(groups, summary.grouping.axes, horizontal).items()
                    ]
                    for horizontal in summary.horizontals
                },
            }
            for task, groups in summary.groups.items()
        ],
    }


def _group(group: Group, summary: Summary) -> dict[str, Any]:
    curves = summary.curves.get(group.task, {}).get(group.label, {})
    return {
        "label": group.label,
        "n": len(group.runs),
        "axes": {name: shown(group.axes.get(name, MISSING)) for name in summary.grouping.axes},
        "x": {name: place(group, name) for name in summary.horizontals if has_place(group, name)},
        "parameters": f"{group.total:,.0f} parameters, {group.learnable:,.0f} learnable",
        "values": {metric: _value(group, metric) for metric in group.metrics},
        "curves": {name: _curve(curve) for name, curve in curves.items() if len(curve.x)},
    }


def _value(group: Group, metric: str) -> list[Any]:
    found = group.estimate(metric)
    ends = [None if end is None else _rounded(end) for end in found]
    return [*ends, [_rounded(run.values[metric]) for run in group.runs[:MAX_RETURNS]]]


def _curve(curve: Curve) -> list[Any]:
    bands = [None if end is None else [_rounded(value) for value in end] for end in (curve.low, curve.high)]
    return [[_rounded(x, 10) for x in curve.x], [_rounded(value) for value in curve.mean], *bands]


def _rounded(value: Any, digits: int = DIGITS) -> float | int:
    number = float(f"{float(value):.{digits}g}")
    return int(number) if number.is_integer() else number


def _embedded(data: Any) -> str:
    """JSON inside of a script: without a letter that could end it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = "".join(f"<li>{html.escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings" role="note"><strong>Before you compare</strong><ul>{lines}</ul></div>'


def _plots(summary: Summary) -> list[str]:
    names = {name for by_group in summary.curves.values() for series in by_group.values() for name in series} - {RETURN}
    series = preferred(sorted(name.removeprefix(PLASTICITY) for name in names))
    known = {metric for groups in summary.groups.values() for group in groups for metric in group.metrics}
    metrics = {metric: title for metric, title in METRICS.items() if metric in known}
    metrics.update({PLASTICITY + name: f"{name} at the end" for name in series})
    tasks = {str(i): task for i, task in enumerate(summary.tasks)}
    found = [
        f'<div class="top controls">{_select("task", "task", tasks)}</div>',
        _filters(summary),
        "<h2>Scaling</h2>",
        '<div class="controls">',
        _select("metric", "show", metrics),
        _select("horizontal", "against", {name: name for name in summary.horizontals}),
        f"{_box('log-x', 'logarithmic axis', True)}{_box('log-y', 'logarithmic values', False)}</div>",
        _plot(
            "scaling",
            "Points are interquartile means over runs, bars their 95 % intervals. A line joins groups that differ "
            "only in what is drawn along it.",
        ),
        "<h2>Learning curves</h2>",
        _plot("learning", "Mean over runs of the evaluations while agents were trained, with 95 % bootstrap bands."),
    ]
    if series:
        found += [
            "<h2>Plasticity</h2>",
            '<div class="controls">',
            _select("series", "show", {PLASTICITY + name: name for name in series}),
            f"{_box('log-series', 'logarithmic values', False)}</div>",
            _plot("plasticity", "Mean over runs of what was measured while agents were trained, with 95 % bootstrap bands."),
        ]
    return [*found, *_tables(summary)]


def _references(beside: Sequence[Beside]) -> list[str]:
    """The table of published returns."""
    if not beside:
        return []
    rows = [each.to_cells() for each in beside]
    return [
        "<h2>Beside published returns</h2>",
        "<p>Means over runs, their difference and its 95 % interval by Welch's t. Means may be equal if the interval holds 0; "
        "with few runs it holds much else.</p>",
        f'<div class="scroll" tabindex="0">{table(HEADER, rows, left=3)}</div>',
    ]


def _select(name: str, label: str, options: dict[str, str]) -> str:
    entries = "".join(f'<option value="{html.escape(key)}">{html.escape(text)}</option>' for key, text in options.items())
    return f'<label>{html.escape(label)} <select id="{name}" autocomplete="off">{entries}</select></label>'


def _box(name: str, label: str, is_on: bool) -> str:
    checked = " checked" if is_on else ""
    return f'<label><input type="checkbox" id="{name}" autocomplete="off"{checked}> {html.escape(label)}</label>'


def _filters(summary: Summary) -> str:
    sets = []
    for name in summary.grouping.axes:
        values = list(dict.fromkeys(shown(group.axes.get(name, MISSING)) for group in summary.grouping.groups))
        if 1 < len(values) <= MAX_VALUES:
            boxes = "".join(
                f'<label><input type="checkbox" autocomplete="off" checked data-axis="{html.escape(name)}" '
                f'value="{html.escape(value)}"> {html.escape(value)}</label>'
                for value in values
            )
            sets.append(f"<fieldset><legend>{html.escape(name)}</legend>{boxes}</fieldset>")
    return f'<details id="filters"><summary>Filter</summary><div class="filters">{"".join(sets)}</div></details>'


def _plot(name: str, caption: str) -> str:
    return (
        f'<figure><div class="plot" id="{name}" role="img" aria-label="{name}"></div>'
        f'<p class="empty" id="{name}-empty" hidden>Nothing to draw: this task has none, or the filter leaves none.</p>'
        f'<figcaption class="small">{caption} Names in the legend hide and show their lines.</figcaption></figure>'
    )


def _tables(summary: Summary) -> list[str]:
    baseline = html.escape(describe_baseline(summary.baseline))
    found = ["<h2>Results</h2>", f'<p class="small">{ABOUT_NUMBERS.replace("BASELINE", baseline)}</p>']
    for i, (task, comparisons) in enumerate(summary.tasks.items()):
        found += [f'<div data-task="{i}"><h3>{html.escape(task)}</h3>', _scrolled(*result_rows(comparisons)), "</div>"]
    if summary.apart:
        lines = "".join(f"<li>{html.escape(reason)}</li>" for reason in summary.apart)
        found.append(
            f"<details><summary>Over environments: what is not put together, or differs</summary><ul>{lines}</ul></details>"
        )
    return found


def _scrolled(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    return f'<div class="scroll" tabindex="0">{table(header, rows, left)}</div>'


def _without_result(summary: Summary) -> list[str]:
    found = []
    for state, title in ((FAILED, "Failed runs"), (UNFINISHED, "Unfinished runs")):
        runs = summary.study.in_state(state)
        found += [f"<h2>{title}</h2>"] if runs else []
        for run in runs:
            axes = named(run.axes, run.axes)
            text = f"{run.folder.name}: {axes}" + (f": {run.error}" if run.error else "")
            end = log_end(run)
            log = f"<pre>{html.escape(end)}</pre>" if end else "<p>Its log is empty.</p>"
            found.append(f"<details><summary>{html.escape(text)}</summary>{log}</details>")
    return found


def _origins(summary: Summary, made_by: str) -> list[str]:
    rows = [[used.what, used.value, str(len(used.runs)), used.some_runs] for used in summary.used]
    return [
        "<h2>What it was made with</h2>",
        _scrolled(["what", "which", "runs", "names"], rows, left=4) if rows else "",
        f"<p>This page: <code>{html.escape(made_by)}</code></p>",
    ]
