"""Processes that are killed, and disks that are full: at any call by which something gets to the disk."""

import errno
import os
import signal
import subprocess
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def in_child(function: Callable[[], object]) -> int:
    """Start a function in a child, whose exit status is 0 if it returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def status_of(child: int) -> int:
    """The exit status of a child when it has ended; the negative number of the signal that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_disk_calls(where: Callable[[str], bool], act: Callable[[int], None]) -> None:
    """
    From here on, act before each call that changes something on the disk. For good: only in a child.

    :param where: Which paths count.
    :param act: Given the number of the call, from 1.
    """
    n_calls, is_acting = [0], [False]

    def count(path: object) -> None:
        # What is done meanwhile is no call of what is tested, nor what another thread does.
        is_main = threading.current_thread() is threading.main_thread()
        if is_acting[0] or not is_main or not isinstance(path, (str, os.PathLike)) or not where(os.fspath(path)):
            return
        is_acting[0] = True
        try:
            n_calls[0] += 1
            act(n_calls[0])
        finally:
            is_acting[0] = False

    def hook(event: str, arguments: tuple) -> None:
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if is_write or event in ("os.mkdir", "os.remove", "os.rmdir"):
            count(arguments[0])
        elif event in ("os.rename", "os.link"):
            count(arguments[1])

    fsync, writestr = os.fsync, zipfile.ZipFile.writestr

    def counted_fsync(number: int) -> None:
        count(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    def counted_writestr(self: zipfile.ZipFile, *args: object, **kwargs: object) -> None:
        writestr(self, *args, **kwargs)
        if self.filename is not None:
            self.fp.flush()
            count(self.filename)

    os.fsync, zipfile.ZipFile.writestr = counted_fsync, counted_writestr
    sys.addaudithook(hook)


def kill_at(call: int, where: Callable[[str], bool]) -> None:
    """From here on, this process is killed at a call that changes something on the disk."""

    def act(n: int) -> None:
        if n == call:
            os.kill(os.getpid(), signal.SIGKILL)

    at_disk_calls(where, act)


@contextmanager
def small_disk(folder: Path, size: str = "64k") -> Iterator[Path]:
    """
    A file system of its own that is soon full.

    :param folder: To mount it at.
    :param size: As ``mount`` takes it.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount: a really full disk cannot be made")
    if mounted.returncode != 0:
        pytest.skip(f"mounting is refused, a really full disk cannot be made: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a disk of :func:`small_disk`: ``"ro"``, ``"rw"``, ``"size=1m"``."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder, but=0):
    """Take all the space of a disk, but some bytes."""
    with (folder / "full").open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        os.ftruncate(file.fileno(), max(0, file.tell() - but))
