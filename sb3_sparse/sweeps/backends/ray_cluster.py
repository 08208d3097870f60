"""Runs as tasks of Ray: on this machine, or on a cluster."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_sparse.common.files import error_of_the_disk
from sb3_sparse.common.warn import warn_user
from sb3_sparse.results.studies.reading import DONE_FILE
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE
from sb3_sparse.sweeps.backends.processes import GRACE, MAX_SILENT, THREADS, TICK, worker_environment
from sb3_sparse.sweeps.backends.worker import interruptible, prepare_process
from sb3_sparse.sweeps.planning.estimate import MEMORY_SHARE, free_memory
from sb3_sparse.sweeps.runs.execute import DONE, FAILED, STOPPED, TAKEN, How, Outcome, execute
from sb3_sparse.sweeps.runs.run_folder import STATUS_FILE, RunFolder
from sb3_sparse.sweeps.runs.storage import Storage

# Seconds in which machines of a cluster may still join it that can hold a run.
JOINING = 30.0
# Seconds before a storage is asked again to take what a run has come to: a minute, which an end with checkpoints waits for.
PAUSES = (1.0, 4.0, 15.0, 40.0)


def run_on_ray(
    runs: Path,
    names: Sequence[str],
    how: How,
    jobs: int | None,
    tell: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] = lambda: False,
    *,
    address: str | None = None,
    gpus: float = 0.0,
    memory: float | None = None,
    storage: str | None = None,
) -> bool:
    """
    Make runs, each as a task of Ray. A run whose process or machine is lost goes on elsewhere, from its last checkpoint.

    :param runs: The folder of all runs; without ``storage`` one that all machines share.
    :param names: Of the runs, in the order in which they are begun.
    :param how: How they are made.
    :param jobs: Runs at a time; None: as many as there are cores for.
    :param tell: Is told what begins and how it ends, and now and then ``{}``.
    :param should_stop: Asked now and then: whether to end with a checkpoint of what runs.
    :param address: Of a cluster; None: Ray is started on this machine, reachable from it alone, and ended again.
    :param gpus: Of each run.
    :param memory: Bytes of each run, of which Ray takes account; None: it does not.
    :param storage: URL of the folder of all runs, for machines that share none.
    :return: Whether it came to the end of all runs.
    :raises ImportError: If Ray is missing.
    :raises ConnectionError: If there is no cluster.
    :raises RuntimeError: If no machine can hold one run.
    """
    ray = _ray(is_local=address is None)
    was_started = ray.is_initialized()
    if not was_started:
        _start(ray, address, None if jobs is None else jobs * how.threads)
    try:
        needed = {"CPU": how.threads, "GPU": gpus, "memory": int(memory or 0)}
        _wait_for_room(ray.nodes, needed, 0.0 if address is None else JOINING)
        options = dict(num_cpus=how.threads, num_gpus=gpus, max_retries=0, memory=None if memory is None else int(memory))
        task = ray.remote(_run).options(runtime_env={"env_vars": _variables(how.threads)}, **options)
        return _Driver(ray, task, runs, list(names), how, jobs, tell, storage).drive(should_stop)
    finally:
        if not was_started:
            ray.shutdown()


def _ray(is_local: bool) -> Any:
    # Before it is imported: nothing is sent to anybody.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if is_local:
        # Else it listens on all networks. The name says where it is the default; it holds everywhere.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Of a version that asks: a GPU that is not given to a task is hidden from it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError('this needs Ray: pip install "sb3-sparse[sweeps]", or --backend processes') from error
    return ray


def _start(ray: Any, address: str | None, num_cpus: int | None) -> None:
    quiet = dict(log_to_driver=False, logging_level="ERROR")
    if address is None:
        # What runs may fill here, as it was reckoned with: left alone, Ray takes a smaller part.
        room = int(MEMORY_SHARE * free_memory())
        options = dict(num_cpus=num_cpus, _memory=room, include_dashboard=False, _node_ip_address="127.0.0.1")
        ray.init("local", **options, **quiet)
    else:
        ray.init(address, **quiet)


def _wait_for_room(nodes: Callable[[], Sequence[dict[str, Any]]], needed: dict[str, float], seconds: float) -> None:
    """
    Until there is a machine that can hold one run, which Ray would wait for without a word.

    :param nodes: Tells the machines, as ``ray.nodes`` does.
    :param needed: Of one run, by the names of Ray's resources.
    :param seconds: How long others may still join.
    :raises RuntimeError: If there is none by then.
    """
    end = time.monotonic() + seconds
    while True:
        machines = [node["Resources"] for node in nodes() if node["Alive"]]
        if any(all(machine.get(name, 0) >= amount for name, amount in needed.items()) for machine in machines):
            return
        if time.monotonic() >= end:
            break
        time.sleep(TICK)
    named = [name for name, amount in needed.items() if amount]
    there = "; ".join(dict.fromkeys(_room(machine, named) for machine in machines)) or "no machine"
    raise RuntimeError(
        f"Ray has no machine that can hold one run, which needs {_room(needed, named)}; there is {there}. Lower `threads`, "
        "`gpus` or `memory` (GB) in the plan, or add a machine."
    )


def _room(resources: dict[str, float], names: Iterable[str]) -> str:
    """What of Ray's resources there is, or is needed, in words."""
    amounts = {name: resources.get(name, 0) for name in names}
    return ", ".join(f"{n / 1e9:.1f} GB" if name == "memory" else f"{n:g} {name}" for name, n in amounts.items())


def _variables(threads: int) -> dict[str, str]:
    """What matters to a process that makes runs, whatever its machine has; the rest it has from there."""
    environment = worker_environment(threads)
    return {name: environment[name] for name in (BACKEND_VARIABLE, *THREADS)}


def _run(runs: str, name: str, how: str, storage: str | None) -> dict[str, Any]:
    """The task: one run, on whatever machine it is given to."""
    prepare_process()
    # Ray's own handler of SIGTERM, which a node that ends sends, raises what would be a failure of the run.
    try:
        with interruptible():
            if storage is None:
                return asdict(execute(RunFolder(Path(runs) / name), How.from_json(how)))
            return asdict(_run_stored(name, How.from_json(how), storage))
    except KeyboardInterrupt:
        return asdict(Outcome(name, STOPPED))


def _run_stored(name: str, how: How, storage: str) -> Outcome:
    there = Storage(storage)
    # At the same place on every machine, since what a run goes on with names its files.
    place = Path(tempfile.gettempdir()) / f"sb3-sparse-{_user()}" / hashlib.sha256(storage.encode()).hexdigest()[:10]
    folder = RunFolder(place / name)
    # A process whose node is lost may live for a while, and have the folder of this machine.
    claim = RunFolder(place / f".{name}").claim()
    if claim is None:
        return Outcome(name, TAKEN)
    try:
        outcome = Outcome(name, DONE)
        # Else of an earlier try that came to its end here, and not to the storage.
        if not folder.is_done:
            there.fetch(name, folder.path)
            outcome = execute(folder, how, lambda: _send_or_warn(there, folder))
        _send(there, folder)
        # What was sent, and nothing else: the done mark first, since a half of the folder is no finished run.
        (folder.path / DONE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder.path, ignore_errors=True)
    finally:
        claim.release()
    return outcome


def _send_or_warn(there: Storage, folder: RunFolder) -> None:
    """After a checkpoint: what a storage does not take now, it gets with the next one."""
    try:
        there.send(folder.name, folder.path)
    except Exception as error:  # whatever a storage raises
        warn_user(
            f"the storage does not take what there is ({error!r}): training goes on, and it is sent with the next checkpoint."
        )


def _send(there: Storage, folder: RunFolder) -> None:
    """At the end, when there is no next time: tried again for a while."""
    for pause in PAUSES:
        try:
            return there.send(folder.name, folder.path)
        except Exception:  # whatever a storage raises; the last time, it is said
            time.sleep(pause)
    there.send(folder.name, folder.path)


def _user() -> int:
    """Several users of a machine have a folder each."""
    return os.getuid() if hasattr(os, "getuid") else 0


class _Driver:
    """Gives tasks to Ray, and sees what becomes of them."""

    def __init__(
        self,
        ray: Any,
        task: Any,
        runs: Path,
        names: list[str],
        how: How,
        jobs: int | None,
        tell: Callable[[dict[str, Any]], None],
        storage: str | None,
    ):
        self._ray, self._task, self._runs, self._waiting, self._how = ray, task, runs, names, how
        self._jobs, self._tell, self._storage = jobs, tell, storage
        self._running: dict[Any, str] = {}
        # Of a run whose process was lost: how often it was tried by then, and how often it was lost before another try.
        self._tries: dict[str, int] = {}
        self._n_silent: dict[str, int] = {}
        # Nor is a run begun for ever that asks for the end itself.
        self._n_stopped: dict[str, int] = {}
        self._is_stopping = False
        self._asked = float("inf")

    def drive(self, should_stop: Callable[[], bool]) -> bool:
        """Until all have ended, or were stopped."""
        # Ray's own handler of SIGTERM ends this process at once.
        with interruptible():
            return self._drive(should_stop)

    def _drive(self, should_stop: Callable[[], bool]) -> bool:
        try:
            if self._storage is not None:
                there = Storage(self._storage)
                for name in self._waiting:
                    there.offer(name, self._runs / name)
            while (self._running or (self._waiting and not self._is_stopping)) and time.monotonic() < self._end_of_patience():
                self._submit()
                ended, _ = self._ray.wait(list(self._running), timeout=TICK) if self._running else ([], [])
                for reference in ended:
                    self._end(reference)
                self._tell({})
                if should_stop():
                    self._stop()
        except KeyboardInterrupt:
            self._stop()
            while self._running and time.monotonic() < self._end_of_patience():
                for reference in self._ray.wait(list(self._running), timeout=TICK)[0]:
                    self._end(reference)
            raise
        return not self._is_stopping

    def _end_of_patience(self) -> float:
        return self._asked + self._how.patience + GRACE

    def _submit(self) -> None:
        slots = self._jobs or max(1, int(self._ray.cluster_resources().get("CPU", 1) // self._how.threads))
        while self._waiting and len(self._running) < slots and not self._is_stopping:
            name = self._waiting.pop(0)
            self._running[self._task.remote(str(self._runs), name, self._how.to_json(), self._storage)] = name
            self._tell({"begins": name})

    def _end(self, reference: Any) -> None:
        name, exceptions = self._running.pop(reference), self._ray.exceptions
        try:
            outcome = Outcome(**self._ray.get(reference))
        except exceptions.TaskCancelledError:
            outcome = Outcome(name, STOPPED)
        except exceptions.RayTaskError as error:
            # The run itself raises nothing: its machine has no such package, no such folder, no way to the storage.
            is_of_disk = error_of_the_disk(error.cause) is not None
            outcome = Outcome(name, FAILED, f"outside of the run: {error.cause!r}", is_of_disk)
        except (exceptions.RuntimeEnvSetupError, exceptions.TaskUnschedulableError) as error:
            outcome = Outcome(name, FAILED, f"Ray cannot begin it: {error}")
        except exceptions.RayError as error:
            self._tell({"lost": name, "status": type(error).__name__})
            if self._is_stopping:
                outcome = Outcome(name, STOPPED)
            elif self._is_silent(name):
                outcome = Outcome(name, FAILED, f"outside of the run: lost {MAX_SILENT} times before it began ({error})")
            else:
                # Whoever makes it next goes on from its last checkpoint.
                self._waiting.insert(0, name)
                return
        if outcome.kind == TAKEN and name in self._tries and not self._is_stopping and not self._is_silent(name):
            # By its process that was believed to be gone.
            self._waiting.append(name)
            return
        if outcome.kind == STOPPED and not self._is_stopping and self._n_stopped.get(name, 0) < MAX_SILENT:
            # Its node ends, and had it stopped; others go on.
            self._n_stopped[name] = self._n_stopped.get(name, 0) + 1
            self._tell({"lost": name, "status": STOPPED})
            self._waiting.insert(0, name)
            return
        outcome = self._fetched(name, outcome)
        self._tell({"ends": name, **{key: value for key, value in asdict(outcome).items() if key != "name"}})
        if outcome.kind == STOPPED or outcome.is_of_disk:
            self._stop()

    def _is_silent(self, name: str) -> bool:
        """Whether a run was lost again and again before it began; what begins counts its own tries."""
        if self._storage is not None:
            with suppress(Exception):  # whatever a storage raises: then it counts as silent
                Storage(self._storage).fetch_marks(name, self._runs / name)
        n_tries = len(RunFolder(self._runs / name).read(STATUS_FILE).get("tries", []))
        self._n_silent[name] = self._n_silent.get(name, 0) + 1 if self._tries.get(name, 0) == n_tries else 0
        self._tries[name] = n_tries
        return self._n_silent[name] >= MAX_SILENT

    def _fetched(self, name: str, outcome: Outcome) -> Outcome:
        """Bring a run here that has ended elsewhere."""
        if self._storage is None:
            return outcome
        try:
            Storage(self._storage).fetch(name, self._runs / name, whole=outcome.kind != DONE)
        except Exception as error:  # whatever a storage raises, other runs go on
            is_of_disk = error_of_the_disk(error) is not None
            return Outcome(name, FAILED, f"it is {outcome.kind} in the storage, and does not come here: {error!r}", is_of_disk)
        return outcome

    def _stop(self) -> None:
        """Ask all for a checkpoint and the end, once."""
        if self._is_stopping:
            return
        self._is_stopping, self._asked = True, time.monotonic()
        for reference in self._running:
            # As Ctrl-C in the process of the task.
            self._ray.cancel(reference, force=False)
