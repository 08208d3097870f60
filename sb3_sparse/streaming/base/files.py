"""Whose agent a file holds. Streaming agents say so; of others, and of those of earlier versions, what is saved tells."""

import inspect
import io
import json
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any

import sb3_contrib
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, open_path

# Saved by all streaming algorithms, and by no other.
_STREAMING = "trace_lambda"
_UNKNOWN = "another algorithm"


def check_kind(path: str | pathlib.Path | io.BufferedIOBase, kind: str | None, custom_objects: dict[str, Any] | None) -> None:
    """
    :param path: A file that :meth:`BaseAlgorithm.save` wrote.
    :param kind: ``"StreamAC"``, ``"StreamQ"`` or ``"StreamSARSA"``; None: another streaming algorithm.
    :param custom_objects: As for :meth:`BaseAlgorithm.load`.
    :raises ValueError: If the file holds an agent of another algorithm.
    """
    saved = _saved(path)
    if saved is None:
        # No such file at all, which SB3 says itself.
        return
    found = [_streaming_kind(saved)] if _STREAMING in saved else _other_kinds(path, set(saved), custom_objects)
    if not found or (_STREAMING in saved and kind in (None, found[0])):
        return
    loads = " or ".join(f"{name}.load" for name in found if name != _UNKNOWN) or "the class that saved it"
    raise ValueError(f"{path} holds an agent of {' or '.join(found)}, which {kind or 'this class'} cannot load: use {loads}.")


def _saved(path: Any) -> dict[str, Any] | None:
    """Everything that is saved as JSON or inside of it, by name."""
    file = open_path(path, "r", verbose=0, suffix="zip")
    place = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            return dict(json.loads(archive.read("data")))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError):
        return None
    finally:
        if file is path:
            file.seek(place)
        else:
            file.close()


def _streaming_kind(saved: dict[str, Any]) -> str:
    if isinstance(named := saved.get("algorithm"), str):
        return named
    # As earlier versions wrote them.
    if "kappa_policy" in saved:
        return "StreamAC"
    return "StreamSARSA" if "_next_action" in saved else "StreamQ"


def _other_kinds(path: Any, names: set[str], custom_objects: dict[str, Any] | None) -> list[str]:
    place = path.tell() if isinstance(path, io.BufferedIOBase) else None
    data = load_from_zip_file(path, custom_objects=custom_objects, device="cpu")[0] or {}
    if place is not None:
        path.seek(place)
    found = fitting_algorithms(data.get("policy_class"), names, library_algorithms())
    return [algorithm.__name__ for algorithm in found] or [_UNKNOWN]


def library_algorithms() -> list[type[BaseAlgorithm]]:
    """The algorithms of SB3 and sb3-contrib."""
    return [
        algorithm
        for library in (stable_baselines3, sb3_contrib)
        for algorithm in vars(library).values()
        if isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)
    ]


def fitting_algorithms(
    policy_class: Any, names: Iterable[str], known: Iterable[type[BaseAlgorithm]]
) -> list[type[BaseAlgorithm]]:
    """
    The algorithms whose policies fit best to what a file holds, and of these the ones whose settings do.

    :param policy_class: That was saved.
    :param names: Of everything that was saved.
    :param known: The algorithms to choose from.
    """
    known = list(known)
    for kind in getattr(policy_class, "__mro__", ()):
        if fitting := [algorithm for algorithm in known if kind in algorithm.policy_aliases.values()]:
            # Some settings are saved with an underscore.
            saved = {*names} | {name.lstrip("_") for name in names}
            missing = [len(inspect.signature(algorithm).parameters.keys() - saved) for algorithm in fitting]
            return [algorithm for algorithm, n in zip(fitting, missing, strict=True) if n == min(missing)]
    return []
