"""
The replay buffer on the disk: files of rows, of which each checkpoint adds what is new.

A file never changes. Where the ring has begun anew, later files hold what takes the place of earlier rows.
"""

import io
import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sb3_sparse.common.files import sync_folder
from sb3_sparse.resume.files.checksum import DamagedCheckpoint, Written, hashing_file
from sb3_sparse.resume.files.folder import BESIDE, Checkpoint
from sb3_sparse.resume.state.ring import Ring

# Of a file, roughly: what is read needs as much memory besides the buffer.
_MAX_BYTES = 1 << 26
_NO_SUMS = np.zeros(0, np.uint64)


class RowFiles:
    """
    The files of one replay buffer, as far as they are written.

    :param root: The folder of checkpoints.
    :param known: Files that are there already, of the checkpoint that a run goes on from.
    :param ring: The buffer that was read from these.
    """

    def __init__(self, root: Path, known: dict[str, Written] | None = None, ring: Ring | None = None):
        self._folder = root / "rows"
        self._files: dict[str, Written] = dict(known or {})
        self._written = max((_range(name)[1] for name in self._files), default=None)
        # Of the newest of the rows that are written, by which it is noticed that they have changed.
        self._sums = _NO_SUMS
        if ring is not None and self._written is not None:
            self._sums = ring.sums(min(ring.oldest_small, self._written), self._written)

    def write(self, ring: Ring) -> dict[str, Written]:
        """
        Write the rows that are new.

        :param ring: The buffer.
        :return: All files that together hold the buffer.
        :raises OSError: If they cannot be written; the older ones stay.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        oldest = max(0, ring.count - ring.length)
        if self._written is None or not oldest <= self._written <= ring.count:
            # Another buffer than before, or all of it is new.
            self.forget()
        elif self._is_changed(ring):
            # By somebody else, as who relabels rewards.
            self.forget()
        self._written = oldest if self._written is None else self._written
        step = max(1, _MAX_BYTES // max(1, ring.row_bytes))
        while self._written < ring.count:
            stop = min(self._written + step, ring.count)
            name, written = self._write_file(ring, self._written, stop)
            # With each file: the next one may find no space.
            self._sums = np.concatenate([self._sums, ring.sums(self._written, stop)])
            self._files[name], self._written = written, stop
        sync_folder(self._folder)
        self._sums = self._sums[-max(1, self._written - ring.oldest_small) :]
        self._files = {name: written for name, written in self._files.items() if _range(name)[1] > oldest}
        return dict(self._files)

    def forget(self) -> None:
        """Write everything the next time."""
        self._files, self._written, self._sums = {}, None, _NO_SUMS

    def _is_changed(self, ring: Ring) -> bool:
        """Whether a row that is written, and was not overwritten since, has another sum."""
        assert self._written is not None
        first = min(ring.oldest_small, self._written)
        return not np.array_equal(ring.sums(first, self._written), self._sums[len(self._sums) - self._written + first :])

    def _write_file(self, ring: Ring, first: int, stop: int) -> tuple[str, Written]:
        beside = self._folder / f"{BESIDE}{uuid.uuid4().hex}"
        try:
            with hashing_file(beside) as file, zipfile.ZipFile(file, "w") as archive:  # type: ignore[call-overload]
                # An .npz file, as numpy reads it.
                for name, rows in ring.rows(first, stop).items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, np.ascontiguousarray(rows), allow_pickle=False)
            name = f"rows-{first:012d}-{stop:012d}-{file.written.checksum}.npz"
            os.replace(beside, self._folder / name)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        return f"rows/{name}", file.written


def read_rows(checkpoint: Checkpoint, ring: Ring) -> None:
    """
    Fill a buffer.

    :param checkpoint: Whose manifest lists the files.
    :param ring: The buffer, which has the sizes of the one that was written.
    :raises DamagedCheckpoint: If a file is not what was written, or rows are missing.
    """
    expected = max(0, ring.count - ring.length)
    for (first, stop), name in _in_order(checkpoint):
        if first > expected:
            raise DamagedCheckpoint(f"{checkpoint.path}: rows {expected} to {first} of the replay buffer are missing.")
        with np.load(io.BytesIO(checkpoint.read(name)), allow_pickle=False) as rows:
            ring.put_rows(first, stop, dict(rows))
        expected = stop
    if expected < ring.count:
        raise DamagedCheckpoint(f"{checkpoint.path}: rows {expected} to {ring.count} of the replay buffer are missing.")


def _in_order(checkpoint: Checkpoint) -> Iterator[tuple[tuple[int, int], str]]:
    yield from sorted((_range(name), name) for name in checkpoint.manifest["rows"])


def _range(name: str) -> tuple[int, int]:
    _, first, stop, _ = name.split("-")
    return int(first), int(stop)
