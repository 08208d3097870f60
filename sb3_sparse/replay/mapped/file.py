"""
One file that holds arrays: what they are, two records of how far they are filled, and the arrays, mapped into memory.

::

    0        description   what the arrays are; never changed
    65536    record 0      the one with the higher number counts, if its checksum is right;
    69632    record 1      the next one takes the place of the other
    73728    arrays        each from the beginning of a page
"""

import errno
import hashlib
import json
import mmap
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_sparse.common.files import sync_folder
from sb3_sparse.common.warn import warn_user

FORMAT = 1
_RECORDS, _ARRAYS = (65536, 69632), 73728
_RECORD_BYTES, _PAGE, _DIGEST = 4096, 4096, 16

Columns = Mapping[str, tuple[tuple[int, ...], Any]]
"""Shape and dtype of one row, by name."""


class DamagedStore(ValueError):
    """A file of a store is missing, or is not what was written."""


class ArraysFile:
    """
    Arrays in a file, which is made if there is none.

    :param path: The file.
    :param description: What it has to be: text and numbers by name. Of a file that is there it is compared.
    :param columns: The arrays.
    :param length: Rows of each.
    :raises OSError: If there is no room for the file. All of it is reserved at once.
    :raises DamagedStore: If what is there is not whole.
    :raises ValueError: If it is something else than described, or of a later format.
    """

    def __init__(self, path: Path, description: Mapping[str, Any], columns: Columns, length: int):
        self.path = path
        #: The newest record; empty if there is none.
        self.record: dict[str, Any] = {}
        self._number = 0
        offsets, end = {}, _ARRAYS
        for name, (shape, dtype) in columns.items():
            offsets[name], n_bytes = end, length * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            end += -(-n_bytes // _PAGE) * _PAGE
        if path.exists():
            self._check(description, end)
        else:
            _create(path, _block({"format": FORMAT, **description}), end)
        self._file = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self._file, end)
        self.arrays = {
            name: np.frombuffer(self._map, dtype, length * int(np.prod(shape, dtype=np.int64)), offsets[name]).reshape(
                length, *shape
            )
            for name, (shape, dtype) in columns.items()
        }

    def sync(self) -> None:
        """What the arrays hold is on the disk when this returns."""
        self._map.flush()

    def write_record(self, record: Mapping[str, Any]) -> None:
        """
        Say how far the arrays are filled: on the disk when this returns, and never half of it.

        :param record: Plain values by name.
        """
        numbered = {**record, "number": self._number + 1}
        block = _block(numbered)
        assert len(block) <= _RECORD_BYTES
        _write_at(self._file, block.ljust(_RECORD_BYTES, b"\0"), _RECORDS[numbered["number"] % 2])
        os.fsync(self._file)
        self.record, self._number = dict(record), numbered["number"]

    def close(self) -> None:
        """Nothing more is written. The memory is given back when nobody has an array any longer."""
        os.close(self._file)
        self.arrays = {}

    def _check(self, expected: Mapping[str, Any], size: int) -> None:
        """Whether a file that is there is whole, and the one that is asked for; its newest record."""
        with self.path.open("rb") as file:
            content = file.read(_ARRAYS)
        found = _content(content[: _RECORDS[0]])
        if found is None:
            raise DamagedStore(f"{self.path} is damaged: expected the description of a replay buffer at its beginning.")
        if found["format"] != FORMAT:
            raise ValueError(f"{self.path} has format {found['format']}: expected {FORMAT}, of this version of sb3-sparse.")
        others = [
            f"{name} {found.get(name)}, expected {value}" for name, value in expected.items() if found.get(name) != value
        ]
        if others:
            raise ValueError(
                f"{self.path} holds another replay buffer: {'; '.join(others)}. Pass what it was made with, or another folder."
            )
        actual = self.path.stat().st_size
        if actual != size:
            raise DamagedStore(f"{self.path} has {actual} bytes: expected {size}, as were written.")
        blocks = [content[begin : begin + _RECORD_BYTES] for begin in _RECORDS]
        records = [record for record in map(_content, blocks) if record is not None]
        if not records:
            raise DamagedStore(f"{self.path} is damaged: neither of its two records is whole.")
        if len(records) < sum(any(block) for block in blocks):
            warn_user(
                f"{self.path}: one of its two records is not whole. The other one is used, perhaps without the last flush."
            )
        self.record = max(records, key=lambda record: record["number"])
        self._number = self.record.pop("number")


def _create(path: Path, description: bytes, size: int) -> None:
    """A file of zeros, reserved on the disk, which gets its name when it is whole."""
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    number = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        reserve(number, size, path.parent)
        assert len(description) <= _RECORDS[0]
        _write_at(number, description, 0)
        _write_at(number, _block({"number": 0}), _RECORDS[0])
        os.fsync(number)
        os.close(number)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def reserve(number: int, size: int, folder: Path) -> None:
    """
    Room for all of a file. Memory that is mapped to a file without it ends the process when the disk is full.

    :param number: Of the open file.
    :param size: In bytes.
    :param folder: Where it is, for the error.
    :raises OSError: If there is none.
    """
    try:
        _reserve(number, size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot reserve {size / 1e9:.2f} GB for the replay buffer in {str(folder)!r} ({error.strerror}): make room, name "
            "a folder on another disk, or a smaller buffer_size",
        ) from error


def _reserve(number: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
    else:
        for begin in range(0, size, 1 << 24):
            _write_at(number, bytes(min(1 << 24, size - begin)), begin)
    os.fsync(number)
    blocks = getattr(os.fstat(number), "st_blocks", None)
    if blocks is not None and blocks * 512 < size:
        raise OSError(errno.ENOSPC, f"the file system has reserved {blocks * 512} of {size} bytes")


def _write_at(number: int, content: bytes, place: int) -> None:
    os.lseek(number, place, os.SEEK_SET)
    if os.write(number, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _block(values: Mapping[str, Any]) -> bytes:
    """Values with their length and checksum."""
    text = json.dumps(values).encode()
    body = len(text).to_bytes(8, "little") + text
    return checksum(body) + body


def _content(block: bytes) -> dict[str, Any] | None:
    """The reverse; None if it is not what was written."""
    end = _DIGEST + 8 + int.from_bytes(block[_DIGEST : _DIGEST + 8], "little")
    if end == _DIGEST + 8 or end > len(block) or checksum(block[_DIGEST:end]) != block[:_DIGEST]:
        return None
    content: dict[str, Any] = json.loads(block[_DIGEST + 8 : end])
    return content


def checksum(content: bytes) -> bytes:
    """BLAKE2b, of 16 bytes."""
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
