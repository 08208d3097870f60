"""Runs that survive: exact checkpoints, and agents in files without pickle."""

from sb3_sparse.resume.checkpoint import ExactCheckpoint
from sb3_sparse.resume.restore import resume_exact
from sb3_sparse.resume.safe import load_safe, load_safe_vec_normalize, save_safe

__all__ = ["ExactCheckpoint", "load_safe", "load_safe_vec_normalize", "resume_exact", "save_safe"]
