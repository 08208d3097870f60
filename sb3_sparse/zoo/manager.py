"""rl-zoo3's experiment manager, as this package uses it."""

import copy
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.interrupts import is_unread
from sb3_sparse.common.validation import whole_number
from sb3_sparse.resume.signals import shield_workers
from sb3_sparse.zoo.exact_runs import COMMAND
from sb3_sparse.zoo.hyperparameters import (
    BUFFERS,
    EVALUATED_BY_RL_ZOO,
    WrongSettingError,
    check_classes,
    check_config,
    check_names,
    is_our_policy,
    read_setting,
)
from sb3_sparse.zoo.mistakes.searches import ChecksSearch
from sb3_sparse.zoo.mistakes.settings import (
    about_evaluated,
    check_actions,
    check_file,
    check_normalize,
    check_policy,
    check_policy_kwargs,
    check_values,
)
from sb3_sparse.zoo.mistakes.storage import about_storage, check_storage, check_trial
from sb3_sparse.zoo.mistakes.words import is_of_others
from sb3_sparse.zoo.rl_zoo import part
from sb3_sparse.zoo.saved.going_on import OF_POLICY, GoesOn
from sb3_sparse.zoo.search_spaces import STREAM_KAPPAS, search_space, with_buffer

# Of DeepMind Control tasks whose entry names no `env_wrapper` (null stands for none at all).
DMC_WRAPPER = {"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}
# For those who learn from pictures.
PIXEL_WRAPPER = {"sb3_sparse.pixels.PixelObservations": {"size": 84, "action_repeat": 2}}
# What is overridden: a version of rl-zoo3 that never calls one of these would do something else without a word.
OVERRIDDEN = (
    *("read_hyperparameters", "_preprocess_hyperparams", "load_trial"),
    *("hyperparameters_optimization", "objective"),
    *("_load_pretrained_agent", "_maybe_normalize", "_save_config", "_preprocess_action_noise"),
    *("setup_experiment", "create_log_folder", "create_envs"),
)


def experiment_manager(reads_only: bool = False) -> type:
    """
    A subclass of rl-zoo3's ``ExperimentManager``.

    rl-zoo3 replaces ``policy_kwargs`` by what its samplers propose; with our policies they are merged. Tasks of DeepMind
    Control get their wrapper, without which they have Dict observations, where the file does not say it. Evaluations have
    the same environment as the training. Where a saved agent goes on, ``config.yml`` holds what it has, not what it does not
    take.

    :param reads_only: Whether the hyperparameters may come from anybody: what rl-zoo3 would evaluate is read as literals
        instead, and callbacks are left out.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks what is overridden.
    """
    base = part("exp_manager.ExperimentManager")
    for name in OVERRIDDEN:
        part(f"exp_manager.ExperimentManager.{name}")

    class SparseExperimentManager(GoesOn, _ChecksActions, ChecksSearch, _Searches, _LeavesNothing, base):  # type: ignore[valid-type, misc]
        """See :func:`experiment_manager`."""

        trial_id: int | None
        #: Of the file, for runs that can go on.
        exact_checkpoint_freq: int | None = None

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            # rl-zoo3 takes trial 0 for none, and gives what -params says of a part in place of the whole.
            trial_id, self.trial_id = self.trial_id, None
            with _about_the_file(self.config, self.env_name.gym_id):
                hyperparams, saved = super().read_hyperparameters()
            check_policy_kwargs(hyperparams)
            if is_our_policy(self.algo, hyperparams.get("policy")):
                self.kept_policy_kwargs = dict(read_setting("policy_kwargs", hyperparams.get("policy_kwargs") or {}))
            self.trial_id = trial_id
            if trial_id is not None:
                found = self.trial(trial_id, hyperparams)
                print(f"Trial {trial_id} has: {found}")
                hyperparams |= found
                saved = OrderedDict(sorted({**saved, **found}.items()))
            # No keyword of an algorithm.
            if (every := hyperparams.pop("exact_checkpoint_freq", None)) is not None:
                self.exact_checkpoint_freq = whole_number("exact_checkpoint_freq", every, 1)
            is_ours = is_our_policy(self.algo, hyperparams.get("policy"))
            if is_ours or self.algo in STREAM_KAPPAS:
                _wrap_dmc(self.env_name.gym_id, PIXEL_WRAPPER if self.algo == "drqv2" else DMC_WRAPPER, hyperparams, saved)
            names = EVALUATED_BY_RL_ZOO if reads_only else ("policy_kwargs",) if is_ours else ()
            _read(hyperparams, names)
            if reads_only:
                hyperparams.pop("callback", None)
            return hyperparams, saved

        def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, ...]:
            check_values(self.config, self.env_name.gym_id, hyperparams)
            if "noise_type" in hyperparams and hyperparams["noise_type"] is None:
                # rl-zoo3 would leave both to the algorithm. A saved agent may have some, which goes away.
                del hyperparams["noise_type"]
                hyperparams.pop("noise_std", None)
                hyperparams["action_noise"] = None
            with about_evaluated(hyperparams):
                for_algorithm, *others = super()._preprocess_hyperparams(hyperparams)
            check_normalize(self.normalize_kwargs)
            if self._eval_env_kwargs_args is None:
                # Those of a file too, which rl-zoo3 leaves out of evaluations.
                self.eval_env_kwargs = self.env_kwargs
            _check(part("utils.ALGOS")[self.algo], for_algorithm, self.continue_training)
            if self.optimize_hyperparameters:
                _check_search(for_algorithm)
            return (for_algorithm, *others)

    return SparseExperimentManager


def without_evaluation(base: type) -> type:
    """
    An experiment manager whose hyperparameters may come from anybody: what rl-zoo3 would evaluate is read as literals, and
    what is named by its place to import has to be a policy, a wrapper or a callback.

    :param base: The experiment manager.
    """

    class CarefulManager(base):
        """See :func:`without_evaluation`."""

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            hyperparams, saved = super().read_hyperparameters()
            _read(hyperparams, EVALUATED_BY_RL_ZOO)
            check_classes(hyperparams)
            return hyperparams, saved

    return CarefulManager


def _read(hyperparams: dict[str, Any], names: Iterable[str]) -> None:
    """Put objects in place of strings: literals of some names, and our replay buffers, of which rl-zoo3 knows nothing."""
    hyperparams.update({name: read_setting(name, hyperparams[name]) for name in names if name in hyperparams})
    buffer = hyperparams.get("replay_buffer_class")
    if isinstance(buffer, str) and buffer in BUFFERS:
        hyperparams["replay_buffer_class"] = BUFFERS[buffer]


def _check(algorithm: type[BaseAlgorithm], hyperparams: dict[str, Any], continues: bool) -> None:
    """See whether the algorithm has such keywords. A saved agent takes them, but for those that made it what it is."""
    # SB3 would make attributes of others where it loads an agent, which nobody reads.
    check_names(algorithm, hyperparams)
    if not continues:
        check_policy(algorithm, hyperparams.get("policy"))
        return
    kept = sorted(getattr(algorithm, "fixed_keywords", frozenset()) & hyperparams.keys())
    # These two rl-zoo3 takes out itself.
    print(f"As they are in the saved agent, whatever is set: {', '.join([*kept, *OF_POLICY])}")
    for name in kept:
        del hyperparams[name]


def _check_search(hyperparams: dict[str, Any]) -> None:
    """See whether trials of a search have buffers of their own: one in a file would go on with the steps of those before."""
    path = (hyperparams.get("replay_buffer_kwargs") or {}).get("storage_path")
    if path is not None:
        raise WrongSettingError(
            f"storage_path={path!r} in replay_buffer_kwargs: every trial of a search would learn from the steps of the "
            "trials before it. Leave it out, which keeps the buffer in memory, and choose a smaller buffer_size."
        )


class SearchFailed(Exception):
    """What is wrong in every trial: rl-zoo3 takes a ValueError for one of the sampled values, and tries others."""


class _Searches:
    """Searches and their trials. With our policies, they keep the rest of what the file says of them."""

    algo: str
    storage: str | None
    study_name: str | None
    custom_hyperparams: dict[str, Any] | None
    # The YAML's, once they are read; only of our policies.
    kept_policy_kwargs: dict[str, Any] | None = None

    def trial(self, number: int, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        The hyperparameters of a trial. What is given beside it stands; of our policies and of replay buffers each keyword.

        :param number: Of the trial.
        :param hyperparams: Of the file, with what is given beside the trial.
        """
        check_trial(number, self.storage, self.study_name)
        found = self.load_trial(self.storage, self.study_name, number)  # type: ignore[arg-type]
        given = dict(self.custom_hyperparams or {})
        if self.kept_policy_kwargs is not None:
            found["policy_kwargs"] |= read_setting("policy_kwargs", given.pop("policy_kwargs", None) or {})
        found = {name: value for name, value in found.items() if name not in given}
        buffer_kwargs = read_setting("replay_buffer_kwargs", hyperparams.get("replay_buffer_kwargs") or {})
        found = with_buffer(found, buffer_kwargs)
        if "replay_buffer_kwargs" in given and "replay_buffer_kwargs" in found:
            found["replay_buffer_kwargs"] |= buffer_kwargs
        return found

    def load_trial(self, storage: str, study_name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self.search_space(), about_storage(storage, study_name, *args):
            return super().load_trial(storage, study_name, *args, **kwargs)  # type: ignore[misc]

    def hyperparameters_optimization(self) -> None:
        check_storage(self.storage)
        try:
            with self.search_space():
                super().hyperparameters_optimization()  # type: ignore[misc]
        except SearchFailed as error:
            raise WrongSettingError(str(error)) from error

    def objective(self, trial: Any) -> float:
        try:
            return super().objective(trial)  # type: ignore[misc]
        finally:
            if is_unread():
                # With the report of what there is.
                trial.study.stop()

    def search_space(self) -> AbstractContextManager[None]:
        """Ours, in rl-zoo3's tables while they are used."""
        return search_space(self.algo, self.kept_policy_kwargs)


class _LeavesNothing:
    """Where no agent comes of a command, its environments are closed, and the folder of its run goes away again."""

    save_path: str
    params_path: str
    env_name: Any
    optimize_hyperparameters: bool
    # While the experiment is set up: whoever makes some later closes them.
    created: list[VecEnv] | None = None
    # Whether the folder is that of a run which began before.
    goes_on = False
    # Whether the folder of the run was made here.
    is_new = False

    def setup_experiment(self) -> Any:
        self.created = []
        try:
            return super().setup_experiment()  # type: ignore[misc]
        except BaseException:
            for envs in self.created:
                envs.close()
            if self.is_new:
                _remove_beginning(Path(self.save_path))
            raise
        finally:
            self.created = None

    def create_log_folder(self) -> None:
        """rl-zoo3 has looked for the next number some time ago: another command that began then has found the same one."""
        if not self.goes_on:
            self.save_path = str(_made_folder(Path(self.save_path)))
            self.params_path = f"{self.save_path}/{self.env_name}"
            self.is_new = True
        super().create_log_folder()  # type: ignore[misc]

    def hyperparameters_optimization(self) -> None:
        try:
            super().hyperparameters_optimization()  # type: ignore[misc]
        finally:
            if self.is_new:
                _remove_beginning(Path(self.save_path))

    def create_envs(self, *args: Any, **kwargs: Any) -> VecEnv:
        envs: VecEnv = super().create_envs(*args, **kwargs)  # type: ignore[misc]
        if self.created is not None:
            self.created.append(envs)
        if self.optimize_hyperparameters:
            # Ctrl-C ends a search with its report. Training shields those that it has.
            shield_workers([envs])
        return envs


def _made_folder(folder: Path) -> Path:
    """The folder ``ENV_NUMBER`` of a new run, or the first with a larger number that nobody has."""
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise
            name, _, number = folder.name.rpartition("_")
            folder = folder.with_name(f"{name}_{int(number) + 1}")


def _remove_beginning(folder: Path) -> None:
    """Of a run in which nothing happened: with its number, the newest run would be one without an agent."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if all(path.name.endswith("monitor.csv") or path.name == COMMAND for path in files):
        shutil.rmtree(folder, ignore_errors=True)


class _ChecksActions:
    """An algorithm that cannot act in an environment says which ones can."""

    algo: str
    env_name: Any

    def _preprocess_action_noise(self, hyperparams: dict[str, Any], saved: dict[str, Any], env: VecEnv) -> dict[str, Any]:
        # Here is an environment for the first time, and no agent yet.
        check_actions(self.algo, self.env_name.gym_id, env.action_space)
        return super()._preprocess_action_noise(hyperparams, saved, env)  # type: ignore[misc]


@contextmanager
def _about_the_file(config: str, env_id: str) -> Iterator[None]:
    """What goes wrong inside is that the file has no entry for the environment, or a module no hyperparameters."""
    check_config(config)
    check_file(config, env_id)
    try:
        yield
    except (KeyError, AttributeError) as error:
        # rl-zoo3 asks for these two without a look.
        asked = error.args[0] if isinstance(error, KeyError) else error.name
        if asked not in ("atari", "hyperparams") or is_of_others(error):
            raise
        kind = "an entry 'atari', or one of the game" if asked == "atari" else "a dictionary 'hyperparams'"
        raise WrongSettingError(f"hyperparameters of {config!r}: expected {kind} in it.") from error
    except ValueError as error:
        # A file .py or a module is the user's code, whose errors are left alone.
        if not config.endswith((".yml", ".yaml")):
            raise
        raise WrongSettingError(str(error)) from error


def _wrap_dmc(env_id: str, wrapper: dict[str, Any], *settings: dict[str, Any]) -> None:
    """Name the wrapper of a DeepMind Control task, where the hyperparameters say nothing of one."""
    if env_id.startswith("dm_control/") and "env_wrapper" not in settings[0]:
        print(f"{env_id} has no env_wrapper in the file: using {wrapper}")
        wrappers = [copy.deepcopy(wrapper)]
        for hyperparams in settings:
            hyperparams["env_wrapper"] = wrappers
