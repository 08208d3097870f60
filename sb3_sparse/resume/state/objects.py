"""
What objects of users hold besides plain data: networks, optimizers, schedulers, counters and anything that pickle can write.

A subclass of an algorithm has attributes of its own, and so have policies, extractors, buffers, noises and callbacks. All of
them are written together, so that what they share stays shared. The parts that a run consists of anyway (networks,
environments and so on) are written elsewhere, and found again in the run that goes on. What cannot be written is named.
"""

import io
import pickle
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from sb3_sparse.resume.environments.layers import NOT_IN_PIECES, UNPICKLABLE, layers_of
from sb3_sparse.resume.environments.vec_env import vec_layers
from sb3_sparse.resume.state.callbacks import NO_STATE, HasCallbackState
from sb3_sparse.resume.state.plain import is_code, is_from_library, is_plain

_OF_LIBRARIES = (VecEnv, BaseCallback, Logger, KVWriter, gym.Space, th.device, th.dtype)
_COLLECTIONS = (list, tuple, dict, set)
# Networks are not looked for in what is nested deeper, or in itself.
_MAX_DEPTH = 4
_OF_ALL_MODULES = frozenset(vars(nn.Module()))


@runtime_checkable
class HasStateDict(Protocol):
    """Networks, optimizers, schedulers of learning rates: of torch, or like those."""

    def state_dict(self) -> Any:
        """What it has learned and counted."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Go on from there, in place."""
        ...


class _Owner(NamedTuple):
    """Somebody with attributes."""

    value: Any
    with_plain: bool
    """Whether plain data is written here, too."""
    is_own: bool
    """Whether what it holds is its own, of whatever class."""
    without: frozenset[str] = frozenset()


def capture_objects(model: BaseAlgorithm, callbacks: list[BaseCallback]) -> tuple[bytes, list[str]]:
    """
    :param model: The model.
    :param callbacks: Those of the run.
    :return: The state of what they hold, and what of it could not be written, as ``Class.attribute``.
    """
    known = {id(value): name for name, value in _landmarks(model, callbacks).items()}
    taken: dict[str, dict[str, Any]] = {}
    left = [f"{type(each).__name__} of a function" for each in callbacks if _is_function_with_state(each, known)]
    for name, owner in _owners(model, callbacks).items():
        taken[name] = {}
        for attribute, value in _attributes(owner, known).items():
            try:
                part = _take(value)
                _dumps(part, known)
            except UNPICKLABLE:
                left.append(f"{type(owner.value).__name__}.{attribute}")
            else:
                taken[name][attribute] = part
    return _dumps(taken, known), sorted(set(left))


def restore_objects(model: BaseAlgorithm, callbacks: list[BaseCallback], state: bytes) -> None:
    """
    Put back what :func:`capture_objects` took.

    :param model: The model.
    :param callbacks: Those of the run.
    :param state: The first that it returned.
    :raises ValueError: If something is not there to be put back into.
    """
    owners = _owners(model, callbacks)
    for name, parts in _Unpickler(io.BytesIO(state), _landmarks(model, callbacks)).load().items():
        owner = owners[name].value
        for attribute, part in parts.items():
            try:
                vars(owner)[attribute] = _put(vars(owner).get(attribute), part)
            except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{type(owner).__name__}.{attribute} is not what it was in the run, and cannot go on as that: {error}"
                ) from error


def _owners(model: BaseAlgorithm, callbacks: list[BaseCallback]) -> dict[str, _Owner]:
    found = {"model": _Owner(model, with_plain=False, is_own=False)}
    for name, module in model.policy.named_modules():
        if not is_from_library(type(module)) and not type(module).__module__.startswith("torch."):
            found[f"module {name}"] = _Owner(module, with_plain=True, is_own=False, without=_OF_ALL_MODULES)
    rollouts = getattr(model, "rollout_buffer", None)
    if rollouts is not None and not is_from_library(type(rollouts)):
        found["rollouts"] = _Owner(rollouts, with_plain=True, is_own=True)
    if model.action_noise is not None:
        found["noise"] = _Owner(model.action_noise, with_plain=True, is_own=True)
    for i, callback in enumerate(callbacks):
        if not is_from_library(type(callback)) and not isinstance(callback, HasCallbackState):
            found[f"callback {i}"] = _Owner(callback, with_plain=False, is_own=False, without=frozenset(NO_STATE))
    return found


def _attributes(owner: _Owner, known: dict[int, str]) -> dict[str, Any]:
    found = {}
    # A library's own collections are known; a schedule in an attribute of it may be a user's.
    is_library = is_from_library(type(owner.value))
    for name, value in vars(owner.value).items():
        if name in owner.without or id(value) in known or is_code(value, known):
            continue
        if is_plain(value):
            if owner.with_plain:
                found[name] = value
        elif owner.is_own or not (_is_seen_to(value, known) or (is_library and type(value) in _COLLECTIONS)):
            found[name] = value
    return found


def _is_seen_to(value: Any, known: dict[int, str]) -> bool:
    """Whether what a value of a library holds is written elsewhere, or nothing."""
    if isinstance(value, FloatSchedule):
        return is_code(value.value_schedule, known) or _is_seen_to(value.value_schedule, known)
    return isinstance(value, _OF_LIBRARIES) or is_from_library(type(value))


def _is_function_with_state(callback: BaseCallback, known: dict[int, str]) -> bool:
    return isinstance(callback, ConvertCallback) and callback.callback is not None and not is_code(callback.callback, known)


def _landmarks(model: BaseAlgorithm, callbacks: list[BaseCallback]) -> dict[str, Any]:
    """What a run consists of anyway, by names that are the same in the run that goes on."""
    names, variables = model._get_torch_save_params()
    found: dict[str, Any] = {"model": model, "logger": model.logger, "noise": model.action_noise}
    found |= {name: getattr(model, name, None) for name in ("replay_buffer", "rollout_buffer")}
    found |= {f"part {name}": recursive_getattr(model, name) for name in (*names, *variables)}
    found |= {f"module {name}": module for name, module in model.policy.named_modules()}
    found |= {f"tensor {name}": each for name, each in (*model.policy.named_parameters(), *model.policy.named_buffers())}
    found |= {f"callback {i}": callback for i, callback in enumerate(callbacks)}
    env = model.get_env()
    assert env is not None
    found |= {f"env {i}": layer for i, layer in enumerate(vec_layers(env))}
    base = vec_layers(env)[-1]
    if isinstance(base, DummyVecEnv):
        for i, inner in enumerate(base.envs):
            found |= {f"env {i} layer {j}": layer for j, layer in enumerate(layers_of(inner))}
    return {name: value for name, value in found.items() if value is not None}


def _take(value: Any) -> tuple[str, Any]:
    """A value, or states of what is in it, which cannot be made from them."""
    if isinstance(value, HasStateDict) and not isinstance(value, type):
        gradients = [each.requires_grad for each in value.parameters()] if isinstance(value, nn.Module) else None
        return "state", (value.state_dict(), gradients)
    if type(value) in (list, tuple, dict) and any(map(_has_state_dict, _inside(value))):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        return "each", (type(value), {key: _take(value[key]) for key in keys})
    return "value", value


def _put(live: Any, part: tuple[str, Any]) -> Any:
    kind, content = part
    if kind == "value":
        return content
    if kind == "state":
        state, gradients = content
        live.load_state_dict(state)
        if gradients is not None:
            for parameter, gradient in zip(live.parameters(), gradients, strict=True):
                parameter.requires_grad_(gradient)
        return live
    made, parts = content
    if type(live) is not made or len(live) != len(parts):
        raise ValueError(f"expected a {made.__name__} of {len(parts)}")
    found = {key: _put(live[key], inner) for key, inner in parts.items()}
    if made is tuple:
        return tuple(found.values())
    for key, inner in found.items():
        live[key] = inner
    return live


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _has_state_dict(value: Any, depth: int = 0) -> bool:
    if type(value) in (list, tuple, dict):
        return depth < _MAX_DEPTH and any(_has_state_dict(each, depth + 1) for each in _inside(value))
    return isinstance(value, HasStateDict) and not isinstance(value, type)


def _dumps(value: Any, known: dict[int, str]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, known).dump(value)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, known: dict[int, str]):
        super().__init__(file, protocol=5)
        self._known = known

    def persistent_id(self, value: Any) -> str | None:
        return self._known.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        # A copy would be a network that no optimizer knows of, or an environment that nobody steps.
        if isinstance(value, (nn.Module, th.optim.Optimizer, nn.Parameter, *NOT_IN_PIECES)):
            raise pickle.PicklingError(f"a {type(value).__name__} inside of something else would be another one")
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, landmarks: dict[str, Any]):
        super().__init__(file)
        self._landmarks = landmarks

    def persistent_load(self, name: str) -> Any:
        return self._landmarks[name]
