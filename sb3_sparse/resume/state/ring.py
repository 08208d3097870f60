"""A replay buffer as rows: a step of all environments is one, and has its place in a ring for each array."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_sparse.replay import FrameReplayBuffer, PrioritizedReplayBuffer
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.frames import FrameStacks
from sb3_sparse.replay.storage import WholeObservations

# Of which it is known that no row changes by itself once it is written. A subclass may do anything.
_KNOWN = (
    *(ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, HerReplayBuffer),
    *(ComposedReplayBuffer, FrameReplayBuffer, PrioritizedReplayBuffer),
)
_SMALL = ("actions", "rewards", "dones", "timeouts")
# Rows whose sums fit into a cache.
_AT_ONCE = 4096
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Ring:
    """
    The rows of a buffer. What is not in rows is left to ``buffers.py``.

    :param buffer: A buffer of a class that :meth:`fits`.
    """

    def __init__(self, buffer: ReplayBuffer):
        self.arrays = {name: array for name in _ARRAYS for name, array in _named(name, getattr(buffer, name, None))}
        self.frames: FrameStacks | None = None
        if isinstance(buffer, ComposedReplayBuffer):
            self.arrays.update(buffer.storage.rings)
            if isinstance(buffer.storage, FrameStacks):
                self.frames = buffer.storage
        #: Rows that have a place at the same time, somewhere.
        self.length = max(map(len, self.arrays.values()))
        #: Rows that were ever added, or a number with the same places if nobody has counted.
        self.count = self.frames.n_added if self.frames else buffer.pos + buffer.buffer_size * buffer.full
        self._size = buffer.buffer_size

    @staticmethod
    def fits(buffer: ReplayBuffer) -> bool:
        """Whether a buffer can be written in rows."""
        if type(buffer) not in _KNOWN or buffer.optimize_memory_usage:
            return False
        if isinstance(buffer, ComposedReplayBuffer):
            return isinstance(buffer.storage, (WholeObservations, FrameStacks))
        # Python's dictionaries are in no array.
        return not getattr(buffer, "copy_info_dict", False)

    @property
    def row_bytes(self) -> int:
        """Of one row, roughly."""
        return sum(array[:1].nbytes for array in self.arrays.values())

    def count_from(self, before: int) -> None:
        """
        Count as before, where the buffer itself does not.

        :param before: What :attr:`count` was at least.
        """
        while self.count < before:
            self.count += self._size

    def rows(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """
        :param first: Number of the first row.
        :param stop: Number of the row behind the last.
        """
        found = {name: array[_places(first, stop, len(array))] for name, array in self.arrays.items()}
        return {**found, **(self.frames.extras(first, stop) if self.frames else {})}

    @property
    def oldest_small(self) -> int:
        """The first row of which what is small is all there: a ring of frames is longer than the others."""
        return max(0, self.count - min(map(len, self._small()), default=self.length))

    def sums(self, first: int, stop: int) -> np.ndarray:
        """
        Of what is small in each of these rows, a sum by which it is noticed that somebody else has changed it, as rewards.

        :param first: Number of the first row.
        :param stop: Number of the row behind the last.
        """
        found = np.zeros(stop - first, np.uint64)
        factors = np.random.default_rng(0)
        for array in self._small():
            # Each word of a row has an odd factor of its own: no change of a single one gives the same sum.
            n_words = array[:1].nbytes // min(array.itemsize, 8)
            odd = factors.integers(1 << 63, size=n_words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            for begin in range(first, stop, _AT_ONCE):
                end = min(begin + _AT_ONCE, stop)
                rows = np.ascontiguousarray(array[_places(begin, end, len(array))]).reshape(end - begin, -1)
                found[begin - first : end - first] += rows.view(f"u{min(array.itemsize, 8)}").astype(np.uint64) @ odd
        return found

    def _small(self) -> list[np.ndarray]:
        return [array for name, array in self.arrays.items() if name.partition("/")[0] in _SMALL]

    def put_rows(self, first: int, stop: int, rows: dict[str, np.ndarray]) -> None:
        """The reverse; earlier rows first."""
        for name, array in self.arrays.items():
            array[_places(first, stop, len(array))] = rows[name]
        if self.frames:
            self.frames.put_extras(first, stop, rows)


def _named(name: str, value: Any) -> list[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        return [(f"{name}/{key}", array) for key, array in value.items()]
    return [] if value is None else [(name, value)]


def _places(first: int, stop: int, length: int) -> slice | np.ndarray:
    begin, end = first % length, (stop - 1) % length + 1
    return slice(begin, end) if begin < end and stop - first <= length else np.arange(first, stop) % length
