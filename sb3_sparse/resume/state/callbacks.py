"""What callbacks have counted and remember."""

import inspect
import os
import pickle
import re
from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.warn import warn_user
from sb3_sparse.resume.environments.layers import CannotCapture
from sb3_sparse.resume.environments.vec_env import capture_env, left_out_of, restore_env
from sb3_sparse.resume.state.plain import is_plain, plain_attributes

# References, and what is the same in every run.
NO_STATE = ("model", "locals", "globals", "parent", "logger", "verbose", "callbacks", "callback")
_MUTABLE = (list, dict, set, deque, np.ndarray)
# Last words of the names of settings that say where something is: other ones when a run goes on elsewhere.
_OF_PLACES = ("path", "dir", "directory", "folder", "file", "filename", "filepath", "logdir", "savedir", "prefix", "root")
_BEGINS_A_PATH = re.compile(r"((\w:|~\w*|\.\.?)?[/\\]|\w+://).")


@runtime_checkable
class HasCallbackState(Protocol):
    """A callback that remembers more than plain data in its attributes, and says it itself."""

    def get_state(self) -> Any:
        """What cannot be read from its attributes; it has to be picklable."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on with what :meth:`get_state` returned."""
        ...


class Given:
    """The settings with which callbacks began: what has another value later is state, and goes on with the run."""

    def __init__(self) -> None:
        # The callbacks are kept, so that no other one gets the same `id`.
        self._of: dict[int, tuple[BaseCallback, dict[str, bytes]]] = {}
        self._settled: set[int] = set()

    def add(self, callbacks: list[BaseCallback]) -> None:
        """
        Before the callbacks do something. Those that are known began earlier.

        :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
        """
        for callback in callbacks:
            self._of.setdefault(id(callback), (callback, _as_bytes(_settings(callback))))

    def settle(self, callbacks: list[BaseCallback]) -> None:
        """
        When training has started: folders that are made of other folders then are made anew where the run goes on.

        :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
        """
        for callback in callbacks:
            if id(callback) in self._of and id(callback) not in self._settled:
                settings = _settings(callback)
                places = {name: value for name, value in settings.items() if _is_place(name, value)}
                self._of[id(callback)][1].update(_as_bytes(places))
                self._settled.add(id(callback))

    def of(self, callback: BaseCallback) -> dict[str, bytes]:
        """
        Of a callback that nobody saw before training, nothing.

        :param callback: The callback.
        """
        return self._of.get(id(callback), (callback, {}))[1]


def capture_callbacks(model: BaseAlgorithm, callbacks: list[BaseCallback], given: Given) -> list[tuple[str, bytes]]:
    """
    :param model: The model.
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param given: The settings with which they began.
    :return: Of each, what it is and its state.
    """
    # Of the buffer: large, and written with it.
    arrays = {id(value) for value in vars(getattr(model, "replay_buffer", None) or Given()).values()}
    states = [_state(callback, given.of(callback), arrays) for callback in callbacks]
    return [(type(callback).__name__, pickle.dumps(state)) for callback, state in zip(callbacks, states, strict=True)]


def capture_shared(model: BaseAlgorithm, callbacks: list[BaseCallback]) -> list[list[tuple[str, str]]]:
    """
    Which attributes of callbacks are one collection or array with others, of the model or its buffer too: each is written
    with its owner, and would be one of its own in the run that goes on.

    :param model: The model.
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :return: Owners and names of attributes, those of the model first.
    """
    found: dict[int, list[tuple[str, str]]] = {}
    for owner, attributes in _owners(model, callbacks).items():
        for name, value in attributes.items():
            if isinstance(value, _MUTABLE) and name not in NO_STATE:
                found.setdefault(id(value), []).append((owner, name))
    return [places for places in found.values() if len(places) > 1 and places[-1][0].startswith("callback")]


def restore_shared(model: BaseAlgorithm, callbacks: list[BaseCallback], shared: list[list[tuple[str, str]]]) -> None:
    """
    Make them one again, when all of them have their values.

    :param model: The model.
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param shared: Of :func:`capture_shared`.
    """
    owners = _owners(model, callbacks)
    for (owner, name), *others in shared:
        for other, their_name in others if name in owners[owner] else ():
            owners[other][their_name] = owners[owner][name]


def _owners(model: BaseAlgorithm, callbacks: list[BaseCallback]) -> dict[str, dict[str, Any]]:
    parts = {"model": model, **{name: getattr(model, name, None) for name in ("replay_buffer", "rollout_buffer")}}
    parts |= {f"callback {i}": callback for i, callback in enumerate(callbacks)}
    return {name: vars(part) for name, part in parts.items() if part is not None}


def restore_callbacks(callbacks: list[BaseCallback], states: list[tuple[str, bytes]], given: Given) -> None:
    """
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param states: Of :func:`capture_callbacks`.
    :param given: The settings with which they began.
    :raises ValueError: If an environment of one of them is another one.
    """
    for callback, (_, written) in zip(callbacks, states, strict=True):
        state = pickle.loads(written)
        _restore_settings(callback, given.of(callback), state)
        vars(callback).update(state["attributes"])
        for name, env in _environments(callback).items():
            if state["environments"].get(name) is not None:
                # What is made at the first reset is there then.
                env.reset()
                try:
                    restore_env(env, state["environments"][name])
                except CannotCapture as error:
                    where = f"{type(callback).__name__}.{name}"
                    raise ValueError(f"{where}: {error}. Pass the callback with the environment that it had.") from error
        if "own" in state and isinstance(callback, HasCallbackState):
            callback.set_state(state["own"])


def check_callbacks(callbacks: list[BaseCallback], states: list[tuple[str, bytes]]) -> None:
    """
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param states: Of :func:`capture_callbacks`.
    :raises ValueError: If they are not of the same kinds, in the same order.
    """
    ours, theirs = [type(callback).__name__ for callback in callbacks], [name for name, _ in states]
    if ours != theirs:
        raise ValueError(
            f"callback: {ours or 'none'} given, the checkpoint is of a run with {theirs or 'none'}: pass the same."
        )


def _state(callback: BaseCallback, given: dict[str, bytes], arrays: set[int]) -> dict[str, Any]:
    attributes = plain_attributes(callback, (*NO_STATE, *_parameters(type(callback))))
    state: dict[str, Any] = {
        "attributes": {name: value for name, value in attributes.items() if not _is_array_in(arrays, value)},
        "given": given,
        "settings": _settings(callback),
        "environments": {name: _captured(callback, name, env) for name, env in _environments(callback).items()},
    }
    if isinstance(callback, HasCallbackState):
        state["own"] = callback.get_state()
    return state


def _is_array_in(arrays: set[int], value: Any) -> bool:
    return isinstance(value, np.ndarray) and id(value) in arrays


def _captured(callback: BaseCallback, name: str, env: VecEnv) -> dict[str, Any] | None:
    try:
        state = capture_env(env)
        if left := left_out_of(env, state):
            warn_user(f"{type(callback).__name__}.{name}: not exact if it matters: {', '.join(left)} cannot be written.")
        return state
    except CannotCapture as error:
        warn_user(f"{type(callback).__name__}.{name} goes on with an environment of its own, not exact: {error}.")
        return None


def _environments(callback: BaseCallback) -> dict[str, VecEnv]:
    return {name: value for name, value in vars(callback).items() if isinstance(value, VecEnv) and name != "training_env"}


def _parameters(kind: type) -> set[str]:
    """What the constructors of a class are given: settings, of which a new object has its own."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            found |= inspect.signature(vars(base)["__init__"]).parameters.keys()
    return found


def _settings(callback: BaseCallback) -> dict[str, Any]:
    """Plain data among what is called like an argument of the constructor, as it is now."""
    attributes = vars(callback)
    names = (_parameters(type(callback)) & attributes.keys()) - {*NO_STATE}
    return {name: attributes[name] for name in names if is_plain(attributes[name])}


def _restore_settings(callback: BaseCallback, given: dict[str, bytes], state: dict[str, Any]) -> None:
    """Put back what the run has changed; settings that were never changed are those of the callback that goes on."""
    then = state["settings"]
    # Checkpoints of earlier versions do not say what was given: nothing of it counts as changed.
    given_then = state.get("given", _as_bytes(then))
    changed = {name for name, value in _as_bytes(then).items() if not _same(value, given_then.get(name))}
    others = {
        name
        for name in given.keys() & given_then
        if not _same(given[name], given_then[name]) and not _is_place(name, pickle.loads(given_then[name]))
    }
    _say_others(callback, given, others, changed, state)
    now = _as_bytes(_settings(callback))
    for name, value in _as_bytes(then).items():
        is_state = name in changed or not (name in others or _is_place(name, then[name]))
        # What is the same stays the same object, which others may know.
        if is_state and not _same(value, now.get(name)) and "given" in state:
            vars(callback)[name] = then[name]


def _say_others(
    callback: BaseCallback, given: dict[str, bytes], others: set[str], changed: set[str], state: dict[str, Any]
) -> None:
    kind, then = type(callback).__name__, state["settings"]
    ours = {name: pickle.loads(given[name]) for name in sorted(others)}
    if kept := [
        f"{name}={value!r} instead of {then[name]!r}" for name, value in ours.items() if name in then.keys() - changed
    ]:
        warn_user(f"{kind} goes on with {', '.join(kept)}: not exact where that matters.")
    if lost := [f"{name}={then[name]!r}, not {value!r}" for name, value in ours.items() if name in changed]:
        warn_user(f"{kind} goes on with {', '.join(lost)}: the run has changed it, and began with another value than given.")


def _is_place(name: str, value: Any) -> bool:
    """Whether a setting is text that says where something is."""
    # Of other names only what can be nothing else: "train/loss" may be a series of the logger.
    return isinstance(value, (str, bytes)) and (
        name.lower().rpartition("_")[2] in _OF_PLACES or _BEGINS_A_PATH.match(os.fsdecode(value)) is not None
    )


def _as_bytes(values: dict[str, Any]) -> dict[str, bytes]:
    # Arrays have no single answer to whether they are equal, and lists change in place.
    return {name: pickle.dumps(value) for name, value in values.items()}


def _same(first: bytes, second: bytes | None) -> bool:
    """Whether two settings are equal. Sets have another order in another process."""
    return second is not None and (first == second or _ordered(first) == _ordered(second))


def _ordered(written: bytes) -> bytes:
    return pickle.dumps(_without_sets(pickle.loads(written)))


def _without_sets(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(pickle.dumps(_without_sets(each)) for each in value)
    if type(value) in (list, tuple):
        return [type(value).__name__, *map(_without_sets, value)]
    return {name: _without_sets(each) for name, each in value.items()} if type(value) is dict else value
