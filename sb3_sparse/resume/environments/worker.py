"""Environments of a ``SubprocVecEnv``: what is done to them is done in their own processes."""

import signal
import sys
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_sparse.resume.environments.kept import Kept
from sb3_sparse.resume.environments.layers import (
    WORKER_NAME,
    CannotCapture,
    capture_layers,
    layers_of,
    left_out,
    restore_layers,
)
from sb3_sparse.resume.environments.recipe import recipe
from sb3_sparse.resume.state.random_state import capture_random, restore_random

# A terminal sends Ctrl-C and SIGHUP to all processes, a scheduler perhaps SIGUSR1: the main one decides. (With SIGTERM it ends
# workers.)
_NOT_FOR_WORKERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

# In a worker, from one call to the next.
_KEPT: dict[int, Kept] = {}


def in_workers(vec_env: SubprocVecEnv, what: str, arguments: list[Any] | None = None) -> list[Any]:
    """
    Do something with each environment.

    :param vec_env: The environments.
    :param what: ``"capture"`` (with the argument ``True``, only its wrappers), ``"restore"``, ``"left out"`` of what was
        captured, ``"keep"`` (of what was captured) and ``"put back"`` or ``"let go"`` the same objects, ``"recipe"``, or
        ``"shield"`` from signals that are for the main process.
    :param arguments: One for each environment.
    :raises CannotCapture: If it fails in one of them.
    """
    # A function at the top of a module goes through the pipe as its name.
    vec_env.set_attr(WORKER_NAME, act)
    arguments = [None] * vec_env.num_envs if arguments is None else arguments
    found = [vec_env.env_method(WORKER_NAME, what, argument, indices=[i])[0] for i, argument in enumerate(arguments)]
    for failure, _ in found:
        if failure is not None:
            raise CannotCapture(failure)
    return [result for _, result in found]


def act(what: str, argument: Any) -> tuple[str | None, Any]:
    """Called by SB3's worker, which knows the environment as a local variable and hands it to nobody."""
    env = sys._getframe(1).f_locals["env"]
    try:
        return None, _act(env, what, argument)
    except CannotCapture as error:
        return str(error), None
    # One that is raised would end the process, and with it the run.
    except Exception as error:
        return f"{type(error).__name__}: {error}", None


def _act(env: Any, what: str, argument: Any) -> Any:
    layers = layers_of(env)
    if what == "capture":
        return capture_layers(layers, bool(argument)), capture_random()
    if what == "recipe":
        return recipe(env)
    if what == "put back":
        _KEPT.pop(id(env)).put_back()
        return None
    if what == "let go":
        _KEPT.pop(id(env), None)
        return None
    if what == "shield":
        for number in _NOT_FOR_WORKERS:
            signal.signal(number, signal.SIG_IGN)
        return None
    state, random_state = argument
    if what == "left out":
        return left_out(state, layers)
    if what == "keep":
        _KEPT[id(env)] = Kept([(layers, state)])
        return None
    restore_layers(layers, state)
    restore_random(random_state)
    return None
