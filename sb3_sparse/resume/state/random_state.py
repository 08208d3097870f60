"""The random states of a process: Python's, numpy's and torch's."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces


def capture_random() -> dict[str, Any]:
    """Where the global generators of this process are."""
    cuda = th.cuda.is_available() and th.cuda.is_initialized()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if cuda else None,
    }


def restore_random(state: dict[str, Any]) -> None:
    """
    Put the global generators where they were.

    :param state: Of :func:`capture_random`.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    if state["cuda"] is not None and th.cuda.is_available():
        # There may be fewer here.
        for i, each in enumerate(state["cuda"][: th.cuda.device_count()]):
            th.cuda.set_rng_state(each, i)


def capture_space(space: gym.Space) -> list[Any]:
    """The generators of a space and of the spaces that it consists of; None where nothing was drawn yet."""
    return [part._np_random for part in parts_of_space(space)]


def restore_space(space: gym.Space, generators: list[Any]) -> None:
    """
    Give a space the generators of another one of the same kind, in place: algorithm and environment may share it.

    :param space: The space.
    :param generators: Of :func:`capture_space`.
    """
    for part, generator in zip(parts_of_space(space), generators, strict=True):
        part._np_random = generator


def parts_of_space(space: gym.Space) -> list[gym.Space]:
    """The space, and the spaces that it consists of: each has a generator."""
    inner: list[gym.Space] = []
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.values())
    elif isinstance(space, spaces.Tuple):
        inner = list(space.spaces)
    return [space, *(part for each in inner for part in parts_of_space(each))]
