"""Small environments for tests."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class ReachEnv(gym.Env):
    """Move a point to the origin. Observations are ``mean + scale * state``, in float64 as dm_control's are."""

    def __init__(self, mean: float = 0.0, scale: float = 1.0, n_steps: int = 25):
        self.mean, self.scale, self.n_steps = mean, scale, n_steps
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.state, self.t = self.np_random.uniform(-1, 1, 2), 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.state = np.clip(self.state + 0.2 * np.clip(action, -1, 1), -1, 1)
        self.t += 1
        return self._observation(), -float(np.abs(self.state).sum()), False, self.t >= self.n_steps, {}

    def _observation(self) -> np.ndarray:
        return self.mean + self.scale * self.state


class SpaceEnv(gym.Env):
    """Random observations of any space."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space, self.t = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        self.t += 1
        return self.observation_space.sample(), 0.0, False, self.t >= 10, {}
