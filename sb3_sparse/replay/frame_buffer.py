"""A uniform replay buffer for stacked images, in an eighth of the memory."""

from typing import Any

from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.frames import FrameStacks
from sb3_sparse.replay.storage import ObservationStorage


class FrameReplayBuffer(ComposedReplayBuffer):
    """
    Keeps single frames and rebuilds the stacks of ``VecFrameStack`` bit by bit; draws as SB3's own buffers do.

    .. code-block:: python

        model = DQN("CnnPolicy", env, replay_buffer_class=FrameReplayBuffer, buffer_size=100_000)

    With ``n_steps`` and one of SB3's own algorithms, call ``cut_off(model.replay_buffer)`` before another ``learn`` that
    resets the environment: no window then joins the steps before to those behind it. Rainbow does so itself.

    :param args: Of :class:`ComposedReplayBuffer`.
    :param n_stack: Frames in an observation, as in ``VecFrameStack``.
    :param kwargs: Of :class:`ComposedReplayBuffer`.
    :raises ValueError: If the observations are no stacked images, channels first.
    """

    def __init__(self, *args: Any, n_stack: int = 4, **kwargs: Any):
        self.n_stack = n_stack
        super().__init__(*args, **kwargs)

    def _make_storage(self) -> ObservationStorage:
        return FrameStacks(self.observation_space, self.buffer_size, self.n_envs, self.n_stack)
