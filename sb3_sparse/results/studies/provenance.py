"""What finished runs were made with, and whether that was the same for all that are compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sb3_sparse.results.studies.reading import Origin, StudyRun

UNKNOWN = "unknown"
MODIFIED = "uncommitted changes"
# Runs that are named in a table.
NAMED = 3


@dataclass(frozen=True)
class Used:
    """One version, commit or machine, and the runs that had it."""

    what: str
    value: str
    runs: list[str]
    """Names of folders."""

    @property
    def some_runs(self) -> str:
        """Some of their names."""
        more = len(self.runs) - NAMED
        return ", ".join(self.runs[:NAMED]) + (f" and {more} more" if more > 0 else "")


def all_used(runs: Sequence[StudyRun]) -> list[Used]:
    """
    Every version, commit and machine of finished runs, from those that began them as well as those that finished them.

    :param runs: Finished ones.
    """
    names = dict.fromkeys(name for run in runs for origin in run.origins for name in origin.versions)
    found = [used for name in names for used in _used(name, runs, partial(_version, name))]
    found += _used("commit", runs, lambda origin: origin.commit or UNKNOWN)
    found += _used(MODIFIED, runs, lambda origin: "yes" if origin.modified else "no")
    found += _used("machine", runs, lambda origin: origin.machine)
    return [*found, *_commands(runs)]


def mixtures(used: Sequence[Used]) -> list[str]:
    """
    A sentence about each of them that was not the same for all runs, and about changes that no commit has.

    :param used: From :func:`all_used`.
    """
    found = []
    for what in dict.fromkeys(each.what for each in used):
        values = [each for each in used if each.what == what]
        if what == MODIFIED:
            modified = sum(len(each.runs) for each in values if each.value == "yes")
            if modified:
                found.append(f"Uncommitted changes: {modified} run(s) were made with code that their commit does not have.")
        elif len(values) > 1 and what != "command":
            counts = "; ".join(f"{each.value} ({len(each.runs)} run(s))" for each in values)
            found.append(f"Mixed {what}: {counts}.")
    return found


def _used(what: str, runs: Sequence[StudyRun], read: Callable[[Origin], str]) -> list[Used]:
    by_value: dict[str, list[str]] = {}
    for run in runs:
        for value in dict.fromkeys(read(origin) for origin in run.origins):
            by_value.setdefault(value, []).append(run.folder.name)
    return [Used(what, value, names) for value, names in by_value.items()]


def _version(name: str, origin: Origin) -> str:
    return origin.versions.get(name, UNKNOWN)


def _commands(runs: Sequence[StudyRun]) -> list[Used]:
    by_command: dict[str, list[str]] = {}
    for run in runs:
        by_command.setdefault(run.command, []).append(run.folder.name)
    return [Used("command", command, names) for command, names in by_command.items()]
