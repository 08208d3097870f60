"""Export: an agent as ONNX, as a program of ``torch.export``, as a plain file of Stable-Baselines3, or without pickle."""

from sb3_sparse.export.build import predict_module
from sb3_sparse.export.files import export_onnx, export_torch
from sb3_sparse.export.module import PredictModule
from sb3_sparse.export.plain import export_sb3
from sb3_sparse.export.safe import safe_to_sb3, sb3_to_safe

__all__ = [
    "PredictModule",
    "export_onnx",
    "export_sb3",
    "export_torch",
    "predict_module",
    "safe_to_sb3",
    "sb3_to_safe",
]
