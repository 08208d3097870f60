"""
``save_safe`` and ``load_safe``: what ``save`` and ``load`` of SB3 do, without pickle.

A safe file holds what SB3's zip holds. To load one, SB3's own ``load`` is given what was read: a zip in memory in which
nothing is pickled but tensors, and the values as ``custom_objects``, which it takes instead of unpickling something.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, save_to_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_sparse.common.files import with_ending
from sb3_sparse.resume.safe.allowed import Allowed
from sb3_sparse.resume.safe.container import ENDING, MAX_BYTES, read_container, write_container
from sb3_sparse.resume.safe.limits import TensorLimit
from sb3_sparse.resume.safe.values import Reader, Writer, check_attributes
from sb3_sparse.resume.safe.vec_normalize import normalized, statistics_of, wrapped

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)
# Where a user writes logs is of no interest to others, and no file decides where something is written.
_NEVER_SAVED = {"tensorboard_log"}
# A layer is drawn as a dense one before it is pruned: so many times more than is in the file, and enough for small ones.
_DRAWN_PER_BYTE, _ALWAYS_ENOUGH = 64, 2**30


@dataclass(frozen=True)
class SafeAgent:
    """What a safe file holds: the three parts of SB3's zip, and the statistics of ``VecNormalize``."""

    path: Path
    algorithm: type[BaseAlgorithm]
    data: dict[str, Any]
    """Attributes of the agent, by name."""
    params: dict[str, Any]
    """State dicts of its policy and optimizers."""
    variables: dict[str, th.Tensor]
    """Other tensors, such as the temperature of SAC."""
    vec_normalize: dict[str, Any] | None

    def build(self, env: GymEnv | None = None, device: th.device | str = "auto", **kwargs: Any) -> BaseAlgorithm:
        """
        The agent. See :func:`load_safe`.

        :raises ValueError: If the parts do not make one.
        """
        try:
            if env is not None and self.vec_normalize is not None:
                env = normalized(env, self.vec_normalize)
            known = {**self.data, "tensorboard_log": None}
            with TensorLimit(max(_ALWAYS_ENOUGH, _DRAWN_PER_BYTE * self.path.stat().st_size)):
                model = self.algorithm.load(self._as_zip(), env, device=device, custom_objects=known, **kwargs)
            expected = set(model._get_torch_save_params()[1])
            if missing := expected - self.variables.keys():
                raise ValueError(f"it lacks the tensors {sorted(missing)}")
        # A file from somebody else may be wrong in any way.
        except Exception as error:
            # SB3 looks whether a file without some state dict is an old one, and fails at that.
            first = error.__context__ if isinstance(error, KeyError) and error.__context__ else error
            named = f"{type(first).__name__}: {first}"
            raise ValueError(f"{self.path} makes no agent of {self.algorithm.__name__}: {named}") from error
        return model

    def _as_zip(self) -> io.BytesIO:
        """A file of SB3 whose data is replaced by ``custom_objects``: of each thing the name has to be there."""
        file = io.BytesIO()
        plain = {name: value if isinstance(value, (bool, int, float, str)) else None for name, value in self.data.items()}
        save_to_zip_file(file, {**plain, "tensorboard_log": None}, self.params, self.variables)
        file.seek(0)
        return file


def save_safe(
    model: BaseAlgorithm, path: str | Path, *, vec_normalize: VecNormalize | None = None, allow: Iterable[Any] = ()
) -> Path:
    """
    Write an agent to a file that executes nothing when it is read: ``save`` without pickle.

    It holds the networks, their targets and optimizers, all settings, and the statistics of ``VecNormalize``; no replay
    buffer and no ``tensorboard_log``.

    >>> save_safe(model, "agent.safetensors")  # doctest: +SKIP

    :param model: An agent of SB3, sb3-contrib or this package.
    :param path: The file. ``.safetensors`` is added to a name without an ending.
    :param vec_normalize: The wrapper that normalises; None: that of the agent's environment, if there is one.
    :param allow: Classes and functions of your own that the file may name.
    :return: The path.
    :raises ValueError: If something cannot be written without pickle; it says what, and what to do.
    :raises OSError: If the file cannot be written.
    """
    path, allowed = with_ending(path, ENDING), Allowed(allow)
    wrapper = model.get_vec_normalize_env() if vec_normalize is None else vec_normalize
    state_dicts, variables = model._get_torch_save_params()
    left_out = {*model._excluded_save_params(), *_NEVER_SAVED, *(name.split(".")[0] for name in state_dicts + variables)}
    parts: dict[str, Any] = {
        # First, so that tensors are named after where they are in the networks.
        "params": model.get_parameters(),
        "variables": {name: recursive_getattr(model, name) for name in variables},
        "data": {name: value for name, value in vars(model).items() if name not in left_out},
        "vec_normalize": None if wrapper is None else statistics_of(wrapper),
    }
    writer = Writer(allowed)
    try:
        check_attributes(type(model), parts["data"])
        content = {"algorithm": writer.algorithm(type(model))}
        content |= {name: writer.write(part, name) for name, part in parts.items()}
    except ValueError as error:
        raise ValueError(f"{path}: cannot save this {type(model).__name__}: {error}") from error
    write_container(path, {**content, "versions": _versions()}, writer.tensors)
    return path


@overload
def load_safe(
    path: str | Path,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    *,
    algorithm: None = None,
    allow: Iterable[Any] = (),
    max_bytes: int = MAX_BYTES,
    **kwargs: Any,
) -> BaseAlgorithm: ...


@overload
def load_safe(
    path: str | Path,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    *,
    algorithm: type[Algorithm],
    allow: Iterable[Any] = (),
    max_bytes: int = MAX_BYTES,
    **kwargs: Any,
) -> Algorithm: ...


def load_safe(
    path: str | Path,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    *,
    algorithm: type[BaseAlgorithm] | None = None,
    allow: Iterable[Any] = (),
    max_bytes: int = MAX_BYTES,
    **kwargs: Any,
) -> BaseAlgorithm:
    """
    Load an agent that :func:`save_safe` wrote. Nothing in the file is executed, whoever it comes from.

    >>> model = load_safe("agent.safetensors", env)  # doctest: +SKIP

    :param path: The file.
    :param env: To go on learning in. It is wrapped in ``VecNormalize`` with the file's statistics, if there are some and it
        is not wrapped in one yet.
    :param device: Where the networks are put.
    :param algorithm: Refuse an agent of another algorithm.
    :param allow: Classes and functions of your own that the file may name; those you trust with any arguments.
    :param max_bytes: Refuse a larger file.
    :param kwargs: As for SB3's ``load``, attributes that are to be others: ``buffer_size=1`` where no replay buffer is needed.
    :raises FileNotFoundError: If there is no such file.
    :raises ValueError: If it is no safe file, is damaged, names what is not allowed, or holds another agent. The message
        names the file.
    """
    return read_safe(path, algorithm=algorithm, allow=allow, max_bytes=max_bytes).build(env, device, **kwargs)


def load_safe_vec_normalize(
    path: str | Path, venv: VecEnv, *, allow: Iterable[Any] = (), max_bytes: int = MAX_BYTES
) -> VecNormalize:
    """
    The ``VecNormalize`` of an agent that :func:`save_safe` wrote, around other environments.

    :param path: The file.
    :param venv: The environments.
    :param allow: As for :func:`load_safe`.
    :param max_bytes: As for :func:`load_safe`.
    :raises ValueError: If the file holds no such statistics, or they do not fit; and as :func:`load_safe`.
    """
    statistics = read_safe(path, allow=allow, max_bytes=max_bytes).vec_normalize
    if statistics is None:
        raise ValueError(f"{path} holds no statistics of VecNormalize.")
    try:
        return wrapped(venv, statistics)
    # A file from somebody else may be wrong in any way.
    except Exception as error:
        raise ValueError(f"{path} makes no VecNormalize: {type(error).__name__}: {error}") from error


def read_safe(
    path: str | Path,
    *,
    algorithm: type[BaseAlgorithm] | None = None,
    allow: Iterable[Any] = (),
    max_bytes: int = MAX_BYTES,
) -> SafeAgent:
    """The parts of a safe file. Arguments and errors are those of :func:`load_safe`."""
    path, allowed = Path(path), Allowed(allow)
    try:
        content, tensors = read_container(path, max_bytes)
        agent = _agent(path, content, Reader(tensors, allowed))
    except OSError:
        raise
    # A file from somebody else may be wrong in any way.
    except Exception as error:
        says = (
            str(error) if isinstance(error, ValueError) else f"its JSON is none of an agent: {type(error).__name__}: {error}"
        )
        raise ValueError(f"{path} cannot be read as a safe file: {says}") from error
    if algorithm is not None and not issubclass(agent.algorithm, algorithm):
        raise ValueError(f"{path} holds an agent of {agent.algorithm.__name__}, expected one of {algorithm.__name__}.")
    return agent


def is_safe_file(path: str | Path) -> bool:
    """Whether a file is to be read by :func:`load_safe`, by its name."""
    return Path(path).suffix == ENDING


def _agent(path: Path, content: dict[str, Any], reader: Reader) -> SafeAgent:
    algorithm = reader.algorithm(content["algorithm"])
    parts = {name: reader.read(content[name]) for name in ("data", "params", "variables")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ValueError(f"its {name} is no dictionary.")
    data = parts["data"]
    check_attributes(algorithm, data)
    # An environment, for example, would be made by its name.
    forbidden = {*object.__new__(algorithm)._excluded_save_params(), *_NEVER_SAVED}
    if found := sorted(forbidden & data.keys()):
        raise ValueError(f"it has {found}, which no file decides.")
    return SafeAgent(path, algorithm, **parts, vec_normalize=reader.read(content["vec_normalize"]))


def _versions() -> dict[str, str]:
    from sb3_sparse import __version__

    return {"sb3_sparse": __version__, "stable_baselines3": sb3.__version__, "torch": th.__version__}
