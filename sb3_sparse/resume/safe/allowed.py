"""
What a safe file may name: classes of torch, numpy, SB3, sb3-contrib and this package, and what the caller adds.

A name is looked up in a table and never imported. Three tables: algorithms, one of which the file is about; classes that may
be named inside, such as a policy; and those of which there may be instances, such as a schedule: an instance gets its
attributes from the file.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import sb3_contrib  # noqa: F401 (its classes are subclasses then)
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from torch import nn

# Imported so that their classes are there.
import sb3_sparse.drqv2
import sb3_sparse.rainbow
import sb3_sparse.replay
import sb3_sparse.simba
import sb3_sparse.streaming  # noqa: F401

_LIBRARIES = ("stable_baselines3", "sb3_contrib", "sb3_sparse")
_NUMBERS = (
    *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    *(np.float16, np.float32, np.float64, bool, int, float),
)
# None of them does anything when it is made or thrown away.
_INSTANCES: tuple[type, ...] = (
    *(ConstantSchedule, FloatSchedule, LinearSchedule, TrainFreq, TrainFrequencyUnit, GoalSelectionStrategy),
    *(NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise, RunningMeanStd),
)


def name_of(thing: Any) -> str:
    """The full name of a class or a function."""
    return f"{thing.__module__}.{thing.__qualname__}"


class Allowed:
    """
    The classes that files may name.

    :param extra: Classes and functions in addition, which are trusted whatever a file says they are called with.
    :raises ValueError: If one of them is neither, or has no name under which it can be found again.
    """

    def __init__(self, extra: Iterable[Any] = ()):
        # An algorithm that is called makes an environment by its name, which imports modules: none is to be found inside.
        self._algorithms = {name: kind for name, kind in _known_names().items() if _is_a(kind, BaseAlgorithm)}
        self._named = {name: kind for name, kind in _known_names().items() if name not in self._algorithms}
        self._instances: dict[str, type] = {name_of(kind): kind for kind in _INSTANCES}
        for thing in extra:
            name = getattr(thing, "__qualname__", "")
            if not name or "<lambda>" in name:
                raise ValueError(f"allow: {thing!r} is no class or function with a name.")
            if _is_a(thing, BaseAlgorithm):
                self._algorithms[name_of(thing)] = thing
                continue
            self._named[name_of(thing)] = thing
            if isinstance(thing, type):
                self._instances[name_of(thing)] = thing

    def has(self, thing: Any) -> bool:
        """Whether a class or function may be named inside of an agent."""
        return self._find(self._named, name_of(thing)) is thing

    def has_algorithm(self, kind: type) -> bool:
        """Whether there may be agents of an algorithm."""
        return self._algorithms.get(name_of(kind)) is kind

    def has_instances(self, kind: type) -> bool:
        """Whether there may be instances of a class."""
        return self._find(self._instances, name_of(kind)) is kind

    def named(self, name: Any) -> Any:
        """
        The class or function of a name.

        :raises ValueError: If it is not allowed.
        """
        if isinstance(name, str) and name in self._algorithms:
            raise ValueError(f"it names {name!r}, which is an algorithm, where no agent has one.")
        return self._required(self._named, name)

    def algorithm(self, name: Any) -> type[BaseAlgorithm]:
        """
        The algorithm of a name.

        :raises ValueError: If it is not allowed.
        """
        return self._required(self._algorithms, name, "algorithms")

    def instance_class(self, name: Any) -> type:
        """
        The class of a name, of which there may be instances.

        :raises ValueError: If it is not allowed.
        """
        return self._required(self._instances, name)

    def _required(self, table: dict[str, Any], name: Any, what: str = "classes") -> Any:
        found = self._find(table, name) if isinstance(name, str) else None
        if found is None:
            raise ValueError(
                f"it names {name!r}, which is not on the list of allowed {what}: if you trust it, import it and pass "
                "allow=[it], see docs/safe_files.md."
            )
        return found

    def _find(self, table: dict[str, Any], name: str) -> Any:
        return table[name] if name in table else _of_rl_zoo(name)


@cache
def _known_names() -> dict[str, Any]:
    known: set[type] = {*_INSTANCES, *_NUMBERS, RMSpropTFLike, nn.Identity, nn.Softplus, nn.Softsign}
    for base in (BaseAlgorithm, BaseModel, BaseFeaturesExtractor, BaseBuffer):
        known |= {kind for kind in _subclasses(base) if kind.__module__.partition(".")[0] in _LIBRARIES}
    known |= {kind for kind in vars(nn.modules.activation).values() if _is_a(kind, nn.Module)}
    known |= {kind for kind in vars(th.optim).values() if _is_a(kind, th.optim.Optimizer)}
    return {name_of(kind): kind for kind in known}


def _subclasses(base: type) -> set[type]:
    found = {base}
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        found |= _subclasses(kind)
    return found


def _is_a(thing: Any, base: type) -> bool:
    return isinstance(thing, type) and issubclass(thing, base)


def _of_rl_zoo(name: str) -> type | None:
    """The schedule that rl-zoo3 makes of ``"lin_0.001"``, if that is what is named."""
    if not name.endswith(".SimpleLinearSchedule"):
        return None
    # The adapter itself reads safe files; and rl-zoo3 takes seconds to import.
    from sb3_sparse.zoo.rl_zoo import SCHEDULE, part

    return part("utils.SimpleLinearSchedule") if name == SCHEDULE else None
