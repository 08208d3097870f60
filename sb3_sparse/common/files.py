"""Files that are whole at any time: written beside, then renamed."""

import errno
import glob
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Numbers of errors that the disk has, whatever is written to it: full, no more for this user, too large, read-only, broken.
DISK_ERRORS = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO") if hasattr(errno, name))
# What `written_beside` names its files: machine, process and its start, which earlier versions left out, and thread.
_BESIDE = re.compile(r"\..*\.(?:(?P<machine>[0-9a-f]{12})-)?(?P<pid>\d+)-(?:(?P<started>\d+)-)?\d+\.tmp[^/]*")
# Seconds without a change, after which a file is left over whoever wrote it.
_LEFT_OVER_AFTER = 24 * 3600.0
_NO_MACHINE = "0" * 12
# Seconds before a file is read again.
_PAUSES = (0.1, 0.5)


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A name to write a file under, which takes the place of ``path`` when the block ends, and goes away if it fails.

    A reader never sees half a file, and what was there stays if writing fails. The folder is made if there is none. The
    name has the same ending, by which many libraries choose the format. What killed writers of the same file have left
    behind is removed first (:func:`remove_left_over`).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_beside(Path(folder) / "numbers.txt") as beside:
    ...         _ = beside.write_text("1 2 3")
    ...     (Path(folder) / "numbers.txt").read_text()
    '1 2 3'

    :param path: The file.
    :raises OSError: If no such file can be written, before the block begins or because the disk is full; or if the block
        has written none.
    """
    path = Path(path)
    # In the same folder, since a file can be renamed only within a file system; with numbers, for other writers.
    writer = "-".join(map(str, [*this_process().values(), threading.get_ident()]))
    beside = path.with_name(f".{path.stem}.{writer}.tmp{path.suffix}")
    try:
        if path.parent.is_file():
            raise NotADirectoryError("its folder is a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        remove_left_over(path.parent, path)
        # What cannot be written is better said before the work than after it.
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        try:
            yield beside
        except Exception as error:
            if (of_the_disk := error_of_the_disk(error)) is not None:
                raise _cannot_write(path, of_the_disk) from error
            raise
        if not beside.exists():
            raise FileNotFoundError(f"nothing was written for {str(path)!r}.")
        try:
            # Else a power cut may leave the new name with nothing behind it.
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            raise _cannot_write(path, error) from error
    except BaseException:
        # Of a broken disk, that it cannot be removed either is not what there is to say.
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def read_again(path: Path) -> str:
    """
    The text of a file, which is asked for again where that fails: what goes wrong with a file system on a network may be over
    in a moment.

    :param path: The file.
    :raises FileNotFoundError: If there is none.
    :raises OSError: If it cannot be read, again and again.
    :raises ValueError: If it is no text.
    """
    for pause in _PAUSES:
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            time.sleep(pause)
    return path.read_text()


def remove_left_over(folder: Path, path: Path | None = None) -> None:
    """
    Remove files that killed writers have left behind, and none of a writer that lives.

    A file is left over if the process in its name is gone: on this machine, as it was started last, and with the processes
    that are seen from here. Of a file from elsewhere that cannot be known; it is left over when nobody has written to it
    for a day.

    :param folder: Where to look.
    :param path: Only for files beside this one.
    """
    pattern = ".*.tmp*" if path is None else f".{glob.escape(path.stem)}.*.tmp{glob.escape(path.suffix)}"
    for found in folder.glob(pattern):
        with suppress(OSError):
            if is_beside(found) and _is_left_over(found):
                found.unlink()


def is_beside(path: Path) -> bool:
    """Whether a file has a name as :func:`written_beside` gives it."""
    return _BESIDE.fullmatch(path.name) is not None and path.is_file()


def check_writable(path: str | os.PathLike[str]) -> None:
    """
    See whether a file can be written, before the work of which it is to hold the result. Its folder is made.

    :param path: The file.
    :raises OSError: If not.
    """
    with suppress(_OnlyTried), written_beside(path):
        raise _OnlyTried


class _OnlyTried(Exception):
    """What is written beside does not take the place of anything."""


def sync_folder(path: Path) -> None:
    """Names in a folder are on the disk, too, where the system has such a thing."""
    if os.name == "nt":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def with_ending(path: str | Path, ending: str) -> Path:
    """
    A path with an ending, which is added where there is none.

    :raises ValueError: If it has another one, or names a folder.
    """
    path = Path(path)
    if not path.name or path.is_dir():
        raise ValueError(f"path={str(path)!r}: expected the name of a file.")
    if path.suffix not in ("", ending):
        raise ValueError(f"path={str(path)!r}: expected a name that ends in {ending!r}.")
    return path.with_name(path.name + ending) if not path.suffix else path


def this_process() -> dict[str, Any]:
    """``machine``, ``pid`` and ``started``, by which others see whether this process lives."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid()) or 0}


def is_process_gone(machine: str, pid: int, started: int) -> bool | None:
    """
    Whether a process has ended. None where that cannot be known: it is of another machine, or hidden from this one.

    :param machine: From :func:`this_process`, as the others.
    :param pid: Its number.
    :param started: When it was started; a number is given to a new process when the old one is gone.
    """
    return _is_gone(pid, started) if machine == _machine() != _NO_MACHINE and started else None


def _cannot_write(path: Path, error: OSError) -> OSError:
    """The same kind of error, about the file that was asked for instead of the one beside it."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what_to_do = f"free some space in {str(path.parent)!r}, or name another file" if is_full else "name another file"
    named = type(error)(f"cannot write {str(path)!r} ({error.strerror or error}): {what_to_do}.")
    named.errno = error.errno
    return named


def error_of_the_disk(error: BaseException | None) -> OSError | None:
    """The error of a full or broken disk, which libraries wrap in errors of their own; None if there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return error
        error = error.__cause__ or error.__context__
    return None


def _is_left_over(path: Path) -> bool:
    match = _BESIDE.fullmatch(path.name)
    if match is None:
        return False
    is_gone = is_process_gone(match["machine"], int(match["pid"]), int(match["started"] or 0))
    return is_gone if is_gone is not None else time.time() - path.stat().st_mtime > _LEFT_OVER_AFTER


def _machine() -> str:
    """This machine since it was started, and its processes that are seen from here; zeros where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return _NO_MACHINE


def _started(pid: int) -> int | None:
    """When a process was started, 0 if it was killed and is still listed; None if the system does not say it."""
    try:
        # Behind its name, which may contain anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if state in "ZX" else int(fields[18])


def _is_gone(pid: int, started: int) -> bool:
    """Whether there is no such process any more; a number is given to a new one when the old one is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Of another user, whose processes may be hidden below.
        pass
    return _started(pid) not in (None, started)
