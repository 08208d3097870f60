"""
Replay buffers: rows in files of their own, which grow, and the rest with the run. One that is in a file itself is referred to.
"""

import pickle
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.replay import FrameReplayBuffer, PrioritizedReplayBuffer
from sb3_sparse.replay.mapped.store import FrameStore, release_store
from sb3_sparse.resume.files.checksum import Written
from sb3_sparse.resume.files.folder import Checkpoint
from sb3_sparse.resume.files.rows import RowFiles, read_rows
from sb3_sparse.resume.state.plain import plain_attributes
from sb3_sparse.resume.state.ring import Ring

WHOLE = "buffer.pkl"
_NO_STATE = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "infos", "env")


class BufferWriter:
    """
    Writes the buffer of a model, each time what is new since the last one.

    :param root: The folder of checkpoints.
    """

    def __init__(self, root: Path):
        self._root, self._files = root, RowFiles(root)
        self._buffer: Any = None
        # When the buffer was written, and what its rows were counted to then.
        self._timesteps, self._count = 0, 0

    def goes_on(self, model: BaseAlgorithm, checkpoint: Checkpoint, state: dict[str, Any] | None) -> None:
        """
        The rows that a run goes on with are written already.

        :param model: The model, with its buffer filled by :func:`restore_buffer`.
        :param checkpoint: That the run goes on from.
        :param state: Of :meth:`write`.
        """
        if state is not None and "store" not in state and state["count"] is not None and checkpoint.path.parent == self._root:
            self._buffer, self._timesteps = model.replay_buffer, model.num_timesteps  # type: ignore[attr-defined]
            self._count = state["count"]
            ring = Ring(self._buffer)
            ring.count = self._count
            known = {name: Written(*w) for name, w in checkpoint.manifest["rows"].items()}
            self._files = RowFiles(self._root, known, ring)

    def write(self, model: BaseAlgorithm) -> tuple[dict[str, Any] | None, dict[str, bytes], dict[str, Written]]:
        """
        :param model: The model.
        :return: What is in no row, parts of the checkpoint, and files of rows.
        """
        buffer: Any = getattr(model, "replay_buffer", None)
        if buffer is None:
            return None, {}, {}
        if not Ring.fits(buffer):
            # Of an unknown class anything may have changed.
            return {"count": None, "kind": type(buffer).__name__}, {WHOLE: pickle.dumps(buffer, protocol=5)}, {}
        store = _store(model)
        if store is not None:
            return _referred(buffer, store), {}, {}
        ring = Ring(buffer)
        if buffer is self._buffer:
            expected = self._count + (model.num_timesteps - self._timesteps) // buffer.n_envs
            if not ring.frames:
                # Frames are counted by the buffer itself, and lie elsewhere after another number of them.
                ring.count_from(expected)
            if ring.count != expected:
                self._files.forget()
        else:
            self._files.forget()
        rows = self._files.write(ring)
        self._buffer, self._timesteps, self._count = buffer, model.num_timesteps, ring.count
        state: dict[str, Any] = {"count": ring.count, "kind": type(buffer).__name__}
        state["attributes"] = plain_attributes(buffer, _NO_STATE)
        if ring.frames:
            state["frames"] = ring.frames.get_state()
        if isinstance(buffer, PrioritizedReplayBuffer):
            state["priorities"] = buffer.priorities.get_state()
        return state, {}, rows


def check_rewind(model: BaseAlgorithm, transitions: int) -> None:
    """
    Whether a buffer in a file of its own can go back as far as checkpoints lie.

    :param model: The model.
    :param transitions: How far that is.
    :raises ValueError: If it cannot.
    """
    store = _store(model)
    if store is not None and not store.can_rewind(transitions, model.n_envs):
        raise ValueError(
            f"the replay buffer in {store.folder} cannot go back by every * keep = {transitions} transitions, as far as a "
            f"checkpoint may lie back: pass rewind={transitions} in replay_buffer_kwargs, or a smaller every= here."
        )


def release_buffer(state: dict[str, Any] | None) -> None:
    """
    Before a model is loaded: the file that its buffer is in is there, and free.

    :param state: Of :meth:`BufferWriter.write`.
    :raises DamagedStore: If the file is missing.
    """
    if state is not None and "store" in state:
        release_store(state["store"])


def _store(model: BaseAlgorithm) -> FrameStore | None:
    buffer = getattr(model, "replay_buffer", None)
    return buffer.store if isinstance(buffer, FrameReplayBuffer) else None


def _referred(buffer: FrameReplayBuffer, store: FrameStore) -> dict[str, Any]:
    """The state of a buffer in a file of its own, which is flushed and not copied."""
    store.flush()
    attributes = plain_attributes(buffer, (*_NO_STATE, "_options"))
    return {"count": store.count, "kind": type(buffer).__name__, "attributes": attributes, "store": store.reference()}


def content_of(model: BaseAlgorithm) -> tuple[Any, ...]:
    """What is another one when somebody has added to the buffer of a model, or has changed rewards in it."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or not Ring.fits(buffer):
        return (getattr(buffer, "pos", None), getattr(buffer, "full", None))
    ring = Ring(buffer)
    return ring.count, ring.sums(ring.oldest_small, ring.count).tobytes()


def restore_buffer(model: BaseAlgorithm, checkpoint: Checkpoint, state: dict[str, Any] | None) -> None:
    """
    Fill the buffer of a model, in place.

    :param model: As it was loaded, with an empty buffer.
    :param checkpoint: What is read.
    :param state: Of :meth:`BufferWriter.write`.
    :raises ValueError: If the model has a buffer of another kind.
    """
    if state is None:
        return
    buffer = model.replay_buffer  # type: ignore[attr-defined]
    if type(buffer).__name__ != state["kind"]:
        raise ValueError(f"{checkpoint.path} holds a {state['kind']}: the model has a {type(buffer).__name__}.")
    if state["count"] is None:
        vars(buffer).update(
            {name: value for name, value in vars(pickle.loads(checkpoint.read(WHOLE))).items() if name != "env"}
        )
        return
    if "store" in state:
        if _store(model) is None:
            raise ValueError(
                f"{checkpoint.path} refers to the buffer in {state['store']['path']}: the model has one in memory."
            )
        buffer.rewind(state["store"])
    vars(buffer).update(state["attributes"])
    if "store" in state:
        return
    ring = Ring(buffer)
    ring.count = state["count"]
    read_rows(checkpoint, ring)
    if ring.frames:
        ring.frames.set_state(state["frames"])
    if isinstance(buffer, PrioritizedReplayBuffer):
        buffer.priorities.set_state(state["priorities"])
