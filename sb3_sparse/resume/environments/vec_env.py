"""The state of a vectorised environment, and the test whether it is all of it."""

import copy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_sparse.resume.environments.layers import (
    CannotCapture,
    capture_layers,
    layers_of,
    left_out,
    names_of,
    restore_layers,
    says_its_state,
)
from sb3_sparse.resume.environments.worker import in_workers
from sb3_sparse.resume.state.random_state import capture_random, restore_random

# So many steps are made before and during the test.
_STEPS = 4


def vec_layers(env: VecEnv) -> list[VecEnv]:
    """A vectorised environment and what it wraps, from the outside to the inside."""
    found = [env]
    while isinstance(found[-1], VecEnvWrapper):
        found.append(found[-1].venv)
    return found


def capture_env(env: VecEnv) -> dict[str, Any]:
    """
    Everything about a vectorised environment and the environments in it.

    :param env: One of SB3's with any of its wrappers, or one that has ``get_state`` and ``set_state`` itself.
    :raises CannotCapture: If it is of another kind.
    """
    layers = vec_layers(env)
    base = layers[-1]
    inner: list[Any]
    if isinstance(base, SubprocVecEnv):
        inner = in_workers(base, "capture")
    elif isinstance(base, DummyVecEnv):
        inner = [capture_layers(layers_of(each)) for each in base.envs]
    elif says_its_state(base):
        inner = []
    else:
        raise CannotCapture(f"{type(base).__name__} is no DummyVecEnv, no SubprocVecEnv, and has no get_state and set_state")
    return {"outer": capture_layers(layers), "inner": inner}


def restore_env(env: VecEnv, state: dict[str, Any], outer_only: bool = False) -> None:
    """
    Go on where another environment of the same kind was.

    :param env: The environment.
    :param state: Of :func:`capture_env`.
    :param outer_only: Leave the environments themselves, and put back what their wrappers have counted.
    :raises CannotCapture: If it is of another kind.
    """
    layers = vec_layers(env)
    restore_layers(layers, state["outer"])
    base, inner = layers[-1], state["inner"]
    if outer_only:
        return
    if isinstance(base, SubprocVecEnv):
        in_workers(base, "restore", inner)
    elif isinstance(base, DummyVecEnv):
        for each, written in zip(base.envs, inner, strict=True):
            restore_layers(layers_of(each), written)


def why_not_exact(env: VecEnv) -> str | None:
    """
    Try it: capture, make steps, go back, make the same steps again, and compare; a new episode is among them.

    The environment has to have been reset. If the test succeeds, it goes on as if nothing had been.

    :param env: The environment.
    :return: None, or what is wrong. Then the environment has to be reset.
    """
    random_state = capture_random()
    try:
        start = capture_env(env)
        _play(env)
        middle = capture_env(env)
        here = capture_random()
        first = _play(env)
        restore_env(env, middle)
        restore_random(here)
        second = _play(env)
        restore_env(env, start)
    except CannotCapture as error:
        return str(error)
    finally:
        restore_random(random_state)
    if all(map(_is_same, first, second)):
        return None
    return f"{describe(env)} did not make the same steps again from its captured state{_culprits(env, start)}"


def describe(env: VecEnv) -> str:
    """What a vectorised environment is made of."""
    base = vec_layers(env)[-1]
    inside = f" of {' of '.join(names_of(layers_of(base.envs[0])))}" if isinstance(base, DummyVecEnv) else ""
    return " of ".join(names_of(vec_layers(env))) + inside


def _culprits(env: VecEnv, state: dict[str, Any]) -> str:
    base = vec_layers(env)[-1]
    if not isinstance(base, DummyVecEnv):
        return ""
    left = left_out(state["inner"][0], layers_of(base.envs[0]))
    return f"; what cannot be pickled: {', '.join(left)}" if left else ""


def _play(env: VecEnv) -> list[Any]:
    """What is seen in some steps, and at the beginning of the next episode."""
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    seen: list[Any] = []
    for _ in range(_STEPS):
        obs, rewards, dones, _ = env.step(np.array([space.sample() for _ in range(env.num_envs)]))
        seen += [copy.deepcopy(obs), rewards, dones]
    try:
        seen.append(copy.deepcopy(env.reset()))
    except RuntimeError as error:
        # A Monitor may forbid it before an episode ends: then both times.
        seen.append(str(error))
    return seen


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
