"""What single frames do not say of some steps, such as how episodes ended: a file for each flush, which never changes."""

import errno
import io
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sb3_sparse.common.files import sync_folder
from sb3_sparse.replay.mapped.file import DamagedStore, checksum
from sb3_sparse.replay.mapped.room import Room

_NAME = re.compile(r"beside-([0-9]{12,})-([0-9]{12,})-([0-9a-f]{8})-([0-9a-f]{32})\.npz")


class Extras(NamedTuple):
    """A file. Its name tells it from every other one that was ever written, also of the same steps."""

    first: int
    stop: int
    name: str


class ExtrasFiles:
    """
    The files of a store.

    :param folder: Of the store.
    :param count: Steps that its record speaks of. What was written after it does not count, and goes away.
    """

    def __init__(self, folder: Path, count: int):
        self._folder = folder
        found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("*beside-*")]
        #: Those that there are, in the order of their steps.
        self.files = sorted(Extras(int(match[1]), int(match[2]), match[0]) for match, _ in found if match)
        for match, path in found:
            if not match and path.name.startswith("."):
                path.unlink(missing_ok=True)
        self.drop_after(count)

    def write(self, first: int, stop: int, arrays: Mapping[str, np.ndarray]) -> None:
        """
        :param first: Number of the first step since the last flush.
        :param stop: Number of the step behind the last.
        :param arrays: What is to be kept.
        :raises OSError: If that is not possible; then nothing changes.
        """
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        content = file.getvalue()
        name = f"beside-{first:012d}-{stop:012d}-{uuid.uuid4().hex[:8]}-{checksum(content).hex()}.npz"
        try:
            self._write_whole(name, content)
        except OSError as error:
            # Files and folders take whole blocks of the disk.
            if error.errno != errno.ENOSPC or not Room(self._folder).give(len(content) + (1 << 14)):
                raise
            self._write_whole(name, content)
        self.files.append(Extras(first, stop, name))

    def _write_whole(self, name: str, content: bytes) -> None:
        half = self._folder / f".{name}"
        try:
            with half.open("xb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.replace(half, self._folder / name)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        sync_folder(self._folder)

    def read(self, first: int, count: int) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """
        What belongs to some steps, the earliest first.

        :param first: Number of the first step.
        :param count: Number of the step behind the last.
        :raises DamagedStore: If a file is missing, or is not what was written.
        """
        for begin, stop, name in self.files:
            if stop <= first:
                continue
            if begin > first:
                raise DamagedStore(f"{self._folder}: the file of the steps {first} to {begin}, beside-..., is missing.")
            content = (self._folder / name).read_bytes()
            if checksum(content).hex() != name.rpartition("-")[2][:32]:
                raise DamagedStore(f"{self._folder / name} is damaged: its checksum is not the one in its name.")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                yield begin, stop, dict(arrays)
            first = stop
        if first < count:
            raise DamagedStore(f"{self._folder}: the file of the steps {first} to {count}, beside-..., is missing.")

    def drop_after(self, count: int) -> None:
        """Remove what belongs to later steps."""
        self._drop([each for each in self.files if each.stop > count])

    def drop_before(self, count: int) -> None:
        """Remove what belongs to earlier steps alone."""
        self._drop([each for each in self.files if each.stop <= count])

    def _drop(self, files: list[Extras]) -> None:
        for each in files:
            (self._folder / each.name).unlink(missing_ok=True)
            self.files.remove(each)
