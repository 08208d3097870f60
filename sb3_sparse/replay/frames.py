"""Stacked images, kept as single frames: a quarter of the memory of stacks, an eighth of what SB3 takes for Atari."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_sparse.common.validation import whole_number
from sb3_sparse.replay.storage import check_size

# How the stack begins that is not the one before with a frame more: with black frames, or kept whole.
_ZEROS, _WHOLE = 0, 1


class FrameStacks:
    """
    Images of which each repeats all but the oldest frame of the one before, as ``VecFrameStack`` makes them.

    What comes back is bit by bit what was added, always: where an image does not continue the one before (an episode
    begins, an environment was reset in between), its older frames are zeros or are kept with it.

    :param space: Of one observation: a Box of shape ``(channels, height, width)``.
    :param size: Steps in the ring.
    :param n_envs: Environments.
    :param n_stack: Frames in an observation, the newest last.
    :raises ValueError: If the channels are no multiple of ``n_stack``, or the space is another one.
    """

    def __init__(self, space: spaces.Space, size: int, n_envs: int, n_stack: int = 4):
        n_stack = whole_number("n_stack", n_stack, 2)
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(f"observation space {space}: frames are kept of images, a Box of (channels, height, width).")
        if space.shape[0] % n_stack or space.shape[0] > min(space.shape[1:]):
            raise ValueError(
                f"observation space of shape {space.shape}: expected {n_stack} frames one after the other, a multiple of "
                f"{n_stack} channels, before height and width. SB3 puts channels first by VecTransposeImage; n_stack= says "
                "how many frames there are."
            )
        self._n_stack, self._n_envs, self._shape = n_stack, n_envs, space.shape
        self._frame_shape = (space.shape[0] // n_stack, *space.shape[1:])
        # Frames are kept a little longer than their steps, for the stacks of the next ones.
        self._size, self._length = size, size + n_stack - 1
        self._frames = np.zeros((self._length, n_envs, *self._frame_shape), dtype=space.dtype)
        # Of each step: how many steps ago, at most `n_stack - 1`, its stack began otherwise than by going on, and how.
        self._back = np.zeros((self._length, n_envs), dtype=np.int8)
        self._kind = np.zeros((self._length, n_envs), dtype=np.int8)
        # By place and environment: stacks that were kept whole, and next observations that did not become the next step's,
        # of which the newest frame says all if the rest goes on.
        self._stacks: dict[tuple[int, int], np.ndarray] = {}
        self._ends: dict[tuple[int, int], np.ndarray] = {}
        # How many steps were added, where in the ring the last one is, and what followed it, as the bytes of each
        # environment. Set at once, when a step is whole.
        self._state: tuple[int, int | None, list[bytes] | None] = 0, None, None
        self.nbytes = self._frames.nbytes + self._back.nbytes + self._kind.nbytes

    @property
    def newest(self) -> int | None:
        """See :class:`ObservationStorage`."""
        return self._state[1]

    def check(self, obs: Any, next_obs: Any) -> None:
        """See :class:`ObservationStorage`."""
        for given in (obs, next_obs):
            check_size(given, (self._n_envs, *self._shape))

    def add(self, place: int, obs: Any, next_obs: Any) -> None:
        """See :class:`ObservationStorage`."""
        shape = (self._n_envs, *self._shape)
        obs = np.asarray(obs, dtype=self._frames.dtype).reshape(shape)
        next_obs = np.asarray(next_obs, dtype=self._frames.dtype).reshape(shape)
        steps, _, last = self._state
        new, before = steps % self._length, (steps - 1) % self._length
        follows, following = [], []
        for env in range(self._n_envs):
            self._stacks.pop((new, env), None)
            self._ends.pop((new, env), None)
            # Bytes are what is compared fastest, and say that nothing differs, not even the sign of a zero.
            now, then = obs[env].tobytes(), next_obs[env].tobytes()
            follows.append(last is not None and now == last[env])
            following.append(then)
            self._keep(new, env, obs[env], last is not None and self._continues(before, env, obs[env], follows[env]))
            goes_on = then.startswith(memoryview(now)[self._frames[new, env].nbytes :])
            self._ends[new, env] = (self._frame(next_obs[env]) if goes_on else next_obs[env]).copy()
        self._state = steps + 1, place, following
        # What followed the step before is this one: it need not be kept twice.
        for env, is_kept in enumerate(follows):
            if is_kept:
                del self._ends[before, env]

    def _continues(self, before: int, env: int, obs: np.ndarray, follows: bool) -> bool:
        """Whether the stack goes on from the one of the step before."""
        if follows:
            return self._ends[before, env].shape == self._frame_shape
        (stack,) = self._rebuilt(np.array([before]), np.array([env]))
        return self._older(obs).tobytes() == self._newer(stack).tobytes()

    def _keep(self, new: int, env: int, obs: np.ndarray, continues: bool) -> None:
        self._frames[new, env] = self._frame(obs)
        before = (new - 1) % self._length
        if continues:
            back = min(self._back[before, env] + 1, self._n_stack - 1)
            self._back[new, env], self._kind[new, env] = back, self._kind[before, env]
            return
        is_black = not self._older(obs).tobytes().strip(b"\0")
        self._back[new, env], self._kind[new, env] = 0, _ZEROS if is_black else _WHOLE
        if not is_black:
            self._stacks[new, env] = obs.copy()

    def observations(self, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """See :class:`ObservationStorage`."""
        return self._rebuilt(self._slots(steps), envs)

    def next_observations(self, steps: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """See :class:`ObservationStorage`."""
        slots = self._slots(steps)
        ends = [self._ends.get(key) for key in zip(slots.tolist(), envs.tolist(), strict=True)]
        has_end = np.array([end is not None for end in ends], dtype=bool)
        stacks = self._rebuilt(np.where(has_end, slots, (slots + 1) % self._length), envs)
        for i in np.flatnonzero(has_end):
            end = ends[i]
            assert end is not None
            stacks[i] = end if end.shape == self._shape else np.concatenate([self._newer(stacks[i]), end])
        return stacks

    def _slots(self, steps: np.ndarray) -> np.ndarray:
        """Where the frames of steps are, which has more places than the ring."""
        n_steps, newest, _ = self._state
        return (n_steps - 1 - ((newest or 0) - np.asarray(steps)) % self._size) % self._length

    def _rebuilt(self, slots: np.ndarray, envs: np.ndarray) -> np.ndarray:
        n_stack, back = self._n_stack, self._back[slots, envs].astype(np.int64)
        # How many steps ago each frame of a stack is, the oldest first.
        ago = np.arange(n_stack - 1, -1, -1)
        places = (slots[:, None] - np.minimum(ago, back[:, None])) % self._length
        stacks = self._frames[places, envs[:, None]]
        begins = ago > back[:, None]
        stacks[begins] = 0
        for i in np.flatnonzero(begins.any(axis=1) & (self._kind[slots, envs] == _WHOLE)):
            whole = self._stacks[int((slots[i] - back[i]) % self._length), int(envs[i])].reshape(n_stack, *self._frame_shape)
            stacks[i][begins[i]] = whole[n_stack - 1 - (ago - back[i])[begins[i]]]
        return stacks.reshape(len(slots), *self._shape)

    # For checkpoints: arrays, what belongs to some steps besides, and the rest.

    @property
    def rings(self) -> dict[str, np.ndarray]:
        """See :class:`ObservationStorage`."""
        return {"frames": self._frames, "back": self._back, "kind": self._kind}

    @property
    def n_added(self) -> int:
        """How many steps were ever added."""
        return self._state[0]

    def extras(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """
        What was kept whole of some steps, and of the one before, of which the first may have changed it.

        :param first: Number of the first step.
        :param stop: Number of the step behind the last.
        """
        found: dict[str, np.ndarray] = {}
        steps = {step % self._length: step for step in range(max(0, first - 1, stop - self._length), stop)}
        for name, table in (("stacks", self._stacks), ("ends", self._ends)):
            for is_whole in (True, False):
                chosen = [
                    (steps[slot], env, kept)
                    for (slot, env), kept in table.items()
                    if slot in steps and (kept.shape == self._shape) == is_whole
                ]
                kind = f"{name}/{'whole' if is_whole else 'frame'}"
                found[f"{kind}/where"] = np.array([where for *where, _ in chosen], dtype=np.int64).reshape(-1, 2)
                shape = self._shape if is_whole else self._frame_shape
                kept_all = np.array([kept for *_, kept in chosen], dtype=self._frames.dtype)
                found[kind] = kept_all.reshape(-1, *shape)
        return found

    def put_extras(self, first: int, stop: int, found: dict[str, np.ndarray]) -> None:
        """The reverse, earlier steps first."""
        slots = {step % self._length for step in range(max(0, first - 1, stop - self._length), stop)}
        for name, table in (("stacks", self._stacks), ("ends", self._ends)):
            for key in [key for key in table if key[0] in slots]:
                del table[key]
            for kind in (f"{name}/whole", f"{name}/frame"):
                for (step, env), kept in zip(found[f"{kind}/where"].tolist(), found[kind], strict=True):
                    table[step % self._length, env] = kept.copy()

    def get_state(self) -> Any:
        """What is in no array."""
        return self._state

    def set_state(self, state: Any) -> None:
        """The reverse."""
        self._state = state

    # Of a stack: its newest frame, and the frames that it shares with the stack before and the one behind.

    def _frame(self, stack: np.ndarray) -> np.ndarray:
        return stack[-self._frame_shape[0] :]

    def _older(self, stack: np.ndarray) -> np.ndarray:
        return stack[: -self._frame_shape[0]]

    def _newer(self, stack: np.ndarray) -> np.ndarray:
        return stack[self._frame_shape[0] :]
