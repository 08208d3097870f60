"""Groups of a study beside what others have published."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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


def read_references(path: Path) -> list[Published]:
    """
    Published returns.

    :param path: A CSV with the columns algorithm, task (``cheetah_run``), frames, mean_return, sd and seeds.
    :raises ValueError: If it is missing or something else.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
            return [
                Published(
                    row["algorithm"],
                    row["task"],
                    int(row["frames"]),
                    Summarized(float(row["mean_return"]), float(row["sd"]), int(row["seeds"])),
                )
                for row in rows
            ]
    except OSError as error:
        raise ValueError(f"--reference {path}: {error.strerror or error}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--reference {path}: expected a CSV with the columns {', '.join(COLUMNS)} ({error!r}).") from error


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
    Each group of two runs or more beside each algorithm that was published for its task with as many frames.

    :param groups: Each of one environment.
    :param references: From :func:`read_references`.
    """
    published: dict[tuple[str, int], list[Published]] = {}
    for each in references:
        published.setdefault((each.task, each.frames), []).append(each)
    found = []
    for group in groups:
        finals, settings = [run.values[FINAL] for run in group.runs], group.runs[0].settings
        if len(finals) < 2:
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
