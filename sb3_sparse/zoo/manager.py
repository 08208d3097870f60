"""rl-zoo3's experiment manager, as this package uses it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_sparse.zoo.hyperparameters import (
    EVALUATED_BY_RL_ZOO,
    WrongSettingError,
    check_config,
    check_names,
    is_our_policy,
    read_setting,
)
from sb3_sparse.zoo.rl_zoo import part, replaced
from sb3_sparse.zoo.search_spaces import STREAM_KAPPAS, sparse_converter, sparse_sampler

# Of DeepMind Control tasks whose entry names no `env_wrapper` (null stands for none at all).
DMC_WRAPPER = {"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}
# What is overridden: a version of rl-zoo3 that never calls one of these would do something else without a word.
OVERRIDDEN = ("read_hyperparameters", "_preprocess_hyperparams", "load_trial", "hyperparameters_optimization")


def experiment_manager(reads_only: bool = False) -> type:
    """
    A subclass of rl-zoo3's ``ExperimentManager``.

    rl-zoo3 replaces ``policy_kwargs`` by what its samplers propose; with our policies they are merged. Tasks of DeepMind
    Control get their wrapper, without which they have Dict observations, where the file does not say it.

    :param reads_only: Whether the hyperparameters may come from anybody: what rl-zoo3 would evaluate is read as literals
        instead, and callbacks are left out.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks what is overridden.
    """
    base = part("exp_manager.ExperimentManager")
    for name in OVERRIDDEN:
        part(f"exp_manager.ExperimentManager.{name}")

    class SparseExperimentManager(base):  # type: ignore[valid-type, misc]
        """See :func:`experiment_manager`."""

        # The YAML's, once they are read; only of our policies.
        kept_policy_kwargs: dict[str, Any] | None = None
        trial_id: int | None

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            check_config(self.config)
            trial_id, self.trial_id = self.trial_id, None
            with _about_the_file(self.config):
                hyperparams, saved = super().read_hyperparameters()
            if is_our_policy(hyperparams.get("policy")):
                self.kept_policy_kwargs = dict(read_setting("policy_kwargs", hyperparams.get("policy_kwargs") or {}))
            self.trial_id = trial_id
            if trial_id:
                hyperparams, saved = super().read_hyperparameters()
            is_ours = is_our_policy(hyperparams.get("policy"))
            if is_ours or self.algo in STREAM_KAPPAS:
                _wrap_dmc(self.env_name.gym_id, hyperparams, saved)
            names = EVALUATED_BY_RL_ZOO if reads_only else ("policy_kwargs",) if is_ours else ()
            hyperparams.update({name: read_setting(name, hyperparams[name]) for name in names if name in hyperparams})
            if reads_only:
                hyperparams.pop("callback", None)
            return hyperparams, saved

        def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, ...]:
            for_algorithm, *others = super()._preprocess_hyperparams(hyperparams)
            # A saved agent takes any attribute.
            if not self.continue_training:
                check_names(part("utils.ALGOS")[self.algo], for_algorithm)
            return (for_algorithm, *others)

        def load_trial(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            with self.search_space():
                return super().load_trial(*args, **kwargs)

        def hyperparameters_optimization(self) -> None:
            with self.search_space():
                super().hyperparameters_optimization()

        @contextmanager
        def search_space(self) -> Iterator[None]:
            """With our policies: sparsity and width, in rl-zoo3's tables while they are used."""
            if self.kept_policy_kwargs is None:
                yield
                return
            kept, samplers = self.kept_policy_kwargs, part("hyperparams_opt.HYPERPARAMS_SAMPLER")
            converters = part("hyperparams_opt.HYPERPARAMS_CONVERTER")
            sampler = {self.algo: sparse_sampler(samplers[self.algo], kept)}
            converter = {self.algo: sparse_converter(converters[self.algo], kept)}
            with replaced(samplers, sampler), replaced(converters, converter):
                yield

    return SparseExperimentManager


@contextmanager
def _about_the_file(config: str) -> Iterator[None]:
    """What goes wrong inside is that the file has no entry for the environment."""
    try:
        yield
    except ValueError as error:
        # A file .py or a module is the user's code, whose errors are left alone.
        if not config.endswith((".yml", ".yaml")):
            raise
        raise WrongSettingError(str(error)) from error


def _wrap_dmc(env_id: str, *settings: dict[str, Any]) -> None:
    """Name the wrapper of a DeepMind Control task, where the hyperparameters say nothing of one."""
    if env_id.startswith("dm_control/") and "env_wrapper" not in settings[0]:
        print(f"{env_id} has no env_wrapper in the file: using {DMC_WRAPPER}")
        wrappers = [copy.deepcopy(DMC_WRAPPER)]
        for hyperparams in settings:
            hyperparams["env_wrapper"] = wrappers
