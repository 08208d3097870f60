"""Runs that survive: exact checkpoints (:class:`ExactCheckpoint`, :func:`resume_exact`)."""

from sb3_sparse.resume.checkpoint import ExactCheckpoint
from sb3_sparse.resume.restore import resume_exact

__all__ = ["ExactCheckpoint", "resume_exact"]
