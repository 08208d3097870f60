"""Policies that were given to an algorithm that is not theirs, or normalise a second time: said as early as it can be."""

import sys
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_sparse.common.warn import warn_user

WRONG_POLICY = "Is this the policy of another algorithm? The string 'SparseSimBaPolicy' names the right one on each."
# What algorithms ask their policies and networks for.
_ASKED_FOR = {
    *("actor", "actor_target", "critic", "critic_target"),
    *("q_net", "q_net_target", "quantile_net"),
    *("quantiles_total", "set_bn_training_mode"),
}


class HintsAtItsAlgorithm:
    """Mixin for a module that is asked for what it has not, since it was given to another algorithm than its own."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            if name in _ASKED_FOR and "_modules" in self.__dict__:
                raise AttributeError(f"{error}. {WRONG_POLICY}") from None
            raise


def building_algorithm() -> BaseAlgorithm | None:
    """
    The algorithm that builds the policy whose constructor calls this; None if there is none.

    SB3 does not tell a policy whom it is for, but the stack does: behind the constructors comes who called them. Only
    methods of SB3's count: an algorithm of somebody else's may make a policy for another purpose.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_name == "__init__" and frame.f_back is not None:
        frame = frame.f_back
    caller = frame.f_locals.get("self")
    is_sb3s = frame.f_globals.get("__name__", "").partition(".")[0] in ("stable_baselines3", "sb3_contrib")
    return caller if is_sb3s and isinstance(caller, BaseAlgorithm) else None


def refuse_on_policy(policy_class: type, algorithm: BaseAlgorithm | None) -> None:
    """
    :raises ValueError: If the algorithm learns on-policy: it would ask for values and log-probabilities, while it learns.
    """
    if isinstance(algorithm, OnPolicyAlgorithm):
        name = type(algorithm).__name__
        raise ValueError(
            f"{policy_class.__name__} is a policy for algorithms that learn from a replay buffer, and {name} learns "
            f"on-policy. For a sparse {name}, prune its own: model = {name}('MlpPolicy', env), then "
            "sb3_sparse.sparsify_(model.policy, 0.9)."
        )


def warn_of_second_normalization(algorithm: BaseAlgorithm | None) -> None:
    """Say that the environment of a policy that normalises observations normalises them already, if it does."""
    vec_normalize = None if algorithm is None else algorithm.get_vec_normalize_env()
    if vec_normalize is not None and vec_normalize.norm_obs:
        warn_user(
            "VecNormalize around the environment of a policy that normalises observations by itself: leave it out, or pass "
            "policy_kwargs=dict(normalize_observations=False), or VecNormalize(norm_obs=False); in a file of hyperparameters, "
            "remove normalize, or give it {'norm_obs': False}."
        )
