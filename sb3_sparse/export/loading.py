"""Saved agents, loaded for looking at them: without a replay buffer."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file


def load_agent(algorithm: type[BaseAlgorithm], path: Path) -> BaseAlgorithm:
    """
    A saved agent, without allocating its replay buffer.

    :raises ValueError: If the file is none of this algorithm.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    small = without_buffer(algorithm)
    try:
        data, _, _ = load_from_zip_file(path, device="cpu")
        model = algorithm.load(path, device="cpu", **small)
    except (AttributeError, AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no agent of {algorithm.__name__}: {type(error).__name__}: {error}") from error
    # What is exported as an agent of SB3 goes on with the buffer that it had.
    for name in small:
        if data is not None and name in data:
            setattr(model, name, data[name])
    return model


def without_buffer(algorithm: type[BaseAlgorithm]) -> dict[str, Any]:
    """Keywords of ``load`` by which no replay buffer is allocated, nor asked for the environment that a HER buffer needs."""
    if not issubclass(algorithm, OffPolicyAlgorithm):
        return {}
    small = {"buffer_size": 1, "replay_buffer_class": None, "replay_buffer_kwargs": {}, "optimize_memory_usage": False}
    # Rainbow keeps the kind of its buffer.
    fixed: frozenset[str] = getattr(algorithm, "fixed_keywords", frozenset())
    return {name: value for name, value in small.items() if name not in fixed}
