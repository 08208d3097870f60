"""From the output of a network to actions, as ``predict`` makes them."""

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn


class ActionHead(nn.Module):
    """Base of the heads below: from scores ``(batch, n)`` to actions ``(batch, *action_space.shape)``."""

    def difference(self, scores: th.Tensor, actions: th.Tensor, others: th.Tensor) -> th.Tensor:
        """
        How far apart two actions are: a part of the range of a continuous action, where it is more than 1; for discrete
        actions, the part of their scores by which one is better than the other.

        :param scores: What both come from, or should, ``(batch, n)``.
        :return: ``(batch,)``
        """
        raise NotImplementedError


class BoxHead(ActionHead):
    """
    Continuous actions.

    :param space: The action space.
    :param squashed: Whether scores are in [-1, 1] and stretched to the bounds. Otherwise they are clipped to them.
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, space: spaces.Box, squashed: bool):
        super().__init__()
        self.squashed = squashed
        # NumPy's rule: single precision, unless the bounds have more.
        dtype = np.result_type(np.float32, space.low.dtype)
        self.register_buffer("low", th.from_numpy(space.low.astype(dtype)))
        self.register_buffer("high", th.from_numpy(space.high.astype(dtype)))

    def forward(self, scores: th.Tensor) -> th.Tensor:
        actions = scores.reshape(-1, *self.low.shape)
        if self.squashed:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return th.minimum(th.maximum(actions, self.low), self.high)

    def difference(self, scores: th.Tensor, actions: th.Tensor, others: th.Tensor) -> th.Tensor:
        # Rounding is in proportion to the range where actions are stretched to it, and to the actions where they are not.
        unit = 0.5 * (self.high - self.low) if self.squashed else actions.abs()
        unit = unit.clamp(min=1.0)
        return ((actions - others).abs() / unit).flatten(1).amax(dim=1)


class DiscreteHead(ActionHead):
    """The action with the highest score, of each part of a MultiDiscrete space."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete):
        super().__init__()
        self.shape = space.shape or ()
        self.sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec]

    def forward(self, scores: th.Tensor) -> th.Tensor:
        best = [part.argmax(dim=1) for part in scores.split(self.sizes, dim=1)]
        return th.stack(best, dim=1).reshape(-1, *self.shape)

    def difference(self, scores: th.Tensor, actions: th.Tensor, others: th.Tensor) -> th.Tensor:
        actions, others = actions.reshape(len(scores), -1), others.reshape(len(scores), -1)
        worst = th.zeros(len(scores))
        for i, (size, part) in enumerate(zip(self.sizes, scores.split(self.sizes, dim=1), strict=True)):
            action, other = actions[:, i], others[:, i]
            gap = part.gather(1, action.unsqueeze(1)) - part.gather(1, other.clamp(0, size - 1).unsqueeze(1))
            gap = gap[:, 0].abs() / part.abs().amax(dim=1).clamp(min=1.0)
            worst = th.maximum(worst, gap.where((other >= 0) & (other < size), th.inf))
        return worst


class BinaryHead(ActionHead):
    """Each of several switches on its own: on where its logit is positive. In single precision, as SB3 has it."""

    def forward(self, scores: th.Tensor) -> th.Tensor:
        return th.round(th.sigmoid(scores))

    def difference(self, scores: th.Tensor, actions: th.Tensor, others: th.Tensor) -> th.Tensor:
        return (scores.abs() * (actions != others)).amax(dim=1)


def action_head(space: spaces.Space, squashed: bool) -> ActionHead:
    """
    The head of an action space.

    :param squashed: Whether the network's output is in [-1, 1], for a Box.
    :raises ValueError: If there is none.
    """
    if isinstance(space, spaces.Box):
        return BoxHead(space, squashed)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return DiscreteHead(space)
    if isinstance(space, spaces.MultiBinary):
        return BinaryHead()
    raise ValueError(f"action space {space}: expected a Box, Discrete, MultiDiscrete or MultiBinary.")
