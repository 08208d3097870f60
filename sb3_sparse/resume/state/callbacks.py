"""What callbacks have counted and remember."""

import inspect
import pickle
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.warn import warn_user
from sb3_sparse.resume.environments.layers import CannotCapture
from sb3_sparse.resume.environments.vec_env import capture_env, left_out_of, restore_env
from sb3_sparse.resume.state.plain import is_plain, plain_attributes

# References, and what is the same in every run.
NO_STATE = ("model", "locals", "globals", "parent", "logger", "verbose", "callbacks", "callback")


@runtime_checkable
class HasCallbackState(Protocol):
    """A callback that remembers more than plain data in its attributes, and says it itself."""

    def get_state(self) -> Any:
        """What cannot be read from its attributes; it has to be picklable."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on with what :meth:`get_state` returned."""
        ...


def all_callbacks(callback: BaseCallback | None) -> Iterator[BaseCallback]:
    """A callback and those that it calls, in this order; none that only group, convert nothing, or show progress."""
    if callback is None:
        return
    is_empty = isinstance(callback, ConvertCallback) and callback.callback is None
    if not isinstance(callback, (CallbackList, ProgressBarCallback)) and not is_empty:
        yield callback
    for inner in (*getattr(callback, "callbacks", ()), *vars(callback).values()):
        if isinstance(inner, BaseCallback) and inner is not callback.parent:
            yield from all_callbacks(inner)


def capture_callbacks(callbacks: list[BaseCallback]) -> list[tuple[str, bytes]]:
    """
    :param callbacks: Of :func:`all_callbacks`.
    :return: Of each, what it is and its state.
    """
    return [(type(callback).__name__, pickle.dumps(_state(callback))) for callback in callbacks]


def restore_callbacks(callbacks: list[BaseCallback], states: list[tuple[str, bytes]]) -> None:
    """
    :param callbacks: Of :func:`all_callbacks`.
    :param states: Of :func:`capture_callbacks`.
    """
    for callback, (_, written) in zip(callbacks, states, strict=True):
        state = pickle.loads(written)
        settings = _settings(callback)
        before = state["settings"]
        # As bytes: arrays have no single answer to whether they are equal.
        others = [name for name in settings.keys() & before if pickle.dumps(settings[name]) != pickle.dumps(before[name])]
        if others:
            changes = ", ".join(f"{name}={settings[name]!r} instead of {before[name]!r}" for name in sorted(others))
            warn_user(f"{type(callback).__name__} goes on with {changes}: not exact where that matters.")
        vars(callback).update(state["attributes"])
        for name, env in _environments(callback).items():
            if state["environments"].get(name) is not None:
                # What is made at the first reset is there then.
                env.reset()
                restore_env(env, state["environments"][name])
        if "own" in state and isinstance(callback, HasCallbackState):
            callback.set_state(state["own"])


def check_callbacks(callbacks: list[BaseCallback], states: list[tuple[str, bytes]]) -> None:
    """
    :param callbacks: Of :func:`all_callbacks`.
    :param states: Of :func:`capture_callbacks`.
    :raises ValueError: If they are not of the same kinds, in the same order.
    """
    ours, theirs = [type(callback).__name__ for callback in callbacks], [name for name, _ in states]
    if ours != theirs:
        raise ValueError(
            f"callback: {ours or 'none'} given, the checkpoint is of a run with {theirs or 'none'}: pass the same."
        )


def _state(callback: BaseCallback) -> dict[str, Any]:
    settings = _settings(callback)
    state: dict[str, Any] = {
        "attributes": plain_attributes(callback, (*NO_STATE, *_parameters(type(callback)))),
        "settings": settings,
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
    """Plain data among the settings; folders and names may be others when a run goes on elsewhere."""
    attributes = vars(callback)
    names = (_parameters(type(callback)) & attributes.keys()) - {"verbose"}
    return {name: attributes[name] for name in names if is_plain(attributes[name]) and not isinstance(attributes[name], str)}
