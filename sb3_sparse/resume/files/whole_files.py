"""Files of agents that are whole or not there, also where rl-zoo3 and SB3's callbacks write them."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.files import written_beside

# What saves, and the ending of a file that has none.
_METHODS: tuple[tuple[type, str, str], ...] = (
    (BaseAlgorithm, "save", ".zip"),
    (OffPolicyAlgorithm, "save_replay_buffer", ".pkl"),
    (VecNormalize, "save", ""),
)


@contextmanager
def saves_whole_files() -> Iterator[None]:
    """Inside, what SB3 saves under a name is written beside and then given the name."""
    with ExitStack() as stack:
        for owner, name, ending in _METHODS:
            stack.enter_context(mock.patch.object(owner, name, _whole(getattr(owner, name), ending)))
        yield


def sweep_beside(folder: Path) -> None:
    """Remove what kills have left behind of files that were written beside."""
    for path in folder.rglob(".*.tmp*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _whole(save: Callable[..., None], ending: str) -> Callable[..., None]:
    def save_whole(self: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(path, (str, os.PathLike)):
            save(self, path, *args, **kwargs)
            return
        # As SB3 adds it.
        target = Path(path) if Path(path).suffix else Path(f"{os.fspath(path)}{ending}")
        with written_beside(target) as beside:
            save(self, str(beside), *args, **kwargs)

    return save_whole
