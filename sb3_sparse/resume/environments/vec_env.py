"""The state of a vectorised environment, and the test whether it is all of it."""

import copy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_sparse.resume.environments.kept import Kept
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


def capture_env(env: VecEnv, wrappers_only: bool = False) -> dict[str, Any]:
    """
    Everything about a vectorised environment and the environments in it.

    :param env: One of SB3's with any of its wrappers, or one that has ``get_state`` and ``set_state`` itself.
    :param wrappers_only: What is around the environments, such as statistics: all that a run keeps that is not exact.
    :raises CannotCapture: If it is of another kind.
    """
    layers = vec_layers(env)
    base = layers[-1]
    inner: list[Any]
    if isinstance(base, SubprocVecEnv):
        inner = in_workers(base, "capture", [wrappers_only] * base.num_envs)
    elif isinstance(base, DummyVecEnv):
        inner = [capture_layers(layers_of(each), wrappers_only) for each in base.envs]
    elif wrappers_only or says_its_state(base):
        inner = []
    else:
        raise CannotCapture(f"{type(base).__name__} is no DummyVecEnv, no SubprocVecEnv, and has no get_state and set_state")
    return {"outer": capture_layers(layers, wrappers_only), "inner": inner}


def restore_env(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Go on where another environment of the same kind was.

    :param env: The environment.
    :param state: Of :func:`capture_env`.
    :raises CannotCapture: If it is of another kind.
    """
    layers = vec_layers(env)
    restore_layers(layers, state["outer"])
    base, inner = layers[-1], state["inner"]
    if isinstance(base, SubprocVecEnv):
        in_workers(base, "restore", inner)
    elif isinstance(base, DummyVecEnv):
        for each, written in zip(base.envs, inner, strict=True):
            restore_layers(layers_of(each), written)


def left_out_of(env: VecEnv, state: dict[str, Any]) -> list[str]:
    """
    What of an environment could not be written and may be state, as ``Layer.attribute``.

    :param env: The environment.
    :param state: Of :func:`capture_env`.
    """
    layers = vec_layers(env)
    base, inner = layers[-1], state["inner"]
    names = left_out(state["outer"], layers)
    if isinstance(base, SubprocVecEnv):
        names += [name for found in in_workers(base, "left out", inner) for name in found]
    elif isinstance(base, DummyVecEnv):
        names += [name for each, written in zip(base.envs, inner, strict=True) for name in left_out(written, layers_of(each))]
    return sorted(set(names))


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
        kept = _keep(env, start)
        _play(env)
        middle = capture_env(env)
        here = capture_random()
        first = _play(env)
        restore_env(env, middle)
        restore_random(here)
        second = _play(env)
        restore_env(env, start)
        _put_back(env, kept)
    except CannotCapture as error:
        if isinstance(base := vec_layers(env)[-1], SubprocVecEnv):
            in_workers(base, "let go")
        return str(error)
    finally:
        restore_random(random_state)
    if all(map(_is_same, first, second)):
        return None
    left = left_out_of(env, start)
    culprits = f"; what cannot be pickled: {', '.join(left)}" if left else ""
    return f"{describe(env)} did not make the same steps again from its captured state{culprits}"


def _keep(env: VecEnv, state: dict[str, Any]) -> Kept:
    """
    :param env: The environment.
    :param state: Of this moment.
    """
    layers = vec_layers(env)
    base, inner = layers[-1], state["inner"]
    if isinstance(base, SubprocVecEnv):
        in_workers(base, "keep", inner)
    inside = list(zip(map(layers_of, base.envs), inner, strict=True)) if isinstance(base, DummyVecEnv) else []
    return Kept([(layers, state["outer"]), *inside])


def _put_back(env: VecEnv, kept: Kept) -> None:
    base = vec_layers(env)[-1]
    if isinstance(base, SubprocVecEnv):
        in_workers(base, "put back")
    kept.put_back()


def describe(env: VecEnv) -> str:
    """What a vectorised environment is made of."""
    base = vec_layers(env)[-1]
    inside = f" of {' of '.join(names_of(layers_of(base.envs[0])))}" if isinstance(base, DummyVecEnv) else ""
    return " of ".join(names_of(vec_layers(env))) + inside


def _play(env: VecEnv) -> list[Any]:
    """What is seen in some steps, and in some of the next episode, which may depend on what was drawn at its beginning."""
    space = copy.deepcopy(env.action_space)
    space.seed(0)
    seen: list[Any] = []

    def step() -> None:
        obs, rewards, dones, _ = env.step(np.array([space.sample() for _ in range(env.num_envs)]))
        seen.extend([copy.deepcopy(obs), rewards.copy(), dones.copy()])

    for _ in range(_STEPS):
        step()
    try:
        seen.append(copy.deepcopy(env.reset()))
    except RuntimeError as error:
        # A Monitor may forbid it before an episode ends: then both times.
        seen.append(str(error))
    for _ in range(_STEPS):
        step()
    return seen


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
