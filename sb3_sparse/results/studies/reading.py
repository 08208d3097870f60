"""Reading the folder of a study: what each run was, whether it has finished, and what it measured."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.common.literals import parse_literal
from sb3_sparse.results.groups import flatten
from sb3_sparse.results.runs import evaluation_curve, plasticity_curves
from sb3_sparse.results.statistics import Series

# The names of a study's parts.
PLAN_FILE = "plan.yml"
RUNS_FOLDER = "runs"
# Of a run's files: written first, last, and when a try has failed.
RUN_FILE = "run.json"
DONE_FILE = "done.json"
FAILED_FILE = "failed.json"
LOG_FILE = "log.txt"
FORMAT = 1

SEED = "seed"
FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"
# Points that are kept of each curve: as many as can be told apart in a picture.
POINTS = 50
# Of the end of a log.
LOG_BYTES, LOG_LINES, LOG_WIDTH = 16_000, 15, 300

Label = str | int | float | bool | None


@dataclass(frozen=True)
class Origin:
    """What a run was made with."""

    versions: dict[str, str]
    """Of libraries and of Python, by name."""
    commit: str | None
    modified: bool
    """Whether there were changes that no commit has."""
    machine: str


@dataclass(frozen=True)
class Result:
    """What a finished run came to."""

    returns: list[float]
    """Of the episodes of the final evaluation."""
    parameters: dict[str, tuple[int, int]]
    """Total and learnable ones of each network: with all weights were they dense, and those that exist."""
    seconds: float
    timesteps: int
    evaluations: Series | None
    """Mean return of each evaluation while it was trained."""
    plasticity: dict[str, Series]
    """Finite numbers alone."""
    first: dict[str, float]
    """What each of these series began with, finite or not."""
    not_finite: dict[str, float]
    """Series that end without a finite number, or ``"evaluations"`` that lack one anywhere; and the step of the first."""


@dataclass(frozen=True)
class StudyRun:
    """One run of a study."""

    folder: Path
    study: str
    axes: dict[str, Label]
    """In the order of the plan, with the seed."""
    settings: dict[str, Any]
    checksum: str
    """Of the settings."""
    command: str
    origins: list[Origin]
    """Of the process that began it, and of the one that finished it."""
    result: Result | None
    """Of a finished run."""
    error: str | None
    """Of a run that failed: what the last try said."""

    @property
    def state(self) -> str:
        """``"finished"``, ``"failed"`` or ``"unfinished"``."""
        return FINISHED if self.result is not None else UNFINISHED if self.error is None else FAILED

    @property
    def algo(self) -> str:
        """The algorithm, as it is named in commands."""
        return str(self.settings["algo"])

    @property
    def env(self) -> str:
        """ID of the environment."""
        return str(self.settings["env"])

    @property
    def seed(self) -> Label:
        """What tells it from the other runs of its group."""
        seed: Label = self.axes.get(SEED, self.settings.get("seed"))
        return seed

    @property
    def ended_early(self) -> bool:
        """Whether training made fewer steps than were planned, as ``stop_at`` and ``stop_after`` of an evaluation do."""
        planned: Any = self.settings.get("n_timesteps")
        return self.result is not None and _is_finite(planned) and self.result.timesteps < int(planned)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The study and all settings but the seed by their full names, also of those that were written as Python."""
        settings = {name: value for name, value in self.settings.items() if name != SEED}
        if isinstance(hyperparams := settings.get("hyperparams"), dict):
            settings["hyperparams"] = {name: _entries(name, value) for name, value in hyperparams.items()}
        return {"study": self.study, **flatten(settings)}

    @cached_property
    def values(self) -> dict[str, float]:
        """What can be compared of a finished run: keys of :data:`METRICS`, and ``plasticity/NAME`` at the end of training."""
        if self.result is None:
            return {}
        found = {FINAL: float(np.mean(self.result.returns))}
        evaluations, not_finite = self.result.evaluations, self.result.not_finite
        if evaluations is not None and EVALUATIONS not in not_finite:
            found[BEST] = float(evaluations.y.max())
            width = float(evaluations.x[-1] - evaluations.x[0])
            area = float(np.sum(np.diff(evaluations.x) * (evaluations.y[1:] + evaluations.y[:-1]) / 2))
            found[AREA] = area / width if width else found[BEST]
        ends = {name: float(series.y[-1]) for name, series in self.result.plasticity.items() if name not in not_finite}
        found.update((PLASTICITY + name, value) for name, value in ends.items())
        return found


FINAL, BEST, AREA, PLASTICITY, EVALUATIONS = "final", "best", "area", "plasticity/", "evaluations"
METRICS = {FINAL: "final return", BEST: "best evaluation return", AREA: "mean evaluation return"}


@dataclass(frozen=True)
class Study:
    """A folder of runs."""

    folder: Path
    runs: list[StudyRun]
    """In the order of their folders' names."""
    damaged: list[str]
    """A sentence about each run that cannot be read, and is left out."""

    def in_state(self, state: str) -> list[StudyRun]:
        """The runs of one state."""
        return [run for run in self.runs if run.state == state]


def read_study(folder: str | Path) -> Study:
    """
    Read all runs of a study, curves thinned to 50 points.

    :param folder: Of the study, in which there is a folder ``runs``.
    :raises ValueError: If there is no run in it, or none that can be read.
    """
    folder = Path(folder)
    place = folder / RUNS_FOLDER
    if not place.is_dir():
        raise ValueError(f"{str(folder)!r} has no folder {RUNS_FOLDER!r}: expected the folder of a study of sb3-sparse sweep.")
    runs, damaged = [], []
    # Names that begin with a dot are of files that are being written.
    for path in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            runs.append(_read_run(path))
        except ValueError as error:
            damaged.append(str(error))
    if not runs:
        raise ValueError("\n".join(damaged) or f"{str(place)!r} is empty: no run has begun yet.")
    return Study(folder, runs, damaged)


def log_end(run: StudyRun) -> str:
    """The last lines that a run printed, without colours and what progress bars wrote over; empty if there is no log."""
    try:
        with (run.folder / LOG_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # Of a line that was written over, what was there last.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\t\x20-\x7e\xa0-\U0010ffff]", "", line).rstrip()[:LOG_WIDTH] for line in lines]
    return "\n".join([line for line in lines if line][-LOG_LINES:])


def thinned(series: Series, points: int = POINTS) -> Series:
    """
    Evenly chosen points of a curve, the first and the last one among them.

    :param series: With any number of points.
    :param points: How many to keep at most.
    """
    if len(series.x) <= points:
        return series
    kept = np.linspace(0, len(series.x) - 1, points).round().astype(int)
    return Series(series.x[kept], series.y[kept])


class _AnyName(dict[str, Any]):
    """Names in settings that were written as Python, which stand for themselves."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return name


def _entries(name: str, value: Any) -> Any:
    """``"dict(net_arch=[64])"`` as a mapping."""
    if not isinstance(value, str):
        return value
    try:
        read = parse_literal(name, value, _AnyName())
    except ValueError:
        return value
    return read if isinstance(read, dict) else value


def _read_run(folder: Path) -> StudyRun:
    if not (folder / RUN_FILE).is_file():
        raise ValueError(f"{str(folder / RUN_FILE)!r} is missing: {str(folder)!r} is no run, or is being copied just now.")
    written = _read_json(folder / RUN_FILE)
    with_path = f"{str(folder / RUN_FILE)!r} is damaged: "
    if written.get("format") != FORMAT:
        raise ValueError(f"{str(folder / RUN_FILE)!r} has format {written.get('format')!r}: this version reads {FORMAT}.")
    axes, settings = written.get("axes"), written.get("settings")
    if not isinstance(axes, dict) or not all(
        value is None or isinstance(value, str | bool) or _is_finite(value) for value in axes.values()
    ):
        raise ValueError(f"{with_path}axes={axes!r}, expected labels by name.")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), str) for name in ("algo", "env")):
        raise ValueError(f"{with_path}settings without the names of 'algo' and 'env'.")
    origins, result, error = [_origin(written)], None, None
    if (folder / DONE_FILE).is_file():
        done = _read_json(folder / DONE_FILE)
        result = _result(folder, done)
        origins.append(_origin(done))
    elif (folder / FAILED_FILE).is_file():
        failed = _read_json(folder / FAILED_FILE)
        error = f"{failed.get('error')} ({failed.get('tries')} tries, the last one {failed.get('when')})"
    return StudyRun(
        folder=folder,
        study=str(written.get("study")),
        axes=axes,
        settings=settings,
        checksum=str(written.get("hash")),
        command=str(written.get("command")),
        origins=origins,
        result=result,
        error=error,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} is damaged: expected names and values, it holds a {type(content).__name__}.")
    return content


def _result(folder: Path, done: Mapping[str, Any]) -> Result:
    problem = f"{str(folder / DONE_FILE)!r} is damaged: "
    returns, parameters = done.get("returns"), done.get("parameters")
    if not isinstance(returns, list) or not returns or not all(_is_finite(value) for value in returns):
        raise ValueError(f"{problem}returns={str(returns)[:80]}, expected a finite number for each episode.")
    if not isinstance(parameters, dict) or not all(
        isinstance(counts, dict) and all(_is_finite(counts.get(kind)) for kind in ("total", "learnable"))
        for counts in parameters.values()
    ):
        raise ValueError(f"{problem}parameters={str(parameters)[:80]}, expected 'total' and 'learnable' of each network.")
    for name in ("seconds", "timesteps"):
        if not _is_finite(done.get(name)):
            raise ValueError(f"{problem}{name}={done.get(name)!r}, expected a number.")
    evaluations, plasticity = evaluation_curve(folder, finite=False), plasticity_curves(folder, finite=False)
    # What was never a number is none of a network that has diverged.
    curves = {name: finite for name, series in plasticity.items() if len((finite := _finite(series)).x)}
    ends = {name: plasticity[name].x[plasticity[name].x > curve.x[-1]] for name, curve in curves.items()}
    not_finite = {name: float(steps[0]) for name, steps in ends.items() if len(steps)}
    if evaluations is not None and 0 < len(_finite(evaluations).x) < len(evaluations.x):
        not_finite[EVALUATIONS] = float(evaluations.x[~np.isfinite(evaluations.y)][0])
    return Result(
        returns=[float(value) for value in returns],
        parameters={network: (int(counts["total"]), int(counts["learnable"])) for network, counts in parameters.items()},
        seconds=float(done["seconds"]),
        timesteps=int(done["timesteps"]),
        evaluations=None if evaluations is None or not len(_finite(evaluations).x) else _finite(evaluations),
        plasticity={name: thinned(series) for name, series in curves.items()},
        first={name: float(plasticity[name].y[0]) for name in curves},
        not_finite=not_finite,
    )


def _finite(series: Series) -> Series:
    kept = np.isfinite(series.y)
    return Series(series.x[kept], series.y[kept])


def _is_finite(value: Any) -> bool:
    # Compared, since a whole number may be too large for a float; of NaN no comparison is true.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _origin(written: Mapping[str, Any]) -> Origin:
    code, machine = written.get("code"), written.get("machine")
    commit = written.get("commit")
    return Origin(
        versions={str(name): str(version) for name, version in code.items()} if isinstance(code, dict) else {},
        commit=None if commit is None else str(commit),
        modified=written.get("modified") is True,
        machine=", ".join(_described(name, value) for name, value in machine.items() if value is not None)
        if isinstance(machine, dict)
        else str(machine),
    )


def _described(name: str, value: Any) -> str:
    return f"{value} {name}" if name == "cores" else f"{name} {value}" if name == "gpu" else str(value)
