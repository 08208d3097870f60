"""Runs that survive: exact checkpoints, and agents in files without pickle."""

from sb3_sparse.resume.safe import load_safe, load_safe_vec_normalize, save_safe

__all__ = ["load_safe", "load_safe_vec_normalize", "save_safe"]
