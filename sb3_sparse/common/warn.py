"""Warnings that name the line of whoever is warned."""

import os
import sys
import warnings
from types import FrameType

_LIBRARIES = ("sb3_sparse", "stable_baselines3", "sb3_contrib", "rl_zoo3", "torch")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """
    Warn, as if from the line outside of this package, of SB3 and of torch that led here.

    :param message: What there is to say.
    :param category: Kind of warning.
    """
    level, frame = 1, sys._getframe(0)
    caller: FrameType | None = frame
    while caller is not None and _is_library(caller):
        level, caller = level + 1, caller.f_back
    warnings.warn(message, category, stacklevel=level if caller is not None else 2)


def _is_library(frame: FrameType) -> bool:
    root = frame.f_globals.get("__name__", "").partition(".")[0]
    # Context managers and the like stand in between.
    return root in _LIBRARIES or os.path.basename(frame.f_code.co_filename) == "contextlib.py"
