"""A buffer in a file, and its twin in memory."""

import warnings

import numpy as np
from gymnasium import spaces

from sb3_sparse.replay import FrameReplayBuffer
from tests.replay.test_frames import Stacks

N_STACK, SIDE = 3, 12
ACTIONS = spaces.Box(-1, 1, (2,))


def space(channels=1):
    return spaces.Box(0, 255, (N_STACK * channels, SIDE, SIDE), np.uint8)


def make(size, n_envs=1, path=None, channels=1, **kwargs):
    kwargs = dict(n_steps=3, gamma=0.9, n_stack=N_STACK) | kwargs
    return FrameReplayBuffer(size * n_envs, space(channels), ACTIONS, device="cpu", n_envs=n_envs, storage_path=path, **kwargs)


def reopened(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* transitions of an earlier run, which are used")
        return make(*args, **kwargs)


class Steps:
    """What is added, always the same from the same seed."""

    def __init__(self, seed, n_envs=1, how="repeats", channels=1):
        self.stacks = Stacks(n_envs, N_STACK, channels, seed, how, SIDE)
        self.generator = np.random.default_rng(seed)

    def __call__(self, p_done=0.2, p_jump=0.03):
        obs, following, done = self.stacks.step(p_done, p_jump)
        actions = self.generator.random((len(obs), 2), dtype=np.float32)
        infos = [{"TimeLimit.truncated": bool(each and self.generator.random() < 0.5)} for each in done]
        return obs, following, actions, self.generator.normal(size=len(obs)), done, infos


def add(buffers, step):
    for buffer in buffers:
        buffer.add(*step)


def cut(twin):
    """What a buffer that is opened anew makes of the last step: nothing followed it."""
    if twin.size():
        newest = (twin.pos - 1) % twin.buffer_size
        goes_on = twin.dones[newest] == 0
        twin.dones[newest, goes_on] = twin.timeouts[newest, goes_on] = 1


def content(buffer):
    """All transitions, one by one, and a draw."""
    steps = np.repeat(np.arange(buffer.size()), buffer.n_envs)
    envs = np.tile(np.arange(buffer.n_envs), buffer.size())
    found = [buffer.pos, buffer.full, buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts]
    if not buffer.size():
        return found
    np.random.seed(buffer.pos)
    return [*found, *buffer._at(steps, envs, None), *buffer.sample(32)]


def assert_same(ours, twin):
    for a, b in zip(content(ours), content(twin), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
