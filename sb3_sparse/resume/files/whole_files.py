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

from sb3_sparse.common.files import is_beside, remove_left_over, written_beside
from sb3_sparse.common.warn import warn_user

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


@contextmanager
def goes_on_without_saving() -> Iterator[None]:
    """Inside, what cannot be saved since the disk says so is a warning: the older file stays, and training goes on."""
    with ExitStack() as stack:
        for owner, name, _ in _METHODS:
            stack.enter_context(mock.patch.object(owner, name, _warning(getattr(owner, name))))
        yield


def sweep_beside(folder: Path, is_held: bool = False) -> None:
    """
    Remove what kills have left behind of files that were written beside, here and in all folders inside.

    :param folder: Of a run.
    :param is_held: Whether nobody else may write there: then all of it is left over.
    """
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        if not is_held:
            remove_left_over(inside)
            continue
        for path in filter(is_beside, inside.glob(".*.tmp*")):
            path.unlink(missing_ok=True)


def _warning(save: Callable[..., None]) -> Callable[..., None]:
    def save_or_warn(self: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        try:
            save(self, path, *args, **kwargs)
        except OSError as error:
            warn_user(f"{error} What was there stays, and training goes on.")

    return save_or_warn


def _whole(save: Callable[..., None], ending: str) -> Callable[..., None]:
    def save_whole(self: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(path, (str, os.PathLike)):
            save(self, path, *args, **kwargs)
            return
        # As SB3 adds it.
        target = Path(path) if Path(path).suffix else Path(f"{os.fspath(path)}{ending}")
        with written_beside(target) as beside:
            if not ending:
                save(self, str(beside), *args, **kwargs)
                return
            # What SB3 has opened itself it leaves open if it fails, and the space of it taken.
            with beside.open("wb") as file:
                save(self, file, *args, **kwargs)

    return save_whole
