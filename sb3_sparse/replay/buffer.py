"""A replay buffer of Stable-Baselines3 that is put together from parts: storage, several steps as one, and a draw."""

import sys
from types import FrameType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.validation import flag, fraction, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.replay.n_step import windows
from sb3_sparse.replay.owner import algorithm_behind, check_gamma
from sb3_sparse.replay.storage import ObservationStorage, WholeObservations

try:
    import psutil
except ImportError:
    psutil = None


class ComposedReplayBuffer(ReplayBuffer):
    """
    Base of the buffers of this package, in SB3's contract: any observations, Dict spaces included, any number of
    environments.

    A transition has a flat index, ``place in the ring * n_envs + environment``.

    :param buffer_size: Transitions of all environments together.
    :param observation_space: Of one environment.
    :param action_space: Of one environment.
    :param device: Where samples are put.
    :param n_envs: Environments whose steps are added together.
    :param optimize_memory_usage: Not supported: SB3's way of it loses time limits.
    :param handle_timeout_termination: Whether values are bootstrapped from where a time limit cut an episode off.
    :param n_steps: Rewards of so many steps make a transition.
    :param gamma: Discount factor of these rewards, the one of the algorithm.
    :raises ValueError: If a value is out of range, or the algorithm that makes the buffer has another discount factor.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
    ):
        if optimize_memory_usage:
            raise ValueError(
                f"optimize_memory_usage=True: {type(self).__name__} has no such mode. Leave it out; FrameReplayBuffer keeps "
                "stacked images in an eighth of the memory."
            )
        self.n_steps, self.gamma = whole_number("n_steps", n_steps, 1), fraction("gamma", gamma)
        buffer_size = whole_number("buffer_size", buffer_size, 1)
        # Not that of ReplayBuffer, which allocates arrays for the observations.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = flag("handle_timeout_termination", handle_timeout_termination)
        ring = (self.buffer_size, n_envs)
        # SB3 gives actions in a Box as numbers in [-1, 1], also where those of the environment are whole ones.
        kind = np.float32 if isinstance(action_space, spaces.Box) else action_space.dtype
        self.actions = np.zeros((*ring, self.action_dim), dtype=kind)
        self.rewards, self.dones, self.timeouts = (np.zeros(ring, dtype=np.float32) for _ in range(3))
        self.storage = self._make_storage()
        self._check_gamma(sys._getframe(1))
        self._check_memory()

    def _check_memory(self) -> None:
        """Warn as SB3's buffers do: memory is taken when steps come, hours after the arrays were made."""
        available = None if psutil is None else psutil.virtual_memory().available
        if available is not None and self.nbytes > available:
            warn_user(
                f"the full replay buffer takes {self.nbytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB of memory are free: "
                "the system may end the program then. Choose a smaller buffer_size, or FrameReplayBuffer in a file, by "
                "storage_path=."
            )

    def _check_gamma(self, caller: FrameType) -> None:
        if self.n_steps > 1:
            check_gamma(algorithm_behind(caller), self)

    def _make_storage(self) -> ObservationStorage:
        return WholeObservations(self.observation_space, self.buffer_size, self.n_envs)

    @property
    def nbytes(self) -> int:
        """Memory of the full buffer."""
        return self.storage.nbytes + sum(a.nbytes for a in (self.actions, self.rewards, self.dones, self.timeouts))

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Keep a step of all environments, see :meth:`ReplayBuffer.add`.

        :raises ValueError: If something has the wrong shape; then nothing changes.
        """
        self._count_interrupted()
        place = self.pos
        for name, values, n in (
            ("reward", reward, np.size(reward)),
            ("done", done, np.size(done)),
            ("infos", infos, len(infos)),
        ):
            if n != self.n_envs:
                raise ValueError(f"{name}={values!r}: expected one for each of {self.n_envs} environments.")
        action = np.asarray(action).reshape(self.n_envs, self.action_dim)
        timeouts = [self.handle_timeout_termination and info.get("TimeLimit.truncated", False) for info in infos]
        self.storage.check(obs, next_obs)
        self.actions[place], self.rewards[place], self.dones[place], self.timeouts[place] = action, reward, done, timeouts
        self.storage.add(place, obs, next_obs)
        self._advance()

    def _count_interrupted(self) -> None:
        """Count the step whose ``add`` was interrupted when all of it was there, only not counted."""
        if self.storage.newest == self.pos and self.buffer_size > 1:
            self._advance()

    def _advance(self) -> None:
        # In this order: a full buffer may be drawn from at any place.
        self.full = self.full or self.pos + 1 == self.buffer_size
        self.pos = (self.pos + 1) % self.buffer_size

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self.storage = self._make_storage()

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        Draw transitions, each as likely as the other.

        :param batch_size: How many.
        :param env: Normalises observations and rewards.
        :raises ValueError: If the algorithm that asks has another discount factor.
        """
        self._check_gamma(sys._getframe(1))
        # In this order, as in SB3: equal seeds give equal draws.
        steps = np.random.randint(0, self.size(), size=batch_size)
        return self._at(steps, np.random.randint(0, self.n_envs, size=batch_size), env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        return self._at(batch_inds, np.random.randint(0, self.n_envs, size=len(batch_inds)), env)

    def _at(self, steps: np.ndarray, envs: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        """The transitions at some places of the ring."""
        if self.n_steps == 1:
            last = steps
            rewards, discounts = self._normalize_reward(self.rewards[steps, envs], env), None
            terminated = self.dones[steps, envs] * (1 - self.timeouts[steps, envs])
        else:
            newest = (self.pos - 1) % self.buffer_size
            rewards, discounts, last, terminated = windows(
                self.rewards,
                self.dones,
                self.timeouts,
                steps,
                envs,
                newest,
                self.n_steps,
                self.gamma,
                lambda drawn: self._normalize_reward(drawn, env),
            )
        observations = self._normalize_obs(self.storage.observations(steps, envs), env)
        next_observations = self._normalize_obs(self.storage.next_observations(last, envs), env)
        return ReplayBufferSamples(
            observations=self._tensors(observations),
            actions=self.to_torch(self.actions[steps, envs]),
            next_observations=self._tensors(next_observations),
            dones=self.to_torch(terminated.reshape(-1, 1)),
            rewards=self.to_torch(rewards.reshape(-1, 1)),
            discounts=None if discounts is None else self.to_torch(discounts.reshape(-1, 1)),
        )

    def _tensors(self, observations: Any) -> Any:
        # What storages give is a copy already.
        if isinstance(observations, dict):
            return {name: self.to_torch(part, copy=False) for name, part in observations.items()}
        return self.to_torch(observations, copy=False)


def cut_off(buffer: ReplayBuffer, observations: Any = None) -> bool:
    """
    Let no window of several steps run on from the newest step of a buffer into what is added next: its value is then
    bootstrapped from, as with a time limit. For the moment when environments are reset, or others take their place, before
    their episodes have ended, which nothing else tells a buffer.

    :param buffer: One of this package, or SB3's ``NStepReplayBuffer``; others have no windows, nothing is done.
    :param observations: ``(n_envs, ...)``, by part where there are several: the steps to come begin with them, and
        trajectories that they continue are not cut. None: all are cut.
    :return: Whether anything has changed.
    """
    if isinstance(buffer, ComposedReplayBuffer):
        buffer._count_interrupted()
    if getattr(buffer, "n_steps", 1) == 1 or not buffer.size():
        return False
    newest = (buffer.pos - 1) % buffer.buffer_size
    ends = ~_continued(_followed(buffer, newest), observations)
    ends &= (buffer.dones[newest] == 0) & (buffer.timeouts[newest] == 0)
    buffer.timeouts[newest][ends] = 1
    return bool(ends.any())


def _followed(buffer: ReplayBuffer, newest: int) -> Any:
    """What followed the newest step of each environment."""
    if isinstance(buffer, ComposedReplayBuffer):
        return buffer.storage.next_observations(np.full(buffer.n_envs, newest), np.arange(buffer.n_envs))
    return buffer.next_observations[newest]


def _continued(followed: Any, observations: Any) -> np.ndarray:
    """``(n_envs,)``: whether what followed is what is seen now."""
    if isinstance(followed, dict):
        parts = [_continued(part, None if observations is None else observations[name]) for name, part in followed.items()]
        return np.logical_and.reduce(parts)
    if observations is None:
        return np.zeros(len(followed), dtype=bool)
    now = np.reshape(observations, followed.shape).astype(followed.dtype)
    # Bytes: also what is no number is the same as itself.
    return np.array([then.tobytes() == each.tobytes() for then, each in zip(followed, now, strict=True)])
