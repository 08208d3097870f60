"""The loop of streaming algorithms, which learn from every sample as it comes, once."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import nn

from sb3_sparse.streaming.learners import Learner, make_learner
from sb3_sparse.streaming.normalizers import RewardScaler, magnitude
from sb3_sparse.streaming.obgd import ObGD
from sb3_sparse.streaming.policies import StreamPolicy

SelfLoop = TypeVar("SelfLoop", bound="StreamLoop")


class StreamLoop(BaseAlgorithm):
    """
    How a streaming algorithm learns: act, see what happens, learn from it. What it is made of is said by its subclass
    :class:`StreamAlgorithm`.
    """

    policy: StreamPolicy
    # Optimisers as attributes of the policy, whose state is saved with it.
    optimizer_names: tuple[str, ...]
    # Their kappas, as attributes of the algorithm.
    kappa_names: tuple[str, ...]
    # Settings, see the subclass.
    gamma: float
    trace_lambda: float
    bootstrap_truncated: bool
    normalize_reward: bool
    _reward_scaler: RewardScaler

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._episode_steps = 0
        # What the networks see; None: a new episode has to begin.
        self._features: np.ndarray | None = None
        self._learners: list[Learner] = []
        # Where networks and optimisers are found, and which were.
        self._places: list[tuple[Mapping[str, Any], str, Any]] = []
        # Of the last update, for logging.
        self._td_error = 0.0

    @abstractmethod
    def _make_learners(self) -> list[Learner]:
        """One for each optimiser, in the same order."""

    def _make_learner(self, network: nn.Module, optimizer: ObGD) -> Learner:
        return make_learner(network, optimizer, self._learners)

    def _prepare_learning(self) -> None:
        self._set_up_optimizer_groups()
        self._learners = self._make_learners()
        self._reward_scaler = self.policy.reward_scaler
        names = (*(name for name, _ in self.policy.named_children()), *self.optimizer_names)
        self._places = [(vars(self), "policy", self.policy)]
        for name in names:
            place = self.policy._modules if name in self.policy._modules else vars(self.policy)
            self._places.append((place, name, place[name]))

    def _notice_changes(self) -> None:
        """After callbacks, which may change anything: go on with the networks and optimisers that there are now."""
        if not self.policy.training:
            # As evaluations do.
            self.policy.set_training_mode(True)
        current = [place.get(name) is part for place, name, part in self._places]
        # Each of them has to look.
        if not (all(current) and all([learner.notice_changes() for learner in self._learners])):
            self._prepare_learning()

    @abstractmethod
    def _act(self, features: np.ndarray) -> tuple[Any, np.ndarray]:
        """
        Choose an action.

        :param features: What the networks see, without batch dimension.
        :return: The action, as :meth:`_update` wants it, and as the environment does.
        """

    @abstractmethod
    def _update(
        self, features: np.ndarray, action: Any, reward: float, next_features: np.ndarray, discount: float, done: bool
    ) -> None:
        """
        Learn from one step.

        :param features: What the action was chosen from.
        :param action: What :meth:`_act` returned first.
        :param reward: Scaled reward.
        :param next_features: What came after it.
        :param discount: What the value of ``next_features`` counts: ``gamma``, or 0 after the end.
        :param done: Whether the episode ended.
        """

    def learn(
        self: SelfLoop,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfLoop:
        """
        Learn from a stream of ``total_timesteps`` samples.

        In each step the agent acts, callbacks are called, and then it learns, so they see it as it acted. Torch
        uses one thread meanwhile: at this size two are slower than one.

        :param total_timesteps: Number of steps.
        :param callback: Callbacks.
        :param log_interval: Episodes between two logs.
        :param tb_log_name: Name of the run for TensorBoard, by default that of the class.
        :param reset_num_timesteps: Whether to start counting, and with a new episode.
        :param progress_bar: Whether to show one.
        :return: The agent.
        """
        last_obs = self._last_obs
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        threads = th.get_num_threads()
        th.set_num_threads(1)
        try:
            self.policy.set_training_mode(True)
            self._prepare_learning()
            if self._last_obs is not last_obs or self._features is None:
                assert isinstance(self._last_obs, np.ndarray)
                require_finite("observation", self._last_obs[0], f"of the reset after step {self.num_timesteps}")
                # The environment was reset: what led to here has nothing to do with what comes.
                for learner in self._learners:
                    learner.reset_traces()
                self._begin_episode(self._last_obs)
            callback.on_training_start(locals(), globals())
            self._stream(total_timesteps, callback, log_interval)
            callback.on_training_end()
        except BaseException:
            # Perhaps between a step of the environment and what follows from it: go on with a new episode.
            self._features = self._last_obs = None
            raise
        finally:
            th.set_num_threads(threads)
        return self

    def _stream(self, total_timesteps: int, callback: BaseCallback, log_interval: int) -> None:
        assert self.env is not None
        env, goes_on = self.env, True
        # Without a callback of the user's there is nobody who could change anything.
        is_watched = not (isinstance(callback, ConvertCallback) and callback.callback is None)
        callback.on_rollout_start()
        self._notice_changes()
        while goes_on and self.num_timesteps < total_timesteps:
            assert self._features is not None
            action, env_action = self._act(self._features)
            new_obs, rewards, dones, infos = env.step(env_action)
            # Before anything remembers it.
            self._check_step(new_obs, float(rewards[0]), bool(dones[0]), infos[0])
            self.num_timesteps += 1
            callback.update_locals(locals())
            goes_on = callback.on_step()
            if is_watched:
                self._notice_changes()
            self._update_info_buffer(infos, dones)
            self._learn_from(action, float(rewards[0]), new_obs, bool(dones[0]), infos[0])  # type: ignore[arg-type]
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            if dones[0]:
                self._episode_num += 1
                callback.on_rollout_end()
                if log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
                callback.on_rollout_start()
                self._notice_changes()
        callback.on_rollout_end()

    def _check_step(self, new_obs: Any, reward: float, done: bool, info: dict[str, Any]) -> None:
        step = self.num_timesteps + 1
        if not math.isfinite(reward):
            raise ValueError(f"reward {reward} at step {step}: expected a finite number. {_UNCHANGED}")
        if done:
            require_finite("terminal_observation", info["terminal_observation"], f"at step {step}")
        require_finite("observation", new_obs[0], f"of the reset after step {step}" if done else f"at step {step}")

    def _begin_episode(self, obs: Any) -> None:
        self._episode_steps = 0
        self._features = self._observe(obs[0])

    def _observe(self, observation: np.ndarray) -> np.ndarray:
        self.policy.observe(observation)
        return self.policy.features(observation[None], self._episode_steps)[0]

    def _learn_from(self, action: Any, reward: float, new_obs: np.ndarray, done: bool, info: dict[str, Any]) -> None:
        assert self._features is not None
        self._episode_steps += 1
        if self.normalize_reward:
            reward = self._reward_scaler.scale(reward, done)
        # After the last step of an episode, `new_obs` belongs to the next one already.
        next_features = self._observe(info["terminal_observation"] if done else new_obs[0])
        over = done and not (self.bootstrap_truncated and info.get("TimeLimit.truncated", False))
        self._set_learning_rate()
        self._update(self._features, action, reward, next_features, 0.0 if over else self.gamma, done)
        self._n_updates += 1
        if done:
            self._begin_episode(new_obs)
        else:
            self._features = next_features
        self._last_obs = new_obs

    def _set_td_error(self, delta: float) -> None:
        """To be called before anything is learned from it."""
        if not math.isfinite(delta):
            raise ValueError(
                f"TD error {delta} at step {self.num_timesteps}: a weight of the networks is not a finite number. "
                "Nothing was learned from this step."
            )
        self._td_error = delta

    def _set_up_optimizer_groups(self) -> None:
        # A state dict brings the settings of the saved agent; those of this one may be others.
        for name, kappa in zip(self.optimizer_names, self.kappa_names, strict=True):
            getattr(self.policy, name).param_groups[0].update(
                lr=self.lr_schedule(self._current_progress_remaining),
                gamma=self.gamma,
                trace_lambda=self.trace_lambda,
                kappa=getattr(self, kappa),
            )

    def _set_learning_rate(self) -> None:
        if callable(self.learning_rate):
            for name in self.optimizer_names:
                group = getattr(self.policy, name).param_groups[0]
                group["lr"] = self.lr_schedule(self._current_progress_remaining)


_UNCHANGED = "The agent is as it was before this step, can be saved, and goes on with a new episode. Check the environment."


def require_finite(name: str, values: Any, when: str) -> None:
    """
    :raises ValueError: If an entry is not a finite number; names the first one.
    """
    values = np.asarray(values)
    if math.isfinite(magnitude(values)) or np.isfinite(values).all():
        return
    place = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
    raise ValueError(f"{name}{list(place)}={values[place]} {when}: expected finite numbers. {_UNCHANGED}")
