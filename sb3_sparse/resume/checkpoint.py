"""A callback that writes checkpoints from which a run goes on exactly."""

import inspect
import os
from pathlib import Path
from typing import Any

import cloudpickle
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.common.interrupts import is_unread
from sb3_sparse.common.sb3_models import all_callbacks
from sb3_sparse.common.validation import positive, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.plasticity.event_callbacks import hidden_rollouts
from sb3_sparse.resume.environments.fresh import begin_fresh_episode
from sb3_sparse.resume.environments.layers import CannotCapture
from sb3_sparse.resume.environments.recipe import recipe
from sb3_sparse.resume.environments.vec_env import capture_env, left_out_of, why_not_exact
from sb3_sparse.resume.files.folder import checkpoints, keep_newest, sweep, write_checkpoint
from sb3_sparse.resume.files.lease import LEASE, FolderInUse, Lease
from sb3_sparse.resume.going_on import GoingOn
from sb3_sparse.resume.state.buffers import BufferWriter, check_rewind
from sb3_sparse.resume.state.callbacks import Given, capture_callbacks
from sb3_sparse.resume.state.logs import capture_logger, unknown_outputs
from sb3_sparse.resume.state.machine import machine_facts
from sb3_sparse.resume.state.model import capture_model, model_zip, why_not_loaded
from sb3_sparse.resume.state.objects import capture_objects
from sb3_sparse.resume.state.plain import is_plain
from sb3_sparse.resume.state.random_state import capture_random

# Of `learn`: what the run that goes on has others for. Everything else it is called with again.
_NOT_AGAIN = ("self", "total_timesteps", "callback", "reset_num_timesteps")


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
    :raises ValueError: If a value is out of range; when training starts, if the folder holds checkpoints of another run, or
        the replay buffer is in a file that cannot go back by ``every * keep`` transitions.
    :raises FolderInUse: When training starts, if another process writes there, or has gone on with the run meanwhile.
    :raises OSError: When training starts, if nothing can be written there.
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
        # Of this run; if the newest in the folder is another one, somebody else has written there.
        self._newest: Path | None = None
        # Why SB3's `load` makes another agent.
        self._needs_model: str | None = None
        # What the other callbacks were made with.
        self._given = Given()
        # What could not be written and may matter.
        self._uncertain: set[str] = set()

    def go_on(self, going_on: GoingOn) -> None:
        """
        Put the rest of a run back when its first rollout begins; :func:`resume_exact` calls this.

        :param going_on: What there is to put back.
        """
        self._going_on, self._newest = going_on, going_on.newest_in(self.path)

    def _on_training_start(self) -> None:
        self._check_folder()
        first = next(all_callbacks(self.locals["callback"]), self)
        if first is not self:
            raise ValueError(f"ExactCheckpoint comes after {type(first).__name__}: it has to be the first of the callbacks.")
        self._given.add(self._others())
        check_rewind(self.model, self.every * self.keep)
        self._held = Lease(self.path, self.lease)
        try:
            # Whoever held the folder until now may have written there.
            self._check_folder()
        except BaseException:
            self._release()
            raise
        sweep(self.path)
        self._buffer = BufferWriter(self.path)
        self._learn = {name: value for name, value in self._learn_arguments().items() if is_plain(value)}
        env = self.training_env
        self._recipe = _recipe(env)
        if self._going_on is not None:
            self._n_rollouts, self.not_exact = self._going_on.n_rollouts, self._going_on.not_exact
            manifest = self._going_on.checkpoint.manifest
            self._uncertain, self._needs_model = {*manifest["uncertain"]}, manifest["needs_model"]
            self._learn["log_interval"] = self._going_on.log_interval
            return
        self._needs_model = why_not_loaded(self.model, model_zip(self.model))
        if self._needs_model is not None:
            warn_user(
                f"ExactCheckpoint: resume_exact cannot make this agent by itself ({self._needs_model}): it will need model=, "
                "an agent that was made as this one."
            )
        self.not_exact = why_not_exact(env)
        if self.not_exact is None:
            self._say_uncertain(left_out_of(env, capture_env(env)))
        self._n_rollouts = 0
        self._plan()
        if self.not_exact is not None:
            warn_user(f"ExactCheckpoint: not exact: {self.not_exact}. A run that is resumed goes on with a new episode.")
            begin_fresh_episode(self.model)

    def _check_folder(self) -> None:
        """:raises ValueError: If the newest checkpoint in the folder is not the one that this run knows of."""
        newest = next(iter(checkpoints(self.path)), None)
        if newest is None or newest == self._newest:
            return
        if self._newest is None:
            raise ValueError(
                f"{self.path} holds checkpoints of another run: resume_exact({str(self.path)!r}), or another folder."
            )
        raise FolderInUse(f"{self.path} has a newer checkpoint by now, {newest.name}: another process went on with the run.")

    def _learn_arguments(self) -> dict[str, Any]:
        """Those of the algorithm's ``learn``. What a subclass does not pass on to the one that calls callbacks is named."""
        parameters = inspect.signature(type(self.model).learn).parameters.values()
        names = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        found = {name: self.locals[name] for name in names if name in self.locals and name not in _NOT_AGAIN}
        unknown = [name for name in names if name not in _NOT_AGAIN and not is_plain(found.get(name, self))]
        self._say_uncertain([f"{name}= of {type(self.model).__name__}.learn" for name in unknown])
        return found

    def _plan(self) -> None:
        self._next = (self.model.num_timesteps // self.every + 1) * self.every

    def _on_rollout_start(self) -> None:
        if self._going_on is None and self.model.num_timesteps >= self.model._total_timesteps:
            # Of streaming algorithms, which begin an episode when all is done: there is nothing to go on with.
            return
        # As in `sb3-sparse train | head`.
        self.stop_requested = self.stop_requested or is_unread()
        # Where a run goes on there is one.
        is_written = True
        if not self._n_rollouts:
            # Better now than with the first checkpoint.
            self._say_uncertain(self._what_is_lost())
        # Once for each callback, before the others do something in a rollout.
        self._given.settle(self._others())
        if self._going_on is not None:
            if self._going_on.finish(self.model, self._others(), self._given):
                self._buffer.goes_on(self.model, self._going_on.checkpoint, self._going_on.run["buffer"])
            self._going_on = None
            self._plan()
        elif self.stop_requested or self.model.num_timesteps >= self._next:
            is_written = self.save()
        if self.stop_requested:
            # A later run with the same callback has not been asked.
            self.stop_requested = False
            self._release()
            steps = self.model.num_timesteps
            raise StoppedOnRequest(
                f"a checkpoint after {steps} steps is in {self.path}."
                if is_written
                else f"no checkpoint after {steps} steps could be written; the newest in {self.path} is an earlier one."
            )
        self._n_rollouts += 1

    def _on_step(self) -> bool:
        if not self._n_rollouts:
            raise hidden_rollouts("ExactCheckpoint", "every")
        return True

    def _on_training_end(self) -> None:
        self.stop_requested = False
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def _others(self) -> list[BaseCallback]:
        return [each for each in all_callbacks(self.locals["callback"]) if each is not self]

    def save(self) -> bool:
        """
        Write a checkpoint now. Only at the beginning of a rollout is it exact.

        If it cannot be written, there is a warning, the older ones stay as they are, and training goes on.

        :return: Whether it was written.
        :raises FolderInUse: If another process has taken over the folder.
        """
        assert self._held is not None
        self._plan()
        # An environment in another process that is gone is no full disk, though both are errors of the system.
        parts, run, facts = self._parts(), self._run(), self._facts()
        self.is_saving, is_written = True, False
        try:
            self._held.check()
            run["buffer"], whole_buffer, rows = self._buffer.write(self.model)
            parts |= {**whole_buffer, "run.pkl": cloudpickle.dumps(run)}
            path = write_checkpoint(self.path, self.model.num_timesteps, parts, rows, facts, self._held.check)
            self._newest, is_written = path, True
            self._held.check()
            keep_newest(self.path, self.keep)
        except OSError as error:
            reason = error.strerror or error
            warn_user(
                f"ExactCheckpoint: cannot write to {self.path} ({reason}) after {self.model.num_timesteps} steps: free some "
                "space there. Older checkpoints are whole, training goes on."
            )
            return is_written
        finally:
            self.is_saving = False
        if self.verbose:
            print(f"Checkpoint {path}")
        return True

    def _parts(self) -> dict[str, bytes]:
        written, _ = self._recipe
        return {"model.zip": model_zip(self.model), **({} if written is None else {"recipe.pkl": written})}

    def _run(self) -> dict[str, Any]:
        model, others = self.model, self._others()
        objects, left = capture_objects(model, others)
        self._say_uncertain(left)
        return {
            "model": capture_model(model),
            "callbacks": capture_callbacks(model, others, self._given),
            "objects": objects,
            "logger": capture_logger(model.logger, model._custom_logger, self.path.resolve().parent),
            "random": capture_random(),
            "learn": self._learn,
            "n_rollouts": self._n_rollouts,
            "spaces": (model.observation_space, model.action_space),
            "environment": self._environment(),
        }

    def _environment(self) -> dict[str, Any] | None:
        """Its state, or that of what is around it: a run that is not exact keeps the statistics of VecNormalize."""
        if self.not_exact is None:
            try:
                state = capture_env(self.training_env)
                self._say_uncertain(left_out_of(self.training_env, state))
                return state
            except CannotCapture as error:
                # When training began it could be.
                self.not_exact = str(error)
                warn_user(f"ExactCheckpoint: from here on not exact: {error}.")
        try:
            return capture_env(self.training_env, wrappers_only=True)
        except CannotCapture as error:
            warn_user(f"ExactCheckpoint: what is around the environment goes on as new, too: {error}.")
            return None

    def _what_is_lost(self) -> list[str]:
        _, lost = capture_objects(self.model, self._others())
        return lost + (unknown_outputs(self.model.logger) if self.model._custom_logger else [])

    def _say_uncertain(self, names: list[str]) -> None:
        """Once for each name."""
        if new := sorted({*names} - self._uncertain):
            self._uncertain |= {*new}
            warn_user(
                f"ExactCheckpoint: not exact if it matters: {', '.join(new)}, which cannot be written. get_state and "
                "set_state say how, see docs/resume.md."
            )

    def _facts(self) -> dict[str, Any]:
        model = self.model
        return {
            "algorithm": f"{type(model).__module__}:{type(model).__qualname__}",
            "total_timesteps": model._total_timesteps,
            "n_envs": model.n_envs,
            "device": str(model.device),
            "spaces": [str(model.observation_space), str(model.action_space)],
            "not_exact": self.not_exact,
            "needs_model": self._needs_model,
            "uncertain": sorted(self._uncertain),
            "no_recipe": self._recipe[1],
            "callback": {"every": self.every, "keep": self.keep, "lease": self.lease},
            "machine": machine_facts(model.device),
        }


def _recipe(env: Any) -> tuple[bytes | None, str]:
    try:
        return recipe(env), ""
    except Exception as error:  # whatever an environment is made of says why it cannot be pickled
        return None, f"{type(error).__name__}: {error}"
