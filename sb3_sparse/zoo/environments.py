"""The environments of gymnasium's registry: who registers them, and which one was meant."""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from sb3_sparse.dmc import register_dmc

# A module registers its environments when it is imported, which happens once in a process: what commands before have
# registered, and taken back, is still there for the next.
_registered_before: dict[str, EnvSpec] = {}


@contextmanager
def registry_restored() -> Iterator[None]:
    """Inside, environments can be registered; afterwards gymnasium's registry is as it was."""
    registry = gym.registry
    before = dict(registry)
    registry.update({env_id: spec for env_id, spec in _registered_before.items() if env_id not in before})
    try:
        yield
    finally:
        for env_id in [env_id for env_id in registry if env_id not in before]:
            _registered_before[env_id] = registry.pop(env_id)
        registry.update(before)


def register_domain(env_id: str) -> None:
    """
    Register the environments of DeepMind Control, if one of them is named.

    :raises ImportError: If one is, and the extra ``dmc`` is missing.
    """
    if env_id.startswith("dm_control/"):
        register_dmc()


def make_known(env_id: str, packages: Iterable[str] = ()) -> None:
    """
    Let ``gymnasium.make`` know an environment.

    :param env_id: Its ID.
    :param packages: To be imported: they may register it.
    :raises ValueError: If nobody has registered such an environment.
    :raises ImportError: If a package is missing, or the extra ``dmc``, for an environment of DeepMind Control.
    """
    register_domain(env_id)
    for package in packages:
        importlib.import_module(package)
    if env_id not in gym.registry:
        close = difflib.get_close_matches(env_id, gym.registry, n=1)
        raise ValueError(f"unknown environment {env_id!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
