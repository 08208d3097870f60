"""
Measured choices of backends: in memory, and in a file that all processes of a machine share.

The first process that stores a kind decides it for all: whoever measured the same meanwhile takes that choice, so that
equal runs compute with equal backends. The file is read again before it is written, under a lock, and replaced as a
whole.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch as th

from sb3_sparse.common.files import written_beside
from sb3_sparse.sparse.kernels.native.compile import host_cpu

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("sb3_sparse")

CACHE_VARIABLE = "SB3_SPARSE_CACHE"
"""Environment variable with the folder for measured choices, instead of one in the user's cache folder; empty: none."""

# Of the backends and of how they are measured: what an older generation's measurements chose is forgotten.
_GENERATION = 4
# So long is waited for other processes, seconds. Where locks are files, one that is older was left behind.
_PATIENCE = 5.0
_STALE = 60.0

_known: dict[Path | None, dict[str, str]] = {}


def known_choice(kind: str, allowed: Collection[str]) -> str | None:
    """
    What this process or another one has chosen.

    :param kind: The kind of product.
    :param allowed: Names of backends; other choices do not count.
    """
    path = _cache_file()
    known = _known.setdefault(path, {})
    if known.get(kind) not in allowed and path is not None:
        # What others have learned meanwhile; of what this process has used already, nothing changes.
        known.update({other: name for other, name in _read(path).items() if other == kind or other not in known})
    name = known.get(kind)
    return name if name in allowed else None


def use_choice(kind: str, name: str) -> None:
    """Use a backend for a kind as long as this process lives."""
    _known.setdefault(_cache_file(), {})[kind] = name


def choices_in_use() -> dict[str, str]:
    """What this process has chosen, or read, by kind of product."""
    return dict(_known.get(_cache_file(), {}))


def store_choice(kind: str, name: str, allowed: Collection[str]) -> str:
    """
    Keep a choice for this process and others.

    :param kind: The kind of product.
    :param name: The backend that was measured to be the fastest.
    :param allowed: Names of backends; what another process has stored counts if it is one of these.
    :return: What to use: ``name``, or what another process stored first.
    """
    path = _cache_file()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_name(path.name + ".lock")):
                choices = _read(path)
                if choices.get(kind) in allowed:
                    name = choices[kind]
                else:
                    _write(path, {**choices, kind: name})
        except OSError as error:
            logger.warning("cannot keep the backend choices in %s, they are measured again next time: %s", path, error)
    use_choice(kind, name)
    return name


def forget_choices() -> None:
    """Forget what is in memory; the file is read again."""
    _known.clear()


def _cache_file() -> Path | None:
    """Where the choices of this machine, processor and version of torch are kept."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder == "":
        return None
    if folder is None:
        try:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # no home directory
            return None
        folder = str(base / "sb3-sparse")
    return Path(folder) / f"backends-{_GENERATION}-{host_cpu()}-torch{th.__version__.partition('+')[0]}.json"


def _read(path: Path) -> dict[str, str]:
    try:
        loaded = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("ignoring the backend choices in %s: %s", path, error)
        return {}
    if not isinstance(loaded, dict):
        logger.warning("ignoring the backend choices in %s: expected an object, found a %s", path, type(loaded).__name__)
        return {}
    choices = {kind: name for kind, name in loaded.items() if isinstance(name, str)}
    if wrong := sorted(loaded.keys() - choices.keys()):
        logger.warning("ignoring some of the backend choices in %s, which are no names: %s", path, wrong)
    return choices


def _write(path: Path, choices: dict[str, str]) -> None:
    """Replace the file, or leave it as it was."""
    with written_beside(path) as beside:
        beside.write_text(json.dumps(choices, indent=1, sort_keys=True))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """
    Hold the lock of that name.

    :raises TimeoutError: If somebody else does not let go of it.
    """
    if fcntl is None:
        with _locked_by_a_file(path):
            yield
        return
    with open(path, "a") as file:

        def is_locked() -> bool:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        _wait(is_locked, path)
        # Closing the file lets go of it. It is not removed: others may be waiting for it.
        yield


@contextmanager
def _locked_by_a_file(path: Path) -> Iterator[None]:
    """The same for platforms without ``flock``: whoever makes the file holds the lock."""

    def is_locked() -> bool:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        # Windows does not let anybody open a file that is being removed.
        except (FileExistsError, PermissionError):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
            return False
        return True

    _wait(is_locked, path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _wait(is_locked: Callable[[], bool], path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not is_locked():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} is held by another process")
        time.sleep(0.01)
