"""Room on the disk that is set aside for small files of later, and given back when the disk is full."""

import os
import uuid
from pathlib import Path

from sb3_sparse.replay.mapped.file import reserve

ROOM = "room"


class Room:
    """
    A file of nothing.

    :param folder: Where it is, if it was made.
    """

    def __init__(self, folder: Path):
        self._path = folder / ROOM

    def make(self, size: int) -> None:
        """
        :param size: In bytes.
        :raises OSError: If there is no such room.
        """
        beside = self._path.with_name(f".{ROOM}-{uuid.uuid4().hex}")
        number = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            reserve(number, size, self._path.parent)
            os.replace(beside, self._path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        finally:
            os.close(number)

    def give(self, size: int) -> bool:
        """
        :param size: In bytes.
        :return: Whether there was some room to give back.
        """
        left = self._path.stat().st_size if self._path.exists() else 0
        if left:
            os.truncate(self._path, max(0, left - size))
        return left > 0

    def remove(self) -> None:
        """Give all of it back."""
        self._path.unlink(missing_ok=True)
