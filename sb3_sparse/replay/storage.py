"""Where observations are kept: one array of observations and one of those that followed, for each part of them."""

from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

Observations = Any
"""``(n_envs, ...)``, or such arrays by the name of a part."""


class ObservationStorage(Protocol):
    """Observations of the steps in a ring, each with the one that followed."""

    nbytes: int
    """Memory that it takes, once the ring is full."""

    @property
    def rings(self) -> dict[str, np.ndarray]:
        """The arrays by name, for checkpoints: the place of step ``n`` is ``n`` modulo their length."""

    @property
    def newest(self) -> int | None:
        """
        Place of the last step, where adding the same step twice would do harm. It changes in one moment, when the step is
        whole: after an interruption it tells whether the step is there.
        """

    def check(self, obs: Observations, next_obs: Observations) -> None:
        """
        Whether :meth:`add` could keep them.

        :raises ValueError: If not.
        """

    def add(self, place: int, obs: Observations, next_obs: Observations) -> None:
        """
        Keep a step of all environments.

        :param place: In the ring; the one behind the last that was added, or the first.
        :param obs: ``(n_envs, ...)``, by part where there are several.
        :param next_obs: What followed; of an episode that ended, its last observation.
        """

    def observations(self, steps: np.ndarray, envs: np.ndarray) -> Observations:
        """
        :param steps: ``(n,)``: places in the ring.
        :param envs: ``(n,)``: environments.
        :return: ``(n, ...)``, a copy.
        """

    def next_observations(self, steps: np.ndarray, envs: np.ndarray) -> Observations:
        """The same of what followed."""


class WholeObservations:
    """
    Observations of any space, as they come.

    :param space: Of one observation. A Dict space has parts.
    :param size: Steps in the ring.
    :param n_envs: Environments.
    """

    def __init__(self, space: spaces.Space, size: int, n_envs: int):
        self._parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        self._is_dict = isinstance(space, spaces.Dict)
        # Two rings for each part: observations, and what followed them.
        self._rings = {
            name: [np.zeros((size, n_envs, *get_obs_shape(part)), dtype=part.dtype) for _ in range(2)]
            for name, part in self._parts.items()
        }
        self.nbytes = sum(ring.nbytes for rings in self._rings.values() for ring in rings)
        # A step that is added again only takes its place again.
        self.newest: int | None = None

    def check(self, obs: Observations, next_obs: Observations) -> None:
        """See :class:`ObservationStorage`."""
        for name, rings in self._rings.items():
            for given in (obs, next_obs):
                if name and name not in given:
                    raise ValueError(f"observations with the parts {sorted(given)}: {name!r} is missing.")
                check_shape(given[name] if self._is_dict else given, rings[0].shape[1:])

    def add(self, place: int, obs: Observations, next_obs: Observations) -> None:
        """See :class:`ObservationStorage`."""
        for name, rings in self._rings.items():
            for ring, given in zip(rings, (obs, next_obs), strict=True):
                # Discrete observations come as one number each.
                ring[place] = np.reshape(given[name] if self._is_dict else given, ring.shape[1:])

    @property
    def rings(self) -> dict[str, np.ndarray]:
        """See :class:`ObservationStorage`."""
        kinds = ("observations", "next_observations")
        return {f"{kind}/{name}": ring for name, rings in self._rings.items() for kind, ring in zip(kinds, rings, strict=True)}

    def observations(self, steps: np.ndarray, envs: np.ndarray) -> Observations:
        """See :class:`ObservationStorage`."""
        return self._get(0, steps, envs)

    def next_observations(self, steps: np.ndarray, envs: np.ndarray) -> Observations:
        """See :class:`ObservationStorage`."""
        return self._get(1, steps, envs)

    def _get(self, which: int, steps: np.ndarray, envs: np.ndarray) -> Observations:
        found = {name: rings[which][steps, envs] for name, rings in self._rings.items()}
        return found if self._is_dict else found[""]


def check_shape(given: Any, shape: tuple[int, ...]) -> None:
    """
    Axes of one element may be missing or too many, as in Discrete spaces: without them, the order of the numbers is the same.

    :param given: Observations of all environments.
    :param shape: ``(n_envs, ...)``
    :raises ValueError: If they have another shape.
    """
    found, expected = ([size for size in sizes if size != 1] for sizes in (np.shape(given), shape))
    if found == expected:
        return
    hint = ""
    if sorted(found) == sorted(expected):
        # SB3 puts VecTransposeImage on top of all wrappers that it is given, and VecNormalize keeps what is below.
        hint = (
            " Their axes are in another order. Under VecNormalize, put the channels of images first: "
            "VecNormalize(VecTransposeImage(env)), and norm_obs=False."
        )
    raise ValueError(f"observations of shape {np.shape(given)}: expected {shape}.{hint}")
