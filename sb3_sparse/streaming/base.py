"""What streaming algorithms have in common: the loop that learns from every sample as it comes, once."""

import io
import math
import pathlib
import sys
import time
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean
from torch import nn

from sb3_sparse.common.model_parts import ModelParts
from sb3_sparse.common.sb3_models import networks_by_attribute
from sb3_sparse.common.validation import flag, fraction, non_negative, plain, whole_number
from sb3_sparse.streaming.compiled import CompiledLearner, why_not_compiled
from sb3_sparse.streaming.files import check_kind
from sb3_sparse.streaming.learners import AutogradLearner, Learner
from sb3_sparse.streaming.normalizers import magnitude
from sb3_sparse.streaming.obgd import AdaptiveObGD, ObGD
from sb3_sparse.streaming.policies import StreamPolicy

SelfStream = TypeVar("SelfStream", bound="StreamAlgorithm")

# For the time feature where an environment names no limit, as dm_control's do not.
DEFAULT_TIME_LIMIT = 1000


class StreamAlgorithm(BaseAlgorithm):
    """
    Base of the streaming algorithms: no replay, no batch, one environment, one update per step.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, or a policy class.
    :param env: The environment, a single one.
    :param learning_rate: Step size, or a schedule of it. It cancels out of nearly every step, see :class:`ObGD`.
    :param gamma: Discount factor.
    :param trace_lambda: Decay of the eligibility traces, in addition to ``gamma``.
    :param bootstrap_truncated: Whether an episode that ends by its time limit is worth what the critic expects
        after it. By default it counts as over, as in the published agents. Traces are cleared either way.
    :param normalize_observations: Whether to normalise observations by running statistics.
    :param normalize_reward: Whether to divide rewards by the running deviation of the return.
    :param time_feature: Whether to add the time in the episode to vector observations. The time limit is that of
        the environment, or 1000; a number instead of True sets another one.
    :param adaptive: Use :class:`AdaptiveObGD`.
    :param stats_window_size: Number of episodes that logged means are about.
    :param tensorboard_log: Folder for TensorBoard.
    :param policy_kwargs: Keywords of the policy, see :class:`StreamPolicy`.
    :param verbose: 0: no output, 1: info, 2: debug.
    :param seed: Seed of everything random.
    :param device: Where the networks are. ``"auto"`` means the CPU, which is faster for one sample at a time.
    :raises ValueError: If a value is out of range or there is more than one environment.
    """

    policy: StreamPolicy
    # Which of the algorithms it is; subclasses are of the kind of their base.
    kind: str | None = None
    # Optimisers as attributes of the policy, whose state is saved with it.
    optimizer_names: tuple[str, ...]
    # Their kappas, as attributes of the algorithm.
    kappa_names: tuple[str, ...]

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1.0,
        *,
        gamma: float = 0.99,
        trace_lambda: float = 0.8,
        bootstrap_truncated: bool = False,
        normalize_observations: bool = True,
        normalize_reward: bool = True,
        time_feature: bool | int = True,
        adaptive: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "cpu",
        supported_action_spaces: tuple[type[spaces.Space], ...] | None = None,
    ):
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=whole_number("stats_window_size", stats_window_size, 1),
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device="cpu" if device == "auto" else device,
            seed=seed,
            support_multi_env=False,
            supported_action_spaces=supported_action_spaces,
        )
        # Checked in `_setup_model`, as those that are given to `load` are.
        self.gamma = gamma
        self.trace_lambda = trace_lambda
        self.bootstrap_truncated = bootstrap_truncated
        self.normalize_observations = normalize_observations
        self.normalize_reward = normalize_reward
        self.time_feature = time_feature
        self.adaptive = adaptive
        if self.get_vec_normalize_env() is not None and (normalize_observations or normalize_reward):
            warnings.warn(
                "VecNormalize around the environment of a streaming agent, which normalises by itself: leave it out, or pass "
                "normalize_observations=False and normalize_reward=False.",
                stacklevel=3,
            )
        self._time_limit: int | None = None
        self._episode_steps = 0
        self._features: np.ndarray | None = None
        self._learners: list[Learner] = []
        # Where networks and optimisers are found, and which were.
        self._places: list[tuple[Mapping[str, Any], str, Any]] = []
        # Of the last update, for logging.
        self._td_error = 0.0

    def _check_settings(self) -> None:
        """Plain Python where it is right, an error where not."""
        if not callable(self.learning_rate):
            self.learning_rate = non_negative("learning_rate", self.learning_rate)
        self.gamma = fraction("gamma", self.gamma)
        self.trace_lambda = fraction("trace_lambda", self.trace_lambda)
        for name in ("bootstrap_truncated", "normalize_observations", "normalize_reward", "adaptive"):
            setattr(self, name, flag(name, getattr(self, name)))
        self.time_feature = _time_feature(self.time_feature)
        self.seed = None if self.seed is None else whole_number("seed", self.seed, 0)
        self.policy_kwargs = plain(self.policy_kwargs)

    def _setup_model(self) -> None:
        self._check_settings()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if getattr(self, "observation_space", None) is None:
            raise ValueError(f"env=None: {type(self).__name__} needs an environment to learn from.")
        if getattr(self.action_space, "start", 0) != 0:
            raise ValueError(
                f"action space {self.action_space}: expected one that starts at 0. "
                "Wrap the environment in gymnasium.wrappers.TransformAction."
            )
        # Known already when a saved agent is loaded, perhaps into another environment.
        if self.time_feature and self._time_limit is None:
            self._time_limit = self._find_time_limit()
        if not issubclass(self.policy_class, tuple(self.policy_aliases.values())):
            names = sorted({policy.__name__ for policy in self.policy_aliases.values()})
            raise ValueError(
                f"{self.policy_class.__name__} is no policy of {type(self).__name__}: expected 'MlpPolicy', 'CnnPolicy', "
                f"or a subclass of one of {names}."
            )
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            normalize_observations=self.normalize_observations,
            time_limit=self._time_limit,
            gamma=self.gamma,
            **self.policy_kwargs,
        )
        self.policy = self.policy.to(self.device)
        self._setup_optimizers()

    @classmethod
    def load(
        cls: type[SelfStream],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfStream:
        """
        Load an agent from the file that :meth:`save` wrote, see :meth:`BaseAlgorithm.load`.

        :raises ValueError: If it is the agent of another algorithm.
        """
        check_kind(path, cls.kind, custom_objects)
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = plain(kwargs["policy_kwargs"])
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def _find_time_limit(self) -> int:
        if self.time_feature is not True:
            return int(self.time_feature)
        assert self.env is not None
        spec = self.env.get_attr("spec")[0] if self.env.has_attr("spec") else None
        limit = getattr(spec, "max_episode_steps", None)
        if limit is None and self.env.has_attr("_max_episode_steps"):
            # A TimeLimit around an environment that was not made by its id.
            limit = self.env.get_attr("_max_episode_steps")[0]
        return limit or DEFAULT_TIME_LIMIT

    @abstractmethod
    def _setup_optimizers(self) -> None:
        """Give the policy its optimisers."""

    def _make_optimizer(self, network: nn.Module, kappa: float) -> ObGD:
        optimizer_class = AdaptiveObGD if self.adaptive else ObGD
        settings = dict(lr=self.lr_schedule(1.0), gamma=self.gamma, trace_lambda=self.trace_lambda, kappa=kappa)
        return optimizer_class(network.parameters(), **settings)

    @abstractmethod
    def _make_learners(self) -> list[Learner]:
        """One for each optimiser, in the same order."""

    def _make_learner(self, network: nn.Module, optimizer: ObGD) -> Learner:
        if len(optimizer.param_groups) != 1:
            raise ValueError(f"{len(optimizer.param_groups)} parameter groups: a network and its optimiser have one.")
        if {id(p) for p in network.parameters()} != {id(p) for p in optimizer.param_groups[0]["params"]}:
            raise ValueError(
                "a network has parameters that its optimiser does not know, so they would not be trained: change values in "
                "place (load_state_dict without assign=True) instead of replacing layers or parameters."
            )
        kind: type[Learner] = AutogradLearner
        if CompiledLearner.supports(network, optimizer):
            if (reason := why_not_compiled()) is None:
                kind = CompiledLearner
            else:
                warnings.warn(f"the compiled update is not available, learning is slower without it: {reason}", stacklevel=2)
        for known in self._learners:
            same = type(known) is kind and known.network is network and known.optimizer is optimizer
            if same and known.notice_changes():
                return known
        return kind(network, optimizer)

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
        self: SelfStream,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfStream:
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

    def dump_logs(self) -> None:
        """Write means over the last episodes, and numbers of the last update, to the logger."""
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        if self._n_updates:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/td_error", self._td_error)
            for name, value in self._training_logs().items():
                self.logger.record(f"train/{name}", value)
        self.logger.dump(step=self.num_timesteps)

    def _training_logs(self) -> dict[str, float]:
        """Numbers of the last update by name."""
        logs = {}
        for name, learner in zip(self.optimizer_names, self._learners, strict=True):
            suffix = {"actor_optimizer": "_policy", "critic_optimizer": "_value"}.get(name, "")
            logs[f"step_size{suffix}"] = learner.step_size
            logs[f"trace_l1{suffix}"] = learner.trace_l1
        return logs

    def plasticity_observations(self) -> np.ndarray:
        """What the networks see in this step, as a batch: for :class:`PlasticityCallback`."""
        assert self._features is not None
        return self._features[None]

    def model_parts(self) -> ModelParts:
        """The networks, each with the optimizer that trains it."""
        optimizers = [getattr(self.policy, name) for name in self.optimizer_names]
        trains = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
        networks = networks_by_attribute(self.policy)
        return ModelParts(
            {
                name: replace(network, optimizer=trains.get(next(network.module.parameters())))
                for name, network in networks.items()
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        # Learners hold addresses; `learn` makes them again.
        known = {id(learner) for learner in self._learners}
        state = {k: v for k, v in self.__dict__.items() if id(v) not in known and k != "_reward_scaler"}
        return {**state, "_learners": [], "_places": []}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_learners", "_places", "_reward_scaler"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}" for name in self.optimizer_names)], []


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


def _time_feature(value: Any) -> bool | int:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        return whole_number("time_feature", value, 0)
    except ValueError as error:
        raise ValueError(f"time_feature={value!r}: expected True, False, or a number of steps.") from error
