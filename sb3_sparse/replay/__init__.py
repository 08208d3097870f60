"""Replay: where transitions are kept, how several steps become one, and which are drawn. Each is a part of its own."""

from sb3_sparse.replay.buffer import cut_off
from sb3_sparse.replay.frame_buffer import FrameReplayBuffer
from sb3_sparse.replay.prioritized import PrioritizedReplayBuffer, PrioritizedSamples
from sb3_sparse.replay.sum_tree import SumTree

__all__ = ["FrameReplayBuffer", "PrioritizedReplayBuffer", "PrioritizedSamples", "SumTree", "cut_off"]
