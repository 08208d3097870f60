"""What is put back of a run, and when: most of it before ``learn``, the rest when its first rollout begins."""

import pickle
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.common.warn import warn_user
from sb3_sparse.resume.environments.fresh import begin_fresh_episode
from sb3_sparse.resume.environments.layers import CannotCapture
from sb3_sparse.resume.environments.vec_env import restore_env
from sb3_sparse.resume.files.folder import Checkpoint
from sb3_sparse.resume.state.buffers import content_of, restore_buffer
from sb3_sparse.resume.state.callbacks import Given, restore_callbacks
from sb3_sparse.resume.state.logs import restore_logger
from sb3_sparse.resume.state.model import restore_model, restore_weights
from sb3_sparse.resume.state.objects import restore_objects
from sb3_sparse.resume.state.random_state import restore_random


class GoingOn:
    """
    A run that goes on from a checkpoint.

    :param checkpoint: The checkpoint.
    :param newest: The newest one of the run, also if it is damaged, before that was read.
    """

    def __init__(self, checkpoint: Checkpoint, newest: Path):
        self.checkpoint, self._newest = checkpoint, newest
        self.run: dict[str, Any] = pickle.loads(checkpoint.read("run.pkl"))
        self.not_exact: str | None = checkpoint.manifest["not_exact"]
        self.n_rollouts: int = self.run["n_rollouts"]
        self.log_interval: int | None = self.run["learn"].get("log_interval")
        self._content: tuple[Any, ...] = ()

    def newest_in(self, folder: Path) -> Path | None:
        """
        The newest checkpoint of this run in a folder, when it was read; None if it was read from another one.

        :param folder: Where the run that goes on writes.
        """
        return folder / self._newest.name if folder.resolve() == self._newest.parent.resolve() else None

    def begin(self, model: BaseAlgorithm) -> None:
        """
        Before ``learn``: what it does not change, and what keeps it from beginning a new episode.

        :param model: Loaded from the checkpoint, with its environment.
        """
        env = model.get_env()
        assert env is not None
        # What is made at the first reset is there, and all of it takes the values of the checkpoint.
        env.reset()
        restore_buffer(model, self.checkpoint, self.run["buffer"])
        self._content = content_of(model)
        restore_model(model, self.run["model"])

    def finish(self, model: BaseAlgorithm, callbacks: list[BaseCallback], given: Given) -> bool:
        """
        Where the checkpoint was written: at the beginning of a rollout, in place, since it holds all parts already.

        :param model: The model.
        :param callbacks: Those of the run.
        :param given: The settings with which they began.
        :return: Whether the replay buffer is as it was written.
        """
        # Whatever a callback did when training began, it does not do twice.
        restore_weights(model, self.checkpoint.read("model.zip"))
        if content_of(model) != self._content:
            restore_buffer(model, self.checkpoint, self.run["buffer"])
        restore_logger(model.logger, self.run["logger"])
        if self.run["environment"] is not None:
            env = model.get_env()
            assert env is not None
            try:
                restore_env(env, self.run["environment"])
            except CannotCapture as error:
                raise ValueError(f"{self.checkpoint.path}: {error}. Pass the environment that the run had.") from error
        restore_model(model, self.run["model"])
        restore_objects(model, callbacks, self.run["objects"])
        # After the model, of which they may hold something.
        restore_callbacks(model, callbacks, self.run["callbacks"], given)
        # Last: anything above may draw.
        restore_random(self.run["random"])
        if uncertain := self.checkpoint.manifest["uncertain"]:
            warn_user(f"Not exact if it matters: {', '.join(uncertain)}, which could not be written.")
        if self.not_exact is not None:
            warn_user(f"Not exact: {self.not_exact}. The run goes on with a new episode.")
            return not begin_fresh_episode(model)
        return True
