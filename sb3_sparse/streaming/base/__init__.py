"""What streaming algorithms have in common: their settings and files, and the loop that learns from every sample once."""

from sb3_sparse.streaming.base.algorithm import StreamAlgorithm

__all__ = ["StreamAlgorithm"]
