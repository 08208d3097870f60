"""Stream Q(λ): Q-learning with eligibility traces (Elsayed et al. 2024)."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_sparse.common.validation import fraction, positive
from sb3_sparse.streaming.base import StreamAlgorithm
from sb3_sparse.streaming.learners import Learner
from sb3_sparse.streaming.policies import StreamQCnnPolicy, StreamQPolicy


class StreamQ(StreamAlgorithm):
    """
    Stream Q(λ), epsilon-greedy. Traces are cleared after an exploring action too.

    Its other keywords are those of :class:`StreamAlgorithm`.

    :param kappa: How careful the steps are, see :class:`ObGD`.
    :param exploration_fraction: Fraction of the training in which the probability of a random action falls.
    :param exploration_initial_eps: The probability at first.
    :param exploration_final_eps: The probability in the end.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": StreamQPolicy,
        "MultiInputPolicy": StreamQPolicy,
        "CnnPolicy": StreamQCnnPolicy,
    }
    policy: StreamQPolicy
    kind = "StreamQ"
    exploration_rate: float
    optimizer_names = ("q_optimizer",)
    kappa_names = ("kappa",)

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1.0,
        *,
        kappa: float = 2.0,
        exploration_fraction: float = 0.05,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.01,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, learning_rate, supported_action_spaces=(spaces.Discrete,), **kwargs)
        self.kappa = kappa
        self.exploration_fraction = exploration_fraction
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        self._explored = False
        if _init_setup_model:
            self._setup_model()
            self.exploration_rate = self.exploration_initial_eps

    def _check_settings(self) -> None:
        super()._check_settings()
        self.kappa = positive("kappa", self.kappa)
        for name in ("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"):
            setattr(self, name, fraction(name, getattr(self, name)))

    def _setup_optimizers(self) -> None:
        self.policy.q_optimizer = self._make_optimizer(self.policy.q_net, self.kappa)

    def _make_learners(self) -> list[Learner]:
        self._q = self._make_learner(self.policy.q_net, self.policy.q_optimizer)
        return [self._q]

    def _epsilon(self) -> float:
        """The probability of a random action now. Override for another schedule."""
        steps = self.exploration_fraction * self._total_timesteps
        progress = min((self.num_timesteps + 1) / steps, 1.0) if steps > 0 else 1.0
        return self.exploration_initial_eps + progress * (self.exploration_final_eps - self.exploration_initial_eps)

    def _epsilon_greedy(self, values: np.ndarray) -> tuple[int, bool]:
        """
        Choose by the values of the actions.

        :return: An action, and whether it differs from the greedy one.
        """
        self.exploration_rate = self._epsilon()
        greedy = int(np.argmax(values))
        action = int(np.random.randint(len(values))) if np.random.random() < self.exploration_rate else greedy
        return action, action != greedy

    def _act(self, features: np.ndarray) -> tuple[Any, np.ndarray]:
        action, self._explored = self._epsilon_greedy(self._q.outputs(features, keep=True))
        return action, np.array([action])

    def _update(
        self, features: np.ndarray, action: Any, reward: float, next_features: np.ndarray, discount: float, done: bool
    ) -> None:
        next_value = float(self._q.outputs(next_features).max()) if discount else 0.0
        self._learn_value(features, action, reward + discount * next_value, done or self._explored)

    def _learn_value(self, features: np.ndarray, action: int, target: float, reset: bool) -> None:
        values = self._q.outputs(features, keep=True)
        self._set_td_error(target - float(values[action]))
        direction = np.zeros(len(values), dtype=np.float32)
        direction[action] = 1.0
        self._q.learn(features, direction, self._td_error, reset)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for raw observations, see :meth:`StreamPolicy.predict`.

        :param observation: Raw observations.
        :param state: What the last call returned, or None.
        :param episode_start: Whether an episode starts with this observation.
        :param deterministic: Whether to take the greedy action always, instead of a random one with the current
            exploration rate.
        """
        actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        if not deterministic and np.random.random() < self.exploration_rate:
            assert isinstance(self.action_space, spaces.Discrete)
            actions = np.array(np.random.randint(int(self.action_space.n), size=actions.shape))
        return actions, state

    def dump_logs(self) -> None:
        """Write to the logger."""
        self.logger.record("rollout/exploration_rate", self.exploration_rate)
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_q"]
