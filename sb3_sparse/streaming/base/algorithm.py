"""What streaming algorithms have in common: their settings, what they are made of, what they save and log."""

import io
import math
import pathlib
import sys
import time
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from torch import nn

from sb3_sparse.common.model_parts import ModelParts
from sb3_sparse.common.sb3_models import networks_by_attribute
from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import flag, fraction, non_negative, plain, refuse_at_load, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.streaming.base.files import check_kind
from sb3_sparse.streaming.base.loop import StreamLoop
from sb3_sparse.streaming.obgd import AdaptiveObGD, ObGD

SelfStream = TypeVar("SelfStream", bound="StreamAlgorithm")

# Steps, for the time feature where an environment names no limit: those of nearly all tasks of dm_control, which name none.
DEFAULT_TIME_LIMIT = 1000
# How wrappers call it that they hold an action for several steps: ours, gymnasium's and SB3's.
_REPEATS = ("action_repeat", "frame_skip", "_skip")


class StreamAlgorithm(StreamLoop):
    """
    Base of the streaming algorithms: no replay, no batch, one environment, one update per step.

    The keywords here are those of all streaming algorithms.

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
        the environment, or 1000 steps, in decisions where wrappers repeat actions; a number instead of True sets another one.
    :param adaptive: Use :class:`AdaptiveObGD`.
    :param stats_window_size: Number of episodes that logged means are about.
    :param tensorboard_log: Folder for TensorBoard.
    :param policy_kwargs: Keywords of the policy, see :class:`StreamPolicy`.
    :param verbose: 0: no output, 1: info, 2: debug.
    :param seed: Seed of everything random.
    :param device: Where the networks are. ``"auto"`` means the CPU, which is faster for one sample at a time.
    :param supported_action_spaces: Said by each algorithm itself.
    :raises ValueError: If a value is out of range or there is more than one environment.
    """

    __signature__ = FullSignature()
    # What made the inputs of the networks of a saved agent, which goes on with it.
    fixed_keywords: ClassVar[frozenset[str]] = frozenset(("normalize_observations", "time_feature"))
    # Which of the algorithms it is; subclasses are of the kind of their base.
    kind: str | None = None

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
            warn_user(
                "VecNormalize around the environment of a streaming agent, which normalises by itself: leave it out, or pass "
                "normalize_observations=False and normalize_reward=False."
            )
        # Saved with the rest, so that a file says whose agent it holds.
        self.algorithm = self.kind or type(self).__name__
        self._time_limit: int | None = None

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

        :raises ValueError: If it is the agent of another algorithm, or a keyword is one that made its networks.
        """
        refuse_at_load(cls.fixed_keywords, kwargs, "its networks")
        check_kind(path, cls.kind, custom_objects)
        if "policy_kwargs" in kwargs:
            kwargs["policy_kwargs"] = plain(kwargs["policy_kwargs"])
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def fixed_settings(self) -> dict[str, Any]:
        """What made the inputs of its networks, as keywords of the constructor."""
        return {name: getattr(self, name) for name in sorted(self.fixed_keywords)}

    def _find_time_limit(self) -> int:
        if self.time_feature is not True:
            return int(self.time_feature)
        assert self.env is not None
        spec = self.env.get_attr("spec")[0] if self.env.has_attr("spec") else None
        limit = getattr(spec, "max_episode_steps", None)
        if limit is None and self.env.has_attr("_max_episode_steps"):
            # A TimeLimit around an environment that was not made by its id.
            limit = self.env.get_attr("_max_episode_steps")[0]
        # Both count steps below wrappers that repeat actions.
        return math.ceil((limit or DEFAULT_TIME_LIMIT) / self._steps_of_a_decision())

    def _steps_of_a_decision(self) -> int:
        """How often wrappers outside of the time limit repeat an action."""
        base: Any = self.env
        while isinstance(base, VecEnvWrapper):
            base = base.venv
        layer, steps = (base.envs[0] if isinstance(base, DummyVecEnv) else None), 1
        while isinstance(layer, gym.Wrapper) and not isinstance(layer, gym.wrappers.TimeLimit):
            # MuJoCo's environments have a frame_skip too, below every wrapper.
            steps *= next((vars(layer)[name] for name in _REPEATS if name in vars(layer)), 1)
            layer = layer.env
        return int(steps)

    @abstractmethod
    def _setup_optimizers(self) -> None:
        """Give the policy its optimisers."""

    def _make_optimizer(self, network: nn.Module, kappa: float) -> ObGD:
        optimizer_class = AdaptiveObGD if self.adaptive else ObGD
        settings = dict(lr=self.lr_schedule(1.0), gamma=self.gamma, trace_lambda=self.trace_lambda, kappa=kappa)
        return optimizer_class(network.parameters(), **settings)

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


def _time_feature(value: Any) -> bool | int:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        return whole_number("time_feature", value, 0)
    except ValueError as error:
        raise ValueError(f"time_feature={value!r}: expected True, False, or a number of steps.") from error
