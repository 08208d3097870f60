"""Agents that earlier runs have saved, and that go on: ``train -i``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.export.loading import UNREADABLE, check_algorithm
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.rainbow import Rainbow
from sb3_sparse.rainbow.settings import OF_NETWORK, fixed_settings
from sb3_sparse.streaming.base import StreamAlgorithm
from sb3_sparse.zoo.hyperparameters import WrongSettingError
from sb3_sparse.zoo.mistakes.words import is_of_others, one_line
from sb3_sparse.zoo.rl_zoo import part
from sb3_sparse.zoo.saved.statistics import statistics_beside

# What a saved agent keeps of its policy.
OF_POLICY = ("policy", "policy_kwargs")


class GoesOn:
    """A saved agent goes on with the algorithm and the statistics that it had, and ``config.yml`` holds what it has."""

    continued: BaseAlgorithm | None = None
    continue_training: bool
    algo: str
    env_name: Any
    trained_agent: str
    normalize: bool

    def _load_pretrained_agent(self, *args: Any, **kwargs: Any) -> BaseAlgorithm:
        try:
            check_algorithm(part("utils.ALGOS")[self.algo], load_from_zip_file(self.trained_agent, device="cpu")[0] or {})
            self.continued = super()._load_pretrained_agent(*args, **kwargs)  # type: ignore[misc]
        except UNREADABLE as error:
            if is_of_others(error):
                raise
            raise WrongSettingError(
                f"--trained-agent {self.trained_agent} cannot go on in {self.env_name.gym_id} as {self.algo}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        return self.continued

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        # rl-zoo3 looks in one place only, which is named after the environment of today.
        found = statistics_beside(Path(self.trained_agent)) if self.continue_training else None
        normalizer = load_vec_normalize(found)
        if normalizer is None:
            return super()._maybe_normalize(env, eval_env)  # type: ignore[misc]
        print(f"Going on with the statistics of VecNormalize in {found}")
        try:
            normalizer.set_venv(env)
        except (ValueError, AssertionError) as error:
            env.close()
            raise WrongSettingError(
                f"{found}, the statistics of --trained-agent {self.trained_agent}, do not fit to {self.env_name.gym_id}: "
                f"{one_line(error)}"
            ) from error
        if eval_env:
            normalizer.training = normalizer.norm_reward = False
        return normalizer

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.continued is not None:
            _put_kept_settings(saved_hyperparams, self.continued)
            wrapper = self.continued.get_vec_normalize_env()
            if wrapper is not None:
                # Its statistics were beside the agent, and rl-zoo3 saves them only where the settings say so.
                self.normalize = True
                names = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "epsilon")
                saved_hyperparams["normalize"] = {name: getattr(wrapper, name) for name in names}
        super()._save_config(saved_hyperparams)  # type: ignore[misc]


def _put_kept_settings(hyperparams: dict[str, Any], model: BaseAlgorithm) -> None:
    """Put those of a saved agent in the place of what it did not take."""
    kept: dict[str, Any] = {}
    names_of_network: Iterable[str] = ()
    if isinstance(model, Rainbow):
        kept, names_of_network = fixed_settings(model), OF_NETWORK
    elif isinstance(model, (DrQv2, StreamAlgorithm)):
        kept = model.fixed_settings()
    kind = type(model.policy)
    aliases = [name for name, policy in model.policy_aliases.items() if policy is kind]
    kept["policy"] = aliases[0] if aliases else kind
    policy_kwargs = {name: value for name, value in model.policy_kwargs.items() if name not in names_of_network}
    if policy_kwargs:
        kept["policy_kwargs"] = policy_kwargs
    for name in (*getattr(model, "fixed_keywords", ()), *OF_POLICY):
        hyperparams.pop(name, None)
    hyperparams |= {name: _as_text(value) for name, value in sorted(kept.items())}


def _as_text(value: Any) -> Any:
    """What YAML can hold: classes and functions by their names."""
    if isinstance(value, dict):
        return {name: _as_text(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_text(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
