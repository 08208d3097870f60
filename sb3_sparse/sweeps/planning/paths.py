"""Settings by path: ``policy_kwargs.sparsity`` is the entry ``sparsity`` of ``policy_kwargs``."""

import copy
from collections.abc import Mapping
from typing import Any

from sb3_sparse.common.literals import parse_literal
from sb3_sparse.zoo import literal_names


class _Name:
    """A name in a setting that was written as Python, which stays a name."""

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return self._name


def set_by_path(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Settings with some of them changed, one after the other.

    A setting that is a string of Python, such as rl-zoo3's ``policy_kwargs: "dict(net_arch=[64, 64])"``, is read as a literal
    where a path leads into it, and stays such a string.

    >>> set_by_path({"gamma": 0.9, "policy_kwargs": "dict(activation_fn=nn.ReLU)"}, {"policy_kwargs.net_arch": [64]})
    {'gamma': 0.9, 'policy_kwargs': "{'activation_fn': nn.ReLU, 'net_arch': [64]}"}

    :param settings: They stay as they are.
    :param changes: By path. A value that is a mapping takes the place of the whole entry.
    :raises ValueError: If a path is none, or leads into something that has no entries.
    """
    changed = copy.deepcopy(settings)
    for path, value in changes.items():
        if not isinstance(path, str) or not all(path.split(".")):
            raise ValueError(f"hyperparams: {path!r} is no name of a setting: expected text, such as policy_kwargs.sparsity.")
        _set(changed, path.split("."), copy.deepcopy(value), path)
    return changed


def _set(entries: dict[str, Any], names: list[str], value: Any, path: str) -> None:
    name, *deeper = names
    if not deeper:
        entries[name] = value
        return
    inner = entries.get(name)
    if isinstance(inner, str):
        read = parse_literal(name, inner, {known: _Name(known) for known in literal_names()})
        if isinstance(read, dict):
            _set(read, deeper, value, path)
            entries[name] = repr(read)
            return
    if inner is None:
        inner = entries[name] = {}
    if not isinstance(inner, dict):
        raise ValueError(f"{path}: {name} is {inner!r}, which has no entry {deeper[0]!r}. Set {name} as a whole.")
    _set(inner, deeper, value, path)


def still_holds(settings: Mapping[str, Any], path: str, value: Any) -> bool:
    """
    Whether what was set is still there: of a mapping all of its entries, to which others may have come, and of none, none.

    >>> still_holds({"policy_kwargs": {"net_arch": [64], "sparsity": 0.8}}, "policy_kwargs", {"net_arch": [64]})
    True
    >>> still_holds({"policy_kwargs": {"sparsity": 0.8}}, "policy_kwargs", {})
    False

    :param settings: That other changes may have been made of.
    :param path: Of :func:`set_by_path`.
    :param value: What was set there.
    """
    found: Any = settings
    for name in path.split("."):
        found = as_entries(name, found)
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    return _holds(path, found, value)


def _holds(path: str, found: Any, value: Any) -> bool:
    found, value = as_entries(path, found), as_entries(path, value)
    if value is None or value == {}:
        # Whoever sets no entries, such as those of SB3's own policy, means none. None stands for that, too.
        return found is None or found == {}
    if isinstance(value, Mapping):
        return isinstance(found, Mapping) and all(name in found and _holds(path, found[name], value[name]) for name in value)
    return repr(one_kind(found)) == repr(one_kind(value))


def one_kind(value: Any) -> Any:
    """
    1.0 is written as 1: the same number, the same settings.

    :param value: Plain data.
    """
    if isinstance(value, dict):
        return {name: one_kind(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [one_kind(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_entries(name: str, value: Any) -> Any:
    """
    What was written as Python, as a mapping if it is one.

    :param name: Of the setting.
    :param value: Of the setting.
    """
    if not isinstance(value, str):
        return value
    try:
        read = parse_literal(name, value, {known: _Name(known) for known in literal_names()})
    except ValueError:
        return value
    return read if isinstance(read, dict) else value
