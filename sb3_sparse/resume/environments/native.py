"""Things in environments that Python's pickle cannot copy, or copies wrongly, and how each is written and put back."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import ResultsWriter


def is_native(value: Any) -> bool:
    """Whether a value has an entry in this file."""
    return _name(value) in _KINDS


def capture_native(value: Any) -> Any:
    """Its state, as something that can be pickled."""
    return _KINDS[_name(value)][0](value)


def restore_native(value: Any, state: Any) -> None:
    """
    Put a state back, in place.

    :param value: Of the environment that goes on.
    :param state: Of :func:`capture_native`.
    :raises TypeError: If there is something else now.
    """
    if not is_native(value):
        raise TypeError("expected what the environment held")
    _KINDS[_name(value)][1](value, state)


def _name(value: Any) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"


def _restore_mujoco(data: Any, state: bytes) -> None:
    # Imported by whoever made the environment.
    import mujoco

    saved = pickle.loads(state)
    # Tasks edit their models: where a target is, how heavy a body.
    for ours, theirs in ((data.model, saved.model), (data.model.opt, saved.model.opt)):
        _copy_fields(ours, theirs)
    # Not `mj_setState`: what a step begins with is more than positions and velocities.
    mujoco.mj_copyData(data, data.model, saved)


def _copy_fields(ours: Any, theirs: Any) -> None:
    for name in dir(ours):
        if name.startswith("_"):
            continue
        value = getattr(theirs, name)
        if isinstance(value, np.ndarray):
            live = getattr(ours, name)
            if live.flags.writeable and not np.array_equal(live, value):
                live[...] = value
        elif isinstance(value, float) and getattr(ours, name) != value:
            setattr(ours, name, value)


def _capture_rows(writer: ResultsWriter) -> str:
    writer.file_handler.flush()
    with open(writer.file_handler.name, newline="") as file:
        return file.read()


def _restore_rows(writer: ResultsWriter, rows: str) -> None:
    # A Monitor that is made again begins its file anew; one that went on has rows of steps that are made again.
    file = writer.file_handler
    file.seek(0)
    file.truncate()
    file.write(rows)
    file.flush()


def _nothing(*_: Any) -> None:
    """A model of MuJoCo is written with its data."""


# By root of the module and name of the class: none of these libraries has to be installed.
_KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {
    "mujoco.MjModel": (_nothing, _nothing),
    "mujoco.MjData": (pickle.dumps, _restore_mujoco),
    "ale_py.ALEInterface": (
        lambda ale: ale.cloneSystemState(),
        lambda ale, state: ale.restoreSystemState(state),
    ),
    "stable_baselines3.ResultsWriter": (_capture_rows, _restore_rows),
}
