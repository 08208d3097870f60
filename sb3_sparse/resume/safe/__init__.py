"""Agents in files that execute nothing when they are read: tensors as safetensors, everything else as JSON."""

from sb3_sparse.resume.safe.agents import load_safe, load_safe_vec_normalize, save_safe

__all__ = ["load_safe", "load_safe_vec_normalize", "save_safe"]
