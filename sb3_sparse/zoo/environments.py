"""The environments of gymnasium's registry: who registers them, and which one was meant."""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import gymnasium as gym

from sb3_sparse.dmc import register_dmc
from sb3_sparse.zoo.rl_zoo import part


@contextmanager
def registry_restored() -> Iterator[None]:
    """
    Afterwards, what gymnasium's registry had is there as it was. What was added stays.

    A module registers its environments when it is imported, which happens once in a process: nobody would register them again.
    """
    before = dict(gym.registry)
    try:
        yield
    finally:
        gym.registry.update(before)


def register_domain(env_id: str) -> None:
    """
    Register the environments of DeepMind Control, if one of them is named.

    :raises ImportError: If one is, and the extra ``dmc`` is missing.
    """
    if env_id.startswith("dm_control/"):
        register_dmc()


def import_packages(packages: Iterable[str]) -> None:
    """
    Import what registers environments of the user, also in place of others: outside of :func:`registry_restored`.

    :param packages: Their names.
    :raises ImportError: If one is missing, or rl-zoo3.
    """
    # Registers some itself, which are not to replace those of the user.
    part("import_envs")
    for package in packages:
        importlib.import_module(package)


def make_known(env_id: str) -> None:
    """
    Let ``gymnasium.make`` know an environment.

    :param env_id: Its ID.
    :raises ValueError: If nobody has registered such an environment.
    :raises ImportError: If the extra ``dmc`` is missing, for an environment of DeepMind Control.
    """
    register_domain(env_id)
    if env_id not in gym.registry:
        close = difflib.get_close_matches(env_id, gym.registry, n=1)
        raise ValueError(f"unknown environment {env_id!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
