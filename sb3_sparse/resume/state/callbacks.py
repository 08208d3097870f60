"""What callbacks have counted and remember."""

import copy
import inspect
import io
import os
import pickle
import re
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.warn import warn_user
from sb3_sparse.resume.environments.layers import CannotCapture
from sb3_sparse.resume.environments.vec_env import capture_env, left_out_of, restore_env
from sb3_sparse.resume.state.plain import is_from_library, is_plain, plain_attributes

# References, and what is the same in every run.
NO_STATE = ("model", "locals", "globals", "parent", "logger", "verbose", "callbacks", "callback")
_MUTABLE = (list, dict, set, deque, np.ndarray, np.random.Generator, np.random.RandomState)
# Last words of the names of settings that say where something is: other ones when a run goes on elsewhere.
_OF_PLACES = ("path", "dir", "directory", "folder", "file", "filename", "filepath", "logdir", "savedir", "prefix", "root")
# Names and states; earlier versions wrote each state by itself.
_Written = tuple[list[str], bytes] | list[tuple[str, bytes]]
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


def capture_callbacks(model: BaseAlgorithm, callbacks: list[BaseCallback], given: Given) -> tuple[list[str], bytes]:
    """
    All of them together: what they share, with each other or with the model, is one object again where the run goes on.

    :param model: The model.
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param given: The settings with which they began.
    :return: What each of them is, and their states.
    """
    file, of_the_model = io.BytesIO(), _of_the_model(model)
    _Pickler(file, of_the_model).dump([_state(callback, given.of(callback)) for callback in callbacks])
    return [type(callback).__name__ for callback in callbacks], file.getvalue()


def _of_the_model(model: BaseAlgorithm) -> dict[tuple[str, str, int], Any]:
    """What callbacks may hold, too, of a model and its buffers: large, and written with these."""
    found = {"model": plain_attributes(model)}
    if (buffer := getattr(model, "replay_buffer", None)) is not None:
        found["replay_buffer"] = vars(buffer)
    buffer = getattr(model, "rollout_buffer", None)
    # What a library's own holds is made anew for each rollout.
    if buffer is not None and not is_from_library(type(buffer)):
        found["rollout_buffer"] = plain_attributes(buffer)
    return {
        (owner, name, i): inside
        for owner, attributes in found.items()
        for name, value in attributes.items()
        for i, (inside, _) in enumerate(_alike(value, value))
    }


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, known: dict[tuple[str, str, int], Any]):
        super().__init__(file, protocol=5)
        self._names = {id(value): name for name, value in known.items()}

    def persistent_id(self, value: Any) -> tuple[str, str, int] | None:
        return self._names.get(id(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: dict[tuple[str, str, int], Any]):
        super().__init__(file)
        self._known = known

    def persistent_load(self, name: tuple[str, str, int]) -> Any:
        return self._known[name]


def restore_callbacks(model: BaseAlgorithm, callbacks: list[BaseCallback], written: _Written, given: Given) -> None:
    """
    :param model: The model, which has its values already.
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param written: Of :func:`capture_callbacks`.
    :param given: The settings with which they began.
    :raises ValueError: If an environment of one of them is another one.
    """
    known = _of_the_model(model)
    of_the_model = {id(value): value for value in known.values()}
    if isinstance(written, tuple):
        states = _Unpickler(io.BytesIO(written[1]), known).load()
    else:
        states = [pickle.loads(state) for _, state in written]
    # Settings that stay: who had a part of one in the run has it again.
    stays: dict[int, Any] = {}
    values = []
    for callback, state in zip(callbacks, states, strict=True):
        changed, kept = _settings_of_two(callback, given.of(callback), state)
        for name, now in kept.items():
            then = state["settings"][name]
            if id(then) in of_the_model:
                changed[name] = then
            else:
                stays.update((id(one), other) for one, other in _alike(then, now))
        values.append({**state["attributes"], **changed})
    # What is in it is no copy.
    memo = stays | of_the_model
    for callback, state, attributes in zip(callbacks, states, values, strict=True):
        vars(callback).update(copy.deepcopy(attributes, memo))
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


def check_callbacks(callbacks: list[BaseCallback], written: _Written) -> None:
    """
    :param callbacks: Of :func:`~sb3_sparse.common.sb3_models.all_callbacks`.
    :param written: Of :func:`capture_callbacks`.
    :raises ValueError: If they are not of the same kinds, in the same order.
    """
    ours = [type(callback).__name__ for callback in callbacks]
    theirs = written[0] if isinstance(written, tuple) else [name for name, _ in written]
    if ours != theirs:
        raise ValueError(
            f"callback: {ours or 'none'} given, the checkpoint is of a run with {theirs or 'none'}: pass the same."
        )


def _state(callback: BaseCallback, given: dict[str, bytes]) -> dict[str, Any]:
    state: dict[str, Any] = {
        "attributes": plain_attributes(callback, (*NO_STATE, *_parameters(type(callback)))),
        "given": given,
        "settings": _settings(callback),
        "environments": {name: _captured(callback, name, env) for name, env in _environments(callback).items()},
    }
    if isinstance(callback, HasCallbackState):
        state["own"] = callback.get_state()
    return state


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


def _settings_of_two(
    callback: BaseCallback, given: dict[str, bytes], state: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Settings that were never changed are those of the callback that goes on.

    :return: What the run has changed, and is to be put back; and what is as it was in the run.
    """
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
    put_back, kept = {}, {}
    ours = _settings(callback)
    now = _as_bytes(ours)
    for name, value in _as_bytes(then).items():
        if _same(value, now.get(name)):
            kept[name] = ours[name]
        elif "given" in state and (name in changed or not (name in others or _is_place(name, then[name]))):
            put_back[name] = then[name]
    return put_back, kept


def _alike(then: Any, now: Any) -> Iterator[tuple[Any, Any]]:
    """Of two equal values, what can change in one of them, each with what is at the same place in the other."""
    pending, seen = [(then, now)], set()
    while pending:
        one, other = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, _MUTABLE):
            yield one, other
        if isinstance(one, dict):
            pending.extend(zip(one.values(), other.values(), strict=True))
        elif isinstance(one, (list, tuple, deque)):
            pending.extend(zip(one, other, strict=True))


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


def _without_sets(value: Any, around: tuple[int, ...] = ()) -> Any:
    if id(value) in around:
        # A tree knows its parents.
        return "around", around.index(id(value))
    around += (id(value),)
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(pickle.dumps(_without_sets(each, around)) for each in value)
    if type(value) in (list, tuple):
        return [type(value).__name__, *(_without_sets(each, around) for each in value)]
    return {name: _without_sets(each, around) for name, each in value.items()} if type(value) is dict else value
