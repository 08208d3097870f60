"""Reading what a run left behind: returns, plasticity series, and the hyperparameters that tell runs apart."""

import csv
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.results.statistics import Series, rolling_mean

# Episodes in the rolling mean of training returns: SB3's own window of `rollout/ep_rew_mean`.
WINDOW = 100
# Kinds of returns by preference: what evaluations measured, then what training saw.
RETURNS = {
    "evaluations": "evaluation return",
    "monitor": f"training return (mean of {WINDOW} episodes)",
    "logger": "training return (rollout/ep_rew_mean)",
}
PLASTICITY = "plasticity/"
EVALUATIONS_FILE = "evaluations.npz"
#: Wrappers that hold an action for several steps: the argument that says for how many, and its default.
REPEATING = {
    "DMCWrapper": ("action_repeat", 2),
    "PixelObservations": ("action_repeat", 2),
    "DopamineAtari": ("frame_skip", 4),
    "AtariWrapper": ("frame_skip", 4),
    "MaxAndSkipEnv": ("skip", 4),
    "AtariPreprocessing": ("frame_skip", 4),
    "MaxAndSkipObservation": ("skip", 4),
}
LOOKED_FOR = "evaluations.npz, *.monitor.csv, progress.csv, plasticity.csv, events.out.tfevents*"


@dataclass
class Run:
    """What was found in the folder of one run."""

    folder: Path
    label: str | None
    """The name that the user gave it."""
    returns: dict[str, Series]
    """By kind: keys of ``RETURNS``."""
    plasticity: dict[str, Series]
    """By name, without the prefix ``plasticity/``."""
    clock: Series | None
    """Hours since the start at numbers of timesteps."""
    settings: dict[str, Any] | None
    """Algorithm, environment and hyperparameters as rl-zoo3 saved them, without the seed."""


class EmptyRun(ValueError):
    """A folder in which there is nothing to draw, such as that of a run which has only begun."""


def read_runs(arguments: Iterable[str]) -> tuple[list[Run], list[str]]:
    """
    Read several runs, without those that are empty.

    :param arguments: Each as for :func:`read_run`.
    :return: The runs, and a sentence about each that was left out.
    :raises ValueError: If all are empty, a folder is missing, or a file is damaged.
    """
    runs, left_out = [], []
    for argument in arguments:
        try:
            runs.append(read_run(argument))
        except EmptyRun as error:
            left_out.append(str(error))
    if not runs:
        raise EmptyRun("\n".join(left_out) or "no run is named.")
    return runs, left_out


def read_run(argument: str) -> Run:
    """
    Read the folder of a run: one of rl-zoo3 (``logs/sac/ENV_1``), or one that SB3's logger wrote into.

    :param argument: ``FOLDER`` or ``LABEL=FOLDER``.
    :raises EmptyRun: If it holds nothing to draw.
    :raises ValueError: If the folder is missing, or a file in it is damaged.
    :raises ImportError: If it has settings of rl-zoo3, and PyYAML is missing.
    """
    label, path = _split_label(argument)
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"{path!r} is not a folder. A run is given as FOLDER or LABEL=FOLDER, for example logs/sac/Pendulum-v1_1."
        )
    progress = _read_table(folder / "progress.csv", "time/total_timesteps")
    plasticity = plasticity_curves(folder)
    config = settings_file(folder)
    settings = None if config is None else _with_origin(read_settings(config))
    monitor = _read_monitor(folder, frames_per_step((settings or {}).get("env_wrapper")))
    returns = {}
    if (evaluations := evaluation_curve(folder)) is not None:
        returns["evaluations"] = evaluations
    if monitor:
        returns["monitor"] = monitor["returns"]
    returns = {**_logged_returns(progress), **returns}
    plasticity = {**_only_plasticity(progress), **plasticity}
    clock = monitor.get("hours") or _hours(progress.get("time/time_elapsed"))
    if any(folder.glob("events.out.tfevents*")) and not (returns and plasticity and clock):
        events, hours = _read_events(folder)
        returns = {**_logged_returns(events), **returns}
        plasticity = plasticity or _only_plasticity(events)
        clock = clock or hours
    returns = {kind: series for kind, series in returns.items() if len(series.x)}
    if not returns and not plasticity:
        raise EmptyRun(f"nothing to draw in {str(folder)!r}: looked for {LOOKED_FOR}.{_runs_inside(folder)}")
    return Run(folder, label or None, returns, plasticity, clock, settings)


def _split_label(argument: str) -> tuple[str, str]:
    """Both labels and folders may contain "="."""
    places = [i for i, letter in enumerate(argument) if letter == "="]
    splits = [("", argument), *((argument[:i], argument[i + 1 :]) for i in places)]
    return next((split for split in splits if split[1] and Path(split[1]).is_dir()), splits[-1])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, csv.Error, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {error}). "
            "If a run is writing it just now, try again; else remove it."
        ) from error


def evaluation_curve(folder: Path, finite: bool = True) -> Series | None:
    """
    The mean return of each evaluation of SB3's ``EvalCallback``; None if there is no file of it.

    :param folder: Of the run.
    :param finite: Only finite numbers.
    :raises ValueError: If the file is damaged.
    """
    path = folder / EVALUATIONS_FILE
    if not path.is_file():
        return None
    # NumPy leaves a damaged file open that it opened itself.
    with _reading(path), path.open("rb") as opened, np.load(opened) as file:
        return _series(file["timesteps"], file["results"].mean(axis=1), finite)


def plasticity_curves(folder: Path, finite: bool = True) -> dict[str, Series]:
    """
    The series of ``PlasticityCallback``'s table by name, or of several tables; none if there is no table.

    :param folder: Of the run.
    :param finite: Only finite numbers.
    :raises ValueError: If the file is damaged.
    """
    # A second callback of a study writes into plasticity1.csv; what both measure is shown as the first one has it.
    tables = sorted([*folder.glob("plasticity.csv"), *folder.glob("plasticity[0-9].csv")], reverse=True)
    return {name: series for path in tables for name, series in _read_table(path, "timesteps", finite, True).items()}


def _read_monitor(folder: Path, frames_per_step: int) -> dict[str, Series]:
    """Returns and clock of all environments of a run: every one counts its own steps."""
    episodes, starts = [], []
    for path in sorted(folder.glob("*monitor.csv")):
        with _reading(path), path.open(newline="") as file:
            # The first line is a comment that says when the environment was made. It is missing, and the last line
            # short, while a run is starting or writing.
            if not (comment := file.readline()):
                continue
            starts.append(float(json.loads(comment.lstrip("#"))["t_start"]))
            rows = [[_number(row[name]) for name in "tlr"] for row in _read_rows(file, 1, tuple("tlr").__contains__)]
        rows = [row for row in rows if np.isfinite(row).all()]
        ends = starts[-1] + _going_on([t for t, _, _ in rows])
        episodes += [(end, length, reward) for end, (_, length, reward) in zip(ends, rows, strict=True)]
    if not episodes:
        return {}
    ends, lengths, rewards = np.array(sorted(episodes)).T
    steps = np.cumsum(lengths) / frames_per_step
    return {
        "returns": _series(steps, rolling_mean(rewards, WINDOW)),
        "hours": _series([0.0, *steps], [0.0, *(ends - min(starts)) / 3600]),
    }


def frames_per_step(env_wrapper: Any) -> int:
    """
    For how many steps of the environment a decision of the agent holds its action, as wrappers in the settings of a run say.

    rl-zoo3's monitor sits below the wrappers and counts these, as publications do.

    >>> frames_per_step(["sb3_sparse.dmc.DMCWrapper"])
    2

    :param env_wrapper: A name, a name with its arguments, or a list of both; None: no wrapper.
    """
    frames = 1
    for wrapper in env_wrapper if isinstance(env_wrapper, list) else [env_wrapper]:
        for name, keywords in wrapper.items() if isinstance(wrapper, Mapping) else [(wrapper, None)]:
            argument, repeat = REPEATING.get(str(name).rpartition(".")[2], (None, 1))
            given = keywords if isinstance(keywords, Mapping) else {}
            # Of an unknown wrapper by the names that are usual.
            names = (argument,) if argument else ("action_repeat", "frame_skip")
            frames *= int(next((given[each] for each in names if given.get(each) is not None), repeat))
    return frames


def _read_table(path: Path, step_column: str, finite: bool = True, has_only_numbers: bool = False) -> dict[str, Series]:
    """The columns of a CSV of SB3's logger or of the plasticity callback; what is no number is left out, unless asked for."""
    if not path.is_file():
        return {}
    # What a user logs may be text.
    with _reading(path), path.open(newline="") as file:
        rows = _read_rows(file, 0, lambda name: name == step_column or has_only_numbers)
    if rows and step_column not in rows[0]:
        if not has_only_numbers:
            return {}
        raise ValueError(f"{str(path)!r} has no column {step_column!r}: its columns are {list(rows[0])}.")
    columns = [name for name in (rows[0] if rows else []) if name and name != step_column]
    steps = [_number(row[step_column]) for row in rows]
    found = {name: _series(steps, [_number(row[name]) for row in rows], finite) for name in columns}
    return {name: series for name, series in found.items() if len(series.x)}


def _read_rows(file: Iterable[str], lines_before: int, is_number: Callable[[str], bool]) -> list[dict[str, str]]:
    """
    The rows of a CSV by column.

    :param lines_before: Lines of the file before its header.
    :param is_number: Says of a column whether its cells have to be numbers, or empty.
    :raises ValueError: With the line, if a row does not fit. The last one may be one that is just being written.
    """
    reader = csv.reader(file)
    header = next(reader, [])
    numbers = [name for name in header if is_number(name)]
    rows, problem = [], ""
    for cells in reader:
        if problem:
            raise ValueError(problem)
        if len(cells) not in (0, len(header)):
            problem = f"line {lines_before + reader.line_num}: {len(cells)} cells, and {len(header)} columns"
        row = dict(zip(header, cells, strict=False))
        try:
            for name in numbers:
                float(row.get(name) or 0)
        except ValueError:
            problem = problem or f"line {lines_before + reader.line_num}: {name} is {row[name]!r}, which is no number"
        if cells and not problem:
            rows.append(row)
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_events(folder: Path) -> tuple[dict[str, Series], Series | None]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Size 0: keep every point, where TensorBoard itself draws a sample of them.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1, "histograms": 1})
    events.Reload()
    scalars: dict[str, Series] = {}
    times: dict[int, float] = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        scalars[name] = _series([point.step for point in points], [point.value for point in points])
        times.update((point.step, point.wall_time) for point in points)
    start = events.FirstEventTimestamp() if times else 0.0
    steps = sorted(times)
    return scalars, _series(steps, [(times[step] - start) / 3600 for step in steps]) if steps else None


def _logged_returns(found: dict[str, Series]) -> dict[str, Series]:
    names = {"evaluations": "eval/mean_reward", "logger": "rollout/ep_rew_mean"}
    return {kind: found[name] for kind, name in names.items() if name in found}


def settings_file(folder: Path) -> Path | None:
    """
    Where rl-zoo3 keeps the settings of a run: in a folder named after the environment. None if there is none, or several.

    :param folder: Of the run.
    """
    paths = sorted(folder.glob("*/config.yml"))
    return paths[0] if len(paths) == 1 else None


def read_settings(path: Path) -> dict[str, Any]:
    """
    Algorithm, environment and hyperparameters of a run of rl-zoo3, without the seed.

    :param path: Its ``config.yml``, beside which there may be an ``args.yml``.
    :raises ValueError: If a file is damaged.
    :raises ImportError: If PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError('reading rl-zoo3\'s settings needs PyYAML: pip install "sb3-sparse[zoo]"') from error

    class Loader(yaml.SafeLoader):
        """Reads rl-zoo3's files, which hold Python objects, without running any code."""

    def plain(loader: Any, suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return f"{suffix} {node.value}".strip()

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", plain)

    def read(path: Path) -> dict[str, Any]:
        with _reading(path):
            try:
                content = yaml.load(path.read_text(), Loader)
            except yaml.YAMLError as error:
                raise ValueError(error) from error
            # An OrderedDict is written as a call with one argument, the list of its pairs.
            return content if isinstance(content, dict) else dict(content[0])

    config = read(path)
    arguments = path.with_name("args.yml")
    named = read(arguments) if arguments.is_file() else {}
    config.pop("seed", None)
    return {**{name: named[name] for name in ("algo", "env", "env_kwargs", "trained_agent") if named.get(name)}, **config}


def _with_origin(settings: dict[str, Any], known: tuple[Path, ...] = ()) -> dict[str, Any]:
    """
    Each seed goes on from an agent of its own: what that was trained with tells groups apart, and not where it lies.

    If nothing is found there any more, the place has to do.
    """
    if "trained_agent" not in settings:
        return settings
    path = Path(settings["trained_agent"])
    config = None if path in known else settings_file(path.parent)
    return settings if config is None else {**settings, "trained_agent": _with_origin(read_settings(config), (*known, path))}


def _series(x: Iterable[float], y: Iterable[float], finite: bool = True) -> Series:
    """Sorted by timesteps, only finite points or all, the last one of equal timesteps: a resumed run may repeat some."""
    points = np.array([list(x), list(y)], dtype=np.float64)
    points = points[:, np.isfinite(points if finite else points[:1]).all(axis=0)]
    # The first of equal ones from behind.
    steps, places = np.unique(points[0, ::-1], return_index=True)
    return Series(steps, points[1, ::-1][places])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _hours(seconds: Series | None) -> Series | None:
    return None if seconds is None else Series(seconds.x, _going_on(seconds.y) / 3600)


def _going_on(seconds: Iterable[float]) -> np.ndarray:
    """Seconds since the beginning, of a clock that began again when training went on."""
    values = np.array([*seconds], dtype=np.float64)
    before = np.where(np.diff(values) < 0, values[:-1], 0.0)
    values[1:] += np.cumsum(before)
    return values


def _only_plasticity(found: dict[str, Series]) -> dict[str, Series]:
    return {
        name.removeprefix(PLASTICITY): series
        for name, series in found.items()
        if name.startswith(PLASTICITY) and len(series.x)
    }


def _runs_inside(folder: Path) -> str:
    patterns = LOOKED_FOR.split(", ")
    inside = sorted(child.name for child in folder.iterdir() if child.is_dir() and any(any(child.glob(p)) for p in patterns))
    return f" Its folders {inside[:8]} are runs: name them." if inside else ""
