"""SB3's zips to safe files, and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.files import written_beside
from sb3_sparse.export.loading import load_agent
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.resume.safe.agents import is_safe_file, read_safe, save_safe
from sb3_sparse.resume.safe.vec_normalize import detached


def sb3_to_safe(
    zip_path: str | Path,
    path: str | Path,
    algorithm: type[BaseAlgorithm],
    *,
    vec_normalize: VecNormalize | str | Path | None = None,
    allow: Iterable[Any] = (),
) -> Path:
    """
    Write an agent that SB3 saved as a safe file. SB3's zip is a pickle: only take one that you trust.

    >>> sb3_to_safe("agent.zip", "agent.safetensors", SAC)  # doctest: +SKIP

    :param zip_path: What ``model.save`` wrote.
    :param path: The safe file.
    :param algorithm: Whose agent it is.
    :param vec_normalize: A wrapper, or the file of one: a pickle too.
    :param allow: As for :func:`save_safe`.
    :return: The path of the safe file.
    :raises ValueError: If the zip holds no such agent, or something cannot be written without pickle.
    """
    wrapper = load_vec_normalize(vec_normalize)
    return save_safe(load_agent(algorithm, Path(zip_path)), path, vec_normalize=wrapper, allow=allow)


def statistics_inside(path: str | Path) -> VecNormalize | None:
    """
    The statistics of ``VecNormalize`` in a safe file, around no environment; None if there are none.

    :param path: The safe file.
    :raises ValueError: As :func:`load_safe`.
    """
    agent = read_safe(path)
    return None if agent.vec_normalize is None else detached(agent.vec_normalize, agent.data["observation_space"])


def safe_to_sb3(path: str | Path, zip_path: str | Path, *, allow: Iterable[Any] = ()) -> Path:
    """
    Write the agent of a safe file as SB3 does, to be loaded by its ``load``.

    Statistics of ``VecNormalize`` are no part of it: :func:`load_safe_vec_normalize`, then ``save``.

    >>> safe_to_sb3("agent.safetensors", "agent.zip")  # doctest: +SKIP

    :param path: The safe file.
    :param zip_path: The other one.
    :param allow: As for :func:`load_safe`.
    :return: The path of SB3's file.
    :raises ValueError: As :func:`load_safe`, and if there is no safe file of that name.
    """
    path, zip_path = Path(path), Path(zip_path)
    if not is_safe_file(path):
        raise ValueError(f"{path}: expected the name of a safe file.")
    model = load_agent(BaseAlgorithm, path, allow=allow)  # type: ignore[type-abstract]
    with written_beside(zip_path) as beside:
        model.save(beside)
    return zip_path
