"""A study's numbers: a row for each run, a row for each group, as CSV and as the tables of the page."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_sparse.results.aggregates import Estimate
from sb3_sparse.results.studies.comparing import Comparison
from sb3_sparse.results.studies.grouping import MISSING, Group, shown
from sb3_sparse.results.studies.reading import AREA, BEST, FINAL, METRICS, PLASTICITY, Label, Study, StudyRun

# Returns of single runs that a cell of the page shows.
MAX_RETURNS = 12


def runs_csv(study: Study, groups: Sequence[Group], axes: Sequence[str]) -> str:
    """
    A row for each run that can be read, those without a result included.

    :param study: All runs.
    :param groups: That they are in.
    :param axes: Names, without the seed.
    """
    labels = {id(run): group.label for group in groups for run in group.runs}
    metrics = list(dict.fromkeys([*METRICS, *(name for run in study.runs for name in run.values)]))
    rows = [_run_row(run, labels.get(id(run), ""), axes, metrics) for run in study.runs]
    return as_csv(rows)


def _run_row(run: StudyRun, group: str, axes: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    result = run.result
    counts = list(result.parameters.values()) if result else []
    origin = run.origins[-1]
    return {
        **{"run": run.folder.name, "state": run.state, "study": run.study, "algorithm": run.algo, "environment": run.env},
        **{f"axis:{name}": _cell(run.axes.get(name)) for name in axes},
        **{"seed": _cell(run.seed), "group": group},
        **{_column(name): _cell(run.values.get(name)) for name in metrics},
        **({f"first_{name}": value if np.isfinite(value) else "" for name, value in result.first.items()} if result else {}),
        "final_episodes": len(result.returns) if result else "",
        "total_parameters": sum(total for total, _ in counts) if result else "",
        "learnable_parameters": sum(learnable for _, learnable in counts) if result else "",
        "seconds": result.seconds if result else "",
        "timesteps": result.timesteps if result else "",
        "error": run.error or "",
        "settings_hash": run.checksum,
        "commit": origin.commit or "",
        "modified": origin.modified,
        "machine": origin.machine,
        **{f"version:{name}": version for name, version in origin.versions.items()},
    }


def groups_csv(comparisons: Sequence[Comparison], axes: Sequence[str]) -> str:
    """
    A row for each group.

    :param comparisons: Of all groups, those over several environments included.
    :param axes: Names, without the seed.
    """
    metrics = list(dict.fromkeys(name for comparison in comparisons for name in comparison.group.metrics))
    return as_csv([_group_row(comparison, axes, metrics) for comparison in comparisons])


def _group_row(comparison: Comparison, axes: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    group = comparison.group
    row: dict[str, Any] = {"algorithm": group.algo, "environment": group.env, "group": group.label}
    row.update((f"axis:{name}", _cell(group.axes.get(name))) for name in axes)
    row.update(runs=len(group.runs), seeds=" ".join(dict.fromkeys(shown(run.seed) for run in group.runs)))
    own = set(group.metrics)
    for name in metrics:
        found = group.estimate(name) if name in own else None
        row.update(_interval(f"{_column(name)}_iqm", found))
        if name == FINAL:
            values = [run.values[name] for run in group.runs]
            row["final_return_mean"], row["final_return_sd"] = float(np.mean(values)), _cell(spread(values))
    row.update(total_parameters=group.total, learnable_parameters=group.learnable, seconds_mean=group.seconds)
    row["baseline"] = comparison.baseline.label if comparison.baseline else ""
    row.update(_interval("probability_of_improvement", comparison.probability))
    row.update(_interval("difference_of_means", comparison.difference))
    row["comparison"] = comparison.reason
    return row


def result_rows(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """
    The page's table of one task: header and rows.

    :param comparisons: Of its groups.
    """
    header = ["group", "n", "IQM of final return", "mean ± sd", "each run", "best", "mean over training"]
    header += ["parameters", "learnable", "time", "P(better than baseline)", "difference of means", "baseline"]
    return header, [_result_row(comparison) for comparison in comparisons]


def _result_row(comparison: Comparison) -> list[str]:
    group = comparison.group
    finals = [run.values[FINAL] for run in group.runs]
    several = len(finals) > MAX_RETURNS
    each = [f"{value:,.4g}" for value in finals[:MAX_RETURNS]] + (["…"] if several else [])
    row = [group.label, str(len(group.runs)), format_interval(group.estimate(FINAL))]
    row += [f"{np.mean(finals):,.1f} ± {_number(spread(finals), '.1f')}", " ".join(each)]
    row += [format_interval(group.estimate(name)) if name in group.metrics else MISSING for name in (BEST, AREA)]
    row += [f"{group.total:,.0f}", f"{group.learnable:,.0f}", duration(group.seconds)]
    row += [MISSING if found is None else format_interval(found, ".2f") for found in (comparison.probability,)]
    row += [MISSING if found is None else format_interval(found, "+,.1f") for found in (comparison.difference,)]
    return [*row, comparison.reason or (comparison.baseline.label if comparison.baseline else MISSING)]


def format_interval(found: Estimate, form: str = ",.1f") -> str:
    """A number, and its interval if it has one."""
    interval = "" if found.low is None else f" [{found.low:{form}}, {found.high:{form}}]"
    return f"{found.value:{form}}{interval}"


def duration(seconds: float) -> str:
    """
    Seconds as they are read.

    >>> duration(75.0), duration(7500.0)
    ('75 s', '2 h 05 min')
    """
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def spread(values: Sequence[float]) -> float:
    """
    The sample standard deviation; of one value nothing is known.

    :param values: Of runs.
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _number(value: float, form: str) -> str:
    return MISSING if np.isnan(value) else f"{value:{form}}"


def _column(metric: str) -> str:
    names = {FINAL: "final_return", BEST: "best_return", AREA: "mean_evaluation_return"}
    return names.get(metric) or f"final_{metric.removeprefix(PLASTICITY)}"


def _interval(name: str, found: Estimate | None) -> dict[str, Any]:
    parts = (None, None, None) if found is None else found
    return {f"{name}{end}": _cell(part) for end, part in zip(("", "_low", "_high"), parts, strict=True)}


def _cell(value: Label | Any) -> Any:
    """Numbers in full, nothing where there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return float(value) if isinstance(value, np.floating) else value


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """
    A table as text.

    :param rows: Cells by column; the columns are those of all rows.
    """
    header = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
