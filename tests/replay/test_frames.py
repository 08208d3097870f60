"""Single frames give back the very stacks that were added."""

import itertools
import pickle
import warnings

import numpy as np
import pytest
from gymnasium import spaces

from sb3_sparse.replay.frames import FrameStacks
from sb3_sparse.replay.storage import WholeObservations


class Stacks:
    """Random frames in stacks, with everything that happens to stacks in practice."""

    def __init__(self, n_envs, n_stack, channels, seed, how="zeros", side=12):
        self.generator = np.random.default_rng(seed)
        self.n_envs, self.n_stack, self.channels, self.how, self.side = n_envs, n_stack, channels, how, side
        self.obs = np.stack([self.first() for _ in range(n_envs)])

    def frame(self):
        # Few values, so that equal frames and black ones come up by themselves.
        return self.generator.integers(0, 3, (self.channels, self.side, self.side), dtype=np.uint8) // 2 * 255

    def first(self):
        frame = self.frame()
        if self.how == "zeros":
            return np.concatenate([np.zeros_like(frame)] * (self.n_stack - 1) + [frame])
        if self.how == "repeats":
            return np.concatenate([frame] * self.n_stack)
        return np.concatenate([self.frame() for _ in range(self.n_stack)])

    def step(self, p_done=0.2, p_jump=0.0):
        """Observations, those that followed, and which episodes ended."""
        obs = self.obs.copy()
        new = np.stack([np.concatenate([stack[self.channels :], self.frame()]) for stack in obs])
        done = self.generator.random(self.n_envs) < p_done
        self.obs = new.copy()
        for env in range(self.n_envs):
            # The environment may also be reset in between, without anybody being told.
            if done[env] or self.generator.random() < p_jump:
                self.obs[env] = self.first()
        return obs, new, done


@pytest.mark.parametrize("how", ["zeros", "repeats", "anything"])
@pytest.mark.parametrize(("n_envs", "n_stack", "channels", "size"), [(1, 4, 1, 20), (3, 2, 3, 7), (2, 4, 1, 1), (1, 5, 2, 3)])
def test_stacks_come_back_bit_by_bit(how, n_envs, n_stack, channels, size):
    space = spaces.Box(0, 255, (n_stack * channels, 12, 12), np.uint8)
    source = Stacks(n_envs, n_stack, channels, seed=size, how=how)
    frames, plain = FrameStacks(space, size, n_envs, n_stack), WholeObservations(space, size, n_envs)
    steps, envs = (grid.ravel() for grid in np.meshgrid(np.arange(size), np.arange(n_envs)))
    for step in range(300):
        obs, next_obs, _ = source.step(p_jump=0.05)
        for storage in (frames, plain):
            storage.add(step % size, obs, next_obs)
        stored = steps <= step
        if step % 7 == 0:
            frames = pickle.loads(pickle.dumps(frames))
        for get in ("observations", "next_observations"):
            expected = getattr(plain, get)(steps[stored], envs[stored])
            found = getattr(frames, get)(steps[stored], envs[stored])
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=f"{get} after {step}")


def test_ends_at_every_offset_from_the_wrap():
    size, n_stack = 12, 4
    space = spaces.Box(0, 255, (n_stack, 4, 4), np.uint8)
    for offset in range(size):
        source = Stacks(1, n_stack, 1, seed=offset, side=4)
        frames, plain = FrameStacks(space, size, 1, n_stack), WholeObservations(space, size, 1)
        for step in range(3 * size):
            obs, next_obs, _ = source.step(p_done=float(step % size == offset))
            for storage in (frames, plain):
                storage.add(step % size, obs, next_obs)
            steps = np.arange(min(step + 1, size))
            envs = np.zeros_like(steps)
            assert np.array_equal(frames.observations(steps, envs), plain.observations(steps, envs))
            assert np.array_equal(frames.next_observations(steps, envs), plain.next_observations(steps, envs))


def test_numbers_that_are_equal_and_not_the_same_come_back():
    space = spaces.Box(-1, 1, (2, 4, 4), np.float32)
    frames = FrameStacks(space, 3, 1, n_stack=2)
    # The second stack goes on from the first, but for the sign of a zero; nan goes on.
    first, second = np.full((1, 2, 4, 4), 0.0, np.float32), np.full((1, 2, 4, 4), -0.0, np.float32)
    for step, (obs, next_obs) in enumerate([(first, second), (second, first * np.nan), (first * np.nan, first * np.nan)]):
        frames.add(step, obs, next_obs)
        where = np.array([step]), np.array([0])
        assert frames.observations(*where).tobytes() == obs.tobytes()
        assert frames.next_observations(*where).tobytes() == next_obs.tobytes()
    assert len(frames._ends) == 1


@pytest.mark.full
def test_stacks_come_back_over_many_steps():
    size, space = 1000, spaces.Box(0, 255, (4, 4, 4), np.uint8)
    source = Stacks(2, 4, 1, seed=0, how="anything", side=4)
    frames, plain = FrameStacks(space, size, 2), WholeObservations(space, size, 2)
    steps, envs = (grid.ravel() for grid in np.meshgrid(np.arange(size), np.arange(2)))
    for step in range(10**5):
        obs, next_obs, _ = source.step(p_done=0.02, p_jump=0.001)
        for storage in (frames, plain):
            storage.add(step % size, obs, next_obs)
        # At offsets from the wrap that are all different.
        if step >= size and step % 997 == 0:
            assert np.array_equal(frames.observations(steps, envs), plain.observations(steps, envs))
            assert np.array_equal(frames.next_observations(steps, envs), plain.next_observations(steps, envs))


def test_what_is_kept_beside_the_frames_goes_with_them():
    space = spaces.Box(0, 255, (4, 4, 4), np.uint8)
    source, frames = Stacks(2, 4, 1, seed=0, how="anything", side=4), FrameStacks(space, 10, 2)
    for step in range(500):
        frames.add(step % 10, *source.step(p_done=0.5)[:2])
    assert len(frames._stacks) <= 2 * 13
    assert len(frames._ends) <= 2 * 13


def test_memory_for_atari():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert FrameStacks(space, 1000, 1).nbytes / 1000 == pytest.approx(84 * 84, rel=0.01)
    assert WholeObservations(space, 1000, 1).nbytes / 1000 == 8 * 84 * 84


def test_memory_for_three_rgb_frames_that_begin_with_one_repeated():
    space = spaces.Box(0, 255, (9, 84, 84), np.uint8)
    assert FrameStacks(space, 1000, 1, 3).nbytes / 1000 == pytest.approx(3 * 84 * 84, rel=0.01)
    assert WholeObservations(space, 1000, 1).nbytes / 1000 == 18 * 84 * 84
    source, frames = Stacks(2, 3, 3, seed=0, how="repeats"), FrameStacks(spaces.Box(0, 255, (9, 12, 12), np.uint8), 30, 2, 3)
    for step in range(100):
        frames.add(step % 30, *source.step(p_done=0.5)[:2])
    # Last observations of episodes are a frame each; first ones are nothing besides.
    assert not frames._stacks
    assert {end.shape for end in frames._ends.values()} == {(3, 12, 12)}


@pytest.mark.parametrize(
    ("space", "n_stack", "expected"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), 5, r"\(84, 84, 4\): expected 5 frames"),
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), 4, "before height and width"),
        (spaces.Box(0, 255, (3, 84, 84), np.uint8), 4, "n_stack="),
        (spaces.Box(0, 255, (4,), np.uint8), 4, "channels, height, width"),
        (spaces.Discrete(4), 4, "channels, height, width"),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), 1, "n_stack=1"),
    ],
)
def test_what_are_no_stacks_is_refused(space, n_stack, expected):
    with pytest.raises(ValueError, match=expected):
        FrameStacks(space, 10, 1, n_stack)


@pytest.mark.parametrize("n_stack", [3, 4])
def test_a_wrong_number_of_frames_is_said(n_stack):
    # Three frames of four channels, which could be four of three.
    stacks = FrameStacks(spaces.Box(0, 255, (12, 14, 14), np.uint8), 200, 1, n_stack)
    frames = [np.random.default_rng(i).integers(0, 256, (4, 14, 14), np.uint8) for i in range(130)]
    observations = [np.concatenate(frames[i : i + 3])[None] for i in range(125)]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for place, (obs, following) in enumerate(itertools.pairwise(observations)):
            stacks.add(place, obs, following)
    assert [str(warning.message)[:60] for warning in found] == (
        ["100 of the first 100 observations do not go on from the one "] if n_stack == 4 else []
    )
