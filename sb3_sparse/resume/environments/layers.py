"""
The state of an environment with its wrappers, as bytes.

Each layer says its state itself (``get_state`` and ``set_state``), or it is what its attributes hold. All layers are written
together, so that what they share stays shared; what belongs to how the environment is built (the layers themselves,
spaces, functions, windows) is left as it is in the environment that goes on. Whether that is enough is found out by a test,
see ``vec_env.py``.
"""

import inspect
import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_sparse.resume.environments.native import capture_native, is_native, restore_native
from sb3_sparse.resume.state.plain import is_code
from sb3_sparse.resume.state.random_state import capture_space, restore_space


@runtime_checkable
class HasState(Protocol):
    """
    An environment, or a wrapper, that says its state itself.

    Without the generator ``np_random`` and those of its spaces, which are seen to.
    """

    def get_state(self) -> Any:
        """What it needs to make the same steps again; of a wrapper, without what is inside. It has to be picklable."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on from there: ``state`` is what :meth:`get_state` returned, perhaps in another process."""
        ...


class CannotCapture(Exception):
    """The state of an environment cannot be written, or not be put back; the message says why."""


#: How an environment in another process is reached, see ``worker.py``.
WORKER_NAME = "sb3_sparse_in_worker"
# How a layer is built and found, not where it is in an episode, by kind: a name means nothing in an environment of a user.
_STRUCTURE: dict[type, set[str]] = {
    # The last ones of the renderer, which shows what there is.
    object: {"spec", "_cached_spec", "_saved_kwargs", "metadata", "_metadata", WORKER_NAME, "mujoco_renderer", "render_mode"},
    gym.Wrapper: {"env"},
    VecEnvWrapper: {"venv", "class_attributes"},
    DummyVecEnv: {"envs"},
    SubprocVecEnv: {"remotes", "work_remotes", "processes", "waiting", "closed", "close"},
}
#: In the attribute of another object, pickle makes a fresh one of these, or a copy that nothing else knows of.
NOT_IN_PIECES = (gym.utils.EzPickle, VecEnv, BaseAlgorithm)


def layers_of(env: gym.Env) -> list[gym.Env]:
    """The environment and what it wraps, from the outside to the inside."""
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def names_of(layers: Sequence[Any]) -> list[str]:
    """What the layers are."""
    return [type(layer).__name__ for layer in layers]


def capture_layers(layers: Sequence[Any], wrappers_only: bool = False) -> bytes:
    """
    :param layers: From the outside to the inside.
    :param wrappers_only: Without the innermost.
    :return: Their state.
    :raises CannotCapture: If one that says its state itself says something that cannot be written.
    """
    references = _references(layers)
    written: list[dict[str, Any]] = []
    captured = layers[:-1] if wrappers_only else layers
    for layer in captured:
        attributes = _attributes(layer)
        spaces = {name: capture_space(value) for name, value in attributes.items() if isinstance(value, gym.Space)}
        natives = {name: capture_native(value) for name, value in attributes.items() if is_native(value)}
        if says_its_state(layer):
            own = layer.get_state()
            attributes = {name: attributes[name] for name in ("_np_random",) if name in attributes}
            written.append({"attributes": attributes, "spaces": spaces, "own": own, "left": None, "code": []})
        else:
            written.append({"attributes": attributes, "spaces": spaces, "natives": natives, "left": [], "code": []})
    content = {"names": names_of(layers), "layers": written}
    try:
        return _dumps(content, references)
    except UNPICKLABLE as error:
        for layer, part in zip(captured, written, strict=True):
            _leave_out(part, references, layer)
        try:
            return _dumps(content, references)
        except UNPICKLABLE:
            raise CannotCapture(f"the state of {names_of(layers)} cannot be pickled ({error})") from error


def restore_layers(layers: Sequence[Any], state: bytes) -> None:
    """
    Go on where other layers of the same kinds were.

    :param layers: From the outside to the inside.
    :param state: Of :func:`capture_layers`.
    :raises CannotCapture: If the layers are others, or hold other things.
    """
    content = _loads(state, layers)
    if content["names"] != names_of(layers):
        raise CannotCapture(f"the environment consists of {names_of(layers)}: the checkpoint's was {content['names']}")
    # Of all, or of those around the innermost.
    for layer, part in zip(layers, content["layers"], strict=False):
        attributes = vars(layer)
        if part["left"] is not None:
            for name in _attributes(layer).keys() - {*part["attributes"], *part["left"], *part["code"]}:
                del attributes[name]
        _check_natives(layer, part["attributes"])
        attributes.update(part["attributes"])
        for name, generators in part["spaces"].items():
            _put_back(layer, name, generators, restore_space)
        for name, native in part.get("natives", {}).items():
            _put_back(layer, name, native, restore_native)
        if "own" in part:
            layer.set_state(part["own"])


def _check_natives(layer: Any, values: dict[str, Any]) -> None:
    """:raises CannotCapture: If something that is put back in place, such as a file, would get lost, or is not there."""
    for name, value in values.items():
        live = vars(layer).get(name)
        if is_native(live) and value is not live:
            raise CannotCapture(
                f"{type(layer).__name__}.{name} is a {type(live).__name__}, which the checkpoint's environment did not have"
            )


def _put_back(layer: Any, name: str, state: Any, restore: Callable[[Any, Any], None]) -> None:
    """:raises CannotCapture: If what is there cannot take the state."""
    live = vars(layer).get(name)
    try:
        restore(live, state)
    except OSError:
        # Of the disk, not of the environment.
        raise
    except Exception as error:  # whatever the library raises that it belongs to
        there = "missing" if live is None else f"a {type(live).__name__}"
        raise CannotCapture(
            f"{type(layer).__name__}.{name} is {there} and cannot take the state of the checkpoint's "
            f"({type(error).__name__}: {error})"
        ) from error


def left_out(state: bytes, layers: Sequence[Any]) -> list[str]:
    """
    What could not be written and may be state, as ``Layer.attribute``.

    :param state: Of :func:`capture_layers`.
    :param layers: Those that it was captured from.
    """
    content = _loads(state, layers)
    parts = zip(content["names"], content["layers"], strict=False)
    return [f"{name}.{attribute}" for name, part in parts for attribute in part["left"] or ()]


def captured_names(layers: Sequence[Any], state: bytes) -> list[tuple[Any, list[str], list[str]]]:
    """
    Each layer, which of its attributes are in a state, and those of them that are spaces.

    :param layers: Those that it was captured from.
    :param state: Of :func:`capture_layers`.
    """
    content = _loads(state, layers)
    parts = zip(layers, content["layers"], strict=False)
    return [(layer, list(part["attributes"]), list(part["spaces"])) for layer, part in parts]


def says_its_state(layer: Any) -> bool:
    """Whether it has both methods of :class:`HasState`; gymnasium's MuJoCo has a ``set_state`` of another meaning."""
    # Of the class: SB3's wrappers pass on what they do not have themselves.
    kind: Any = type(layer)
    return issubclass(kind, HasState) and _takes(kind.get_state, layer) and _takes(kind.set_state, layer, None)


def _takes(method: Any, *arguments: Any) -> bool:
    try:
        inspect.signature(method).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def _attributes(layer: Any) -> dict[str, Any]:
    """What a layer holds, but for how it is built."""
    structure = {name for kind, names in _STRUCTURE.items() if isinstance(layer, kind) for name in names}
    return {name: value for name, value in vars(layer).items() if name not in structure}


def _references(layers: Sequence[Any]) -> dict[int, tuple[Any, ...]]:
    """What is not written but found in the environment that goes on, by ``id``."""
    found: dict[int, tuple[Any, ...]] = {id(layer): ("layer", i) for i, layer in enumerate(layers)}
    for i, layer in enumerate(layers):
        for name, value in _attributes(layer).items():
            if isinstance(value, gym.Space) or is_native(value):
                found[id(value)] = ("attribute", i, name)
    return found


#: What pickle raises depends on what it stumbles over.
UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, ValueError, NotImplementedError, RecursionError, RuntimeError)


def _leave_out(part: dict[str, Any], references: dict[int, tuple[Any, ...]], layer: Any) -> None:
    for name, value in list(part["attributes"].items()):
        try:
            _dumps(value, references)
        except UNPICKLABLE as error:
            if part["left"] is None:
                raise CannotCapture(f"{type(layer).__name__}.{name} cannot be pickled ({error})") from error
            del part["attributes"][name]
            part["code" if is_code(value, references) else "left"].append(name)


def _dumps(value: Any, references: dict[int, tuple[Any, ...]]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, references).dump(value)
    return file.getvalue()


def _loads(state: bytes, layers: Sequence[Any]) -> Any:
    """:raises CannotCapture: If what was written cannot be read, by objects of a class that forbids it for example."""
    try:
        return _Unpickler(io.BytesIO(state), layers).load()
    except CannotCapture:
        raise
    except Exception as error:  # whatever a class of somebody else raises
        says = f"{type(error).__name__}: {error}"
        raise CannotCapture(f"the state of {names_of(layers)} cannot be read again ({says})") from error


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, references: dict[int, tuple[Any, ...]]):
        super().__init__(file, protocol=5)
        self._known = references

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        return self._known.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, NOT_IN_PIECES):
            raise pickle.PicklingError(f"a {type(value).__name__} inside of something else would be another one")
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, layers: Sequence[Any]):
        super().__init__(file)
        self._layers = layers

    def persistent_load(self, reference: tuple[Any, ...]) -> Any:
        kind, i, *name = reference
        if i >= len(self._layers):
            raise CannotCapture(f"the environment consists of {names_of(self._layers)}: the checkpoint's has more layers")
        return self._layers[i] if kind == "layer" else vars(self._layers[i]).get(name[0])
