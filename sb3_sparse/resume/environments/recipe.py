"""How to make an environment again, so that ``resume_exact`` needs nothing but the folder."""

import inspect
import io
import os
import pickle
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnvWrapper

from sb3_sparse.resume.environments.native import is_native


def recipe(env: Any) -> bytes:
    """
    An environment of the same kind, for :func:`make`. It says nothing about where it is in an episode.

    :param env: An environment, or a vectorised one that is none of SB3's in other processes.
    :raises Exception: If it cannot be pickled: whatever it is made of decides what is raised.
    """
    file = io.BytesIO()
    _RecipePickler(file).dump(env)
    return file.getvalue()


def make(written: bytes) -> Any:
    """
    :param written: Of :func:`recipe`.
    :return: Such an environment.
    """
    return pickle.loads(written)


class _Made:
    """A function that makes an environment, for other processes."""

    def __init__(self, written: bytes):
        self.written = written

    def __call__(self) -> Any:
        return make(self.written)


class _RecipePickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ResultsWriter):
            return _reopened, (obj.file_handler.name, list(obj.logger.fieldnames))
        if isinstance(obj, SubprocVecEnv):
            # Its processes are asked, which know their environments.
            from sb3_sparse.resume.environments.worker import in_workers

            return _in_processes, (in_workers(obj, "recipe"), obj.processes[0]._start_method)
        if isinstance(obj, VecEnvWrapper):
            # Those of SB3 that can be pickled leave the environment inside out. What a class has is in no pickle.
            state = {name: value for name, value in vars(obj).items() if name not in ("venv", "class_attributes")}
            return _wrapped, (type(obj), obj.venv, state)
        # A table of Monitor is opened again, see above.
        natives = [each for each in _values(obj) if is_native(each) and not isinstance(each, ResultsWriter)]
        if isinstance(obj, gym.Wrapper) and natives:
            # What it holds is made by its constructor, and belongs to what is inside.
            return _constructed, (type(obj), obj.env, _arguments(obj, natives))
        return super().reducer_override(obj)


def _reopened(path: str, fields: list[str]) -> ResultsWriter:
    # What was in the file is put back with the state; until then it stays.
    return ResultsWriter(path, header={}, extra_keys=tuple(fields[3:]), override_existing=not os.path.exists(path))


def _values(obj: Any) -> list[Any]:
    return list(vars(obj).values()) if isinstance(obj, gym.Wrapper) else []


def _arguments(wrapper: gym.Wrapper, natives: list[Any]) -> dict[str, Any]:
    """
    With which the constructor of a wrapper was called.

    :raises pickle.PicklingError: If it has arguments that nobody has written down: the defaults may be others.
    """
    kind, saved = type(wrapper), dict(getattr(wrapper, "_saved_kwargs", {}))
    parameters = list(inspect.signature(kind).parameters.values())
    named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters)
    # The first one is the environment.
    if {each.name for each in parameters[1:]} & named - saved.keys() or (saved.keys() - named and not takes_any):
        holds = ", ".join(sorted({type(each).__name__ for each in natives}))
        raise pickle.PicklingError(
            f"{kind.__name__} holds a {holds}, and does not say all arguments that it was made with, as those of gymnasium's "
            "RecordConstructorArgs do"
        )
    return saved


def _constructed(kind: type[gym.Wrapper], env: gym.Env, arguments: dict[str, Any]) -> gym.Wrapper:
    return kind(env, **arguments)


def _in_processes(recipes: list[bytes], start_method: str) -> SubprocVecEnv:
    return SubprocVecEnv([_Made(each) for each in recipes], start_method)


def _wrapped(kind: type[VecEnvWrapper], venv: Any, state: dict[str, Any]) -> VecEnvWrapper:
    wrapper = kind.__new__(kind)
    vars(wrapper).update(state, venv=venv, class_attributes=dict(inspect.getmembers(kind)))
    return wrapper
