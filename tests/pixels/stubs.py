"""Environments whose every frame and call is known."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Counting(gym.Env):
    """
    Frames of one colour: ten times the step, plus 0, 1 and 2 by channel. Rewards are powers of two.

    It counts what is drawn and remembers what was done.
    """

    metadata = {"render_modes": ["rgb_array", "human"]}

    def __init__(
        self,
        render_mode: str | None = "rgb_array",
        ends_at: int | None = None,
        actions: spaces.Space | None = None,
        shape: tuple[int, int] = (20, 30),
    ):
        self.render_mode, self.ends_at, self.shape = render_mode, ends_at, shape
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = actions or spaces.Discrete(2)
        self.drawn, self.seen = 0, []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.t, self.begun_with = 0, options
        return np.zeros(1, np.float32), {"step": 0}

    def step(self, action: Any):
        self.t += 1
        self.seen.append(action)
        return np.zeros(1, np.float32), float(2**self.t), self.t == self.ends_at, False, {"step": self.t}

    def render(self) -> Any:
        self.drawn += 1
        return np.full((*self.shape, 3), 10 * self.t, np.uint8) + np.arange(3, dtype=np.uint8)
