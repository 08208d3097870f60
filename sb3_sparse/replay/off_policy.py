"""What the off-policy algorithms of this package have in common: they tell their buffer where a trajectory breaks off."""

import io
import pathlib
from typing import Any, TypeVar

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_sparse.replay.buffer import cut_off
from sb3_sparse.replay.owner import check_buffer

SelfEndsTrajectories = TypeVar("SelfEndsTrajectories", bound="EndsTrajectories")


class EndsTrajectories(OffPolicyAlgorithm):
    """Base of an algorithm, before SB3's own: no window of several steps runs from one trajectory into another."""

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        if self.replay_buffer is None:
            raise ValueError("model.replay_buffer is None: load_replay_buffer, or make the agent anew, before it learns.")
        begins_anew = reset_num_timesteps or self._last_obs is None
        found = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        # An episode ends here that the buffer knows no end of, or the buffer is another one than the episode began with.
        check_buffer(self, self.replay_buffer)
        # What the buffer has of it is not normalised.
        seen = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
        cut_off(self.replay_buffer, None if begins_anew else seen)
        return found

    def learn(
        self: SelfEndsTrajectories,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfEndsTrajectories:
        """Train, see SB3's ``learn``. By default a run is named by the class in TensorBoard."""
        # All arguments by name: exact checkpoints write down those that they find in the signature.
        name = tb_log_name or type(self).__name__
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Go on with the transitions in a file, see SB3's ``load_replay_buffer``; whatever fails, the present ones stay.

        :param path: The file, or its path.
        :param truncate_last_traj: Of SB3, for HER.
        :raises ValueError: If the file holds something else.
        """
        before = self.replay_buffer
        try:
            super().load_replay_buffer(path, truncate_last_traj)
        except BaseException as error:
            found, self.replay_buffer = self.replay_buffer, before
            if isinstance(error, AssertionError):
                raise ValueError(f"{path}: expected a replay buffer, and there is a {type(found).__name__}.") from error
            raise
