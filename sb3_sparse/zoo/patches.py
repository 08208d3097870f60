"""What is changed in rl-zoo3, for a while."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.sb3_models import SeenEnds
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.resume.files.whole_files import saves_whole_files
from sb3_sparse.resume.signals import shield_workers
from sb3_sparse.zoo.algorithms import loading_without_buffer, registrations
from sb3_sparse.zoo.environments import check_display, registry_restored
from sb3_sparse.zoo.exact_runs import ExactRun, exactly
from sb3_sparse.zoo.hyperparameters import WrongSettingError
from sb3_sparse.zoo.manager import SearchFailed, experiment_manager
from sb3_sparse.zoo.rl_zoo import part, replaced
from sb3_sparse.zoo.saved.settings import saved_hyperparams


@contextmanager
def registered(loads_only: bool = False, exact: ExactRun | None = None) -> Iterator[None]:
    """
    What this package adds to rl-zoo3, inside a ``with`` block: its algorithms and search spaces, the
    :func:`experiment_manager` of ``rl_zoo3.train``, and with ``loads_only`` algorithms that load without a replay buffer.

    Afterwards rl-zoo3 is as before, and so is what gymnasium's registry had, also after an exception. Environments that were
    registered meanwhile stay, and so does what rl-zoo3 does when it is imported: it puts its own ``TimeLimit`` into gymnasium.

    :param loads_only: Whether agents are only loaded, as ``enjoy`` does.
    :param exact: How a run is written down to go on from, or which one goes on. None: as rl-zoo3 does it.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    manager = experiment_manager()
    if exact is not None:
        manager = exactly(manager, exact)
    # In a version without them, the names that are put there would be some that nobody reads.
    part("train.ExperimentManager")
    part("enjoy.get_model_path")
    part("enjoy.get_saved_hyperparams")
    with ExitStack() as stack:
        stack.enter_context(registry_restored())
        for table, entries in registrations():
            stack.enter_context(replaced(table, entries))
        if loads_only:
            known = part("utils.ALGOS")
            off_policy = {
                name: loading_without_buffer(kind) for name, kind in known.items() if issubclass(kind, OffPolicyAlgorithm)
            }
            stack.enter_context(replaced(known, off_policy))
            create_env = _shown(part("enjoy.create_test_env"))
            ours = {"get_model_path": _get_model_path, "create_test_env": create_env}
            ours["get_saved_hyperparams"] = saved_hyperparams
            stack.enter_context(replaced(vars(part("enjoy")), ours))
        if not loads_only:
            stack.enter_context(saves_whole_files())
            stack.enter_context(_watched_evaluations())
        stack.enter_context(replaced(vars(part("train")), {"ExperimentManager": manager}))
        yield


def _get_model_path(*args: Any) -> tuple[str, str, str]:
    """rl-zoo3's, whose errors about an agent that there is not could come from anywhere."""
    try:
        name, path, folder = part("utils.get_model_path")(*args)
    except (AssertionError, ValueError) as error:
        raise WrongSettingError(f"{error}. -f names the log folder, --exp-id the run.") from error
    if not zipfile.is_zipfile(path):
        raise WrongSettingError(f"{path} is no .zip of an agent, or not all of it: --load-best or --exp-id name another one.")
    # Their name is that of the environment, the fourth argument.
    statistics = Path(folder) / str(args[3]) / "vecnormalize.pkl"
    if statistics.is_file():
        try:
            load_vec_normalize(statistics)
        except ValueError as error:
            raise WrongSettingError(str(error)) from error
    return name, path, folder


def _shown(create_env: Callable[..., VecEnv]) -> Callable[..., VecEnv]:
    """With a display where there has to be one, and closed by ``enjoy`` alone, also after Ctrl-C."""

    def create_shown_env(env_id: str, *args: Any, **kwargs: Any) -> VecEnv:
        env = create_env(env_id, *args, **kwargs)
        check_display(env, env_id)
        shield_workers([env])
        return env

    return create_shown_env


class _Watched:
    """A wrapper that a file names is around rl-zoo3's ``Monitor``, and may end episodes that go on for it."""

    kind_of_error: type[Exception] = WrongSettingError

    def _init_callback(self) -> None:
        super()._init_callback()  # type: ignore[misc]
        self.seen_ends = SeenEnds()

    def _log_success_callback(self, played: dict[str, Any], others: dict[str, Any]) -> None:
        super()._log_success_callback(played, others)  # type: ignore[misc]
        try:
            self.seen_ends(played, others)
        except ValueError as error:
            raise self.kind_of_error(
                f"evaluation: {error} In a file of hyperparameters, stable_baselines3.common.monitor.Monitor is then the last "
                "one of env_wrapper."
            ) from error


class WatchedEvalCallback(_Watched, EvalCallback):
    """SB3's, for ``train`` and for studies."""


# Runs that began with SB3's own go on with it, and the other way round: checkpoints name callbacks.
WatchedEvalCallback.__name__ = EvalCallback.__name__


@contextmanager
def _watched_evaluations() -> Iterator[None]:
    """Inside, rl-zoo3's evaluations end with an error where they would never end. Such a block may be in another one."""
    part("exp_manager.EvalCallback")
    of_search = part("exp_manager.TrialEvalCallback")
    if not issubclass(of_search, _Watched):
        of_search = type(of_search.__name__, (_Watched, of_search), {"kind_of_error": SearchFailed})
    watched = {"EvalCallback": WatchedEvalCallback, "TrialEvalCallback": of_search}
    with replaced(vars(part("exp_manager")), watched):
        yield
