"""Files with checksums: written to the disk for certain, and read only if they are what was written."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing, or is not what was written."""


class Written(NamedTuple):
    """What a file has to be."""

    size: int
    """In bytes."""
    checksum: str
    """BLAKE2b of 16 bytes, in hexadecimal digits."""


class HashingFile:
    """
    A file that is written from its beginning to its end, and hashed meanwhile.

    :param file: Open for writing, binary.
    """

    def __init__(self, file: Any):
        self._file, self._hash, self._size = file, _new_hash(), 0

    def write(self, data: Any) -> int:
        """Append."""
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        self._file.write(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing is kept back here."""

    @property
    def written(self) -> Written:
        """What was written so far."""
        return Written(self._size, self._hash.hexdigest())


@contextmanager
def hashing_file(path: Path) -> Iterator[HashingFile]:
    """A new file, which is on the disk when the block ends."""
    with path.open("xb") as file:
        yield HashingFile(file)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> Written:
    """Write a new file to the disk."""
    with hashing_file(path) as file:
        file.write(content)
    return file.written


def read_bytes(path: Path, expected: Written) -> bytes:
    """
    :param path: A file.
    :param expected: What was written.
    :raises DamagedCheckpoint: If it is missing or is something else.
    """
    size = check_size(path, expected)
    try:
        with path.open("rb") as file:
            content = file.read(size)
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror}): expected {expected.size} bytes.") from error
    digest = _new_hash(content).hexdigest()
    if digest != expected.checksum:
        raise DamagedCheckpoint(f"{path} is damaged: its checksum is {digest}, expected {expected.checksum}, as was written.")
    return content


def check_size(path: Path, expected: Written) -> int:
    """
    :param path: A file.
    :param expected: What was written.
    :return: Its size in bytes.
    :raises DamagedCheckpoint: If it is missing, no regular file, or of another size.
    """
    size = file_size(path, f"a file of {expected.size} bytes")
    if size != expected.size:
        what = "is empty" if not size else f"has {size} bytes"
        raise DamagedCheckpoint(f"{path} {what}: expected {expected.size} bytes, as were written.")
    return size


def file_size(path: Path, expected: str) -> int:
    """
    The size of a file, before it is opened: a pipe would be waited for, and a device may have no end.

    :param path: The file.
    :param expected: What it is, for the message.
    :raises DamagedCheckpoint: If it is missing or no regular file.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpoint(f"{path} is missing: expected {expected}.") from error
    except OSError as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror}): expected {expected}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedCheckpoint(f"{path} is no regular file: expected {expected}.")
    return status.st_size


def checksum_of(content: bytes) -> str:
    """The checksum of some bytes."""
    return _new_hash(content).hexdigest()


def _new_hash(content: bytes = b"") -> Any:
    return hashlib.blake2b(content, digest_size=16)
