"""Numbers with which indices are drawn in proportion to them: sums of blocks of sums, up to the sum of all."""

import numpy as np

from sb3_sparse.common.validation import whole_number

# Children of a node. A draw looks at one block per level: few levels matter more than small blocks.
_WIDTH = 16


class SumTree:
    """
    Weights of the indices ``0 ... capacity - 1``; draws, reads and writes of a batch take O(batch · log capacity).

    Sums are always those of their parts, added anew, so that no rounding adds up however often weights change, and an
    index of weight 0 is never drawn.

    >>> tree = SumTree(3)
    >>> tree[[0, 2]] = [1.0, 3.0]
    >>> tree.total, tree.find([0.5, 1.0, 3.9]).tolist()
    (4.0, [0, 2, 2])

    :param capacity: How many weights there are, 0 at first.
    :raises ValueError: If it is not a positive whole number.
    """

    def __init__(self, capacity: int):
        self.capacity = whole_number("capacity", capacity, 1)
        # From the weights themselves to the sum of all; each is filled up to whole blocks with zeros.
        self._levels: list[np.ndarray] = []
        # Indices whose sums are not yet added anew: some only where that was interrupted.
        self._changed: list[np.ndarray] = []
        size = self.capacity
        while not self._levels or size > 1:
            blocks = -(-size // _WIDTH)
            self._levels.append(np.zeros((blocks, _WIDTH)))
            size = blocks

    @property
    def total(self) -> float:
        """The sum of all weights."""
        self._add_up()
        return float(self._levels[-1].sum())

    @property
    def weights(self) -> np.ndarray:
        """``(capacity,)`` float64, all weights: a view, not to be written to."""
        view = self._levels[0].reshape(-1)[: self.capacity]
        view.flags.writeable = False
        return view

    def __getitem__(self, indices: np.ndarray | list[int]) -> np.ndarray:
        """
        :param indices: ``(n,)``, each in [0, capacity).
        :return: ``(n,)``, their weights.
        """
        return self._levels[0].reshape(-1)[self._checked(indices)]

    def __setitem__(self, indices: np.ndarray | list[int], weights: np.ndarray | list[float] | float) -> None:
        """
        Give indices other weights. Of one that is there several times, the last counts.

        :param indices: ``(n,)``, each in [0, capacity).
        :param weights: ``(n,)``, or one for all; finite, not negative.
        :raises ValueError: If an index or a weight is not allowed; then nothing changes.
        """
        places, values = self._checked(indices), np.asarray(weights, dtype=np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"weights={weights!r}: expected finite numbers of at least 0.")
        self._changed.append(places)
        self._levels[0].reshape(-1)[places] = values
        self._add_up()

    def _add_up(self) -> None:
        if not self._changed:
            return
        places = np.concatenate(self._changed)
        for below, above in zip(self._levels[:-1], self._levels[1:], strict=True):
            places = np.unique(places // _WIDTH)
            above.reshape(-1)[places] = below[places].sum(axis=1)
        self._changed = []

    def find(self, masses: np.ndarray | list[float]) -> np.ndarray:
        """
        The indices at which the running sum of the weights passes given numbers.

        :param masses: ``(n,)``, each in [0, total).
        :return: ``(n,)`` int64. None has a weight of 0.
        :raises ValueError: If a number is out of range, or all weights are 0.
        """
        left = np.array(masses, dtype=np.float64)
        total = self.total
        if not total > 0:
            raise ValueError("all weights are 0: there is nothing to draw.")
        if not ((left >= 0) & (left < total)).all():
            raise ValueError(f"masses={masses!r}: expected numbers in [0, {total!r}).")
        block = np.zeros(len(left), dtype=np.int64)
        for level in reversed(self._levels):
            weights = level[block]
            ends = weights.cumsum(axis=1)
            child = (ends <= left[:, None]).sum(axis=1)
            # Where rounding leads behind the last weight, that one is meant.
            last = _WIDTH - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
            child = np.minimum(child, last)
            left -= np.take_along_axis(ends - weights, child[:, None], axis=1)[:, 0]
            np.maximum(left, 0.0, out=left)
            block = block * _WIDTH + child
        return block

    def _checked(self, indices: np.ndarray | list[int]) -> np.ndarray:
        places = np.asarray(indices)
        if places.ndim != 1 or (places.size and places.dtype.kind not in "iu"):
            raise ValueError(f"indices={indices!r}: expected a list of whole numbers.")
        if places.size and not (places.min() >= 0 and places.max() < self.capacity):
            raise ValueError(f"indices={indices!r}: expected numbers from 0 to {self.capacity - 1}.")
        return places.astype(np.int64)
