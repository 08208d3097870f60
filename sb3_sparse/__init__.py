"""
Sparse networks for Stable-Baselines3, pruned at random once before training, that keep improving as they grow.

Everything a user needs comes from here: ``from sb3_sparse import StreamAC``. What is in the table below is loaded when
it is first asked for.
"""

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from sb3_sparse.networks import RandomShift, RunningNorm, SimBaEncoder
from sb3_sparse.simba import (
    SimBaPolicy,
    SparseSimBaCrossQPolicy,
    SparseSimBaDQNPolicy,
    SparseSimBaPolicy,
    SparseSimBaQRDQNPolicy,
    SparseSimBaTD3Policy,
    SparseSimBaTQCPolicy,
    register_aliases,
)
from sb3_sparse.sparse import (
    SparseConv2d,
    SparseLinear,
    Sparsity,
    Topology,
    sparsify_,
    sparsify_by_masks_,
    sparsity_report,
    to_dense,
    weight_decay_groups,
)

if TYPE_CHECKING:
    from sb3_sparse.atari import DopamineAtari, make_atari
    from sb3_sparse.dmc import DMCWrapper, make_dmc, register_dmc
    from sb3_sparse.drqv2 import DrQFeatures, DrQv2, DrQv2Policy, ShiftedFeatures
    from sb3_sparse.pixels import PixelObservations, make_dmc_pixels
    from sb3_sparse.plasticity import PlasticityCallback, ResetCallback, measure, reset_model_
    from sb3_sparse.rainbow import (
        DER,
        Rainbow,
        RainbowCnnPolicy,
        RainbowMultiInputPolicy,
        RainbowPolicy,
        SparseSimBaRainbowPolicy,
    )
    from sb3_sparse.replay import FrameReplayBuffer, PrioritizedReplayBuffer
    from sb3_sparse.resume import ExactCheckpoint, load_safe, load_safe_vec_normalize, resume_exact, save_safe
    from sb3_sparse.streaming import (
        AdaptiveObGD,
        ObGD,
        StreamAC,
        StreamACCnnPolicy,
        StreamACPolicy,
        StreamPolicy,
        StreamQ,
        StreamQCnnPolicy,
        StreamQPolicy,
        StreamSARSA,
    )

__version__ = "0.2.0"

__all__ = [
    "AdaptiveObGD",
    "DER",
    "DMCWrapper",
    "DopamineAtari",
    "DrQFeatures",
    "DrQv2",
    "DrQv2Policy",
    "ExactCheckpoint",
    "FrameReplayBuffer",
    "ObGD",
    "PixelObservations",
    "PlasticityCallback",
    "PrioritizedReplayBuffer",
    "Rainbow",
    "RainbowCnnPolicy",
    "RainbowMultiInputPolicy",
    "RainbowPolicy",
    "RandomShift",
    "ResetCallback",
    "RunningNorm",
    "ShiftedFeatures",
    "SimBaEncoder",
    "SimBaPolicy",
    "SparseConv2d",
    "SparseLinear",
    "SparseSimBaCrossQPolicy",
    "SparseSimBaDQNPolicy",
    "SparseSimBaPolicy",
    "SparseSimBaQRDQNPolicy",
    "SparseSimBaRainbowPolicy",
    "SparseSimBaTD3Policy",
    "SparseSimBaTQCPolicy",
    "Sparsity",
    "StreamAC",
    "StreamACCnnPolicy",
    "StreamACPolicy",
    "StreamPolicy",
    "StreamQ",
    "StreamQCnnPolicy",
    "StreamQPolicy",
    "StreamSARSA",
    "Topology",
    "__version__",
    "load_safe",
    "load_safe_vec_normalize",
    "make_atari",
    "make_dmc",
    "make_dmc_pixels",
    "measure",
    "register_aliases",
    "register_dmc",
    "reset_model_",
    "resume_exact",
    "save_safe",
    "sparsify_",
    "sparsify_by_masks_",
    "sparsity_report",
    "to_dense",
    "weight_decay_groups",
]

# Loaded when asked for: the names of each room, and the rooms themselves.
_ROOMS: dict[str, tuple[str, ...]] = {
    "atari": ("DopamineAtari", "make_atari"),
    "dmc": ("DMCWrapper", "make_dmc", "register_dmc"),
    "drqv2": ("DrQFeatures", "DrQv2", "DrQv2Policy", "ShiftedFeatures"),
    "pixels": ("PixelObservations", "make_dmc_pixels"),
    "plasticity": ("PlasticityCallback", "ResetCallback", "measure", "reset_model_"),
    "rainbow": (
        *("DER", "Rainbow", "RainbowCnnPolicy", "RainbowMultiInputPolicy", "RainbowPolicy"),
        "SparseSimBaRainbowPolicy",
    ),
    "replay": ("FrameReplayBuffer", "PrioritizedReplayBuffer"),
    "resume": ("ExactCheckpoint", "load_safe", "load_safe_vec_normalize", "resume_exact", "save_safe"),
    "streaming": (
        *("StreamAC", "StreamQ", "StreamSARSA", "ObGD", "AdaptiveObGD"),
        *("StreamPolicy", "StreamACPolicy", "StreamACCnnPolicy", "StreamQPolicy", "StreamQCnnPolicy"),
    ),
    **dict.fromkeys(("evaluation", "export", "results", "zoo"), ()),
    # Addresses of earlier versions.
    **dict.fromkeys(("observations", "policies", "policy_networks"), ()),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


if not TYPE_CHECKING:
    # Static tools have the imports above, and would take every name for one that there may be.
    def __getattr__(name: str) -> Any:
        room = _ROOM_OF.get(name, name if name in _ROOMS else None)
        if room is None:
            close = difflib.get_close_matches(name, __dir__(), n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}")
        module = importlib.import_module(f"{__name__}.{room}")
        if name == room:
            return module
        # The next time it is simply there.
        globals()[name] = value = getattr(module, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


register_aliases()
