"""A tiny game of pictures."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PictureEnv(gym.Env):
    """A bright spot that moves left or right, and at random; the episode ends at a border."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.place, self.t = 18, 0
        return self._picture(), {}

    def step(self, action: int):
        self.t += 1
        self.place += (2 * int(action) - 1) * 2 + int(self.np_random.integers(-3, 4))
        done = not 0 <= self.place < 36
        self.place = int(np.clip(self.place, 0, 35))
        return self._picture(), 1.0 - abs(self.place - 18) / 18, done, self.t >= 30, {}

    def _picture(self) -> np.ndarray:
        picture = np.zeros((1, 36, 36), np.uint8)
        picture[0, :, self.place] = 200
        picture[0, 0, 0] = self.t
        return picture
