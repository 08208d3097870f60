"""A uniform replay buffer for stacked images, in an eighth of the memory, or in a file that outlives a crash."""

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse.common.warn import warn_user
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.frames import FrameStacks
from sb3_sparse.replay.mapped.store import FrameStore, Options
from sb3_sparse.replay.owner import algorithm_behind
from sb3_sparse.replay.storage import ObservationStorage

# Besides frames, in rows: of each step one.
_ROWS = ("actions", "rewards", "dones", "timeouts")
# Keywords that say where and how a buffer is written.
_OF_STORE = {"storage_path", "flush_every", "rewind"}


def at_its_new_place(path: str | Path | io.BufferedIOBase, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """
    Keywords of ``load`` for an agent whose buffer's folder was moved: ``replay_buffer_kwargs`` that say no more than where and
    how it is written get all others that the agent was saved with, in whose place SB3 would take them.

    :param path: The agent's file.
    :param keywords: Of ``load``.
    :raises ValueError: If the agent has another kind of buffer.
    """
    given = keywords.get("replay_buffer_kwargs")
    if not isinstance(given, Mapping) or "storage_path" not in given or not given.keys() <= _OF_STORE:
        return dict(keywords)
    data, _, _ = load_from_zip_file(path, device="cpu", custom_objects=keywords.get("custom_objects"))
    data = data or {}
    if not issubclass(data.get("replay_buffer_class") or object, FrameReplayBuffer):
        raise ValueError(
            f"load(..., replay_buffer_kwargs={dict(given)!r}): the saved agent's replay buffer is none of single frames, "
            "which alone is kept in a file. Leave it out, or make a new agent."
        )
    return {**keywords, "replay_buffer_kwargs": {**(data.get("replay_buffer_kwargs") or {}), **given}}


class FrameReplayBuffer(ComposedReplayBuffer):
    """
    Keeps single frames and rebuilds the stacks of ``VecFrameStack`` bit by bit; draws as SB3's own buffers do.

    .. code-block:: python

        model = DQN("CnnPolicy", env, replay_buffer_class=FrameReplayBuffer, buffer_size=100_000)

    With ``n_steps`` and one of SB3's own algorithms, call ``cut_off(model.replay_buffer)`` before another ``learn`` that
    resets the environment: no window then joins the steps before to those behind it. Rainbow does so itself.

    With ``storage_path`` the steps are in a file that is mapped into memory. All of its room is reserved at once. A buffer
    that is made with the path of one that is there goes on with what that one held at its last flush, with a warning, as if a
    time limit had ended the episode there. With ``buffer_size=1``, as who loads an agent without its buffer asks for, no file
    is touched. A pickle or a copy of the buffer (``save_replay_buffer``) is in memory, holds everything and stands alone.

    :param args: Of :class:`ComposedReplayBuffer`.
    :param n_stack: Frames in an observation, as in ``VecFrameStack``.
    :param storage_path: A folder for this buffer alone. None: the steps are in memory.
    :param flush_every: After so many transitions, what there is goes to the disk for certain: it is there after a crash.
    :param rewind: The file has room for so many transitions more than the buffer: as far back an exact checkpoint may lie.
    :param kwargs: Of :class:`ComposedReplayBuffer`.
    :raises ValueError: If the observations are no stacked images, channels first; if the folder holds something else than
        this buffer, or is damaged.
    :raises OSError: If there is no room on the disk.
    :raises StoreInUse: If another buffer has the folder.
    """

    #: The file; None in memory. Here, since pickles of before have neither.
    store: FrameStore | None = None
    _options: Options | None = None

    def __init__(
        self,
        *args: Any,
        n_stack: int = 4,
        storage_path: str | os.PathLike[str] | None = None,
        flush_every: int = 1_000,
        rewind: int = 20_000,
        **kwargs: Any,
    ):
        self.n_stack = n_stack
        self._options = None if storage_path is None else Options.checked(storage_path, flush_every, rewind)
        super().__init__(*args, **kwargs)
        if self.store is None:
            return
        owner = algorithm_behind(sys._getframe(1))
        if isinstance(owner, OffPolicyAlgorithm):
            # What is saved of the agent names the same folder wherever it is loaded.
            owner.replay_buffer_kwargs = {**owner.replay_buffer_kwargs, "storage_path": str(self.store.folder)}
        try:
            self._load(self.store)
        except BaseException:
            self.store.close()
            raise
        if self.store.count:
            warn_user(
                f"{self.store.folder} holds {self.size() * self.n_envs} transitions of an earlier run, which are used, with "
                f"n_steps={self.n_steps} and gamma={self.gamma}. To begin anew, name another folder, or remove this one."
            )
        elif self.store.is_new and owner is not None and owner.num_timesteps:
            warn_user(
                f"{self.store.folder} is new: an agent that has made {owner.num_timesteps} steps begins with no transitions "
                "there. If it has some in another folder, name that: replay_buffer_kwargs=dict(storage_path=...)."
            )

    def _make_storage(self) -> ObservationStorage:
        if self._options is not None and self.buffer_size > 1 and self.store is None:
            self.store = self._make_store(self._options)
        rings = None if self.store is None else self.store.rings
        return FrameStacks(self.observation_space, self.buffer_size, self.n_envs, self.n_stack, rings)

    def _check_memory(self) -> None:
        if self.store is None:
            super()._check_memory()

    def _make_store(self, options: Options) -> FrameStore:
        # Says what is wrong with the space, if something is.
        FrameStacks(self.observation_space, 1, self.n_envs, self.n_stack)
        description = {
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
            "handle_timeout_termination": self.handle_timeout_termination,
        }
        rings = FrameStacks.ring_shapes(self.observation_space, self.n_envs, self.n_stack)
        rows = {name: (array.shape[1:], array.dtype) for name, array in self._rows().items()}
        return FrameStore(options, self.buffer_size, self.n_envs, self.n_stack, description, rings, rows)

    def _rows(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _ROWS}

    def _load(self, store: FrameStore) -> None:
        self.storage = frames = FrameStacks(self.observation_space, self.buffer_size, self.n_envs, self.n_stack, store.rings)
        for array in self._rows().values():
            array.fill(0)
        store.load(frames, self._rows())
        self.pos, self.full = store.count % self.buffer_size, store.count >= self.buffer_size

    def add(self, *args: Any, **kwargs: Any) -> None:
        """
        Keep a step of all environments, see :meth:`ReplayBuffer.add`.

        :raises OSError: If a flush failed. What was there at the last one is found by the next buffer with this path.
        """
        if self.store is None:
            super().add(*args, **kwargs)
            return
        # Before it too: where the last flush failed, nothing is overwritten that the one before may be needed for.
        self.store.flush_if_due()
        super().add(*args, **kwargs)
        self.store.flush_if_due()

    def _at(self, *args: Any, **kwargs: Any) -> Any:
        if self.store is not None:
            self.store.check_open()
        return super()._at(*args, **kwargs)

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        if self.store is not None:
            self.store.begin_anew()
            self._load(self.store)

    def flush(self) -> None:
        """
        Everything up to now is on the disk when this returns. In memory it does nothing.

        :raises OSError: If it cannot be written.
        """
        if self.store is not None:
            self.store.flush()

    def close(self) -> None:
        """Flush, and let another buffer have the folder; this one cannot be used any longer. In memory it does nothing."""
        if self.store is not None:
            self.store.close()

    def rewind(self, reference: dict[str, Any]) -> None:
        """
        Go back to a flush, as exact checkpoints do; what came after it is forgotten.

        :param reference: Of ``store.reference()``, after that flush.
        :raises DamagedStore: If the store does not hold it any longer.
        """
        assert self.store is not None
        self.store.rewind(reference)
        self._load(self.store)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if self.store is not None:
            assert isinstance(self.storage, FrameStacks)
            self.store.check_open()
            state |= {"storage": self.storage.in_memory(self.observation_space), "store": None, "_options": None}
        return state
