"""``sb3-sparse sweep``."""

import argparse
import importlib.util
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sb3_sparse.cli.options.parsers import Parser
from sb3_sparse.common.interrupts import is_unread
from sb3_sparse.common.validation import positive, whole_number
from sb3_sparse.results.studies.reading import RUNS_FOLDER
from sb3_sparse.resume.signals import EXIT_STATUS
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE
from sb3_sparse.sweeps.backends.processes import run_in_processes
from sb3_sparse.sweeps.backends.ray_cluster import run_on_ray
from sb3_sparse.sweeps.backends.worker import interruptible, work
from sb3_sparse.sweeps.planning.estimate import (
    MEMORY_SHARE,
    cost_of,
    free_memory,
    kind_of,
    measure_kinds,
    overview,
    usable_cores,
)
from sb3_sparse.sweeps.planning.measure import Measured
from sb3_sparse.sweeps.planning.plan import PlannedRun, check_places
from sb3_sparse.sweeps.runs.execute import tidy
from sb3_sparse.sweeps.runs.storage import Storage
from sb3_sparse.sweeps.study import Study, open_study, status_text
from sb3_sparse.sweeps.view import View
from sb3_sparse.zoo.mistakes.words import one_line

BACKENDS = ("ray", "processes")


def sweep(args: list[str]) -> Callable[[], None] | None:
    """Make all runs of a plan that are not done, and say before what that costs. The same command goes on with them."""
    try:
        with interruptible():
            go_on = _prepare(args)
    except KeyboardInterrupt:
        print("stopped before anything began.", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    return None if go_on is None else lambda: _in_a_sentence(go_on)


def _in_a_sentence(go_on: Callable[[], None]) -> None:
    """What goes wrong in a run is in its log. Whatever is raised here is about folders, disks and clusters."""
    try:
        go_on()
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"sb3-sparse sweep: {one_line(error)}")


def _prepare(args: list[str]) -> Callable[[], None] | None:
    if args[:1] == ["status"]:
        _status(args[1:])
        return None
    options = _options(args)
    study = open_study(Path(options.plan), options.folder)
    runs = study.chosen(options.only)
    if (url := _url(study, options)) is not None:
        _look_elsewhere(study, runs, Storage(url), options)
    own = runs if options.run_index is None else _part(runs, options)
    _check_places(study, own, options)
    if options.retry_failed and not options.dry_run:
        for run in study.failed(own):
            study.folder(run).forget_failure()
    if not options.dry_run:
        for run in runs:
            if study.folder(run).is_done:
                tidy(study.folder(run))
    to_do = study.to_do(runs)
    failed = study.failed(runs)
    done = len(runs) - len(to_do) - len(failed)
    print(f"{study.plan.study}: {len(runs)} runs, {done} done, {len(failed)} failed, {len(to_do)} to do, in {study.path}")
    if options.run_index is not None:
        if not options.dry_run:
            return lambda: _one_job(study, own, options)
        _tell_part(study, own, options)
        return None
    if not to_do:
        return lambda: _end(study, runs)
    jobs = options.jobs or max(1, usable_cores() // study.plan.threads)
    measured: dict[str, Measured] = {}
    if options.estimate:
        measured = measure_kinds(study.plan, to_do, study.path)
        if options.jobs is None and options.address is None:
            jobs = _fitting(study, to_do, measured, jobs)
        print(overview(study.plan, to_do, measured, jobs, study.path), flush=True)
    if options.dry_run:
        return None
    return lambda: _make(study, runs, to_do, measured, jobs, options)


def _look_elsewhere(study: Study, runs: Sequence[PlannedRun], there: Storage, options: argparse.Namespace) -> None:
    """Learn how far runs are in a storage, which learns what was finished here without it."""
    for folder in map(study.folder, runs):
        if options.dry_run:
            study.elsewhere[folder.name] = there.state(folder.name, folder.path)
            continue
        there.fetch_marks(folder.name, folder.path)
        if folder.is_done:
            there.offer(folder.name, folder.path)


def _check_places(study: Study, own: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """Of what is not done. Machines of a cluster may have what is missing here."""
    if options.address is None:
        check_places(run for run in own if study.state(run) != "done")


def _make(
    study: Study,
    runs: Sequence[PlannedRun],
    to_do: Sequence[PlannedRun],
    measured: dict[str, Measured],
    jobs: int,
    options: argparse.Namespace,
) -> None:
    how = study.prepare(to_do, _command(options))
    plan = study.plan
    weights = {
        study.folder(run).name: cost_of(run, measured[kind_of(run, plan)]).hours if measured else run.settings["n_timesteps"]
        for run in to_do
    }
    end = time.monotonic() + 3600 * options.max_hours

    def should_stop() -> bool:
        return time.monotonic() > end or is_unread()

    names = [study.folder(run).name for run in to_do]
    most = max((cost_of(run, measured[kind_of(run, plan)]).memory for run in to_do), default=0) if measured else None
    with View([study.folder(run) for run in to_do], weights) as view:
        try:
            if options.backend == "ray":
                is_complete = run_on_ray(
                    *(study.runs.resolve(), names, how),
                    # Of a cluster, Ray knows how many fit.
                    options.jobs if options.address else jobs,
                    *(view, should_stop),
                    address=options.address,
                    gpus=plan.gpus,
                    memory=most if plan.memory is None else plan.memory * 1e9,
                    storage=_url(study, options),
                )
            else:
                is_complete = run_in_processes(study.runs, names, how, jobs, view, should_stop)
        except KeyboardInterrupt:
            is_complete = False
    _end(study, runs, not is_complete, view.disk_error)


def _url(study: Study, options: argparse.Namespace) -> str | None:
    """Where the runs of the study are kept, if that is not here."""
    return None if options.storage is None else f"{options.storage.rstrip('/')}/{study.plan.study}/{RUNS_FOLDER}"


def _part(runs: Sequence[PlannedRun], options: argparse.Namespace) -> Sequence[PlannedRun]:
    """The part of one job of an array."""
    own = runs[options.run_index * options.runs_per_job : (options.run_index + 1) * options.runs_per_job]
    if not own:
        sys.exit(
            f"sb3-sparse sweep: --run-index {options.run_index}: there are {len(runs)} runs, {options.runs_per_job} a job."
        )
    return own


def _tell_part(study: Study, own: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """What one job of an array has to do, and what that costs."""
    to_do = study.to_do(own)
    print(f"--run-index {options.run_index}: {len(own)} of these runs, {len(to_do)} to do")
    for run in own:
        print(f"  {study.folder(run).state():8}{run.name}")
    if to_do and options.estimate:
        print(overview(study.plan, to_do, measure_kinds(study.plan, to_do, study.path), 1, study.path), flush=True)


def _one_job(study: Study, own: Sequence[PlannedRun], options: argparse.Namespace) -> None:
    """Make the part of one job, here."""
    given = os.environ.get(BACKEND_VARIABLE)
    os.environ.setdefault(BACKEND_VARIABLE, "deterministic")
    try:
        is_stopped, view = _work(study, own, options)
    finally:
        if given is None:
            del os.environ[BACKEND_VARIABLE]
    _end(study, own, is_stopped, view.disk_error)


def _work(study: Study, own: Sequence[PlannedRun], options: argparse.Namespace) -> tuple[bool, View]:
    """Make runs here, one after the other. Returns whether that was stopped, and what was shown."""
    how = study.prepare(own, _command(options))
    folders = [study.folder(run) for run in own]
    view = View(
        folders, {folder.name: run.settings["n_timesteps"] for folder, run in zip(folders, own, strict=True)}, live=False
    )
    timer = None
    if options.max_hours != float("inf"):
        # More than a thread can wait for is no limit.
        timer = threading.Timer(min(3600 * options.max_hours, threading.TIMEOUT_MAX), os.kill, [os.getpid(), signal.SIGTERM])
        timer.daemon = True
        timer.start()

    def tell(event: dict[str, Any]) -> None:
        view(event)
        if "ends" in event and is_unread():
            raise KeyboardInterrupt

    is_stopped = True
    with suppress(KeyboardInterrupt), interruptible():
        is_stopped = work(study.runs, [folder.name for folder in folders], how, tell) is not None
    if timer is not None:
        timer.cancel()
    return is_stopped, view


def _end(study: Study, runs: Sequence[PlannedRun], is_stopped: bool = False, disk_error: str = "") -> None:
    """Say what there is, and how it ended: 1 if a run has failed, or the disk; 75 if the same command goes on."""
    failed, left = study.failed(runs), study.to_do(runs)
    for run in failed:
        folder = study.folder(run)
        print(f"failed: {run.name}: {folder.read('failed.json').get('error', '')}\n        {folder.log}", file=sys.stderr)
    print(f"{len(runs) - len(failed) - len(left)} of {len(runs)} runs are done: sb3-sparse report {study.path}")
    if failed:
        print(f"{len(failed)} failed: --retry-failed tries them again.", file=sys.stderr)
    if left:
        print(f"{len(left)} are left{', stopped' if is_stopped else ''}: the same command goes on with them.", file=sys.stderr)
    if disk_error:
        what_to_do = (
            f"Free some space in {study.path}, or move it. What is done stays, the same command goes on with the rest."
        )
        print(f"sb3-sparse sweep: stopped by the disk: {disk_error.rstrip('.')}. {what_to_do}", file=sys.stderr)
    if failed or left:
        sys.exit(1 if failed or disk_error else EXIT_STATUS)


def _status(args: list[str]) -> None:
    parser = Parser(
        "sweep status",
        "Say how far the runs of a study are.",
        [("sweep status plan.yml", "all runs"), ("sweep status plan.yml --only sparsity=0.8", "some of them")],
        operands="PLAN",
    )
    parser.add_argument("plan", metavar="PLAN", help="the plan, or the folder of the study")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, help="of studies (default: logs/sweeps)")
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS=VALUE", help="some of the runs")
    options = parser.parse_args(args)
    study = open_study(Path(options.plan), options.folder)
    print(status_text(study, study.chosen(options.only)))


def options_parser() -> Parser:
    """The options of ``sweep``; those of ``sweep status`` are its own."""
    parser = Parser(
        "sweep",
        f"{sweep.__doc__} `sb3-sparse sweep status PLAN` says how far they are.",
        [
            ("sweep plan.yml --dry-run", "what there is to do, and what it costs"),
            ("sweep plan.yml --jobs 4", "make the runs, four at a time"),
            ("sweep small/figure_01 --only sparsity=0.8 seed=0", "some runs of a plan of the package"),
            ("sweep status plan.yml", "how far they are"),
        ],
        operands="PLAN",
    )
    parser.add_argument(
        "plan",
        metavar="PLAN",
        help="a YAML file, see docs/studies.md, or the name of a plan of the package, such as small/figure_01",
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", type=Path, help="of studies; each has a folder in it (default: logs/sweeps)"
    )
    parser.add_argument("--backend", choices=BACKENDS, help="what makes the runs (default: ray, if it is installed)")
    parser.add_argument("--address", help="of a Ray cluster, such as auto or ray-head:6379 (default: this machine)")
    parser.add_argument("--storage", metavar="URL", help="where a cluster keeps runs whose machines share no folder: s3://...")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: as many as there are cores and memory for)")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do and what it costs")
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS=VALUE", help="some runs: width=0.5,sparsity=0.8 seed=0")
    parser.add_argument("--max-hours", type=float, default=float("inf"), help="stop then, with checkpoints")
    parser.add_argument("--retry-failed", action="store_true", help="try runs again that have failed")
    parser.add_argument("--no-estimate", dest="estimate", action="store_false", help="measure nothing before it starts")
    parser.add_argument("--run-index", type=int, metavar="I", help="of an array of jobs: make the part I of the runs, here")
    parser.add_argument("--runs-per-job", type=int, default=1, metavar="K", help="of such a part (default: 1)")
    return parser


def _options(args: list[str]) -> argparse.Namespace:
    parser = options_parser()
    options = parser.parse_args(args)
    for name in ("jobs", "runs_per_job"):
        if getattr(options, name) is not None:
            whole_number(f"--{name.replace('_', '-')}", getattr(options, name), 1)
    if options.run_index is not None:
        whole_number("--run-index", options.run_index, 0)
    if options.max_hours != float("inf"):
        positive("--max-hours", options.max_hours)
    if options.backend is None:
        has_ray = importlib.util.find_spec("ray") is not None
        options.backend = "ray" if has_ray or options.address or options.storage else "processes"
    for name in ("address", "storage"):
        if getattr(options, name) is not None and (options.backend != "ray" or options.run_index is not None):
            parser.error(f"--{name} is for --backend ray.")
    options.args = args
    return options


def _command(options: argparse.Namespace) -> str:
    return shlex.join(["sb3-sparse", "sweep", *options.args])


def _fitting(study: Study, runs: Sequence[PlannedRun], measured: dict[str, Measured], jobs: int) -> int:
    """As many runs at a time as memory is free for."""
    most = max(cost_of(run, measured[kind_of(run, study.plan)]).memory for run in runs)
    fitting = max(1, int(MEMORY_SHARE * free_memory() / most))
    if fitting < jobs:
        print(f"{fitting} at a time instead of {jobs}, for lack of memory.")
    return min(jobs, fitting)
