"""Parts of rl-zoo3, which is imported when the first one is needed: that patches gymnasium and takes seconds."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

# What rl-zoo3 makes of a learning rate such as "lin_0.001", as saved agents name it.
SCHEDULE = "rl_zoo3.utils.SimpleLinearSchedule"


def part(path: str) -> Any:
    """
    A module of rl-zoo3, or something in it.

    :param path: Inside of the library, such as ``"train"`` or ``"utils.get_model_path"``.
    :raises ImportError: If rl-zoo3 is not installed, or is a version that has no such thing.
    """
    module, *names = path.split(".")
    try:
        found: Any = importlib.import_module(f"rl_zoo3.{module}")
    except ImportError as error:
        lacking = (error.name or "rl_zoo3").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and lacking != "rl_zoo3":
            raise ImportError(f"rl-zoo3 needs {lacking}: pip install {lacking} ({error})") from error
        raise ImportError(f'this needs rl-zoo3: pip install "sb3-sparse[zoo]" ({error})') from error
    for name in names:
        if not hasattr(found, name):
            raise ImportError(_missing(path))
        found = getattr(found, name)
    return found


def entry(path: str, key: str) -> Any:
    """
    An entry of one of rl-zoo3's tables.

    :param path: Of the table, as for :func:`part`.
    :param key: Of the entry.
    :raises ImportError: If rl-zoo3 is not installed, or is a version that has no such thing.
    """
    table = part(path)
    if key not in table:
        raise ImportError(_missing(f"{path}[{key!r}]"))
    return table[key]


def _missing(path: str) -> str:
    return (
        f"rl-zoo3 {metadata.version('rl_zoo3')} has no rl_zoo3.{path}, which sb3-sparse calls, or replaces for a while: "
        'install a version that it was made for, pip install "sb3-sparse[zoo]".'
    )


@contextmanager
def replaced(table: dict[str, Any], entries: Mapping[str, Any]) -> Iterator[None]:
    """
    Inside, a dictionary has other entries; afterwards those are as they were, or gone where there were none.

    :param table: The dictionary, such as one of rl-zoo3's tables or the ``vars`` of a module.
    :param entries: The other entries.
    """
    before = {name: table[name] for name in entries if name in table}
    table.update(entries)
    try:
        yield
    finally:
        for name in entries:
            if name not in before:
                table.pop(name, None)
        table.update(before)
