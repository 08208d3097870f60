"""Hyperparameter files: where ours are, and how the strings in them are read without running any of them."""

import difflib
import importlib.util
import inspect
from importlib import resources
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_sparse.common.literals import parse_literal
from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.rainbow import Rainbow
from sb3_sparse.replay import FrameReplayBuffer, PrioritizedReplayBuffer
from sb3_sparse.zoo.rl_zoo import part

# Hyperparameters that rl-zoo3 passes to Python's `eval` where they are strings.
EVALUATED_BY_RL_ZOO = ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs", "normalize")
# Of the names that such strings may have there, those that mean something to an agent.
ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "Mish", "PReLU", "ReLU", "ReLU6", "SELU"),
    *("SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh"),
)
OPTIMIZERS = ("ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD")
# Replay buffers of ours, for `replay_buffer_class`, by their short names and by those to import.
BUFFERS = {
    f"{module}{kind.__name__}": kind for module in ("", "sb3_sparse.") for kind in (FrameReplayBuffer, PrioritizedReplayBuffer)
}
# The names of Rainbow, and of what is Rainbow with other defaults.
RAINBOWS = ("rainbow", "der")
# Algorithms of ours whose policies have SB3's names.
_NAMED_AS_SB3S: dict[str, type[BaseAlgorithm]] = {**dict.fromkeys(RAINBOWS, Rainbow), "drqv2": DrQv2}

# What may be named by its place to import.
_CLASSES: dict[str, tuple[type, ...]] = {
    "policy": (BaseModel,),
    "env_wrapper": (gym.Wrapper,),
    "vec_env_wrapper": (VecEnvWrapper,),
    "callback": (BaseCallback,),
}
# What is no keyword of an algorithm's either: rl-zoo3 makes `action_noise` of it, once it has seen the environment.
NOISE_OF_RL_ZOO = ("noise_type", "noise_std")


class WrongSettingError(ValueError):
    """What a user has set is a mistake, as was seen before anything was built: a command says no more than this."""


def check_config(config: str) -> None:
    """
    See whether there are such hyperparameters as ``-conf`` names: a file, or a module that can be imported.

    :raises WrongSettingError: If there are none.
    """
    wrong = f"hyperparameters of {config!r}"
    if config.endswith((".yml", ".yaml", ".py")):
        if not Path(config).is_file():
            raise WrongSettingError(f"{wrong}: there is no such file.")
        return
    try:
        found = importlib.util.find_spec(config)
    except (ModuleNotFoundError, ValueError) as error:
        raise WrongSettingError(f"{wrong}: {error}.") from error
    if found is None:
        raise WrongSettingError(f"{wrong}: expected a file .yml, .yaml or .py, or a module that can be imported.")


def check_names(algorithm: type[BaseAlgorithm], hyperparams: dict[str, Any]) -> None:
    """
    See whether hyperparameters, without those that rl-zoo3 itself takes, are keywords of an algorithm.

    :raises WrongSettingError: If one is not.
    """
    known = _keywords(algorithm)
    for name, value in hyperparams.items():
        if name in known or name in NOISE_OF_RL_ZOO:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        keyword = name.removeprefix("policy_kwargs.")
        raise WrongSettingError(
            f"unknown hyperparameter {name!r}: {algorithm.__name__} has no such keyword."
            + (f" Did you mean {close[0]!r}?" if close and keyword == name else "")
            + f' A keyword of the policy is given as -params "policy_kwargs:dict({keyword}={value!r})".'
        )


def check_classes(hyperparams: dict[str, Any]) -> None:
    """
    See whether what hyperparameters name by its place to import is of the kind that belongs there: rl-zoo3 calls it.

    :raises WrongSettingError: If it is something else, or missing.
    """
    for name, kinds in _CLASSES.items():
        value = hyperparams.get(name)
        if name == "policy" and (not isinstance(value, str) or "." not in value):
            continue
        for entry in value if isinstance(value, list) else [value]:
            place = next(iter(entry), None) if isinstance(entry, dict) else entry
            if place is None:
                continue
            try:
                found = named_class(place)
            except WrongSettingError as error:
                raise WrongSettingError(f"{name}: {error}") from error
            if not isinstance(found, type) or not issubclass(found, kinds):
                expected = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
                raise WrongSettingError(f"{name}: {place!r} is no class of {expected}.")


def named_class(place: str) -> Any:
    """
    What a setting such as ``"stable_baselines3.common.callbacks.CheckpointCallback"`` stands for.

    :raises WrongSettingError: If there is no such thing.
    """
    try:
        return part("utils.get_class_by_name")(place)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise WrongSettingError(f"{place!r} cannot be imported ({error}).") from error


def _keywords(algorithm: type[BaseAlgorithm]) -> set[str]:
    """What the constructor takes by name, and the parents' constructors, where ``**kwargs`` go on to them."""
    names: set[str] = set()
    for kind in algorithm.__mro__:
        constructor = vars(kind).get("__init__")
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters.values()
        names |= {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    return names - {"self"}


def hyperparams_file(algo: str) -> Path | None:
    """The packaged YAML of an algorithm (``"sac"``), or None if there is none."""
    packaged = Path(str(resources.files("sb3_sparse"))) / "hyperparams"
    # In a checkout the folder lies beside the package; the wheel has it inside.
    folder = packaged if packaged.is_dir() else packaged.parent.parent / "hyperparams"
    path = folder / f"{algo}.yml"
    return path if path.is_file() else None


def literal_names() -> dict[str, Any]:
    """The names that a hyperparameter may have which is read as a literal, and what they stand for."""
    names: dict[str, Any] = {"HerReplayBuffer": HerReplayBuffer, "RMSpropTFLike": RMSpropTFLike, **BUFFERS}
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


def is_our_policy(algo: str, policy: Any) -> bool:
    """
    Whether a hyperparameter names one of our policies: of SimBa, or of Rainbow or DrQ-v2, which have theirs under SB3's names.

    :param algo: Name of the algorithm.
    :param policy: What is set.
    """
    if not isinstance(policy, str):
        return False
    return policy.rpartition(".")[2].startswith(("SparseSimBa", "Rainbow", "DrQv2")) or (
        algo in _NAMED_AS_SB3S and policy in _NAMED_AS_SB3S[algo].policy_aliases
    )
