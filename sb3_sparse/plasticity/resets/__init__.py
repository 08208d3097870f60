"""Resets: of any torch module, of single units (ReDo), of a model of SB3, and on a schedule."""

from sb3_sparse.plasticity.resets.callback import ResetCallback
from sb3_sparse.plasticity.resets.redo import ReDoReport, redo_
from sb3_sparse.plasticity.resets.sb3_model import reset_model_
from sb3_sparse.plasticity.resets.torch_module import reset_full_, reset_last_layers_, shrink_perturb_
from sb3_sparse.sparse.surgery.redraw import draw_fresh

__all__ = [
    "ReDoReport",
    "ResetCallback",
    "draw_fresh",
    "redo_",
    "reset_full_",
    "reset_last_layers_",
    "reset_model_",
    "shrink_perturb_",
]
