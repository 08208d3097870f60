"""The statistics of ``VecNormalize`` as plain values, and wrappers made of them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

_SETTINGS = (*("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys"),)
_STATISTICS = ("obs_rms", "ret_rms")


def statistics_of(wrapper: VecNormalize) -> dict[str, Any]:
    """
    Everything of a wrapper that does not come from the environment inside of it.

    :raises ValueError: If it is of a subclass, which may have more.
    """
    if type(wrapper) is not VecNormalize:
        raise ValueError(f"vec_normalize={wrapper!r}: expected a VecNormalize of SB3 itself.")
    return {name: getattr(wrapper, name) for name in (*_SETTINGS, *_STATISTICS) if hasattr(wrapper, name)}


def normalized(env: Any, statistics: dict[str, Any]) -> VecEnv:
    """
    An environment, in a wrapper with statistics unless it is in a ``VecNormalize`` already.

    :param env: An environment of gymnasium, or several of SB3.
    :param statistics: From :func:`statistics_of`.
    :raises ValueError: If they do not fit.
    """
    venv = BaseAlgorithm._wrap_env(env, verbose=0)
    return venv if unwrap_vec_normalize(venv) is not None else wrapped(venv, statistics)


def wrapped(venv: VecEnv, statistics: dict[str, Any]) -> VecNormalize:
    """
    A ``VecNormalize`` with statistics.

    :param venv: The environments, as they were in the wrapper that was saved.
    :param statistics: From :func:`statistics_of`.
    :raises ValueError: If they do not fit.
    """
    if unknown := sorted(statistics.keys() - {*_SETTINGS, *_STATISTICS}):
        raise ValueError(f"it has {unknown} of VecNormalize, which are not known.")
    wrapper = VecNormalize(venv, **{name: value for name, value in statistics.items() if name in _SETTINGS})
    for name in _STATISTICS:
        fresh, saved = getattr(wrapper, name, None), statistics.get(name)
        if _shapes(fresh) != _shapes(saved):
            raise ValueError(
                f"VecNormalize has statistics {name} of the shapes {_shapes(saved)}, the environment needs {_shapes(fresh)}: "
                "wrap it by load_safe_vec_normalize, and what was around that in training around it."
            )
        if saved is not None:
            setattr(wrapper, name, saved)
    return wrapper


def detached(statistics: dict[str, Any], observation_space: spaces.Space) -> VecNormalize:
    """
    A ``VecNormalize`` that is around no environment, as one of SB3 is that was just unpickled: to normalise with.

    :param statistics: From :func:`statistics_of`.
    :param observation_space: Of the environments.
    """
    wrapper: Any = object.__new__(VecNormalize)
    wrapper.__dict__.update({**statistics, "observation_space": observation_space, "venv": None})
    return wrapper


def _shapes(statistics: Any) -> Any:
    if isinstance(statistics, dict):
        return {key: _shapes(value) for key, value in statistics.items()}
    if not isinstance(statistics, RunningMeanStd):
        return None
    return np.shape(statistics.mean) if np.shape(statistics.mean) == np.shape(statistics.var) else "unequal"
