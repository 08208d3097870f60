"""Stacked images, kept as single frames: a quarter of the memory of stacks, an eighth of what SB3 takes for Atari."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_sparse.common.validation import whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.replay.storage import check_shape

# How the stack begins that is not the one before with a frame more: with black frames, kept whole, or with its newest frame
# alone, again and again.
_ZEROS, _WHOLE, _REPEATED = 0, 1, 2
# After so many stacks it is looked at whether frames are what was said.
_FIRST_STACKS = 100


class FrameStacks:
    """
    Images of which each repeats all but the oldest frame of the one before, as ``VecFrameStack`` makes them.

    What comes back is bit by bit what was added, always: where an image does not continue the one before (an episode
    begins, an environment was reset in between), its older frames are zeros (``VecFrameStack``) or the newest one repeated
    (DeepMind Control), or are kept with it.

    :param space: Of one observation: a Box of shape ``(channels, height, width)``.
    :param size: Steps in the ring.
    :param n_envs: Environments.
    :param n_stack: Frames in an observation, the newest last.
    :param rings: Where to keep the arrays of :meth:`ring_shapes`, which may be longer than they have to be: then they hold
        more of the past than can be drawn. None: in memory.
    :raises ValueError: If the channels are no multiple of ``n_stack``, or the space is another one.
    """

    # How many stacks were kept whole so far, and whether it was looked at. Here, since pickles of before have neither.
    _n_whole, _has_warned = 0, False

    def __init__(
        self,
        space: spaces.Space,
        size: int,
        n_envs: int,
        n_stack: int = 4,
        rings: dict[str, np.ndarray] | None = None,
    ):
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
        if rings is None:
            # Frames are kept a little longer than their steps, for the stacks of the next ones.
            length, shapes = size + n_stack - 1, self.ring_shapes(space, n_envs, n_stack)
            rings = {name: np.zeros((length, *shape), dtype=dtype) for name, (shape, dtype) in shapes.items()}
        self._size, self._length = size, len(rings["frames"])
        # Of each step, back: how many steps ago, at most `n_stack - 1`, its stack began otherwise than by going on; kind: how.
        self._frames, self._back, self._kind = rings["frames"], rings["back"], rings["kind"]
        # By place and environment: stacks that were kept whole, and next observations that did not become the next step's,
        # of which the newest frame says all if the rest goes on.
        self._stacks: dict[tuple[int, int], np.ndarray] = {}
        self._ends: dict[tuple[int, int], np.ndarray] = {}
        # How many steps were added, where in the ring the last one is, and what followed it, as the bytes of each
        # environment. Set at once, when a step is whole.
        self._state: tuple[int, int | None, list[bytes] | None] = 0, None, None
        self.nbytes = self._frames.nbytes + self._back.nbytes + self._kind.nbytes

    @staticmethod
    def ring_shapes(space: spaces.Space, n_envs: int, n_stack: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of one step, of each array."""
        assert space.shape is not None
        frame = (n_envs, space.shape[0] // n_stack, *space.shape[1:])
        return {"frames": (frame, space.dtype), "back": ((n_envs,), np.int8), "kind": ((n_envs,), np.int8)}

    @property
    def newest(self) -> int | None:
        """See :class:`ObservationStorage`."""
        return self._state[1]

    def check(self, obs: Any, next_obs: Any) -> None:
        """See :class:`ObservationStorage`."""
        for given in (obs, next_obs):
            check_shape(given, (self._n_envs, *self._shape))

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
        kind = self._beginning(obs)
        self._back[new, env], self._kind[new, env] = 0, kind
        if kind == _WHOLE:
            self._stacks[new, env] = obs.copy()
            self._n_whole += 1
            self._check_whole()

    def _check_whole(self) -> None:
        """Warn once, after a hundred stacks, if most of them do not go on from the one before: then nothing is saved."""
        n_stacks = (self._state[0] + 1) * self._n_envs
        if n_stacks >= _FIRST_STACKS and not self._has_warned:
            self._has_warned = True
            if self._n_whole > n_stacks / 2:
                warn_user(
                    f"{self._n_whole} of the first {n_stacks} observations do not go on from the one before as stacks of "
                    f"{self._n_stack} frames do, and are kept whole, in memory: as many times what was counted on. If they "
                    "have another number of frames, say it: replay_buffer_kwargs=dict(n_stack=...). If they are no stacks, "
                    "use another buffer."
                )

    def _beginning(self, obs: np.ndarray) -> int:
        """How a stack begins that does not go on from another."""
        older = self._older(obs).tobytes()
        if not older.strip(b"\0"):
            return _ZEROS
        return _REPEATED if older == self._frame(obs).tobytes() * (self._n_stack - 1) else _WHOLE

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
        # One index for place and environment: whole frames are copied then, not pixels.
        frames = self._frames.reshape(-1, *self._frame_shape)
        stacks = frames.take(places * self._n_envs + envs[:, None], axis=0)
        begins, kinds = ago > back[:, None], self._kind[slots, envs]
        # One that is repeated stands there already: the first frame that there is.
        stacks[begins & (kinds != _REPEATED)[:, None]] = 0
        for i in np.flatnonzero(begins.any(axis=1) & (kinds == _WHOLE)):
            whole = self._stacks[int((slots[i] - back[i]) % self._length), int(envs[i])].reshape(n_stack, *self._frame_shape)
            stacks[i][begins[i]] = whole[n_stack - 1 - (ago - back[i])[begins[i]]]
        return stacks.reshape(len(slots), *self._shape)

    def in_memory(self, space: spaces.Space) -> "FrameStacks":
        """
        A copy whose arrays are in memory, and no longer than they have to be.

        :param space: As this was made with.
        """
        copy = FrameStacks(space, self._size, self._n_envs, self._n_stack)
        first, stop = max(0, self.n_added - copy._length), self.n_added
        steps = np.arange(first, stop)
        for name, ring in copy.rings.items():
            ring[steps % copy._length] = self.rings[name][steps % self._length]
        copy.put_extras(first, stop, self.extras(first, stop))
        copy.set_state(self.get_state())
        return copy

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

    def go_on_from(self, count: int) -> None:
        """
        Where arrays and extras are there already, the rest follows from them.

        :param count: How many steps were ever added, at least one.
        """
        place, envs = (count - 1) % self._size, np.arange(self._n_envs)
        self._state = count, place, None
        following = self.next_observations(np.full(self._n_envs, place), envs)
        self._state = count, place, [each.tobytes() for each in following]

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
