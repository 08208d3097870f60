"""Going on with a run from its newest checkpoint."""

import importlib
import inspect
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.sb3_models import all_callbacks
from sb3_sparse.resume.checkpoint import ExactCheckpoint
from sb3_sparse.resume.environments.recipe import make
from sb3_sparse.resume.files.folder import Checkpoint, checkpoints, newest_whole
from sb3_sparse.resume.going_on import GoingOn
from sb3_sparse.resume.state.buffers import release_buffer
from sb3_sparse.resume.state.callbacks import Given, check_callbacks
from sb3_sparse.resume.state.logs import logger_again
from sb3_sparse.resume.state.machine import adopt, warn_of_differences
from sb3_sparse.resume.state.model import restore_weights


def resume_exact(
    path: str | os.PathLike[str],
    env: GymEnv | None = None,
    callback: BaseCallback | list[BaseCallback] | None = None,
    model: BaseAlgorithm | None = None,
) -> BaseAlgorithm:
    """
    Go on with a run that :class:`ExactCheckpoint` has written, up to its last step, as if it had never stopped.

    Only for files of your own: parts of a checkpoint are pickles, which execute what is in them.

    :param path: The folder of the run, whose newest whole checkpoint is taken; or one checkpoint in it.
    :param env: The environment, made as the one of the run was. None: it is made from the checkpoint.
    :param callback: The callbacks of the run, made as they were, in the same order; what they have counted is put back. An
        :class:`ExactCheckpoint` need not be among them.
    :param model: An agent that was made as the one of the run was, where SB3's ``load`` does not make it: its networks or
        optimizers were replaced, by ``sparsify_`` for example. Everything in it takes the values of the checkpoint.
    :return: The agent, trained.
    :raises DamagedCheckpoint: If no checkpoint is whole; the message names the file.
    :raises ValueError: If algorithm, environment or callbacks are not those of the run.
    :raises FolderInUse: If another process writes into the folder, or has gone on with the run meanwhile.
    """
    path = Path(path)
    # First: what another process writes while this one reads is newer, and noticed as such.
    there = checkpoints(path) or checkpoints(path.parent)
    checkpoint = newest_whole(path)
    manifest, going_on = checkpoint.manifest, GoingOn(checkpoint, there[0] if there else checkpoint.path)
    callbacks = callback if isinstance(callback, list) else [] if callback is None else [callback]
    ours = [each for each in all_callbacks(CallbackList(callbacks)) if isinstance(each, ExactCheckpoint)]
    others = [each for each in all_callbacks(CallbackList(callbacks)) if not isinstance(each, ExactCheckpoint)]
    check_callbacks(others, going_on.run["callbacks"])
    adopt(manifest["machine"])
    release_buffer(going_on.run["buffer"])
    kind = _algorithm(checkpoint)
    if env is None and model is not None:
        env = model.get_env()
    wrapped = _environment(checkpoint, kind, going_on, env)
    if model is None:
        model = _loaded(checkpoint, kind, wrapped)
    else:
        _take_over(checkpoint, kind, wrapped, model)
    warn_of_differences(manifest["machine"], model.device)
    going_on.begin(model)
    left = manifest["total_timesteps"] - model.num_timesteps
    logger = logger_again(going_on.run["logger"], sys.stdout, checkpoint.path.resolve().parents[1])
    if left <= 0:
        # Earlier versions wrote such checkpoints of streaming algorithms.
        given = Given()
        given.add(others)
        model.set_logger(logger or Logger(None, []))
        going_on.finish(model, others, given)
        return model
    if not ours:
        ours = [ExactCheckpoint(checkpoint.path.parent, **manifest["callback"])]
        callbacks = [*ours, *callbacks]
    ours[0].go_on(going_on)
    if logger is not None:
        model.set_logger(logger)
    return model.learn(left, callback=callbacks, reset_num_timesteps=False, **_learn_arguments(model, going_on))


def _algorithm(checkpoint: Checkpoint) -> type[BaseAlgorithm]:
    module, _, name = checkpoint.manifest["algorithm"].partition(":")
    try:
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{checkpoint.path} is of a {name} of {module}, which cannot be imported: {error}.") from error
    return kind


def _loaded(checkpoint: Checkpoint, kind: type[BaseAlgorithm], env: VecEnv) -> BaseAlgorithm:
    if reason := checkpoint.manifest["needs_model"]:
        raise ValueError(
            f"{checkpoint.path}: {kind.__name__}.load makes another agent than that of the run ({reason}): pass model=, one "
            "that was made as it was."
        )
    with warnings.catch_warnings():
        # SB3 says this of every file of an agent whose buffer it has chosen itself for n_steps.
        warnings.filterwarnings("ignore", "`n_steps=.*is ignored")
        # Of a buffer in a file of its own: they are of this run.
        warnings.filterwarnings("ignore", ".* transitions of an earlier run, which are used")
        return kind.load(io.BytesIO(checkpoint.read("model.zip")), env=env, device=checkpoint.manifest["device"])


def _take_over(checkpoint: Checkpoint, kind: type[BaseAlgorithm], env: VecEnv, model: BaseAlgorithm) -> None:
    """Let a given model have weights and environment."""
    if type(model) is not kind:
        raise ValueError(f"model: a {type(model).__name__} given, {checkpoint.path} is of a {kind.__name__}.")
    if model.get_env() is not env:
        model.set_env(env)
    try:
        restore_weights(model, checkpoint.read("model.zip"))
    except (RuntimeError, ValueError, KeyError) as error:
        says = " ".join(str(error).split())
        raise ValueError(
            f"model: the weights of {checkpoint.path} do not fit ({says}): make it as that of the run."
        ) from error


def _environment(checkpoint: Checkpoint, kind: type[BaseAlgorithm], going_on: GoingOn, env: GymEnv | None) -> VecEnv:
    manifest = checkpoint.manifest
    if env is None:
        if "recipe.pkl" not in manifest["parts"]:
            raise ValueError(
                f"{checkpoint.path} does not say how to make the environment again ({manifest['no_recipe']}): pass env=."
            )
        env = make(checkpoint.read("recipe.pkl"))
    wrapped = kind._wrap_env(env, 0)
    spaces = (wrapped.observation_space, wrapped.action_space)
    if spaces != tuple(going_on.run["spaces"]):
        ours, theirs = " and ".join(map(str, spaces)), " and ".join(manifest["spaces"])
        raise ValueError(f"{checkpoint.path}: the environment has the spaces {ours}, expected {theirs}.")
    if wrapped.num_envs != manifest["n_envs"]:
        raise ValueError(f"{checkpoint.path}: {wrapped.num_envs} environments, expected {manifest['n_envs']}.")
    return wrapped


class _Interval(int):
    """An interval of rollouts that counts those before the run went on; SB3 counts from the beginning of ``learn``."""

    before = 0

    def __rmod__(self, n_rollouts: int) -> int:
        return (n_rollouts + self.before) % int(self)


def _learn_arguments(model: BaseAlgorithm, going_on: GoingOn) -> dict[str, Any]:
    known = inspect.signature(type(model).learn).parameters
    arguments = {name: value for name, value in going_on.run["learn"].items() if name in known}
    if isinstance(model, OnPolicyAlgorithm) and arguments.get("log_interval") is not None:
        arguments["log_interval"] = _Interval(arguments["log_interval"])
        arguments["log_interval"].before = going_on.n_rollouts
    return arguments
