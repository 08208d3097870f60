"""A small environment of pictures, and small agents for it."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_sparse.drqv2 import DrQv2

SIZE = 24


class Dot(gym.Env):
    """
    A bright row in a dark picture, moved by the first action; three frames, the first repeated. It pays for being in the
    middle, ends by a time limit, and, if asked to, by a terminal state.
    """

    def __init__(self, length=12, ends=False, size=SIZE, n_actions=2):
        self.observation_space = spaces.Box(0, 255, (9, size, size), np.uint8)
        self.action_space = spaces.Box(-2.0, 3.0, (n_actions,), np.float32)
        self.length, self.ends, self.size = length, ends, size

    def frame(self):
        frame = np.full((3, self.size, self.size), 20, np.uint8)
        frame[:, int(self.place) % self.size] = self.np_random.integers(200, 256, 3)[:, None]
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.uniform(0, self.size)
        self.frames = [self.frame()] * 3
        return np.concatenate(self.frames), {}

    def step(self, action):
        self.steps += 1
        self.place = np.clip(self.place + action[0], 0, self.size - 1)
        self.frames = [*self.frames[1:], self.frame()]
        reward = 1.0 - abs(self.place / self.size - 0.5)
        return np.concatenate(self.frames), float(reward), self.ends and self.steps == 7, self.steps == self.length, {}


def agent(env=None, policy_kwargs=None, **kwargs):
    """A small one."""
    settings = dict(learning_starts=8, buffer_size=60, batch_size=6, seed=0, device="cpu")
    policy = dict(net_arch=[16, 16], feature_dim=5, features_extractor_kwargs=dict(channels=4))
    return DrQv2("CnnPolicy", env or Dot(), policy_kwargs={**policy, **(policy_kwargs or {})}, **{**settings, **kwargs})
