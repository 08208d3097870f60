"""Hyperparameter files: where ours are, and how the strings in them are read without running any of them."""

from importlib import resources
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_sparse.common.literals import parse_literal

# Hyperparameters that rl-zoo3 passes to Python's `eval` where they are strings.
EVALUATED_BY_RL_ZOO = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")
# Of the names that such strings may have there, those that mean something to an agent.
ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6", "SELU"),
    *("SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh"),
)
OPTIMIZERS = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")


def hyperparams_file(algo: str) -> Path | None:
    """The packaged YAML of an algorithm (``"sac"``), or None if there is none."""
    packaged = Path(str(resources.files("sb3_sparse"))) / "hyperparams"
    # In a checkout the folder lies beside the package; the wheel has it inside.
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "hyperparams"
    path = folder / f"{algo}.yml"
    return path if path.is_file() else None


def literal_names() -> dict[str, Any]:
    """The names that a hyperparameter may have which is read as a literal, and what they stand for."""
    names: dict[str, Any] = {"HerReplayBuffer": HerReplayBuffer, "RMSpropTFLike": RMSpropTFLike}
    names |= {f"{module}.{name}": getattr(th.nn, name) for module in ("nn", "th.nn", "torch.nn") for name in ACTIVATIONS}
    return names | {f"{module}.optim.{name}": getattr(th.optim, name) for module in ("th", "torch") for name in OPTIMIZERS}


def read_setting(name: str, value: Any) -> Any:
    """
    A hyperparameter, read as a literal where rl-zoo3 would evaluate it: where it is a string.

    :param name: What is set, for the error.
    :param value: As the file has it.
    :raises ValueError: If it is a string that is no literal.
    """
    return parse_literal(name, value, literal_names()) if isinstance(value, str) else value


def is_our_policy(policy: Any) -> bool:
    """Whether a hyperparameter names one of our policies."""
    return isinstance(policy, str) and policy.rpartition(".")[2].startswith("SparseSimBa")
