"""Stream AC(λ): actor-critic with eligibility traces, for continuous and discrete actions (Elsayed et al. 2024)."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_sparse.common.validation import non_negative, positive
from sb3_sparse.streaming.base import StreamAlgorithm
from sb3_sparse.streaming.learners import Learner
from sb3_sparse.streaming.policies import StreamACCnnPolicy, StreamACPolicy

# Never reached in ordinary training: keeps the gradient finite where softplus underflows.
MIN_STD = 1e-6


class StreamAC(StreamAlgorithm):
    """
    Stream AC(λ). Its other keywords are those of :class:`StreamAlgorithm`.

    >>> model = StreamAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(width_scale=4, sparsity=0.9))

    :param kappa_policy: How careful the steps of the actor are, see :class:`ObGD`.
    :param kappa_value: The same for the critic.
    :param ent_coef: Weight of the entropy. Its sign follows that of the TD error, so that it always pushes up.
    """

    # SB3 sends users with Dict observations to MultiInputPolicy: the policy tells them what to do instead.
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": StreamACPolicy,
        "MultiInputPolicy": StreamACPolicy,
        "CnnPolicy": StreamACCnnPolicy,
    }
    policy: StreamACPolicy
    kind = "StreamAC"
    optimizer_names = ("actor_optimizer", "critic_optimizer")
    kappa_names = ("kappa_policy", "kappa_value")

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1.0,
        *,
        kappa_policy: float = 3.0,
        kappa_value: float = 2.0,
        ent_coef: float = 0.01,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, learning_rate, supported_action_spaces=(spaces.Box, spaces.Discrete), **kwargs)
        self.kappa_policy = kappa_policy
        self.kappa_value = kappa_value
        self.ent_coef = ent_coef
        self._value = 0.0
        if _init_setup_model:
            self._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        self.kappa_policy = positive("kappa_policy", self.kappa_policy)
        self.kappa_value = positive("kappa_value", self.kappa_value)
        self.ent_coef = non_negative("ent_coef", self.ent_coef)
        space = getattr(self, "action_space", None)
        if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"action space {space}: actions of {space.dtype} would be rounded, and others be learned from than were "
                "taken. Make it a Box of float32, and let the environment round; or a Discrete space."
            )

    def _setup_optimizers(self) -> None:
        self.policy.actor_optimizer = self._make_optimizer(self.policy.actor, self.kappa_policy)
        self.policy.critic_optimizer = self._make_optimizer(self.policy.critic, self.kappa_value)

    def _make_learners(self) -> list[Learner]:
        self._actor = self._make_learner(self.policy.actor, self.policy.actor_optimizer)
        self._critic = self._make_learner(self.policy.critic, self.policy.critic_optimizer)
        return [self._actor, self._critic]

    def _act(self, features: np.ndarray) -> tuple[Any, np.ndarray]:
        outputs = self._actor.outputs(features, keep=True)
        if isinstance(self.action_space, spaces.Discrete):
            choice = int(np.searchsorted(np.cumsum(_softmax(outputs)), np.random.random()))
            choice = min(choice, len(outputs) - 1)  # rounding may leave the sum below 1
            return choice, np.array([choice])
        mean, std = _gaussian(outputs)[:2]
        # The policy's own action is learned from, the environment's is clipped to what it allows.
        action = mean + std * np.random.standard_normal(len(mean))
        space = self.action_space
        assert isinstance(space, spaces.Box)
        clipped = np.minimum(np.maximum(action.reshape(1, *space.shape), space.low), space.high)
        return action, clipped.astype(space.dtype)

    def _update(
        self, features: np.ndarray, action: Any, reward: float, next_features: np.ndarray, discount: float, done: bool
    ) -> None:
        if discount:
            (value,), (next_value,) = self._critic.both_outputs(features, next_features)
        else:
            (value,), next_value = self._critic.outputs(features, keep=True), 0.0
        delta = reward + discount * float(next_value) - float(value)
        self._set_td_error(delta)
        self._value = float(value)
        outputs = self._actor.outputs(features, keep=True)
        entropy_weight = self.ent_coef * np.sign(delta)
        gradient = categorical_gradient if isinstance(self.action_space, spaces.Discrete) else gaussian_gradient
        self._actor.learn(features, gradient(outputs, action, entropy_weight), delta, done)
        self._critic.learn(features, _ONE, delta, done)

    def _training_logs(self) -> dict[str, float]:
        logs = {**super()._training_logs(), "value": self._value}
        assert self._features is not None
        outputs = self._actor.outputs(self._features, keep=True)
        if isinstance(self.action_space, spaces.Discrete):
            probabilities = _softmax(outputs)
            logs["entropy"] = -float(probabilities @ _log(probabilities))
        else:
            std = _gaussian(outputs)[1]
            logs["std"] = float(std.mean())
            logs["entropy"] = float((0.5 + 0.5 * np.log(2 * np.pi) + np.log(std)).sum())
        return logs

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_actor", "_critic"]


_ONE = np.ones(1, dtype=np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def _log(probabilities: np.ndarray) -> np.ndarray:
    """Finite also where a probability was rounded to zero."""
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def _gaussian(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and the deviation before softplus."""
    n_actions = len(outputs) // 2
    pre_std = outputs[n_actions:].astype(np.float64)
    return outputs[:n_actions], np.maximum(np.logaddexp(0.0, pre_std), MIN_STD), pre_std


def gaussian_gradient(outputs: np.ndarray, action: np.ndarray, entropy_weight: float) -> np.ndarray:
    """
    Gradient of ``log π(action) + entropy_weight · H`` by the outputs of a Gaussian actor.

    :param outputs: Mean and deviation before softplus, ``(2 * n_actions,)``.
    :param action: ``(n_actions,)``
    :param entropy_weight: Weight of the entropy ``H``.
    :return: float32, ``(2 * n_actions,)``
    """
    mean, std, pre_std = _gaussian(outputs)
    noise = (action - mean) / std
    by_std = (noise**2 - 1.0 + entropy_weight) / std
    gradient = np.empty(len(outputs), dtype=np.float32)
    gradient[: len(mean)] = noise / std
    # The derivative of softplus is the sigmoid, here in a form that cannot overflow.
    gradient[len(mean) :] = by_std * np.exp(-np.logaddexp(0.0, -pre_std))
    return gradient


def categorical_gradient(outputs: np.ndarray, action: int, entropy_weight: float) -> np.ndarray:
    """
    The same for a categorical actor.

    :param outputs: Logits, ``(n_actions,)``.
    :param action: Index of the action.
    :param entropy_weight: Weight of the entropy.
    :return: float32, ``(n_actions,)``
    """
    probabilities = _softmax(outputs)
    log_probabilities = _log(probabilities)
    entropy = -(probabilities @ log_probabilities)
    gradient = -probabilities - entropy_weight * probabilities * (log_probabilities + entropy)
    gradient[action] += 1.0
    return gradient.astype(np.float32)
