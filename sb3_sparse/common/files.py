"""Files that are whole at any time: written beside, then renamed."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A name to write a file under, which takes the place of ``path`` when the block ends, and goes away if it fails.

    A reader never sees half a file, and what was there stays if writing fails. The folder is made if there is none. The
    name has the same ending, by which many libraries choose the format.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_beside(Path(folder) / "numbers.txt") as beside:
    ...         _ = beside.write_text("1 2 3")
    ...     (Path(folder) / "numbers.txt").read_text()
    '1 2 3'

    :param path: The file.
    :raises OSError: If no such file can be written, before the block begins; or if the block has written none.
    """
    path = Path(path)
    # In the same folder, since a file can be renamed only within a file system; with numbers, for other writers.
    writer = f"{os.getpid()}-{threading.get_ident()}"
    beside = path.with_name(f".{path.stem}.{writer}.tmp{path.suffix}")
    try:
        if path.parent.is_file():
            raise NotADirectoryError("its folder is a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        # What cannot be written is better said before the work than after it.
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield beside
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
        beside.unlink(missing_ok=True)
        raise


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


def _cannot_write(path: Path, error: OSError) -> OSError:
    """The same kind of error, about the file that was asked for instead of the one beside it."""
    named = type(error)(f"cannot write {str(path)!r} ({error.strerror or error}): name another file.")
    named.errno = error.errno
    return named
