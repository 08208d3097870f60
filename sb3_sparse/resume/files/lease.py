"""
Who may write into a folder of checkpoints: one process at a time, on any file system.

The rule, which needs no locks of the system and no equal clocks:

* Whoever makes ``lock.json`` holds the folder, and renews the file a few times in each lease.
* A lock whose process is gone, on the same machine, is taken over at once.
* Another lock is watched for as long as its lease. If it was renewed meanwhile, the folder is refused; if not, its holder is
  gone, or stopped for so long that it has lost the folder, and it is taken over.
* Whoever has lost the folder notices before it gives a checkpoint its name, and ends.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from sb3_sparse.common.files import is_process_gone, read_again, this_process

LOCK = "lock.json"
# Seconds. A job that was killed elsewhere keeps the next one waiting for as long.
LEASE = 60.0


class FolderInUse(RuntimeError):
    """Another process writes into the folder, or has taken it over."""


class Lease:
    """
    The right to write into a folder, until it is released or the process ends.

    :param folder: It is made if there is none.
    :param seconds: How long others believe in this process without a sign of life.
    :raises FolderInUse: If another process holds it.
    """

    def __init__(self, folder: Path, seconds: float = LEASE):
        self._path, self._seconds = folder / LOCK, seconds
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while not self._make():
                self._take_over()
        except OSError as error:
            reason = error.strerror or error
            named = type(error)(f"cannot write to {folder} ({reason}): expected a folder for checkpoints, with some space.")
            named.errno = error.errno
            raise named from error
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        :raises FolderInUse: If another process has taken over.
        :raises OSError: If that cannot be known.
        """
        holder = _read(self._path)
        if holder is None or holder.get("token") != self._token:
            raise FolderInUse(
                f"{self._path.parent} was taken over by {_name(holder)}, since this process gave no sign of life for "
                f"{self._seconds:g} seconds: it writes nothing more there."
            )

    def release(self) -> None:
        """Let others write there."""
        self._ended.set()
        self._thread.join()
        with suppress(FolderInUse, OSError):
            self.check()
            self._path.unlink()

    def _make(self) -> bool:
        """Whether the lock is ours now. A link to a file that is whole: nobody reads half of one."""
        beside = self._beside()
        try:
            os.link(beside, self._path)
        except FileExistsError:
            return False
        except OSError:
            # Some file systems have no links. Whoever reads half of what is written now takes it for one who lives.
            try:
                with self._path.open("x") as file:
                    file.write(beside.read_text())
            except FileExistsError:
                return False
            except OSError:
                # Half a lock would be one of somebody else.
                self._path.unlink(missing_ok=True)
                raise
        finally:
            beside.unlink()
        return True

    def _take_over(self) -> None:
        """Remove the lock of somebody who is gone."""
        holder = _read_or_unknown(self._path)
        if holder is not None and not _is_gone(holder):
            end = time.monotonic() + float(holder.get("seconds", self._seconds))
            while time.monotonic() < end:
                time.sleep(min(0.5, self._seconds / 10))
                now = _read_or_unknown(self._path)
                if now is None:
                    return
                if _is_gone(now):
                    # Meanwhile.
                    holder = now
                    break
                if now != holder:
                    raise FolderInUse(
                        f"{self._path.parent} is in use by {_name(now)}: end that process, or name another folder."
                    )
        # Under a name of its own, so that one of several who wait takes it, and what was taken can be looked at.
        taken = self._path.with_name(f".{LOCK}-{self._token}")
        try:
            os.rename(self._path, taken)
        except FileNotFoundError:
            return
        if _read_or_unknown(taken) != holder:
            # Somebody was faster, and holds it already.
            with suppress(FileExistsError):
                os.link(taken, self._path)
            taken.unlink()
            raise FolderInUse(f"{self._path.parent} is in use by another process, which has just taken it over.")
        taken.unlink()
        for path in self._path.parent.glob(f".{LOCK}-{(holder or {}).get('token', 'of nobody')}*"):
            path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            # What cannot be read or written now may be the next time.
            with suppress(OSError):
                holder = _read(self._path)
                if holder is None or holder.get("token", self._token) != self._token:
                    return
                if holder:
                    os.replace(self._beside(), self._path)

    def _beside(self) -> Path:
        path = self._path.with_name(f".{LOCK}-{self._token}-{threading.get_ident()}")
        sign = {
            **{"host": socket.gethostname(), "token": self._token, "seconds": self._seconds, "sign": uuid.uuid4().hex},
            **this_process(),
        }
        try:
            path.write_text(json.dumps(sign))
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return path


def holder_of(folder: Path) -> dict[str, Any] | None:
    """
    Who holds a folder: machine, process, lease. None if nobody does, or a process of this machine that is gone.

    :param folder: It need not be there.
    """
    holder = _read_or_unknown(folder / LOCK)
    return None if holder is None or (holder.get("pid") != os.getpid() and _is_gone(holder)) else holder


def _read(path: Path) -> dict[str, Any] | None:
    """
    Who holds a lock; None if nobody does, and empty if it is damaged: of a file system that lost it, nobody renews it.

    :raises OSError: If it cannot be read.
    """
    try:
        holder = json.loads(read_again(path))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _read_or_unknown(path: Path) -> dict[str, Any] | None:
    """The same, and empty as well if it cannot be read: somebody may have it."""
    try:
        return _read(path)
    except OSError:
        return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    mine = this_process()
    if mine["started"] and all(type(holder.get(name)) is type(value) for name, value in mine.items()):
        theirs = {name: holder[name] for name in mine}
        # Else of an earlier run in this process, which did not come to its end.
        return theirs == mine or is_process_gone(**theirs) is True
    # Of an earlier version, or a system that says less: machines are known by their names.
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    if holder["pid"] == os.getpid():
        # Of an earlier run in this process, which did not come to its end.
        return True
    if os.name == "nt":
        # There, the call below would end the process.
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _name(holder: dict[str, Any] | None) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
