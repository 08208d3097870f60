"""Agents of hyperparameter files, without a command line: built, trained, found again; and the environment of a run."""

import argparse
import contextlib
import copy
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    EvalCallback,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_sparse.common.sb3_models import all_callbacks
from sb3_sparse.resume.files.whole_files import goes_on_without_saving
from sb3_sparse.zoo.algorithms import algorithms
from sb3_sparse.zoo.environments import make_known
from sb3_sparse.zoo.exact_runs import ExactRun, exactly
from sb3_sparse.zoo.hyperparameters import hyperparams_file
from sb3_sparse.zoo.manager import experiment_manager, without_evaluation
from sb3_sparse.zoo.patches import registered
from sb3_sparse.zoo.rl_zoo import part
from sb3_sparse.zoo.saved.settings import saved_hyperparams


def train_agent(
    algo: str,
    env_id: str,
    log_folder: str | Path,
    *,
    config: str | Path | None = None,
    hyperparams: dict[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[BaseAlgorithm, Path]:
    """
    Train an agent as ``sb3-sparse train`` does, and save it where that saves it.

    >>> train_agent("sac", "Pendulum-v1", "logs", seed=1, hyperparams={"learning_starts": 500})  # doctest: +SKIP

    :param algo: Its name, such as ``"sac"`` or ``"stream_ac"``.
    :param env_id: ID of the environment.
    :param log_folder: A folder ``ALGO/ENV_NUMBER`` is made in it.
    :param config: YAML file of hyperparameters; None: the packaged one of the algorithm, or rl-zoo3's own. It is run as
        ``train`` runs it: only take what you trust.
    :param hyperparams: To overwrite some of them.
    :param env_kwargs: Arguments of the environment.
    :param seed: Of everything.
    :param options: Of rl-zoo3's ``ExperimentManager``, for example ``n_timesteps`` or ``eval_freq``.
    :return: The agent, whose environment is closed, and the folder of its run. After Ctrl-C it is the agent as far as it
        came, as in rl-zoo3.
    :raises ValueError: If algorithm or environment are not known, or hyperparameters are wrong.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    options = {"eval_freq": -1, "log_interval": -1, **options}
    with registered():
        manager = _manager(algo, env_id, log_folder, config, hyperparams, env_kwargs, seed, options)
        set_random_seed(seed)
        model = manager.setup_experiment()[0]
        with goes_on_without_saving():
            manager.learn(model)
        manager.save_trained_model(model)
    return model, Path(manager.save_path)


def train_in_folder(
    folder: str | Path,
    algo: str,
    env_id: str,
    hyperparams: dict[str, Any],
    *,
    n_timesteps: int,
    checkpoint_every: int,
    patience: float = ExactRun.patience,
    callbacks: Sequence[BaseCallback] = (),
    stop_at: float | None = None,
    stop_after: int | None = None,
    seed: int = 0,
    **options: Any,
) -> BaseAlgorithm:
    """
    Train an agent in a folder of its own, or go on with it from the newest exact checkpoint there, and save it.

    :param folder: Holds what a run of rl-zoo3 holds, and ``exact`` with the checkpoints.
    :param algo: Name of the algorithm.
    :param env_id: ID of the environment.
    :param hyperparams: All of them, as a file has them. What rl-zoo3 would evaluate is read as literals, and names have to be
        those of policies, wrappers and callbacks.
    :param n_timesteps: How long.
    :param checkpoint_every: Steps between two checkpoints, of which the newest stays.
    :param patience: Seconds in which an exact point has to come after a signal.
    :param callbacks: Besides those of the hyperparameters, the same each time.
    :param stop_at: Mean return of an evaluation with which training ends.
    :param stop_after: So many evaluations in a row without a better one end training.
    :param seed: Of everything.
    :param options: Of rl-zoo3's ``ExperimentManager``, for example ``eval_freq``.
    :return: The agent, whose environment is closed.
    :raises StoppedOnRequest: If a signal asked for a checkpoint and the end.
    :raises ValueError: If algorithm or environment are not known, or hyperparameters are wrong.
    """
    # It comes with rl-zoo3.
    import yaml

    exact = ExactRun([], checkpoint_every, keep=1, patience=patience, resume=Path(folder))
    with registered(), tempfile.TemporaryDirectory() as config_folder:
        config = Path(config_folder) / "hyperparams.yml"
        # The number of steps has to be there, too.
        config.write_text(yaml.safe_dump({env_id: {"n_timesteps": n_timesteps, **hyperparams}}))
        manager = _manager(
            *(algo, env_id, config_folder, config, None, None, seed),
            {"n_timesteps": n_timesteps, "log_interval": -1, **options},
            kind=exactly(without_evaluation(experiment_manager()), exact),
        )
        set_random_seed(seed)
        model = manager.setup_experiment()[0]
        manager.callbacks += callbacks
        evaluations = [each for each in all_callbacks(CallbackList(manager.callbacks)) if isinstance(each, EvalCallback)]
        for each in evaluations:
            # Of large networks, the files of best agents are most of what a study leaves.
            each.best_model_save_path = None
            _stop_early(each, stop_at, stop_after)
        try:
            manager.learn(model)
            manager.save_trained_model(model)
        finally:
            # rl-zoo3 leaves them to the end of the process.
            for env in (model.get_env(), *(each.eval_env for each in evaluations)):
                env.close()
    return manager.resumed or model


def _stop_early(evaluation: EvalCallback, stop_at: float | None, stop_after: int | None) -> None:
    if stop_at is not None:
        others = [each for each in [evaluation.callback_on_new_best] if each is not None]
        evaluation.callback_on_new_best = CallbackList([*others, StopTrainingOnRewardThreshold(stop_at)])
        evaluation.callback_on_new_best.parent = evaluation
    if stop_after is not None:
        # SB3's ends with one more than it is given.
        evaluation.callback = StopTrainingOnNoModelImprovement(stop_after - 1)
        evaluation.callback.parent = evaluation


def packaged_hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    The hyperparameters of an environment as the file of an algorithm has them: the packaged one, or rl-zoo3's own.

    :param algo: Name of the algorithm.
    :param env_id: ID of the environment.
    :return: Plain data; strings that rl-zoo3 would evaluate are strings.
    :raises ValueError: If algorithm or environment are not known, or the file has nothing for it.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    with registered(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        _, saved = _manager(algo, env_id, folder, None, None, None, 0, {"verbose": 0}).read_hyperparameters()
    return dict(saved)


def untrained_agent(
    algo: str,
    env_id: str,
    *,
    config: str | Path | None = None,
    hyperparams: dict[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> BaseAlgorithm:
    """
    The agent that :func:`train_agent` would train. Nothing is printed or left behind, nor run that stands in the file.

    :param algo: Its name.
    :param env_id: ID of the environment.
    :param config: YAML file of hyperparameters; None: the packaged one of the algorithm, or rl-zoo3's own. Strings in it
        that rl-zoo3 would evaluate are read as literals, and callbacks are left out.
    :param hyperparams: To overwrite some of them.
    :param env_kwargs: Arguments of the environment.
    :param seed: Of everything.
    :param options: Of rl-zoo3's ``ExperimentManager``, for example ``device``.
    :return: The agent, without a replay buffer; its environment is closed.
    :raises ValueError: If algorithm or environment are not known, or hyperparameters are wrong.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    hyperparams = dict(hyperparams or {})
    if issubclass(_algorithm(algo), OffPolicyAlgorithm):
        # A replay buffer is of no use here, and may be larger than the machine.
        hyperparams["buffer_size"] = 1
    options = {"eval_freq": -1, "verbose": 0, **options}
    with registered(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        kind = experiment_manager(reads_only=True)
        manager = _manager(algo, env_id, folder, config, hyperparams, env_kwargs, seed, options, kind)
        model = manager.setup_experiment()[0]
        model.env.close()
    return model


def _manager(
    algo: str,
    env_id: str,
    log_folder: str | Path,
    config: str | Path | None,
    hyperparams: dict[str, Any] | None,
    env_kwargs: dict[str, Any] | None,
    seed: int,
    options: dict[str, Any],
    kind: type | None = None,
) -> Any:
    """The experiment manager of one entry; inside of :func:`registered`."""
    _algorithm(algo)
    make_known(env_id)
    config = config or hyperparams_file(algo)
    # What `train` keeps beside the agent of its own options, and `enjoy` reads there.
    arguments = argparse.Namespace(algo=algo, env=env_id, env_kwargs=env_kwargs, seed=seed, log_folder=str(log_folder))
    return (kind or experiment_manager())(
        arguments,
        algo,
        env_id,
        str(log_folder),
        config=None if config is None else str(config),
        hyperparams=copy.deepcopy(hyperparams),
        env_kwargs=copy.deepcopy(env_kwargs),
        seed=seed,
        **options,
    )


def _algorithm(algo: str) -> type[BaseAlgorithm]:
    known = algorithms()
    if algo not in known:
        raise ValueError(f"algo={algo!r}: expected one of {sorted(known)}.")
    return known[algo]


def find_agent(folder: str | Path, algo: str, env_id: str, exp_id: int = 0, best: bool = False) -> Path:
    """
    The file of an agent that ``train`` saved.

    :param folder: The log folder.
    :param algo: Name of the algorithm.
    :param env_id: ID of the environment.
    :param exp_id: Number of the run; 0 is the latest.
    :param best: The one with the best evaluation, instead of the last.
    :raises ValueError: If there is none.
    :raises ImportError: If rl-zoo3 is missing.
    """
    name = part("utils.EnvironmentName")(env_id)
    try:
        return Path(part("utils.get_model_path")(exp_id, str(folder), algo, name, best)[1])
    except AssertionError as error:
        raise ValueError(str(error)) from error


def run_environment(
    folder: str | Path, env_id: str, n_envs: int = 1, env_kwargs: dict[str, Any] | None = None
) -> tuple[VecEnv, dict[str, Any]]:
    """
    The environment of a run, as rl-zoo3's ``enjoy`` makes it: with its arguments and wrappers, but neither normalised nor
    with stacked frames. The files of the run are read by YAML's unsafe loader, as there.

    :param folder: Of the settings of the run, such as ``logs/sac/Pendulum-v1_1/Pendulum-v1``.
    :param env_id: ID of the environment.
    :param n_envs: How many.
    :param env_kwargs: Arguments of the environment, on top of those of the run.
    :return: The environments, and the settings: ``normalize`` and ``frame_stack`` say what is still to be done.
    :raises ValueError: If the environment is not known.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    make_known(env_id)
    hyperparams, _ = saved_hyperparams(str(folder), test_mode=True)
    kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
    arguments = Path(folder) / "args.yml"
    if arguments.is_file():
        # It comes with rl-zoo3.
        import yaml

        given = yaml.load(arguments.read_text(), Loader=yaml.UnsafeLoader)["env_kwargs"]
        kwargs = kwargs if given is None else dict(given)
    env = part("utils.create_test_env")(
        env_id,
        n_envs=n_envs,
        should_render=False,
        hyperparams=copy.deepcopy(hyperparams),
        env_kwargs={**kwargs, **(env_kwargs or {})},
        vec_env_cls=DummyVecEnv,
    )
    return env, hyperparams
