"""Groups of a study beside what others have published."""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.common.validation import finite, non_negative, whole_number
from sb3_sparse.results.runs import frames_per_step
from sb3_sparse.results.statistics import Summarized, difference_of_means
from sb3_sparse.results.studies.grouping import Group
from sb3_sparse.results.studies.reading import FINAL
from sb3_sparse.results.studies.tables import spread

COLUMNS = ("algorithm", "task", "frames", "mean_return", "sd", "seeds")
HEADER = ["task", "group", "published", "frames", "here: mean ± sd (n)", "published", "difference of means", "means"]
AGREES, DIFFERS = "may be equal", "differs"


@dataclass(frozen=True)
class Published:
    """One line of a file of published returns."""

    algorithm: str
    task: str
    frames: int
    """Of the environment, of which a decision may hold its action for several."""
    returns: Summarized


def read_references(path: Path) -> tuple[list[Published], list[str]]:
    """
    Published returns.

    :param path: A CSV with the columns algorithm, task (``cheetah_run``), frames, mean_return, sd and seeds.
    :return: Its lines, and a sentence about each that was left out: of one seed there is no interval.
    :raises ValueError: If it is missing or something else.
    """
    found, left_out, line = [], [], 1
    try:
        # Spreadsheets begin a file with a mark that is no part of the first name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
                raise ValueError(f"there is no {', '.join(missing)}")
            for row in reader:
                line = reader.line_num
                if (seeds := whole_number("seeds", _number(row["seeds"]), 1)) == 1:
                    left_out.append(f"{path}, line {line}: one seed, of which no interval is known. It is left out.")
                else:
                    found.append(_published(row, seeds))
            if not found and not left_out:
                raise ValueError("there is no line below them")
    except OSError as error:
        raise ValueError(f"--reference {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--reference {path}: {error}: expected a CSV in UTF-8.") from error
    except csv.Error as error:
        raise ValueError(f"--reference {path}, line {line + 1}: {error}.") from error
    except ValueError as error:
        expected, wrong = f"expected a CSV with the columns {', '.join(COLUMNS)}", str(error).rstrip(".")
        raise ValueError(f"--reference {path}, line {line}: {expected} ({wrong}).") from error
    return found, left_out


def _published(row: Mapping[str | None, Any], seeds: int) -> Published:
    if None in row or None in row.values():
        raise ValueError("as many cells as columns are needed")
    mean, sd = finite("mean_return", _number(row["mean_return"])), non_negative("sd", _number(row["sd"]))
    frames = whole_number("frames", _number(row["frames"]), 1)
    return Published(row["algorithm"], row["task"], frames, Summarized(mean, sd, seeds))


def _number(text: Any) -> Any:
    """Of a cell; what is none stays as it is, for the message."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


@dataclass(frozen=True)
class Beside:
    """A group of a study beside what was published for its task."""

    group: Group
    own: Summarized
    published: Published
    difference: float
    """Of the means, the group's less the published one."""
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Means may be equal if the interval of their difference holds 0."""
        return AGREES if self.low <= 0 <= self.high else DIFFERS

    def to_row(self) -> dict[str, Any]:
        """For a CSV."""
        other = self.published
        return {
            **{"algorithm": self.group.algo, "environment": self.group.env, "group": self.group.label, "frames": other.frames},
            **{"mean": self.own.mean, "sd": self.own.sd, "runs": self.own.n, "published": other.algorithm},
            **{"published_mean": other.returns.mean, "published_sd": other.returns.sd, "published_runs": other.returns.n},
            **{"difference": self.difference, "low": self.low, "high": self.high, "verdict": self.verdict},
        }

    def to_cells(self) -> list[str]:
        """For the page, under :data:`HEADER`."""
        other = self.published
        return [
            *(self.group.task, self.group.label, other.algorithm, f"{other.frames:,}"),
            *(_summarized(self.own), _summarized(other.returns)),
            *(f"{self.difference:+,.1f} [{self.low:+,.1f}, {self.high:+,.1f}]", self.verdict),
        ]


def beside_references(groups: Iterable[Group], references: Iterable[Published]) -> list[Beside]:
    """
    Each group of two runs or more, all of which were trained to their end, beside each algorithm that was published for its
    task with as many frames.

    :param groups: Each of one environment.
    :param references: From :func:`read_references`.
    """
    published: dict[tuple[str, int], list[Published]] = {}
    for each in references:
        published.setdefault((each.task, each.frames), []).append(each)
    found = []
    for group in groups:
        finals, settings = [run.values[FINAL] for run in group.runs], group.runs[0].settings
        # Of what ended early nobody knows where it would have come to.
        if len(finals) < 2 or any(run.ended_early for run in group.runs):
            continue
        frames = int(settings["n_timesteps"]) * frames_per_step((settings.get("hyperparams") or {}).get("env_wrapper"))
        own = Summarized(float(np.mean(finals)), spread(finals), len(finals))
        for each in published.get((task_of(group.env), frames), []):
            found.append(Beside(group, own, each, *difference_of_means(own, each.returns)))
    return found


def task_of(env: str) -> str:
    """
    The name of a task as publications have it.

    >>> task_of("dm_control/cheetah-run-v0")
    'cheetah_run'
    """
    return re.sub(r"-v\d+$", "", env.removeprefix("dm_control/")).replace("-", "_")


def _summarized(found: Summarized) -> str:
    return f"{found.mean:,.1f} ± {found.sd:,.1f} ({found.n})"
