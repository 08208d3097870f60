"""The environments of gymnasium's registry: who registers them, and which one was meant."""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.atari import register_atari
from sb3_sparse.dmc import register_dmc
from sb3_sparse.pixels.frames import has_display
from sb3_sparse.zoo.hyperparameters import WrongSettingError
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
    Register the environments of DeepMind Control, Atari or MinAtar, if one of them is named.

    :raises ImportError: If one is, and the extra for it is missing.
    """
    domain = env_id.partition("/")[0]
    if domain in DOMAINS:
        DOMAINS[domain]()


def register_minatar() -> None:
    """
    Let ``gymnasium.make`` know the environments ``MinAtar/...``, which nobody registers when the package is imported.

    :raises ImportError: If the extra ``minatar`` is missing.
    """
    if any(env_id.startswith("MinAtar/") for env_id in gym.registry):
        return
    try:
        from minatar.gym import register_envs
    except ImportError as error:
        raise ImportError('MinAtar needs the extra "minatar": pip install "sb3-sparse[minatar]".') from error
    register_envs()


DOMAINS = {"dm_control": register_dmc, "ALE": register_atari, "MinAtar": register_minatar}


def import_packages(packages: Iterable[str]) -> None:
    """
    Import what registers environments of the user, also in place of others: outside of :func:`registry_restored`.

    :param packages: Their names.
    :raises ImportError: If one is missing, or rl-zoo3.
    """
    # Registers some itself, which are not to replace those of the user.
    part("import_envs")
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            # Of what the package itself lacks, it says more.
            if error.name is None or not f"{package}.".startswith(f"{error.name}."):
                raise
            raise ModuleNotFoundError(
                f"--gym-packages {package}: there is no module {error.name!r}. Modules in the current folder are found with "
                "PYTHONPATH=. in front of the command."
            ) from error


def make_known(env_id: str) -> None:
    """
    Let ``gymnasium.make`` know an environment.

    :param env_id: Its ID.
    :raises ValueError: If nobody has registered such an environment.
    :raises ImportError: If the extra is missing that an environment of DeepMind Control, Atari or MinAtar needs.
    """
    register_domain(env_id)
    if env_id not in gym.registry:
        close = difflib.get_close_matches(env_id, gym.registry, n=1)
        raise ValueError(f"unknown environment {env_id!r}." + (f" Did you mean {close[0]!r}?" if close else ""))


def check_display(env: VecEnv, env_id: str) -> None:
    """
    See whether environments can be shown in a window. Where MuJoCo finds no display for one, it ends the process, at the
    first reset.

    :param env: Just made. It is closed in case of an error.
    :param env_id: What was asked for.
    :raises WrongSettingError: If there is a window of MuJoCo's in it, and no display.
    """
    if has_display() or env.render_mode != "human" or not any(env.env_is_wrapped(_AroundMujoco)):
        return
    env.close()
    raise WrongSettingError(
        f"{env_id} would be shown in a window, which needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set: "
        "--no-render plays without one."
    )


class _IsAroundMujoco(type):
    def __instancecheck__(cls, env: Any) -> bool:
        return _is_mujoco(env.unwrapped)


class _AroundMujoco(gym.Wrapper, metaclass=_IsAroundMujoco):
    """
    Any wrapper around an environment of MuJoCo, as SB3's ``Monitor`` is. Environments in other processes cannot be looked at
    from here, but asked whether they are wrapped by such a class.
    """


def _is_mujoco(env: gym.Env) -> bool:
    if type(env).__module__ == "shimmy.dm_control_compatibility":
        return True
    try:
        from gymnasium.envs.mujoco import MujocoEnv
    except ImportError:
        return False
    return isinstance(env, MujocoEnv)
