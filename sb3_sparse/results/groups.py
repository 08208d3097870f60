"""Runs that differ only in their seed, put together."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.common.warn import warn_user
from sb3_sparse.results.runs import RETURNS, Run
from sb3_sparse.results.statistics import Curve, Series, mean_curve, rolling_mean

# In the label of a group.
NAMED = ("algo", "env")
TELLING = ("policy", "sparsity", "width_scale")
MAX_SETTINGS = 3


def group_runs(runs: list[Run]) -> dict[str, list[Run]]:
    """
    Put runs together by label: the user's, else one for equal algorithm, environment and hyperparameters.

    A run without a label and without saved hyperparameters is a group of its own, since nothing says what it shares
    with another.

    :param runs: In the order in which their groups are drawn.
    :raises ValueError: If a folder is given twice: its run would count as two seeds.
    """
    folders = [run.folder.resolve() for run in runs]
    if twice := [str(run.folder) for i, run in enumerate(runs) if folders[i] in folders[:i]]:
        raise ValueError(f"{twice[0]!r} is given twice, and would count as two seeds: name each run once.")
    keys: dict[Any, list[Run]] = {}
    for run in runs:
        key = (run.label, None) if run.label else (None, repr(run.settings) if run.settings else run.folder)
        keys.setdefault(key, []).append(run)
    for members in keys.values():
        _warn_of_copies(members)
    settings = [flatten(members[0].settings) for (label, _), members in keys.items() if not label and members[0].settings]
    names = dict.fromkeys(name for flat in settings for name in flat)
    different = [name for name in names if len({repr(flat.get(name)) for flat in settings}) > 1]
    # What this package is about first; algorithm and environment are named anyway.
    different.sort(key=lambda name: name.rpartition(".")[2] not in TELLING)
    groups: dict[str, list[Run]] = {}
    places = _short_names([members[0].folder for members in keys.values()])
    for place, ((label, _), members) in zip(places, keys.items(), strict=True):
        name = label or _describe(members[0].settings, [name for name in different if name not in NAMED]) or place
        # Two groups of the same name stay two.
        groups[name if name not in groups else f"{name} ({place})"] = members
    return groups


def _warn_of_copies(runs: list[Run]) -> None:
    """Equal seeds and copied folders have equal returns; so may have seeds that never learn, so it is no error."""
    for i, run in enumerate(runs):
        for other in runs[:i]:
            if run.returns and _text(run.returns) == _text(other.returns):
                warn_user(
                    f"{run.folder} and {other.folder} have equal returns in every point: if one is a copy of the other, or "
                    "has its seed, it counts as two. Leave one out."
                )


def _text(returns: dict[str, Series]) -> dict[str, bytes]:
    return {kind: series.x.tobytes() + series.y.tobytes() for kind, series in returns.items()}


def _describe(settings: dict[str, Any] | None, different: list[str]) -> str:
    """Algorithm, environment and the first settings in which groups differ; empty without settings."""
    flat = flatten(settings or {})
    parts = [str(flat[name]) for name in NAMED if name in flat]
    shown = [name for name in different if name in flat][:MAX_SETTINGS]
    return " ".join(parts + [f"{name.rpartition('.')[2]}={str(flat[name]).rpartition('sb3_sparse.')[2]}" for name in shown])


def _short_names(folders: list[Path]) -> list[str]:
    """What tells paths apart: without the folders that all are in."""
    parts = [folder.resolve().parts for folder in folders]
    common = 0 if len(parts) > 1 else len(parts[0]) - 1
    while len({part[common] for part in parts if len(part) > common + 1}) == 1 and all(
        len(part) > common + 1 for part in parts
    ):
        common += 1
    return ["/".join(part[common:]) for part in parts]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    Settings inside of settings by their full names.

    >>> flatten({"policy_kwargs": {"sparsity": 0.8}, "gamma": 0.99})
    {'policy_kwargs.sparsity': 0.8, 'gamma': 0.99}

    :param settings: By name.
    :param prefix: Of all names.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def collect(
    groups: dict[str, list[Run]], x: str = "timesteps", smooth: int = 1, patterns: Sequence[str] | None = None
) -> dict[str, dict[str, Curve]]:
    """
    Every series of every group: first the return, then the plasticity series by name.

    The return is of the best kind that all runs have (evaluations, then training), so that like is compared with like.

    :param groups: From :func:`group_runs`.
    :param x: ``"timesteps"`` or ``"hours"``.
    :param smooth: Each value becomes the mean of itself and the ``smooth - 1`` before it.
    :param patterns: Plasticity series to keep, such as ``critic_*``; None keeps all. The return is kept always.
    :return: Curves by group, by title of the series.
    :raises ValueError: If ``smooth`` is below 1, hours are asked of a run that has no clock, or a pattern fits nothing.
    """
    if smooth < 1:
        raise ValueError(f"smooth={smooth}: expected a number of points, at least 1. 1 draws what was measured.")
    runs = [run for members in groups.values() for run in members]
    wanted = _matching([name for run in runs for name in run.plasticity], patterns)
    kinds = [kind for kind in RETURNS if all(kind in run.returns for run in runs if run.returns)]
    found: dict[str, dict[str, list[Series]]] = {}
    for group, members in groups.items():
        for run in members:
            kind = next((kind for kind in [*kinds, *RETURNS] if kind in run.returns), None)
            named = {} if kind is None else {RETURNS[kind]: run.returns[kind]}
            kept = {name: series for name, series in run.plasticity.items() if name in wanted}
            for title, series in {**named, **kept}.items():
                place = found.setdefault(title, {}).setdefault(group, [])
                place.append(Series(_axis(run, series, x), rolling_mean(series.y, smooth)))
    titles = sorted(found, key=lambda title: (title not in RETURNS.values(), title))
    return {title: {group: mean_curve(series) for group, series in found[title].items()} for title in titles}


def _matching(names: list[str], patterns: Sequence[str] | None) -> set[str]:
    for pattern in patterns or ():
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"series {pattern!r} fits nothing: the runs have {sorted(set(names)) or 'no plasticity series'}.")
    return set(names) if patterns is None else {name for pattern in patterns for name in fnmatch.filter(names, pattern)}


def _axis(run: Run, series: Series, x: str) -> np.ndarray:
    if x == "timesteps":
        return series.x
    if x != "hours":
        raise ValueError(f"x={x!r}: expected 'timesteps' or 'hours'.")
    if run.clock is None:
        raise ValueError(f"{str(run.folder)!r} does not say when its timesteps were made: draw it over timesteps.")
    return np.interp(series.x, run.clock.x, run.clock.y)
