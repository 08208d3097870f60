"""Errors as one line, and those which need their traceback."""

import inspect
import pickle
import sys
import zipfile
from collections.abc import Iterator
from types import FrameType
from typing import Any

import gymnasium as gym

from sb3_sparse.zoo.hyperparameters import WrongSettingError

# Whose code is not the user's. All others' may be wrong in any way, which only a traceback shows.
LIBRARIES = frozenset(
    {
        *("sb3_sparse", "rl_zoo3", "stable_baselines3", "sb3_contrib", "gymnasium", "shimmy", "dm_control", "dm_env"),
        *("mujoco", "ale_py", "minatar", "torch", "numpy", "yaml", "safetensors", "cloudpickle", "huggingface_sb3"),
        *("optuna", "sqlalchemy", "matplotlib", "plotly", "onnx", "onnxruntime", "onnxscript", "ray", "fsspec"),
        *("pandas", "PIL", "tensorboard", "google"),
    }
)
# Inside of these, an agent learns or plays: what goes wrong there is no mistake in the options.
_AT_WORK = frozenset({"learn", "hyperparameters_optimization", "save_trained_model", "step", "reset", "predict", "render"})
# What libraries raise with a sentence that was written for users.
_SENTENCES = (
    *(ValueError, ImportError, OSError, RuntimeError, AssertionError, gym.error.Error),
    *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError),
)


def in_words(error: BaseException) -> str | None:
    """
    What a user reads of an error, in one line; None where only its traceback helps.

    A traceback stays where an error came through somebody else's code, an environment, a callback or a module of the user,
    where an agent was learning or playing already, and where a library was surprised itself.

    :param error: As it was caught.
    """
    if isinstance(error, WrongSettingError):
        return one_line(error)
    frames = list(_frames(error))
    if any(frame.f_code.co_name in _AT_WORK for frame in frames[1:]):
        return None
    if isinstance(error, gym.error.DependencyNotInstalled):
        return one_line(error)
    if (said := _unknown_argument(error)) is not None:
        return said
    if is_of_others(error):
        return None
    # Of SB3, where policy_kwargs and the like are passed on.
    is_keyword = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
    return one_line(error) if is_keyword or (isinstance(error, _SENTENCES) and str(error)) else None


def is_of_others(error: BaseException) -> bool:
    """
    Whether an error came through code of somebody else than a library: where it was caught does not count.

    :param error: As it was caught. Where a library said it in other words, the first one counts, too; but for what is
        missing, which every library says of the next.
    """
    modules = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in _frames(error)]
    if any(module not in LIBRARIES and module not in sys.stdlib_module_names for module in modules[1:]):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and not isinstance(error, ImportError) and is_of_others(before)


def one_line(error: BaseException | str) -> str:
    """
    What an error says, without line breaks; of files, in words instead of a number.

    :param error: The error, or what it says.
    """
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{str(error.filename)!r}: {_about_a_file(error)}"
    return " ".join(str(error).split())


def _about_a_file(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder."
    if isinstance(error, FileExistsError):
        return "it is there already, as a file: expected a folder."
    if isinstance(error, IsADirectoryError):
        return "it is a folder: expected a file."
    if isinstance(error, NotADirectoryError):
        return "a part of it is a file: expected a folder."
    if isinstance(error, PermissionError):
        return "permission denied: change its permissions, or name another place."
    return f"{error.strerror}."


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _unknown_argument(error: BaseException) -> str | None:
    """Of an argument that an environment does not take; gymnasium repeats the error with the environment's name."""
    first = error.__context__
    if not isinstance(error, TypeError) or not isinstance(first, TypeError) or "environment creator" not in str(error):
        return None
    if first.__traceback__ is None or first.__traceback__.tb_next is not None:
        # From inside of the environment.
        return None
    made: dict[str, Any] = first.__traceback__.tb_frame.f_locals
    creator, spec = made.get("env_creator"), made.get("env_spec")
    known = [name for name in inspect.signature(creator).parameters if name != "self"] if callable(creator) else []
    named = "the environment" if spec is None else spec.id
    return f"{named} takes no such argument: {one_line(first)}. It takes {', '.join(known) or 'none'}."
