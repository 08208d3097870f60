"""One run, from its settings or its last checkpoint to its done mark."""

import gc
import json
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.common.files import error_of_the_disk
from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.common.model_report import trained_networks
from sb3_sparse.evaluation import evaluate_saved, find_saved
from sb3_sparse.plasticity import PlasticityCallback
from sb3_sparse.results.studies.reading import DONE_FILE, FAILED_FILE, FORMAT, RUN_FILE
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.folder import checkpoints
from sb3_sparse.resume.files.lease import LOCK, FolderInUse
from sb3_sparse.resume.files.whole_files import sweep_beside
from sb3_sparse.sparse import sparsity_report
from sb3_sparse.sweeps.planning.plan import Plan, PlannedRun, checkpoint_steps
from sb3_sparse.sweeps.runs.facts import run_facts
from sb3_sparse.sweeps.runs.run_folder import STATUS_FILE, RunFolder, now
from sb3_sparse.zoo import import_packages, named_class, train_in_folder
from sb3_sparse.zoo.exact_runs import FOLDER as CHECKPOINTS

#: What became of a run: it has finished, it failed, it stopped on request, or another process has it.
DONE, FAILED, STOPPED, TAKEN = "done", "failed", "stopped", "taken"
#: In the folder of a run: TensorBoard's files, if the plan asks for them.
TENSORBOARD = "tensorboard"
# Seconds between two signs of life.
HEARTBEAT = 5.0
# Finished agents play in environments with other seeds than those of training and evaluations.
FINAL_SEED = 1_000


@dataclass(frozen=True)
class How:
    """How runs are made: nothing of it changes a result."""

    study: str
    command: str
    checkpoint_every: str | int | None = None
    threads: int = 1
    tensorboard: bool = False
    """Whether TensorBoard's files are written, in the folder of each run."""
    gym_packages: tuple[str, ...] = ()
    patience: float = 60.0
    """Seconds in which a checkpoint has to come after a request to stop."""

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "How":
        """From :meth:`to_json`."""
        found = json.loads(text)
        return cls(**{**found, "gym_packages": tuple(found["gym_packages"])})


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    name: str
    kind: str
    """``DONE``, ``FAILED``, ``STOPPED`` or ``TAKEN``."""
    error: str = ""
    """A line, if it failed."""
    is_of_disk: bool = False
    """Whether it was the disk: other runs would fail as well."""


def how_of(plan: Plan, command: str) -> How:
    """
    How a plan has its runs made.

    :param plan: The plan.
    :param command: That was called.
    """
    return How(plan.study, command, plan.checkpoint_every, plan.threads, plan.tensorboard, plan.gym_packages)


def write_run(folder: RunFolder, run: PlannedRun, how: How) -> None:
    """
    Write down what a run is, unless that stands there.

    :param folder: Of the run.
    :param run: The run.
    :param how: How it is made.
    :raises ValueError: If the folder is that of another run.
    :raises OSError: If it cannot be written.
    """
    content = {"format": FORMAT, "study": how.study, "axes": run.axes, "settings": run.settings, "hash": run.hash}
    folder.write_settings({**content, **run_facts(), "command": how.command})


def execute(
    folder: RunFolder,
    how: How,
    after_checkpoint: Callable[[], None] | None = None,
    begins: Callable[[], None] = lambda: None,
) -> Outcome:
    """
    Make a run, or go on with it, unless it is done or another process has it.

    What it prints goes to its log. Whatever goes wrong in it is written down there, and no other run suffers.

    :param folder: Of the run, with its settings.
    :param how: How it is made.
    :param after_checkpoint: Called after each, and when the try begins, such as to take it elsewhere.
    :param begins: Called when this process has the run.
    """
    if folder.is_done:
        tidy(folder)
        return Outcome(folder.name, DONE)
    try:
        claim = folder.claim()
    except OSError as error:
        return Outcome(folder.name, FAILED, str(error), is_of_disk=True)
    if claim is None:
        return Outcome(folder.name, TAKEN)
    try:
        if folder.is_done:
            return Outcome(folder.name, DONE)
        begins()
        return _try(folder, how, after_checkpoint)
    finally:
        # A request to end is lost that comes while garbage is collected.
        with uninterrupted():
            claim.release()
            # Environments and agents refer to themselves.
            gc.collect()


def _try(folder: RunFolder, how: How, after_checkpoint: Callable[[], None] | None) -> Outcome:
    start = time.monotonic()
    try:
        with _logged(folder.log):
            print(f"==== {now()} {folder.name}")
            try:
                # What failed before may go well now, until the done mark says so.
                folder.begin_try(_timesteps(folder), folder.read_or_raise(RUN_FILE)["settings"]["n_timesteps"])
                if after_checkpoint is not None:
                    after_checkpoint()
                trained = _train(folder, how, after_checkpoint)
                _finish(folder, start, trained)
            except StoppedOnRequest as stopped:
                print(f"stopped: {stopped}")
                folder.end_try(STOPPED, time.monotonic() - start)
                return Outcome(folder.name, STOPPED)
            except KeyboardInterrupt:
                folder.end_try(STOPPED, time.monotonic() - start)
                raise
            except FolderInUse as error:
                print(f"left to another process: {error}")
                return Outcome(folder.name, TAKEN)
            except BaseException:
                traceback.print_exc()
                raise
        _remove_checkpoints(folder)
        return Outcome(folder.name, DONE)
    except KeyboardInterrupt:
        return Outcome(folder.name, STOPPED)
    except BaseException as error:  # a run may raise anything, also SystemExit
        return _failed(folder, error, time.monotonic() - start)


def _failed(folder: RunFolder, error: BaseException, seconds: float) -> Outcome:
    line = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    # Of whatever it was made into on its way.
    is_of_disk = error_of_the_disk(error) is not None
    # Where the disk is full, the answer says it.
    with suppress(OSError):
        folder.end_try(FAILED, seconds)
        if is_of_disk:
            # It is none of the run's: with some space it goes on.
            return Outcome(folder.name, FAILED, line, is_of_disk)
        tries = len(folder.read(STATUS_FILE).get("tries", [])) or 1
        folder.write(FAILED_FILE, {"when": now(), "error": line, "tries": tries})
    return Outcome(folder.name, FAILED, line, is_of_disk)


def _train(folder: RunFolder, how: How, after_checkpoint: Callable[[], None] | None) -> dict[str, Any]:
    """What the done mark says of the agent: ``timesteps`` and ``parameters``."""
    settings = folder.read_or_raise(RUN_FILE)["settings"]
    n_timesteps, evaluation = settings["n_timesteps"], settings["evaluation"]
    th.set_num_threads(how.threads)
    import_packages(how.gym_packages)
    watched = _Watched(folder, after_checkpoint)
    with _heartbeat(folder, watched):
        model = train_in_folder(
            folder.path,
            settings["algo"],
            settings["env"],
            {**settings["hyperparams"], "callback": _callbacks(settings["callbacks"], folder.path)},
            n_timesteps=n_timesteps,
            checkpoint_every=checkpoint_steps(how.checkpoint_every, n_timesteps),
            patience=how.patience,
            callbacks=[watched],
            stop_at=evaluation["stop_at"],
            stop_after=evaluation["stop_after"],
            seed=settings["seed"],
            device=settings["device"],
            eval_freq=evaluation["every"] or -1,
            n_eval_episodes=evaluation["episodes"],
            # Where the run is, on whatever machine.
            tensorboard_log=str(folder.path.resolve() / TENSORBOARD) if how.tensorboard else "",
        )
    reports = {name: sparsity_report(network) for name, network in trained_networks(model).items()}
    parameters = {
        name: {"total": report.total_parameters, "learnable": report.learnable_parameters} for name, report in reports.items()
    }
    return {"timesteps": int(model.num_timesteps), "parameters": parameters}


def _finish(folder: RunFolder, start: float, trained: dict[str, Any]) -> None:
    """The finished agent as it is saved plays, and the run is done."""
    settings = folder.read_or_raise(RUN_FILE)["settings"]
    evaluation, seed = settings["evaluation"], settings["seed"] + FINAL_SEED
    played = evaluate_saved(
        find_saved(folder.path),
        evaluation["final_episodes"],
        seeds=[seed],
        deterministic=evaluation["deterministic"],
        epsilon=evaluation["epsilon"],
        device=settings["device"],
    )[0]
    if not np.isfinite(played.returns).all():
        raise ValueError("the finished agent's returns are not finite")
    folder.end_try(DONE, time.monotonic() - start)
    folder.forget_failure()
    done = {"finished": now(), "seconds": folder.seconds(), "returns": played.returns, **trained}
    folder.write(DONE_FILE, {**done, **run_facts()})


def tidy(folder: RunFolder) -> None:
    """
    Remove what a kill has left behind of a run that is done, unless a process has it.

    :param folder: Of the run.
    """
    if not folder.is_claimed() and ((folder.path / CHECKPOINTS).exists() or (folder.path / LOCK).exists()):
        # What cannot be removed now is the next time.
        with suppress(OSError):
            claim = folder.claim()
            if claim is not None:
                _remove_checkpoints(folder)
                sweep_beside(folder.path, is_held=True)
                claim.release()


def _remove_checkpoints(folder: RunFolder) -> None:
    with suppress(OSError):
        if (folder.path / CHECKPOINTS).exists():
            shutil.rmtree(folder.path / CHECKPOINTS)


def _timesteps(folder: RunFolder) -> int:
    """Where the run goes on."""
    newest = next(iter(checkpoints(folder.path / CHECKPOINTS)), None)
    return 0 if newest is None else int(newest.name.rpartition("-")[2])


def _callbacks(entries: list[Any], folder: Path) -> list[Any]:
    """With a file for each measurement of plasticity, which has none by itself where there are no evaluations."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        name, kwargs = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        kind = named_class(name)
        if isinstance(kind, type) and issubclass(kind, PlasticityCallback):
            others = sum("csv_path" in next(iter(each.values())) for each in found)
            kwargs = {"csv_path": str(folder / f"plasticity{others or ''}.csv"), **kwargs}
        found.append({name: kwargs})
    return found


class _Watched(BaseCallback):
    """Knows the agent that is trained, and says when there is a new checkpoint."""

    def __init__(self, folder: RunFolder, after_checkpoint: Callable[[], None] | None):
        super().__init__()
        self._folder, self._after_checkpoint = folder, after_checkpoint
        self._newest: Path | None = None

    def _on_rollout_start(self) -> None:
        if self._after_checkpoint is None:
            return
        newest = next(iter(checkpoints(self._folder.path / CHECKPOINTS)), None)
        if newest != self._newest:
            self._newest = newest
            self._after_checkpoint()

    def _on_step(self) -> bool:
        return True

    def get_state(self) -> None:
        """Nothing that a run has to go on with: where its folder is, is another matter each time."""

    def set_state(self, state: None) -> None:
        """Nothing."""


@contextmanager
def _heartbeat(folder: RunFolder, watched: BaseCallback) -> Iterator[None]:
    """Inside, the run's status says how far it is. A thread of its own, so that training is as without it."""
    ended, start = threading.Event(), time.monotonic()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            model = getattr(watched, "model", None)
            if model is None:
                continue
            returns: list[float] = []
            # The list may grow while it is read.
            with suppress(RuntimeError):
                returns = [episode["r"] for episode in [*(model.ep_info_buffer or [])][-10:]]
            mean = float(np.mean(returns)) if returns and np.isfinite(returns).all() else None
            folder.sign(time.monotonic() - start, timesteps=int(model.num_timesteps), mean_return=mean, seen=now())

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Inside, what is printed goes to a file, behind what stands there."""
    with path.open("a", buffering=1, errors="backslashreplace") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        finally:
            sys.stdout.flush()
