"""Prioritised experience replay (Schaul et al. 2016) for Stable-Baselines3."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.validation import fraction, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.frames import FrameStacks
from sb3_sparse.replay.owner import algorithm_behind, draws_as_sb3, is_of_sb3
from sb3_sparse.replay.priorities import Priorities, importance_weights
from sb3_sparse.replay.storage import ObservationStorage

# Batches that are drawn without an update of priorities, before a warning: some algorithms draw several for one.
PATIENCE = 1_000


class PrioritizedSamples(NamedTuple):
    """SB3's ``ReplayBufferSamples``, and what a loss and an update of priorities need."""

    observations: PyTorchObs
    actions: th.Tensor
    next_observations: PyTorchObs
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor
    """``(batch, 1)``: what each sample's loss counts, at most 1."""
    indices: np.ndarray
    """``(batch,)``: flat indices, for :meth:`PrioritizedReplayBuffer.update_priorities`."""


class PrioritizedReplayBuffer(ComposedReplayBuffer):
    """
    Draws transitions in proportion to ``priority ** alpha``, from any number of environments and observation space.

    The algorithm weighs each sample's loss by ``samples.weights`` and then calls :meth:`update_priorities`. SB3's own, which
    never do, are refused: they would learn from draws that nothing corrects for. Of others a warning says so.

    .. code-block:: python

        samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        losses = ...  # (batch, 1)
        (samples.weights * losses).mean().backward()
        self.replay_buffer.update_priorities(samples.indices, losses.detach())

    :param args: Of :class:`~sb3_sparse.replay.buffer.ComposedReplayBuffer`.
    :param alpha: 0 draws uniformly, 1 in proportion to the priorities.
    :param beta: How far weights make up for the draw, in [0, 1]: a number, or a function of the training progress that
        remains (1 at the beginning, 0 at the end), as SB3's schedules; the algorithm sets :attr:`progress_remaining`.
    :param n_stack: Of stacked images, the frames in an observation: they are kept as single frames. None: observations
        are kept as they come.
    :param kwargs: Of :class:`~sb3_sparse.replay.buffer.ComposedReplayBuffer`.
    :raises ValueError: If a value is out of range, or the algorithm never updates priorities.
    """

    # Draws since the last update of priorities; None once it has been warned of. Pickles of before have none.
    _draws: int | None = 0

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.5,
        beta: float | Callable[[float], float] = 0.5,
        n_stack: int | None = None,
        **kwargs: Any,
    ):
        algorithm = algorithm_behind(sys._getframe(1))
        # What a class of one's own draws by is seen when it does.
        if algorithm is not None and is_of_sb3(type(algorithm).__module__):
            raise _never_updates(algorithm)
        self.n_stack = None if n_stack is None else whole_number("n_stack", n_stack, 2)
        self.beta = beta if callable(beta) else fraction("beta", beta)
        super().__init__(*args, **kwargs)
        self.priorities = Priorities(self.buffer_size * self.n_envs, alpha)
        #: Of the training, 1 at the beginning and 0 at the end: what a schedule for ``beta`` is asked with.
        self.progress_remaining = 1.0

    @property
    def alpha(self) -> float:
        """How far the draw follows the priorities."""
        return self.priorities.alpha

    def _make_storage(self) -> ObservationStorage:
        if self.n_stack is None:
            return super()._make_storage()
        return FrameStacks(self.observation_space, self.buffer_size, self.n_envs, self.n_stack)

    def _advance(self) -> None:
        # New steps have the largest priority that there ever was. Before they count: an interruption counts them later.
        first = self.pos * self.n_envs
        self.priorities.enter(np.arange(first, first + self.n_envs))
        super()._advance()

    def reset(self) -> None:
        """Forget all transitions and their priorities."""
        super().reset()
        self.priorities = Priorities(self.buffer_size * self.n_envs, self.priorities.alpha)

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> PrioritizedSamples:
        """
        Draw transitions by their priorities, with replacement.

        :param batch_size: How many.
        :param env: Normalises observations and rewards.
        :raises ValueError: If nothing is stored, or the algorithm that asks never updates priorities, or has another
            discount factor.
        """
        caller = sys._getframe(1)
        algorithm = algorithm_behind(caller)
        if algorithm is not None and draws_as_sb3(caller):
            raise _never_updates(algorithm)
        self._count_draw(algorithm)
        self._check_gamma(caller)
        beta = fraction("beta(progress_remaining)", self.beta(self.progress_remaining)) if callable(self.beta) else self.beta
        indices, probabilities = self.priorities.draw(batch_size)
        weights = importance_weights(probabilities, self.size() * self.n_envs, beta)
        steps, envs = np.divmod(indices, self.n_envs)
        samples = self._at(steps, envs, env)
        return PrioritizedSamples(*samples, weights=self.to_torch(weights[:, None]), indices=indices)

    def _count_draw(self, algorithm: BaseAlgorithm | None) -> None:
        """Whether an algorithm updates priorities is only seen when it does not."""
        if algorithm is None or self._draws is None:
            return
        self._draws += 1
        if self._draws > PATIENCE:
            self._draws = None
            warn_user(
                f"{type(algorithm).__name__} has drawn {PATIENCE} batches without updating priorities: prioritised replay is "
                "silently wrong so. Its train() should call replay_buffer.update_priorities(samples.indices, errors)."
            )

    def update_priorities(self, indices: np.ndarray, priorities: np.ndarray | th.Tensor) -> None:
        """
        Give transitions other priorities. Of one that is there several times, the last counts.

        :param indices: ``(n,)``, from ``samples.indices``.
        :param priorities: ``(n,)`` or ``(n, 1)``: magnitudes of errors, not yet to the power of ``alpha``.
        :raises ValueError: If a priority is not finite, an index is out of range, or there are not as many of both.
        """
        values = priorities.detach().cpu().numpy() if isinstance(priorities, th.Tensor) else np.asarray(priorities)
        if values.size != len(indices):
            raise ValueError(f"{values.size} priorities for {len(indices)} indices: expected one for each.")
        self.priorities.update(indices, values.reshape(-1))
        if self._draws is not None:
            self._draws = 0


def _never_updates(algorithm: BaseAlgorithm) -> ValueError:
    """
    Priorities that nobody updates are all those of the first day: the draw then looks uniform until a buffer that was
    loaded, or a schedule, makes it something else, and nothing weighs it.
    """
    return ValueError(
        f"train() of {type(algorithm).__name__} is SB3's and never updates priorities, so prioritised replay would be "
        "silently wrong with it. Use Rainbow or DER of this package, or draw in a train() of your own and call "
        "replay_buffer.update_priorities(samples.indices, errors)."
    )
