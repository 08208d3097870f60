"""Runs on this machine, in processes that each make one after the other."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sb3_sparse.sparse.kernels import BACKEND_VARIABLE
from sb3_sparse.sweeps.backends.worker import interruptible
from sb3_sparse.sweeps.runs.execute import STOPPED, How
from sb3_sparse.sweeps.runs.run_folder import RunFolder

# Seconds between two looks at everything.
TICK = 0.2
# Processes in a row that end before they begin anything, after which no more are started.
MAX_SILENT = 5
# Seconds beyond its patience after which a process that was asked to end is killed.
GRACE = 30.0
#: What keeps libraries from using more threads than they are given, where that is read when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def worker_environment(threads: int) -> dict[str, str]:
    """
    Environment variables of a process that makes runs.

    Products of sparse layers are computed by the rule that measures nothing, unless the user says otherwise: a measurement
    beside other work may choose differently each time, and with it the last digits of every result.

    :param threads: Of each run.
    """
    return {BACKEND_VARIABLE: "deterministic", **os.environ, **dict.fromkeys(THREADS, str(threads))}


def run_in_processes(
    runs: Path,
    names: Sequence[str],
    how: How,
    jobs: int,
    tell: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """
    Make runs, several at a time. A process that dies is replaced; its run goes on from its last checkpoint.

    :param runs: The folder of all runs.
    :param names: Of the runs, in the order in which they are begun.
    :param how: How they are made.
    :param jobs: Processes.
    :param tell: Is told what begins and how it ends, and every ``TICK`` seconds ``{}``.
    :param should_stop: Asked every ``TICK`` seconds: whether to end with a checkpoint of what runs.
    :return: Whether it came to the end of all runs. Not so after a request to stop, or an error of the disk.
    :raises KeyboardInterrupt: After Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP, when all have ended with checkpoints.
    :raises RuntimeError: If processes end before they begin anything, or none can be started, when all others have ended.
    """
    with interruptible():
        return _run(_Pool(runs, list(names), how), jobs, tell, should_stop)


def _run(pool: "_Pool", jobs: int, tell: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]) -> bool:
    try:
        for _ in range(min(jobs, len(pool.names))):
            pool.start()
        while pool.alive():
            for event in pool.events():
                tell(event)
            tell({})
            if should_stop():
                pool.stop()
        for event in pool.events(wait=False):
            tell(event)
        pool.check()
        return not pool.is_stopping
    except KeyboardInterrupt:
        pool.stop()
        pool.wait()
        for event in pool.events(wait=False):
            tell(event)
        raise
    finally:
        pool.kill()


class _Pool:
    """The processes, and what they say."""

    def __init__(self, runs: Path, names: list[str], how: How):
        self._given = json.dumps({"runs": str(runs), "names": names, "how": how.to_json()}) + "\n"
        self.names = names
        self._runs, self._threads, self._patience = runs, how.threads, how.patience
        self._processes: list[subprocess.Popen[str]] = []
        self._listeners: dict[int, threading.Thread] = {}
        # By process: the run that it makes. Of one that has said nothing there is no entry.
        self._makes: dict[int, str | None] = {}
        self._n_silent = 0
        self._asked = float("inf")
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.is_stopping = False
        # Why no more are started; those that live go on.
        self._problem = ""

    def start(self) -> None:
        """One more process."""
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "sb3_sparse.sweeps.backends.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=worker_environment(self._threads),
                # Ctrl-C is for this process, which asks them to stop.
                start_new_session=True,
            )
        except OSError as error:
            self._problem = f"no more processes can be started: {error}."
            return
        assert process.stdin is not None
        # One that has ended already is found below.
        with suppress(BrokenPipeError):
            process.stdin.write(self._given)
            process.stdin.flush()
        self._processes.append(process)
        self._listeners[process.pid] = threading.Thread(target=self._listen, args=(process,), daemon=True)
        self._listeners[process.pid].start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # A process that is killed may say half a line.
            if line.endswith("\n"):
                event = json.loads(line)
                self._makes[process.pid] = event.get("begins")
                self._said.put({**event, "pid": process.pid})

    def events(self, wait: bool = True) -> list[dict[str, Any]]:
        """What was said since the last call, after waiting for a while."""
        found: list[dict[str, Any]] = []
        try:
            if wait:
                found.append(self._said.get(timeout=TICK))
            while True:
                found.append(self._said.get_nowait())
        except queue.Empty:
            pass
        if any(event.get("is_of_disk") or event.get("kind") == STOPPED for event in found):
            self.stop()
        return found

    def alive(self) -> bool:
        """Whether there is one that works. One that died is replaced, if there is still something to do."""
        for process in list(self._processes):
            status = process.poll()
            if status is None:
                if time.monotonic() > self._asked + self._patience + GRACE:
                    process.kill()
                continue
            self._processes.remove(process)
            self._close(process)
            made = self._makes.pop(process.pid, "")
            self._n_silent = self._n_silent + 1 if made == "" and status else 0
            # A run may end its process in any way, also as if all were well.
            if self._n_silent == MAX_SILENT:
                self._problem = f"processes end before they begin a run, {MAX_SILENT} in a row (status {status})."
            if (status or made) and not self.is_stopping and not self._problem and self._is_something_left():
                self._said.put({"lost": made, "status": status})
                self.start()
        return bool(self._processes)

    def check(self) -> None:
        """:raises RuntimeError: If runs are left because no more processes could be started."""
        if self._problem and not self.is_stopping and self._is_something_left():
            raise RuntimeError(self._problem)

    def _is_something_left(self) -> bool:
        return any(RunFolder(self._runs / name).state() in ("waiting", "stopped") for name in self.names)

    def stop(self) -> None:
        """Ask all for a checkpoint and the end, once."""
        if self.is_stopping:
            return
        self.is_stopping, self._asked = True, time.monotonic()
        for process in self._processes:
            # At the end of their input they stop: once, also if this process is killed now.
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()

    def wait(self) -> None:
        """Until all have ended that were asked to, but not for ever."""
        end = self._asked + self._patience + GRACE
        while any(process.poll() is None for process in self._processes) and time.monotonic() < end:
            time.sleep(0.05)

    def kill(self) -> None:
        """Those that have not ended."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._close(process)

    def _close(self, process: subprocess.Popen[str]) -> None:
        """What it has said is heard, and its pipes are closed."""
        listener = self._listeners.pop(process.pid)
        # Processes of its environments may hold its output for a while, and are not waited for.
        listener.join(timeout=GRACE)
        if listener.is_alive():
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            # Nobody reads any more what may be left to write.
            with suppress(BrokenPipeError):
                pipe.close()
