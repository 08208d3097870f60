"""Saved agents, loaded for looking at them: without a replay buffer."""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse.resume.safe.agents import is_safe_file, read_safe
from sb3_sparse.streaming.base.files import fitting_algorithms, library_algorithms

#: What a zip that is damaged, or of something else, raises when it is read as an agent.
UNREADABLE = (
    *(AttributeError, AssertionError, ImportError, KeyError, TypeError, ValueError, RuntimeError),
    *(EOFError, IndexError, pickle.UnpicklingError, zipfile.BadZipFile),
)


def load_agent(algorithm: type[BaseAlgorithm], path: Path, device: str = "cpu", allow: Iterable[Any] = ()) -> BaseAlgorithm:
    """
    A saved agent, without allocating its replay buffer: of a safe file, or of SB3's zip, which is a pickle.

    :param algorithm: The class that saved it.
    :param path: The file.
    :param device: Where its networks are put.
    :param allow: What a safe file may name in addition.
    :raises ValueError: If the file is none of this algorithm.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    if is_safe_file(path):
        agent = read_safe(path, algorithm=algorithm, allow=allow)
        small = without_buffer(agent.algorithm)
        model, data = agent.build(device=device, **small), agent.data
    else:
        small = without_buffer(algorithm)
        model, data = _load_zip(algorithm, path, device, small)
    # What is exported as an agent of SB3 goes on with the buffer that it had.
    for name in small:
        if name in data:
            setattr(model, name, data[name])
    return model


def _load_zip(
    algorithm: type[BaseAlgorithm], path: Path, device: str, small: dict[str, Any]
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    try:
        data, _, variables = load_from_zip_file(path, device="cpu")
        check_algorithm(algorithm, data or {})
        model = algorithm.load(path, device=device, **small)
        # SB3 itself goes on without them, with a temperature that was never learned.
        if missing := set(model._get_torch_save_params()[1]) - (variables or {}).keys():
            raise ValueError(f"pytorch_variables.pth is missing in it, or has no {sorted(missing)}")
    except UNREADABLE as error:
        raise ValueError(f"{path} is no agent of {algorithm.__name__}: {type(error).__name__}: {error}") from error
    return model, data or {}


def check_algorithm(algorithm: type[BaseAlgorithm], data: dict[str, Any]) -> None:
    """
    See whether an agent is of an algorithm: some of SB3's load each other's without a word, as SAC and TQC, or PPO and A2C.

    :param algorithm: One that may load it. Only those of SB3 and sb3-contrib are asked for: ours look themselves.
    :param data: What SB3's file of the agent holds, but for its tensors.
    :raises ValueError: If it is of another one.
    """
    known = library_algorithms()
    fitting = fitting_algorithms(data.get("policy_class"), data, known)
    if algorithm in known and fitting and algorithm not in fitting:
        holds = " or ".join(kind.__name__ for kind in fitting)
        raise ValueError(f"it holds an agent of {holds}: expected one of {algorithm.__name__}, or --algo for {holds}")


def without_buffer(algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """Keywords of ``load`` by which no replay buffer is allocated, nor asked for the environment that a HER buffer needs."""
    if not issubclass(algorithm, OffPolicyAlgorithm):
        return {}
    small: dict[str, Any] = {
        "buffer_size": 1,
        "replay_buffer_class": None,
        "replay_buffer_kwargs": {},
        "optimize_memory_usage": False,
    }
    # Rainbow takes no other kind of buffer than it has, and needs none: a small one of that kind is made.
    return {name: value for name, value in small.items() if name not in getattr(algorithm, "fixed_keywords", ())}
