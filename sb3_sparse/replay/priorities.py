"""How likely each transition is to be drawn, and what a draw counts for it (Schaul et al. 2016)."""

from typing import Any

import numpy as np

from sb3_sparse.common.validation import fraction
from sb3_sparse.replay.sum_tree import SumTree

# Added to a magnitude, so that nothing is out of reach for ever.
EPSILON = 1e-6
# Entries are put off by so many steps at most: each takes memory of its own.
_MOST_NEW = 1_000


class Priorities:
    """
    Draws index ``i`` with the probability ``p_i**alpha / Σ p_j**alpha``.

    What is new enters with the largest priority that there ever was, 1 at first.

    :param capacity: How many indices there are.
    :param alpha: 0 draws uniformly, 1 in proportion to the priorities.
    :raises ValueError: If ``alpha`` is not in [0, 1].
    """

    def __init__(self, capacity: int, alpha: float):
        self.alpha = fraction("alpha", alpha)
        self.largest = 1.0
        self._tree = SumTree(capacity)
        # Indices whose entry is put off to the next draw: one batch costs little more than one index.
        self._new: list[np.ndarray] = []

    def enter(self, indices: np.ndarray) -> None:
        """
        Give indices the priority of what is new.

        :param indices: ``(n,)``
        """
        self._new.append(indices)
        if len(self._new) >= _MOST_NEW:
            self._flush()

    def update(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        """
        Give indices other priorities. Of one that is there several times, the last counts.

        :param indices: ``(n,)``
        :param priorities: ``(n,)``: magnitudes of errors; their signs do not matter.
        :raises ValueError: If an index is out of range or a priority not finite; then nothing changes.
        """
        self._flush()
        magnitudes = np.abs(np.asarray(priorities, dtype=np.float64)) + EPSILON
        self._tree[indices] = magnitudes**self.alpha
        self.largest = max(self.largest, float(magnitudes.max(initial=0.0)))

    def draw(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw with replacement, from numpy's global generator.

        :param n: How many.
        :return: ``(n,)`` indices, and ``(n,)`` their probabilities.
        """
        self._flush()
        total = self._tree.total
        # A product may be rounded up to the total.
        masses = np.minimum(np.random.random(n) * total, np.nextafter(total, 0.0))
        indices = self._tree.find(masses)
        return indices, self._tree[indices] / total

    def get_state(self) -> dict[str, Any]:
        """Everything that draws depend on, for checkpoints."""
        return {"weights": self._tree.weights.copy(), "largest": self.largest, "new": [new.copy() for new in self._new]}

    def set_state(self, state: dict[str, Any]) -> None:
        """The reverse: draws go on as they would have."""
        self._tree[np.arange(self._tree.capacity)] = state["weights"]
        self.largest, self._new = state["largest"], list(state["new"])

    def _flush(self) -> None:
        if self._new:
            self._tree[np.concatenate(self._new)] = self.largest**self.alpha
            self._new = []


def importance_weights(probabilities: np.ndarray, n_stored: int, beta: float) -> np.ndarray:
    """
    What a draw counts, so that expectations become those of uniform draws: ``(n_stored * p)**-beta`` over its maximum.

    :param probabilities: ``(n,)``, of what was drawn.
    :param n_stored: How many transitions could have been drawn.
    :param beta: 0 counts all alike, 1 makes up for the draw completely.
    :return: ``(n,)`` float32, at most 1.
    """
    weights = (n_stored * probabilities) ** -beta
    return (weights / weights.max()).astype(np.float32)
