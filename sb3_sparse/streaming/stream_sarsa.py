"""Stream SARSA(λ) (Elsayed et al. 2024)."""

from typing import Any

import numpy as np

from sb3_sparse.streaming.stream_q import StreamQ


class StreamSARSA(StreamQ):
    """
    Stream SARSA(λ): as Stream Q(λ), but the value of a state is that of the action taken next.

    Traces are cleared at the end of an episode only. The first action of an episode is chosen from its first
    observation. (Where the published agent takes the one it had chosen from the last observation before.)

    Its keywords are those of :class:`StreamQ`.
    """

    kind = "StreamSARSA"

    def __init__(self, *args: Any, **kwargs: Any):
        # Before the base class, which makes the networks. None: still to be chosen.
        self._next_action: int | None = None
        super().__init__(*args, **kwargs)

    def _begin_episode(self, obs: Any) -> None:
        super()._begin_episode(obs)
        self._next_action = None

    def _act(self, features: np.ndarray) -> tuple[Any, np.ndarray]:
        if self._next_action is None:
            self._next_action, _ = self._epsilon_greedy(self._q.outputs(features, keep=True))
        return self._next_action, np.array([self._next_action])

    def _update(
        self, features: np.ndarray, action: Any, reward: float, next_features: np.ndarray, discount: float, done: bool
    ) -> None:
        next_value = 0.0
        if discount or not done:
            _, next_values = self._q.both_outputs(features, next_features)
            self._next_action, _ = self._epsilon_greedy(next_values)
            next_value = float(next_values[self._next_action])
        self._learn_value(features, action, reward + discount * next_value, done)
