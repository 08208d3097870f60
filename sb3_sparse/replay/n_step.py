"""Several steps as one transition: rewards added up until the episode ends, is cut off, or the newest step is reached."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """What follows from some steps, each with up to ``n_steps - 1`` more behind it."""

    rewards: np.ndarray
    """``(n,)`` float32: discounted sum."""
    discounts: np.ndarray
    """``(n,)`` float32: what the value of the last step's next observation counts, ``gamma`` to the number of steps."""
    last: np.ndarray
    """``(n,)``: place of the last step in the ring."""
    terminated: np.ndarray
    """``(n,)`` float32: 1 where the episode ended there, other than by a time limit."""


def windows(
    rewards: np.ndarray,
    dones: np.ndarray,
    timeouts: np.ndarray,
    steps: np.ndarray,
    envs: np.ndarray,
    newest: int,
    n_steps: int,
    gamma: float,
    normalize: Callable[[np.ndarray], np.ndarray] = lambda rewards: rewards,
) -> Windows:
    """
    Transitions of several steps, from a ring of single ones.

    A window ends with the first step that is done, by a terminal state or a time limit, and with the newest of the ring,
    behind which the oldest stands. Where it did not end by a terminal state, its last next observation is bootstrapped
    from.

    :param rewards: ``(size, n_envs)``, as steps of each environment follow each other in the ring.
    :param dones: Likewise: whether an episode ended, for whatever reason.
    :param timeouts: Likewise: whether that was a time limit.
    :param steps: ``(n,)``: places of the first steps in the ring.
    :param envs: ``(n,)``: their environments.
    :param newest: Place of the step that was stored last.
    :param n_steps: How many steps a window has at most.
    :param gamma: Discount factor.
    :param normalize: Applied to each reward, before they are added up.
    """
    size = len(rewards)
    ahead = np.arange(n_steps)
    places = (steps[:, None] + ahead) % size
    columns = envs[:, None]
    ends = (dones[places, columns] > 0) | (timeouts[places, columns] > 0) | (places == newest)
    length = np.where(ends.any(axis=1), ends.argmax(axis=1), n_steps - 1)
    inside = ahead <= length[:, None]
    # In float32, as in SB3's NStepReplayBuffer: the same numbers bit by bit.
    discounts = gamma ** np.arange(n_steps, dtype=np.float32)
    total = (normalize(rewards[places, columns]) * discounts * inside).sum(axis=1)
    last = (steps + length) % size
    terminated = dones[last, envs].astype(np.float32) * (1.0 - timeouts[last, envs].astype(np.float32))
    return Windows(total, gamma ** inside.sum(axis=1).astype(np.float32), last, terminated)
