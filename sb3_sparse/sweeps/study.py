"""The folder of a study, and which of its runs there is something to do for."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sb3_sparse.common.files import written_beside
from sb3_sparse.common.literals import parse_literal
from sb3_sparse.results.evaluations import aligned
from sb3_sparse.results.studies.reading import DONE_FILE, FAILED_FILE, PLAN_FILE, RUN_FILE, RUNS_FOLDER
from sb3_sparse.sweeps.planning.plan import Plan, PlannedRun, read_plan
from sb3_sparse.sweeps.planning.yaml_plain import write_yaml
from sb3_sparse.sweeps.runs.execute import How, how_of, write_run
from sb3_sparse.sweeps.runs.run_folder import STATES, STATUS_FILE, RunFolder

DEFAULT_FOLDER = "logs/sweeps"
#: Plans that come with the package.
PLANS = Path(__file__).parent / "plans"
# What runs are chosen by beside their axes.
OF_ALL = ("algo", "env", "seed")


class Study:
    """
    A plan, and the folder in which its runs are.

    :param plan: The plan.
    :param folder: Of studies; that of this one is named after it.
    """

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.path = plan, folder / plan.study
        #: How far runs are that are kept elsewhere, by the names of their folders, where nothing is brought here.
        self.elsewhere: dict[str, str] = {}

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.path / RUNS_FOLDER

    def folder(self, run: PlannedRun) -> RunFolder:
        """That of one run, also where its axes once stood in another order."""
        own = self.runs / run.name
        if not own.exists():
            for other in sorted(self.runs.glob(f"*-{run.hash[:10]}")):
                found = RunFolder(other)
                written = found.read(RUN_FILE)
                if written.get("hash") == run.hash and written.get("axes") == run.axes:
                    return found
        return RunFolder(own)

    def chosen(self, only: Sequence[str] = ()) -> list[PlannedRun]:
        """
        Some of the runs.

        :param only: ``"axis=value"``, or several with commas, of which all have to hold; of several texts one.
        :raises ValueError: If a text fits to no run, or is none such.
        """
        if not only:
            return list(self.plan.runs)
        names = {*OF_ALL, *(name for run in self.plan.runs for name in run.axes)}
        wanted = [_conditions(text, names) for text in only]
        for text, conditions in zip(only, wanted, strict=True):
            if not any(_fits(run, conditions) for run in self.plan.runs):
                axes = {name: None for run in self.plan.runs for name in run.axes}
                values = {axis: list(dict.fromkeys(run.axes.get(axis) for run in self.plan.runs)) for axis in axes}
                raise ValueError(f"--only {text!r} fits to no run. There is {values}.")
        return [run for run in self.plan.runs if any(_fits(run, conditions) for conditions in wanted)]

    def state(self, run: PlannedRun) -> str:
        """How far a run is: one of ``STATES``."""
        folder = self.folder(run)
        return self.elsewhere.get(folder.name) or folder.state()

    def to_do(self, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Those that are neither done nor have failed."""
        return [run for run in runs if self.state(run) not in ("done", "failed")]

    def failed(self, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Those whose last try failed."""
        return [run for run in runs if self.state(run) == "failed"]

    def prepare(self, runs: Sequence[PlannedRun], command: str) -> How:
        """
        Write down the plan, and what the runs are.

        :param runs: To be made.
        :param command: That was called.
        :raises ValueError: If the folder of a run has another run.
        :raises OSError: If it cannot be written there.
        """
        how = how_of(self.plan, command)
        with written_beside(self.path / PLAN_FILE) as beside:
            write_yaml(beside, {"study": self.plan.study, **self.plan.content})
        for run in runs:
            write_run(self.folder(run), run, how)
        return how


def open_study(place: Path, folder: Path | None) -> Study:
    """
    The study of a plan, or the one in a folder.

    :param place: A file, the folder of a study, or the name of a plan that comes with the package: ``small/figure_01``.
    :param folder: Of studies; None: the usual one, or where the study is.
    :raises ValueError: If there is none, or something in the plan is wrong.
    """
    if place.is_dir():
        if not (place / PLAN_FILE).is_file() or not (place / RUNS_FOLDER).is_dir():
            raise ValueError(
                f"{place} has no {PLAN_FILE} beside a folder {RUNS_FOLDER}: expected a plan, or a study's folder."
            )
        if folder is not None:
            raise ValueError(f"--folder {folder}: {place} is the folder of a study, where its runs are. Leave out --folder.")
        plan = read_plan(place / PLAN_FILE)
        # Under whatever name it lies there.
        study = Study(plan, place.parent)
        study.path = place
        return study
    packaged = PLANS / place.with_name(f"{place.name}.yml")
    if not place.exists() and packaged.is_file():
        place = packaged
    elif not place.exists():
        known = sorted(str(path.relative_to(PLANS).with_suffix("")) for path in PLANS.rglob("*.yml"))
        raise ValueError(f"there is no plan {str(place)!r}: expected a file, or one that comes with the package, {known}.")
    return Study(read_plan(place), folder or Path(DEFAULT_FOLDER))


def status_text(study: Study, runs: Sequence[PlannedRun]) -> str:
    """
    How far the runs are, as a table, and what went wrong.

    :param study: The study.
    :param runs: Some of its runs.
    """
    rows, counts, errors = [], dict.fromkeys(STATES, 0), []
    for run in runs:
        folder = study.folder(run)
        state = folder.state()
        counts[state] += 1
        status: dict[str, Any] = folder.read(STATUS_FILE)
        steps = run.settings["n_timesteps"] if state == "done" else int(status.get("timesteps") or 0)
        # Of a finished agent what it plays in the end, before that the last ten episodes of training.
        finals = folder.read(DONE_FILE).get("returns")
        mean = sum(finals) / len(finals) if finals else status.get("mean_return")
        part = f"{100 * steps / run.settings['n_timesteps']:.0f} %"
        rows.append([run.name, state, part, "" if mean is None else f"{mean:.1f}", f"{folder.seconds() / 3600:.2f}"])
        if state == "failed":
            errors.append(f"{run.name}: {folder.read(FAILED_FILE).get('error', '')}\n  {folder.log}")
    text = aligned(["run", "state", "steps", "return", "hours"], rows, left=2) if rows else ""
    counted = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    others = _others(study)
    more = f"\n{others} more in {study.runs}, of other settings." if others else ""
    return "\n".join([text, "", f"{len(rows)} runs: {counted}{more}", *errors])


def _others(study: Study) -> int:
    names = {study.folder(run).name for run in study.plan.runs}
    return sum((path.parent.name not in names) for path in study.runs.glob(f"*/{RUN_FILE}"))


def _conditions(text: str, names: Iterable[str]) -> dict[str, Any]:
    conditions = {}
    # Labels may have commas and "=" in them.
    for part in re.split(rf",(?=\s*(?:{'|'.join(map(re.escape, names))})\s*=)", text):
        name, separator, value = part.partition("=")
        if not separator:
            raise ValueError(f"--only {text!r}: expected AXIS=VALUE, such as width=0.5,sparsity=0.8.")
        try:
            conditions[name.strip()] = parse_literal(name, value, {"null": None, "true": True, "false": False})
        except ValueError:
            # A label need not be in quotes.
            conditions[name.strip()] = value.strip()
    return conditions


def _fits(run: PlannedRun, conditions: dict[str, Any]) -> bool:
    known = {**{name: run.settings[name] for name in OF_ALL}, **run.axes}
    return all(name in known and known[name] == value for name, value in conditions.items())
