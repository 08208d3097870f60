"""What buffers say and keep of the memory that they take."""

import gc
import warnings
import weakref

import numpy as np
import pytest
from gymnasium import spaces

from sb3_sparse.replay import FrameReplayBuffer, buffer
from sb3_sparse.replay.buffer import ComposedReplayBuffer

IMAGES, ACTIONS = spaces.Box(0, 255, (4, 36, 36), np.uint8), spaces.Box(-1, 1, (2,), np.float32)


class Memory:
    """In the place of psutil."""

    def __init__(self, available):
        self.available = available

    def virtual_memory(self):
        return self


@pytest.mark.parametrize("kind", [ComposedReplayBuffer, FrameReplayBuffer])
def test_a_buffer_that_will_not_fit_is_warned_of(kind, tmp_path, monkeypatch):
    needed = kind(100, IMAGES, ACTIONS).nbytes
    monkeypatch.setattr(buffer, "psutil", Memory(needed - 1))
    with pytest.warns(UserWarning, match=r"the full replay buffer takes .* GB, and .* GB of memory are free") as caught:
        kind(100, IMAGES, ACTIONS)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind is FrameReplayBuffer:
            # The system keeps of a file what there is room for.
            kind(100, IMAGES, ACTIONS, storage_path=tmp_path / "store", rewind=0).close()
        monkeypatch.setattr(buffer, "psutil", Memory(needed))
        kind(100, IMAGES, ACTIONS)
        monkeypatch.setattr(buffer, "psutil", None)
        kind(100, IMAGES, ACTIONS)


def test_what_asks_for_a_draw_keeps_nothing_alive():
    """Looking at who asks would otherwise copy what the function knows, a buffer in a file and its lock among it."""

    class Large:
        pass

    replay = ComposedReplayBuffer(4, IMAGES, ACTIONS, n_steps=2)
    replay.add(np.zeros((1, 4, 36, 36)), np.zeros((1, 4, 36, 36)), np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    large = Large()
    reference = weakref.ref(large)
    replay.sample(2)
    del large
    gc.collect()
    assert reference() is None
