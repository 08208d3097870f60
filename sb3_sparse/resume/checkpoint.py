"""A callback that writes checkpoints from which a run goes on exactly."""

import os
from pathlib import Path
from typing import Any

import cloudpickle
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.common.validation import positive, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.plasticity.hidden_rollouts import hidden_rollouts
from sb3_sparse.resume.environments.fresh import begin_fresh_episode
from sb3_sparse.resume.environments.layers import CannotCapture
from sb3_sparse.resume.environments.recipe import recipe
from sb3_sparse.resume.environments.vec_env import capture_env, why_not_exact
from sb3_sparse.resume.files.folder import checkpoints, keep_newest, sweep, write_checkpoint
from sb3_sparse.resume.files.lease import LEASE, Lease
from sb3_sparse.resume.going_on import GoingOn
from sb3_sparse.resume.state.buffers import BufferWriter
from sb3_sparse.resume.state.callbacks import all_callbacks, capture_callbacks
from sb3_sparse.resume.state.logs import capture_logger
from sb3_sparse.resume.state.machine import machine_facts
from sb3_sparse.resume.state.model import capture_model, model_zip
from sb3_sparse.resume.state.random_state import capture_random

# Of `learn`: what the run that goes on calls it with, where its algorithm has such arguments.
_LEARN_ARGUMENTS = ("log_interval", "tb_log_name", "progress_bar")


class StoppedOnRequest(Exception):
    """Training ended because somebody asked for it, with a checkpoint to go on from."""


class ExactCheckpoint(BaseCallback):
    """
    Writes everything that a run consists of, so that :func:`resume_exact` goes on as if it had never stopped, bit by bit.

    .. code-block:: python

        SAC("MlpPolicy", "Pendulum-v1").learn(100_000, callback=ExactCheckpoint("run", every=10_000))

    and later, in another process, ``resume_exact("run")``.

    Checkpoints are written at the beginning of a rollout, of streaming algorithms at the beginning of an episode: the first
    one after every ``every`` steps. Each is a folder that is whole or not there. When training starts, the environment makes
    a few steps and goes back, to see whether its state can be captured; if not, a warning says so, and a run that is resumed
    goes on with a new episode.

    :param path: A folder of its own for the checkpoints of this run.
    :param every: Steps in all environments together between two checkpoints.
    :param keep: How many stay; older ones are removed when a new one is whole.
    :param lease: Seconds for which another process believes that this one writes here, without a sign of life.
    :param verbose: 1 says when a checkpoint is written.
    :raises ValueError: If a value is out of range; when training starts, if the folder holds checkpoints of another run.
    :raises FolderInUse: When training starts, if another process writes there.
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int = 10_000, keep: int = 2, lease: float = LEASE, verbose: int = 0
    ):
        super().__init__(verbose)
        self.path = Path(path)
        self.every, self.keep = whole_number("every", every, 1), whole_number("keep", keep, 1)
        self.lease = positive("lease", lease)
        #: Whether to write a checkpoint at the next point where one can be, and end there.
        self.stop_requested = False
        #: Whether a checkpoint is being written.
        self.is_saving = False
        #: Why a resumed run cannot be exact; None if it can.
        self.not_exact: str | None = None
        self._going_on: GoingOn | None = None
        self._held: Lease | None = None
        self._recipe: tuple[bytes | None, str] = (None, "")
        self._n_rollouts = 0
        # Then what is in the folder is of this run, which is trained further.
        self._has_written = False

    def go_on(self, going_on: GoingOn) -> None:
        """
        Put the rest of a run back when its first rollout begins; :func:`resume_exact` calls this.

        :param going_on: What there is to put back.
        """
        self._going_on = going_on

    def _on_training_start(self) -> None:
        if self._going_on is None and not self._has_written and checkpoints(self.path):
            raise ValueError(
                f"{self.path} holds checkpoints of another run: resume_exact({str(self.path)!r}), or another folder."
            )
        first = next(all_callbacks(self.locals["callback"]), self)
        if first is not self:
            raise ValueError(f"ExactCheckpoint comes after {type(first).__name__}: it has to be the first of the callbacks.")
        self._held = Lease(self.path, self.lease)
        sweep(self.path)
        self._buffer = BufferWriter(self.path)
        self._learn = {name: self.locals[name] for name in _LEARN_ARGUMENTS if name in self.locals}
        env = self.training_env
        self._recipe = _recipe(env)
        if self._going_on is not None:
            self._n_rollouts, self.not_exact = self._going_on.n_rollouts, self._going_on.not_exact
            self._learn["log_interval"] = self._going_on.log_interval
            return
        self.not_exact = why_not_exact(env)
        self._n_rollouts = 0
        self._plan()
        if self.not_exact is not None:
            warn_user(f"ExactCheckpoint: not exact: {self.not_exact}. A run that is resumed goes on with a new episode.")
            begin_fresh_episode(self.model)

    def _plan(self) -> None:
        self._next = (self.model.num_timesteps // self.every + 1) * self.every

    def _on_rollout_start(self) -> None:
        if self._going_on is not None:
            if self._going_on.finish(self.model, self._others()):
                self._buffer.goes_on(self.model, self._going_on.checkpoint, self._going_on.run["buffer"])
            self._going_on = None
            self._plan()
        elif self.stop_requested or self.model.num_timesteps >= self._next:
            self.save()
        if self.stop_requested:
            self._release()
            raise StoppedOnRequest(f"a checkpoint after {self.model.num_timesteps} steps is in {self.path}.")
        self._n_rollouts += 1

    def _on_step(self) -> bool:
        if not self._n_rollouts:
            raise hidden_rollouts("ExactCheckpoint", "every")
        return True

    def _on_training_end(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def _others(self) -> list[BaseCallback]:
        return [each for each in all_callbacks(self.locals["callback"]) if each is not self]

    def save(self) -> None:
        """
        Write a checkpoint now. Only at the beginning of a rollout is it exact.

        If it cannot be written, there is a warning, the older ones stay as they are, and training goes on.

        :raises FolderInUse: If another process has taken over the folder.
        """
        assert self._held is not None
        self._plan()
        self._held.check()
        # An environment in another process that is gone is no full disk, though both are errors of the system.
        parts, run, facts = self._parts(), self._run(), self._facts()
        self.is_saving = True
        try:
            run["buffer"], whole_buffer, rows = self._buffer.write(self.model)
            parts |= {**whole_buffer, "run.pkl": cloudpickle.dumps(run)}
            path = write_checkpoint(self.path, self.model.num_timesteps, parts, rows, facts, self._held.check)
            self._has_written = True
            self._held.check()
            keep_newest(self.path, self.keep)
        except OSError as error:
            warn_user(
                f"ExactCheckpoint: cannot write to {self.path} ({error}). Older checkpoints are whole, training goes on."
            )
            return
        finally:
            self.is_saving = False
        if self.verbose:
            print(f"Checkpoint {path}")

    def _parts(self) -> dict[str, bytes]:
        written, _ = self._recipe
        return {"model.zip": model_zip(self.model), **({} if written is None else {"recipe.pkl": written})}

    def _run(self) -> dict[str, Any]:
        model = self.model
        return {
            "model": capture_model(model),
            "callbacks": capture_callbacks(self._others()),
            "logger": capture_logger(model.logger, model._custom_logger),
            "random": capture_random(),
            "learn": self._learn,
            "n_rollouts": self._n_rollouts,
            "spaces": (model.observation_space, model.action_space),
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any] | None:
        if self.not_exact is not None:
            return None
        try:
            return capture_env(self.training_env)
        except CannotCapture as error:
            # When training began it could be.
            self.not_exact = str(error)
            warn_user(f"ExactCheckpoint: from here on not exact: {error}.")
            return None

    def _facts(self) -> dict[str, Any]:
        model = self.model
        return {
            "algorithm": f"{type(model).__module__}:{type(model).__qualname__}",
            "total_timesteps": model._total_timesteps,
            "n_envs": model.n_envs,
            "device": str(model.device),
            "spaces": [str(model.observation_space), str(model.action_space)],
            "not_exact": self.not_exact,
            "no_recipe": self._recipe[1],
            "callback": {"every": self.every, "keep": self.keep, "lease": self.lease},
            "machine": machine_facts(model.device),
        }


def _recipe(env: Any) -> tuple[bytes | None, str]:
    try:
        return recipe(env), ""
    except Exception as error:  # whatever an environment is made of says why it cannot be pickled
        return None, f"{type(error).__name__}: {error}"
