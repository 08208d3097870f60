"""The folder of one run: who works on it, how far it is, and what came of it."""

import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sb3_sparse.common.files import read_again, written_beside
from sb3_sparse.results.studies.reading import DONE_FILE, FAILED_FILE, LOG_FILE, RUN_FILE
from sb3_sparse.resume.files.lease import LEASE, FolderInUse, Lease, holder_of

#: How far a run is, and when it was tried.
STATUS_FILE = "status.json"
# A run that ends its process so often without a new checkpoint will end the next one, too.
MAX_LOST = 3
#: What a run may be, as :attr:`RunFolder.state` says it.
STATES = ("done", "running", "failed", "stopped", "waiting")


class RunFolder:
    """
    See the files' names above.

    :param path: The folder; it need not be there.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, path.name

    @property
    def is_done(self) -> bool:
        """Whether the run has finished: its done mark is written last."""
        return (self.path / DONE_FILE).is_file()

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.path / LOG_FILE

    def state(self) -> str:
        """One of ``STATES``."""
        if self.is_done:
            return "done"
        if holder_of(self.path) is not None:
            return "running"
        if (self.path / FAILED_FILE).is_file():
            return "failed"
        return "stopped" if (self.path / STATUS_FILE).is_file() else "waiting"

    def claim(self, lease: float = LEASE) -> Lease | None:
        """
        The right to work on the run, for one process at a time; None if another one has it.

        A claim of a process that is gone is taken over: at once on the same machine, else when it gave no sign of life for
        as long as a lease lasts.

        :param lease: How long others believe in this process without a sign of life, in seconds.
        :raises OSError: If nothing can be written there.
        """
        try:
            return Lease(self.path, lease)
        except FolderInUse:
            return None

    def is_claimed(self) -> bool:
        """Whether a process has it that may be alive."""
        return holder_of(self.path) is not None

    def read(self, name: str) -> dict[str, Any]:
        """One of the files; empty if there is none, it is damaged, or cannot be read."""
        try:
            return self.read_or_raise(name)
        except OSError:
            return {}

    def read_or_raise(self, name: str) -> dict[str, Any]:
        """
        One of the files, of which all is needed, such as to be written back with a change; empty if there is none, or it is
        damaged.

        :raises OSError: If it cannot be read.
        """
        try:
            content = json.loads(read_again(self.path / name))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """
        Write one of the files, whole or not at all.

        :raises OSError: If it cannot be written.
        """
        with written_beside(self.path / name) as beside:
            beside.write_text(json.dumps(content, indent=1))

    def write_settings(self, content: dict[str, Any]) -> None:
        """
        Write down what the run is, unless that stands there.

        :param content: Of ``run.json``.
        :raises ValueError: If another run has the folder.
        """
        there = self.read_or_raise(RUN_FILE)
        if not there:
            self.write(RUN_FILE, content)
        elif there.get("hash") != content["hash"]:
            raise ValueError(f"{self.path} is the folder of a run with other settings: name another --folder.")

    def begin_try(self, timesteps: int, n_timesteps: int) -> None:
        """
        Write down that the run is tried.

        :param timesteps: Where it goes on.
        :param n_timesteps: Where it ends.
        :raises RuntimeError: If it has ended its process again and again without getting further.
        :raises OSError: If that cannot be read, or written.
        """
        status = self.read_or_raise(STATUS_FILE)
        tries = status.get("tries", [])
        lost = 0
        for each in reversed(tries):
            if each.get("outcome") is not None or each.get("from") != timesteps:
                break
            lost += 1
        if lost >= MAX_LOST:
            raise RuntimeError(
                f"its process ended {lost} times without a word after {timesteps} steps (out of memory? killed?). "
                "--retry-failed tries again."
            )
        tries.append({"from": timesteps, "began": now(), "host": socket.gethostname(), "pid": os.getpid(), "outcome": None})
        self.write(STATUS_FILE, {**status, "tries": tries, "timesteps": timesteps, "n_timesteps": n_timesteps})

    def end_try(self, outcome: str, seconds: float) -> None:
        """
        Write down how a try ended.

        :param outcome: ``"done"``, ``"failed"`` or ``"stopped"``.
        :param seconds: How long it took.
        """
        status = self.read_or_raise(STATUS_FILE)
        tries = status.get("tries") or [{}]
        tries[-1] |= {"outcome": outcome, "seconds": round(seconds, 1)}
        self.write(STATUS_FILE, {**status, "tries": tries})

    def sign(self, seconds: float, **values: Any) -> None:
        """
        Write down how far the run is. Nothing is lost with it if it cannot be written.

        :param seconds: How long it is being tried.
        :param values: What else there is to say.
        """
        with suppress(OSError):
            status = {**self.read_or_raise(STATUS_FILE), **values}
            for each in status.get("tries", [])[-1:]:
                each["seconds"] = round(seconds, 1)
            # Of whoever has the run: what a kill leaves of it, the next sign takes the place of.
            beside = self.path / f".{STATUS_FILE}"
            beside.write_text(json.dumps(status, indent=1))
            os.replace(beside, self.path / STATUS_FILE)

    def seconds(self) -> float:
        """Of all tries together; of one whose process was killed, up to its last sign."""
        return sum(float(each.get("seconds", 0.0)) for each in self.read(STATUS_FILE).get("tries", []))

    def forget_failure(self) -> None:
        """Let the run be tried again."""
        (self.path / FAILED_FILE).unlink(missing_ok=True)
        status = self.read_or_raise(STATUS_FILE)
        if status:
            # As if each had ended with a word.
            for each in status.get("tries", []):
                each["outcome"] = each.get("outcome") or "lost"
            self.write(STATUS_FILE, status)


def now() -> str:
    """The time, as files have it."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")
