"""
The steps of a replay buffer of single frames, in a folder.

::

    store/lock                      who writes here (lock.py)
    store/steps.bin                 a ring of steps, and a record of how many of them are there (file.py)
    store/beside-0-1000-....npz     what is kept besides, of the steps of one flush (extras.py)
    store/room                      what those need, if other things fill the disk (room.py)

Step ``n`` has the place ``n`` modulo the length of the ring, which is longer than the buffer: what the newest records and
checkpoints speak of is never overwritten.
"""

import atexit
import math
import os
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_sparse.common.validation import whole_number
from sb3_sparse.replay.frames import FrameStacks
from sb3_sparse.replay.mapped.extras import ExtrasFiles
from sb3_sparse.replay.mapped.file import ArraysFile, Columns, DamagedStore
from sb3_sparse.replay.mapped.lock import LOCK, Lock, StoreInUse
from sb3_sparse.replay.mapped.room import ROOM, Room

_FILE, _SEAM, _CUT = "steps.bin", "seam", "cut"


class Options(NamedTuple):
    """How a buffer is kept, see :class:`~sb3_sparse.replay.frame_buffer.FrameReplayBuffer`."""

    path: str
    flush_every: int
    rewind: int

    @staticmethod
    def checked(path: str | os.PathLike[str], flush_every: int, rewind: int) -> "Options":
        """:raises ValueError: If a value is out of range."""
        if not os.fspath(path):
            raise ValueError(f"storage_path={path!r}: expected the name of a folder.")
        # Absolute: what is written does not move when the working directory changes.
        absolute = os.path.abspath(os.path.expanduser(path))
        return Options(absolute, whole_number("flush_every", flush_every, 1), whole_number("rewind", rewind, 0))


class FrameStore:
    """
    A folder with the steps of one buffer.

    :param options: Where, and how.
    :param size: Steps that can be drawn from.
    :param n_envs: Environments.
    :param n_stack: Frames in an observation.
    :param description: What else the buffer consists of: text and numbers by name.
    :param rings: The arrays of frames that are in the file itself.
    :param rows: Small arrays that are also in memory, and are copied at a flush.
    :raises StoreInUse: If another buffer writes there.
    :raises OSError: If there is no room.
    :raises DamagedStore: If what is there is not whole.
    :raises ValueError: If it is of another buffer.
    """

    def __init__(
        self,
        options: Options,
        size: int,
        n_envs: int,
        n_stack: int,
        description: Mapping[str, Any],
        rings: Columns,
        rows: Columns,
    ):
        self.folder = Path(options.path)
        self._size, self._behind = size, n_stack - 1
        #: Steps, of all environments at once, after which there has to be a flush.
        self.flush_every = min(math.ceil(options.flush_every / n_envs), size)
        # One flush may be due, and of the two before it either may be the one that counts.
        self._rewind = math.ceil(options.rewind / n_envs) + 3 * self.flush_every
        self._length = size + self._behind + self._rewind
        _check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder)
        # Of what was killed while it reserved room.
        for path in (*self.folder.glob(f".{_FILE}-*"), *self.folder.glob(f".{ROOM}-*")):
            path.unlink()
        #: Whether it was made now.
        self.is_new = is_new = not (self.folder / _FILE).exists()
        try:
            if is_new:
                Room(self.folder).make(self._room(rings, n_envs))
            asked = {**description, "buffer_size": size * n_envs, "n_envs": n_envs, "n_stack": n_stack}
            asked |= {"flush_every": options.flush_every, "rewind": options.rewind}
            self._file = ArraysFile(self.folder / _FILE, asked, {**rings, **rows}, self._length)
        except BaseException:
            if is_new:
                Room(self.folder).remove()
            self._lock.release()
            raise
        self.rings = {name: self._file.arrays[name] for name in rings}
        self._rows = {name: self._file.arrays[name] for name in rows}
        record = self._file.record or {"count": 0, "reached": 0, "identity": uuid.uuid4().hex}
        #: Steps that are on the disk for certain.
        self.count: int = record["count"]
        self._identity: str = record["identity"]
        # So far whoever wrote here before may have got, with a flush of which the record is lost, and without the next one.
        self._reached: int = max(record["reached"], self.count + 2 * self.flush_every)
        self._extras = ExtrasFiles(self.folder, self.count)
        # Whether what is added now does not go on from the last step that is there.
        self._is_seam = self.count > 0
        self._frames: FrameStacks | None = None
        self._in_memory: Mapping[str, np.ndarray] = {}
        if not self._file.record:
            self._write_record(0)
        _OPEN[str(self.folder)] = self

    def _room(self, rings: Columns, n_envs: int) -> int:
        """What files beside need: each a frame of its last step, and one for an episode that ends in every 100 steps."""
        shape, dtype = rings["frames"]
        frames = math.prod(shape) * np.dtype(dtype).itemsize
        n_files = math.ceil(self._length / self.flush_every)
        return n_files * (frames + (1 << 13)) + math.ceil(self._length / 100) * frames

    def check_open(self) -> None:
        """:raises StoreInUse: If it was closed, or this is a fork of the process that has it."""
        if not self._lock.is_held:
            raise StoreInUse(f"{self.folder} was closed, by close(), a run that went on elsewhere, or since this is a fork.")

    def flush_if_due(self) -> None:
        """:raises OSError: If there had to be a flush, and it failed."""
        assert self._frames is not None
        self.check_open()
        if self._frames.n_added - self.count >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        """
        Everything that there is now is on the disk when this returns, and is found there whatever happens next.

        :raises OSError: If it could not be written; then what was there at the last flush is found.
        """
        self.check_open()
        frames = self._frames
        if frames is None or frames.n_added == self.count:
            return
        count = frames.n_added
        new = np.arange(self.count, count)
        for name, column in self._rows.items():
            column[new % self._length] = self._in_memory[name][new % self._size]
        self._file.sync()
        # The last step of the flush before may have been cut off since then (`cut_off`). Its row in the file stays as it is,
        # for a checkpoint that goes back to where it was not.
        cut = self._in_memory["timeouts"][(self.count - 1) % self._size]
        extras = {**frames.extras(self.count, count), _SEAM: np.array(self._is_seam), _CUT: cut}
        self._extras.write(self.count, count, extras)
        self._write_record(count)
        self._is_seam = False
        self._extras.drop_before(self._reached - self._length)

    def _write_record(self, count: int) -> None:
        """In this order: the data is on the disk, and the record after it."""
        reached = max(self._reached, count)
        self._file.write_record({"count": count, "reached": reached, "identity": self._identity})
        self.count, self._reached = count, reached

    def load(self, frames: FrameStacks, rows: Mapping[str, np.ndarray]) -> None:
        """
        Fill what is in memory, and take from there what is flushed from now on.

        :param frames: Frames of which nothing is known yet but :attr:`rings`.
        :param rows: The small arrays.
        :raises DamagedStore: If a file is missing, or is not what was written.
        """
        count = self.count
        self._in_memory = rows
        if count > 0:
            self._read(frames, count)
        # Last: of what could not be read, nothing is flushed.
        self._frames = frames

    def _read(self, frames: FrameStacks, count: int) -> None:
        steps = np.arange(max(0, count - self._size), count)
        for name, column in self._rows.items():
            self._in_memory[name][steps % self._size] = column[steps % self._length]
        for first, stop, arrays in self._extras.read(max(0, count - self._size - self._behind), count):
            frames.put_extras(first, stop, arrays)
            if first > max(0, count - self._size):
                self._in_memory["timeouts"][(first - 1) % self._size] = arrays[_CUT]
            if arrays[_SEAM]:
                self._cut(first - 1)
        if self._is_seam:
            self._cut(count - 1)
        frames.go_on_from(count)

    def _cut(self, step: int) -> None:
        """
        The episode of a step was never gone on with: as if a time limit had ended it there, unless it was over. In memory
        alone; for a run that goes on from a checkpoint it did go on.
        """
        if step >= self.count - self._size:
            place = step % self._size
            goes_on = self._in_memory["dones"][place] == 0
            self._in_memory["dones"][place, goes_on] = self._in_memory["timeouts"][place, goes_on] = 1

    def reference(self) -> dict[str, Any]:
        """What :meth:`rewind` needs to come back to the last flush."""
        mark = self._extras.files[-1].name if self.count else None
        where = {"path": str(self.folder), "identity": self._identity}
        return {**where, "count": self.count, "mark": mark, "is_seam": self._is_seam}

    def rewind(self, reference: Mapping[str, Any]) -> None:
        """
        Go back to a flush; what came after it is forgotten. What is in memory has to be loaded again.

        :param reference: Of :meth:`reference`, at that time.
        :raises DamagedStore: If the store does not hold it any longer.
        """
        self.check_open()
        count = reference["count"]
        if reference["identity"] != self._identity:
            raise DamagedStore(f"{self.folder} holds other steps than those that the checkpoint refers to: it was made anew.")
        reached = max(self._reached, self.count + self.flush_every)
        if count < reached - self._rewind:
            raise DamagedStore(
                f"{self.folder} has got up to {reached - count} steps further than the checkpoint, and can go back by "
                f"{self._rewind}: make the buffer with a larger rewind=."
            )
        if count > self.count or (count and reference["mark"] not in [each.name for each in self._extras.files]):
            raise DamagedStore(
                f"{self.folder} holds {self.count} steps, not the {count} that the checkpoint refers to: they were lost, or a "
                "run that went on from an older checkpoint has overwritten them."
            )
        self._reached, self._is_seam, self._frames = reached, reference["is_seam"], None
        # Both records: none may speak of what is overwritten from here on.
        self._write_record(count)
        self._write_record(count)
        self._extras.drop_after(count)

    def begin_anew(self) -> None:
        """Forget everything. No checkpoint of before can be gone on from. Then :meth:`load` what is empty."""
        self.check_open()
        self._identity, self._reached, self._is_seam, self._frames = uuid.uuid4().hex, 0, False, None
        self._write_record(0)
        self._write_record(0)
        self._extras.drop_after(0)

    def can_rewind(self, transitions: int, n_envs: int) -> bool:
        """Whether a checkpoint may lie so many transitions back."""
        return transitions <= (self._rewind - 3 * self.flush_every) * n_envs

    def close(self) -> None:
        """
        Flush, and let others write; here nothing more is written.

        :raises OSError: If the flush failed.
        """
        if not self._lock.is_held:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            self._lock.release()

    def __del__(self) -> None:
        # There is no lock, or no file, where the beginning failed.
        if hasattr(self, "_is_seam"):
            self.close()


# By folder, of this process.
_OPEN: "weakref.WeakValueDictionary[str, FrameStore]" = weakref.WeakValueDictionary()


def release_store(reference: Mapping[str, Any]) -> None:
    """
    Before a run goes on: the store is there, and no buffer of an earlier run in this process has it any longer.

    :param reference: Of :meth:`FrameStore.reference`.
    :raises DamagedStore: If it is not there.
    """
    folder = Path(reference["path"])
    if not (folder / _FILE).is_file():
        raise DamagedStore(f"{folder / _FILE} is missing: the checkpoint refers to it for its replay buffer.")
    store = _OPEN.get(str(folder))
    if store is not None:
        store.close()


@atexit.register
def _close_all() -> None:
    for store in list(_OPEN.values()):
        store.close()


def _check_folder(folder: Path) -> None:
    """Nothing is made where something else, or a part of a store, is."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"storage_path={str(folder)!r} is a file: expected a folder, or a name for one.")
    if folder.is_dir() and not (folder / _FILE).exists():
        others = sorted(
            path.name for path in folder.iterdir() if path.name not in (LOCK, ROOM) and not path.name.startswith(".")
        )
        if any(name.startswith("beside-") for name in others):
            raise DamagedStore(f"{folder / _FILE} is missing: the folder holds other parts of a replay buffer.")
        if others:
            raise ValueError(f"storage_path={str(folder)!r} holds {others[0]!r} and more: expected a folder of its own.")
