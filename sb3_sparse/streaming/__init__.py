"""Streaming reinforcement learning: Stream AC(λ), Q(λ) and SARSA(λ) learn from every sample once (Elsayed et al. 2024)."""

from sb3_sparse.streaming.obgd import AdaptiveObGD, ObGD
from sb3_sparse.streaming.policies import StreamACCnnPolicy, StreamACPolicy, StreamPolicy, StreamQCnnPolicy, StreamQPolicy
from sb3_sparse.streaming.stream_ac import StreamAC
from sb3_sparse.streaming.stream_q import StreamQ
from sb3_sparse.streaming.stream_sarsa import StreamSARSA

__all__ = [
    "AdaptiveObGD",
    "ObGD",
    "StreamAC",
    "StreamACCnnPolicy",
    "StreamACPolicy",
    "StreamPolicy",
    "StreamQ",
    "StreamQCnnPolicy",
    "StreamQPolicy",
    "StreamSARSA",
]
