"""``sb3-sparse train`` with exact checkpoints: what is written down to go on from, and how a run goes on."""

import glob
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.common.files import written_beside
from sb3_sparse.common.interrupts import ClosedOutput, is_unread, uninterrupted
from sb3_sparse.common.sb3_models import all_callbacks
from sb3_sparse.common.validation import positive, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.files.folder import checkpoints, newest_whole
from sb3_sparse.resume.files.lease import Lease
from sb3_sparse.resume.files.whole_files import goes_on_without_saving, sweep_beside
from sb3_sparse.resume.signals import ends_with_checkpoint, shield_workers
from sb3_sparse.zoo.hyperparameters import WrongSettingError
from sb3_sparse.zoo.rl_zoo import part

# In the folder of a run: its checkpoints, and the command that began it.
FOLDER, COMMAND = "exact", "command.json"
# What is overridden: a version of rl-zoo3 that never calls one of these would do something else without a word.
_OVERRIDDEN = ("__init__", "setup_experiment", "read_hyperparameters", "create_callbacks", "learn", "save_trained_model")


@dataclass(frozen=True)
class ExactRun:
    """How a run is written down to go on from."""

    args: list[str]
    """Of rl-zoo3's command."""
    every: int | None = None
    """Steps between two checkpoints; None: what the hyperparameters say, or none."""
    keep: int = 2
    patience: float = 600.0
    """Seconds in which an exact point has to come after a signal."""
    resume: Path | None = None
    """The folder of a run that goes on."""
    hyperparameters: dict[str, str] | None = None
    """Of a run that goes on: as they were read when it began, see :func:`_as_texts`."""

    def __post_init__(self) -> None:
        if self.every is not None:
            whole_number("--exact-checkpoint-freq", self.every, 1)
        whole_number("--exact-checkpoint-keep", self.keep, 1)
        positive("--exact-checkpoint-patience", self.patience)


def recorded_run(folder: Path) -> ExactRun:
    """
    The run in a folder, to go on with.

    :param folder: Of the run, such as ``logs/sac/Pendulum-v1_1``.
    :raises ValueError: If it is not one that was written down, or was begun in another folder.
    """
    path = folder / FOLDER / COMMAND
    try:
        recorded = json.loads(path.read_text())
        args, cwd, options = recorded["args"], recorded["cwd"], recorded["options"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{path} is missing: expected the folder of a run that was trained with --exact-checkpoint-freq."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): expected what sb3-sparse train writes there.") from error
    if Path(cwd) != Path.cwd():
        raise ValueError(f"{folder} was begun in the folder {cwd}, which its options are relative to: go on from there.")
    # Earlier versions did not write them down.
    return ExactRun(args, **options, resume=folder, hyperparameters=recorded.get("hyperparameters"))


class _CheckpointOfRun(ExactCheckpoint):
    """In the folder of a run, which nobody else writes to while the checkpoints in it are held."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        sweep_beside(self.path.parent, is_held=True)


class _EndsUnread(BaseCallback):
    """Training ends where nobody reads the output any more, with the agent as far as it came, as after Ctrl-C."""

    has_said = False

    def _on_step(self) -> bool:
        if self.has_said:
            # ARS goes on all the same.
            raise KeyboardInterrupt
        self.has_said = is_unread()
        return not self.has_said


class _SavesAtOnce:
    """
    What was trained is saved as a part of the training, so that nothing which asks for the end comes between. Where nobody
    reads the output any more, which ends training, it is said what came of it.
    """

    save_path: str
    # Whether the folder of the run was made here.
    is_new: bool
    # Of rl-zoo3; and what it has read.
    n_timesteps: float
    seed: int
    read: dict[str, str]
    # The agent that went on.
    resumed: BaseAlgorithm | None = None
    is_saved = False

    def learn(self, model: BaseAlgorithm) -> None:
        if is_unread():
            if self.is_new:
                shutil.rmtree(self.save_path, ignore_errors=True)
            raise ClosedOutput("nothing was trained.")
        super().learn(model)  # type: ignore[misc]

    def save_now(self, model: BaseAlgorithm) -> None:
        """What rl-zoo3 does behind the training."""
        with uninterrupted():
            super().save_trained_model(self.resumed or model)  # type: ignore[misc]
            self.is_saved = True

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        if not self.is_saved:
            self.save_now(model)
        if is_unread():
            steps = (self.resumed or model).num_timesteps
            raise ClosedOutput(f"training has ended, the agent after {steps} steps is in {self.save_path}.")


def exactly(base: type, exact: ExactRun) -> type:
    """
    An experiment manager whose runs can go on.

    :param base: The experiment manager.
    :param exact: What to do.
    :raises ImportError: If a version of rl-zoo3 lacks what is overridden.
    """
    for name in _OVERRIDDEN:
        part(f"exp_manager.ExperimentManager.{name}")

    class ExactManager(_SavesAtOnce, base):
        """See :func:`exactly`."""

        every = exact.every

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            if exact.resume is not None:
                # Of the run that goes on, not of the next one.
                self.goes_on, self.save_path, self.params_path = True, str(exact.resume), f"{exact.resume}/{self.env_name}"
            _sweep_runs(Path(self.log_path), str(self.env_name))

        def setup_experiment(self) -> Any:
            _check_goes_on(exact, f"{self.env_name}.zip")
            return super().setup_experiment()

        def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
            hyperparams, saved = super().read_hyperparameters()
            self.read = _as_texts(saved)  # now, since SB3 writes into some of them
            _check_same(exact, self.config, self.read)
            self.every = self.every or self.exact_checkpoint_freq
            return hyperparams, saved

        def create_callbacks(self) -> None:
            super().create_callbacks()
            folder = Path(self.save_path) / FOLDER
            if self.every is not None and not self.optimize_hyperparameters:
                self.callbacks.insert(0, _CheckpointOfRun(folder, self.every, exact.keep, verbose=self.verbose))
                _say_if_none(exact, self.every, self.n_timesteps)
            if exact.resume is None and _exact_checkpoint(self.callbacks) is not None:
                _write_down(folder / COMMAND, exact, self.read, self.seed)

        def learn(self, model: BaseAlgorithm) -> None:
            checkpoint = _exact_checkpoint(self.callbacks)
            envs = _environments(model, self.callbacks)
            if checkpoint is None:
                self.callbacks.append(_EndsUnread())
                shield_workers(envs)
                # rl-zoo3 takes the first Ctrl-C, and this one the next, while environments are being closed, which have to be.
                with suppress(KeyboardInterrupt):
                    self.learn_or_go_on(model, None)
                self.save_now(model)
                return
            with ends_with_checkpoint(checkpoint, exact.patience, envs):
                self.learn_or_go_on(model, checkpoint)
                self.save_now(model)

        def learn_or_go_on(self, model: BaseAlgorithm, checkpoint: ExactCheckpoint | None) -> None:
            # What callbacks save is of no use to a run that ends of it.
            with goes_on_without_saving():
                if checkpoint is None or exact.resume is None or not checkpoints(checkpoint.path):
                    super().learn(model)
                else:
                    self.resumed = resume_exact(checkpoint.path, env=model.get_env(), callback=self.callbacks)

    return ExactManager


def _check_goes_on(exact: ExactRun, agent: str) -> None:
    """
    Before tables and settings of a run are opened to be written anew: what refuses to go on leaves it as it is.

    :param exact: The run.
    :param agent: Name of the file that it ends with.
    :raises FolderInUse: If another process trains it.
    :raises DamagedCheckpoint: If there are checkpoints, and none is whole.
    :raises WrongSettingError: If there is none, and a run of the command has come to its end.
    """
    if exact.resume is None:
        return
    Lease(exact.resume / FOLDER).release()
    if checkpoints(exact.resume / FOLDER):
        newest_whole(exact.resume / FOLDER)
    elif exact.args and (exact.resume / agent).exists():
        raise WrongSettingError(
            f"{exact.resume} has ended, with the agent {exact.resume / agent}: there is no checkpoint to go on from."
        )


def _say_if_none(exact: ExactRun, every: int, n_timesteps: float) -> None:
    """Of the command: who plans studies may have asked for none."""
    if exact.args and every >= n_timesteps:
        warn_user(f"a checkpoint every {every} steps is none in a run of {n_timesteps:g}: choose fewer.")


def _sweep_runs(logs: Path, name: str) -> None:
    """Of this run, and of earlier ones of which nothing goes on: others may be running."""
    for folder in logs.glob(f"{glob.escape(name)}_*"):
        sweep_beside(folder)


def _environments(model: BaseAlgorithm, callbacks: list[BaseCallback]) -> list[VecEnv]:
    """Those of training and of evaluations."""
    evaluated = [each.eval_env for each in all_callbacks(CallbackList(callbacks)) if isinstance(each, EvalCallback)]
    return [*filter(None, [model.get_env()]), *evaluated]


def _as_texts(hyperparameters: dict[str, Any]) -> dict[str, str]:
    """Each as one line of YAML, objects of a file of Python included, as rl-zoo3 writes them."""
    # It comes with rl-zoo3.
    import yaml

    def text(value: Any) -> str:
        try:
            return str(yaml.dump([value], default_flow_style=True, width=float("inf"))).strip()[1:-1]
        except (yaml.YAMLError, TypeError):
            # Nor can rl-zoo3 write it into its file, where it writes one.
            return f"a {type(value).__name__}"

    return {name: text(value) for name, value in hyperparameters.items()}


def _write_down(path: Path, exact: ExactRun, hyperparameters: dict[str, str], seed: int) -> None:
    options = dict(every=exact.every, keep=exact.keep, patience=exact.patience)
    # Where none is given rl-zoo3 draws one, and would draw another one; the last one counts.
    args = [*exact.args, "--seed", str(seed)]
    begun = {"args": args, "cwd": os.getcwd(), "options": options, "hyperparameters": hyperparameters}
    with written_beside(path) as beside:
        beside.write_text(json.dumps(begun, indent=1))


def _check_same(exact: ExactRun, config: str, now: dict[str, str]) -> None:
    """:raises WrongSettingError: If a file was edited: the agent has the old settings, all else would have the new ones."""
    before = exact.hyperparameters
    if before is None:
        return
    entries = [
        f"{name}={now.get(name, '(missing)')} instead of {before.get(name, '(missing)')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if entries:
        raise WrongSettingError(
            f"{exact.resume} was begun with other hyperparameters than are in {config} now: {', '.join(entries)}. Put back "
            "what it had, or begin a new run, without --resume."
        )


def _exact_checkpoint(callbacks: list[BaseCallback]) -> ExactCheckpoint | None:
    found = [each for each in all_callbacks(CallbackList(callbacks)) if isinstance(each, ExactCheckpoint)]
    return found[0] if found else None
