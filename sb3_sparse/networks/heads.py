"""What a value network ends with: distributions over returns (C51), and values apart from advantages (dueling)."""

from collections.abc import Callable

import torch as th
from torch import nn

from sb3_sparse.common.validation import number_in, whole_number

Linear = Callable[[int, int], nn.Module]


class DuelingHead(nn.Module):
    """
    ``value + advantage - mean of the advantages``, for every atom (Wang et al. 2016).

    :param in_features: Size of the features.
    :param n_actions: Number of actions.
    :param n_atoms: Numbers for each action.
    :param linear: Makes the layers, from their sizes.
    """

    def __init__(self, in_features: int, n_actions: int, n_atoms: int = 1, linear: Linear = nn.Linear):
        super().__init__()
        self.n_actions, self.n_atoms = n_actions, n_atoms
        self.advantage = linear(in_features, n_actions * n_atoms)
        self.value = linear(in_features, n_atoms)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, in_features)``
        :return: ``(batch, n_actions, n_atoms)``
        """
        advantage = self.advantage(features).view(-1, self.n_actions, self.n_atoms)
        value = self.value(features).view(-1, 1, self.n_atoms)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class PlainHead(nn.Module):
    """
    Numbers for each action, from one layer.

    :param in_features: Size of the features.
    :param n_actions: Number of actions.
    :param n_atoms: Numbers for each action.
    :param linear: Makes the layer, from its sizes.
    """

    def __init__(self, in_features: int, n_actions: int, n_atoms: int = 1, linear: Linear = nn.Linear):
        super().__init__()
        self.n_actions, self.n_atoms = n_actions, n_atoms
        self.output = linear(in_features, n_actions * n_atoms)

    def forward(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: ``(batch, in_features)``
        :return: ``(batch, n_actions, n_atoms)``
        """
        return self.output(features).view(-1, self.n_actions, self.n_atoms)


class Support(nn.Module):
    """
    The returns that a categorical distribution is over, equally spaced (C51, Bellemare et al. 2017).

    >>> support = Support(3, 0.0, 2.0)
    >>> support.project(th.tensor([[0.25, 0.25, 0.5]]), th.tensor([0.5]), th.tensor([0.5])).tolist()
    [[0.125, 0.625, 0.25]]

    :param n_atoms: How many, at least 2.
    :param v_min: The smallest.
    :param v_max: The largest.
    :raises ValueError: If there are fewer, or ``v_min`` is not below ``v_max``.
    """

    atoms: th.Tensor
    """``(n_atoms,)``"""

    def __init__(self, n_atoms: int = 51, v_min: float = -10.0, v_max: float = 10.0):
        super().__init__()
        self.n_atoms = whole_number("n_atoms", n_atoms, 2)
        self.v_min, self.v_max = (number_in(name, v, -1e30, 1e30) for name, v in (("v_min", v_min), ("v_max", v_max)))
        if self.v_min >= self.v_max:
            raise ValueError(f"v_min={v_min!r}, v_max={v_max!r}: expected v_min below v_max.")
        self.spacing = (self.v_max - self.v_min) / (self.n_atoms - 1)
        # Known from the settings: not part of an agent's weights.
        self.register_buffer("atoms", th.linspace(self.v_min, self.v_max, self.n_atoms), persistent=False)

    def mean(self, probabilities: th.Tensor) -> th.Tensor:
        """
        :param probabilities: ``(..., n_atoms)``
        :return: ``(...)``
        """
        return probabilities @ self.atoms

    def project(self, probabilities: th.Tensor, rewards: th.Tensor, discounts: th.Tensor) -> th.Tensor:
        """
        The distribution of ``reward + discount * return``, on the same atoms; what lies beside them goes to the ends.

        :param probabilities: ``(batch, n_atoms)``, of the return.
        :param rewards: ``(batch,)``
        :param discounts: ``(batch,)``, 0 where an episode ended.
        :return: ``(batch, n_atoms)``
        """
        moved = (rewards[:, None] + discounts[:, None] * self.atoms).clamp(self.v_min, self.v_max)
        # Mass at x goes to the atoms on both sides, more to the nearer: 1 - distance, in units of the spacing. Rounding
        # must not lead beyond the last one.
        place = ((moved - self.v_min) / self.spacing).clamp(0, self.n_atoms - 1)
        lower = place.floor()
        upper_share = place - lower
        # A reward that is no number has no place; it goes on in its share, to the loss.
        below = lower.nan_to_num(0.0).long()
        above = (below + 1).clamp(max=self.n_atoms - 1)
        projected = th.zeros_like(probabilities)
        projected.scatter_add_(1, below, probabilities * (1 - upper_share))
        return projected.scatter_add_(1, above, probabilities * upper_share)

    def clipped(self, probabilities: th.Tensor, rewards: th.Tensor, discounts: th.Tensor) -> th.Tensor:
        """
        How much of what :meth:`project` is given lies beside the atoms, by more than half of their spacing.

        >>> support = Support(3, 0.0, 2.0)
        >>> support.clipped(th.tensor([[0.25, 0.25, 0.5]]), th.tensor([1.0]), th.tensor([1.0])).item()
        0.5

        :param probabilities: ``(batch, n_atoms)``, of the return.
        :param rewards: ``(batch,)``
        :param discounts: ``(batch,)``, 0 where an episode ended.
        :return: ``()``, the share of the mass.
        """
        moved = rewards[:, None] + discounts[:, None] * self.atoms
        # A bound that is exactly the largest return is not passed by rounding.
        margin = 0.5 * self.spacing
        beside = (moved < self.v_min - margin) | (moved > self.v_max + margin)
        return (probabilities * beside).sum(dim=1).mean()
