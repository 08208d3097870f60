"""
Who may write into a store: one buffer at a time.

A lock of the system, in contrast to that of a folder of checkpoints: mapped memory belongs to one machine anyway, and the
system lets go of the lock in the moment in which its process ends, however it ends.
"""

import gc
import os
import socket
import sys
import weakref
from pathlib import Path

LOCK = "lock"


class StoreInUse(RuntimeError):
    """Another buffer writes into the store, or has taken it over."""


class Lock:
    """
    The right to write into a folder, until it is released or the process ends.

    :param folder: That there is.
    :raises StoreInUse: If somebody has it.
    :raises OSError: If the file system has no locks.
    """

    def __init__(self, folder: Path):
        path, me = folder / LOCK, f"process {os.getpid()} on {socket.gethostname()}"
        self._number: int | None = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            try:
                _take(self._number)
            except BlockingIOError:
                if path.read_text() != me:
                    raise
                # An agent that was deleted lives until its circles of references are looked for: SB3's callbacks have some.
                gc.collect()
                _take(self._number)
        except BlockingIOError as error:
            os.close(self._number)
            holder = path.read_text() or "another process"
            who = (
                "another buffer of this process: close() it (model.replay_buffer.close())"
                if holder == me
                else f"{holder}: end that process, close() its buffer"
            )
            raise StoreInUse(
                f"{folder} is in use by {who}, or name another folder. To load an agent without its replay buffer, pass "
                "buffer_size=1."
            ) from error
        except OSError as error:
            os.close(self._number)
            raise OSError(
                error.errno, f"{folder}: cannot be locked ({error.strerror}). Name a folder on a local disk."
            ) from error
        os.truncate(self._number, 0)
        os.write(self._number, me.encode())
        _HELD.add(self)

    @property
    def is_held(self) -> bool:
        """Whether it was neither released, nor is this a fork of the process that holds it."""
        return self._number is not None

    def release(self) -> None:
        """Let others write."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


def _take(number: int) -> None:
    if sys.platform == "win32":
        import msvcrt  # there is none elsewhere

        # Of a byte far behind the text, which others may read.
        os.lseek(number, 1 << 20, os.SEEK_SET)
        try:
            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        finally:
            os.lseek(number, 0, os.SEEK_SET)
    else:
        import fcntl  # there is none on Windows

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


# A fork has the same open files: it would hold locks for as long as it lives, and write where its parent writes.
_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _release_in_fork() -> None:
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_fork)
