"""What one sees of a study while it runs: a live table on a terminal, else a line for whatever begins and ends."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from sb3_sparse.sweeps.runs.execute import FAILED, STOPPED, TAKEN
from sb3_sparse.sweeps.runs.run_folder import STATUS_FILE, RunFolder

# Seconds between two looks at the files of running runs.
LOOK = 2.0


class View:
    """
    Follows what is told of runs.

    :param folders: Of the runs to be made.
    :param weights: How much each of them is of the whole, by name: hours, or steps.
    :param live: Whether to draw a table that changes; None: if the output is a terminal, and rich is installed.
    """

    def __init__(self, folders: Sequence[RunFolder], weights: Mapping[str, float], live: bool | None = None):
        self._folders = {folder.name: folder for folder in folders}
        self._weights = weights
        self._running: dict[str, dict[str, Any]] = {}
        # What was done before this command, of runs that go on.
        self._done_before: dict[str, float] = {}
        self._ended: set[str] = set()
        self._start = self._looked = time.monotonic()
        #: Runs that ended, by the kind of their outcome; of those that failed the error.
        self.outcomes: dict[str, dict[str, str]] = {}
        #: What the disk said, if that was why it ended.
        self.disk_error = ""
        self._live = _live_table() if live or (live is None and sys.stdout.isatty()) else None

    def __enter__(self) -> "View":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """
        Take notice of something.

        :param event: ``begins`` or ``ends`` with the name of a run, ``kind`` and ``error``; ``lost``; or nothing.
        """
        if "begins" in event:
            name = event["begins"]
            self._running[name] = self._folders[name].read(STATUS_FILE)
            self._done_before[name] = self._part(name)
            self._say(f"begins  {name}")
        elif "ends" in event:
            if event.get("is_of_disk"):
                self.disk_error = event["error"]
            self._end(event["ends"], event["kind"], event["error"])
        elif "lost" in event:
            # Its run goes on in another process, from its last checkpoint.
            name = event["lost"] or "what there is to do"
            self._say(f"a process ended without a word (status {event.get('status')}): another one goes on with {name}")
        if self._live is not None and time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._look()
            self._live.update(self._table())

    def _end(self, name: str, kind: str, error: str) -> None:
        self._running.pop(name, None)
        if kind in (TAKEN, STOPPED):
            self._done_before.pop(name, None)
        if kind == TAKEN:
            return
        self.outcomes.setdefault(kind, {})[name] = error
        if kind != STOPPED:
            self._ended.add(name)
        self._say(f"{kind:<7} {name}  {self._progress()}{f'  {error}' if kind == FAILED else ''}")

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def _look(self) -> None:
        for name in self._running:
            self._running[name] = self._folders[name].read(STATUS_FILE)

    def _part(self, name: str) -> float:
        """How much of a run is done."""
        if name in self._ended:
            return 1.0
        n_timesteps = self._running.get(name, {}).get("n_timesteps") or 0
        return min(1.0, self._running[name].get("timesteps", 0) / n_timesteps) if n_timesteps else 0.0

    def _progress(self) -> str:
        whole = sum(self._weights.values()) or 1.0
        part = sum(weight * self._part(name) for name, weight in self._weights.items()) / whole
        before = sum(weight * self._done_before.get(name, 0.0) for name, weight in self._weights.items()) / whole
        spent = time.monotonic() - self._start
        left = f", about {_time(spent * (1 - part) / (part - before))} left" if before < part < 1 else ""
        return f"{len(self._ended)} of {len(self._folders)} runs, {100 * part:.0f} %, {_time(spent)}{left}"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._progress()), title_justify="left", expand=False)
        for name in ("run", "steps", "return"):
            table.add_column(name, justify="left" if name == "run" else "right")
        for name, status in self._running.items():
            mean = status.get("mean_return")
            steps = f"{status.get('timesteps', 0):,} ({100 * self._part(name):.0f} %)"
            table.add_row(Text(name), steps, "" if mean is None else f"{mean:.1f}")
        return table


def _live_table() -> Any:
    """None where rich is missing."""
    try:
        from rich.live import Live
    except ImportError:
        return None
    return Live(auto_refresh=False)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
