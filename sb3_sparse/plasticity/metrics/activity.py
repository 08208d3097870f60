"""
Which units of a network are active: dormant ratio and fraction of active units (paper, section 4).

The dormant ratio is defined in two ways, whose names are values of the option ``convention``. Activations that are not
finite give NaN instead of a number that looks healthy.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch as th

from sb3_sparse.common.validation import choice, non_negative

Layers = th.Tensor | Mapping[str, th.Tensor]

# The threshold that belongs to each convention.
DORMANT_TAU = {"redo": 0.025, "authors": 0.1}
_SCORE_EPS = 1e-9


class DormantRatio(NamedTuple):
    """Result of :func:`dormant_ratio`; ``float()`` gives the pooled ratio."""

    ratio: float
    """Dormant units over all units that have an input, pooled over the layers (not the mean of their ratios)."""
    layers: dict[str, float]
    """The same, layer by layer."""
    dormant: int
    """How many units are dormant."""
    units: int
    """How many units have an input."""
    structurally_dead: int
    """How many units have none and are counted nowhere else."""

    def __float__(self) -> float:
        return self.ratio


def dormant_ratio(
    activations: Layers,
    tau: float | None = None,
    convention: str = "redo",
    structurally_dead: Mapping[str, th.Tensor] | th.Tensor | None = None,
) -> DormantRatio:
    """
    Share of units whose activity is at most ``tau`` times the mean activity of their layer.

    The score of unit ``i`` is ``mean |h_i| / mean_j mean |h_j|``, the inner means over samples (and positions of
    an image). The formula is one; what it is applied to, and ``tau``, are a convention:

    - ``"redo"`` (Sokar et al. 2023): the outputs of the activation functions, ``tau = 0.025``.
    - ``"authors"`` (released code of the paper): the outputs of every linear layer but the heads, before the
      activation function, ``tau = 0.1``. A unit that its ReLU always silences is not dormant here.

    >>> float(dormant_ratio(th.tensor([[1.0, 0.0, 2.0, 0.0]])))
    0.5

    :param activations: One layer, ``(batch, units)`` or ``(batch, channels, height, width)``, or layers by name.
    :param tau: Threshold, instead of the convention's.
    :param convention: ``"redo"`` or ``"authors"``.
    :param structurally_dead: Per layer a boolean ``(units,)``, True where a unit has no living input: such a unit is
        left out of the ratio and of the layer's mean.
    :return: Ratio, pooled and per layer, and the counts.
    :raises ValueError: If ``convention`` or ``tau`` is not valid, or a shape does not fit.
    """
    choice("convention", convention, DORMANT_TAU)
    tau = DORMANT_TAU[convention] if tau is None else non_negative("tau", tau)
    if isinstance(activations, th.Tensor):
        activations = {"": activations}
        structurally_dead = None if structurally_dead is None else {"": th.as_tensor(structurally_dead)}
    dead_units: Mapping[str, th.Tensor] = structurally_dead or {}  # type: ignore[assignment]
    layers, dormant, units, dead, finite = {}, 0, 0, 0, True
    for name, layer in _layers(activations).items():
        activity = _activity(layer)
        if name in dead_units:
            mask = dead_units[name].to(activity.device)
            if mask.shape != activity.shape:
                raise ValueError(f"structurally_dead of layer {name!r} has shape {tuple(mask.shape)}, not {(len(activity),)}.")
            activity = activity[~mask]
            dead += int(mask.sum())
        score = activity / (activity.mean() + _SCORE_EPS)
        in_layer = int((score <= tau).sum())
        is_finite = bool(score.isfinite().all())
        layers[name] = _ratio(in_layer, len(score)) if is_finite else math.nan
        dormant, units, finite = dormant + in_layer, units + len(score), finite and is_finite
    return DormantRatio(_ratio(dormant, units) if finite else math.nan, layers, dormant, units, dead)


def fraction_active_units(activations: Layers) -> float:
    """
    Share of positive entries among the outputs of the activation functions (paper, Eq. 3; FAU of Ma et al. 2024).

    Counted over samples times units times positions and pooled over layers; about one half in a fresh ReLU network.

    :param activations: As for :func:`dormant_ratio`, convention ``"redo"``; only those that ReLUs made for the number of the
        paper's Figure 11, which leaves tanh out.
    """
    layers = list(_layers(activations).values())
    if not all(layer.isfinite().all() for layer in layers):
        return math.nan
    return _ratio(sum(int((layer > 0).sum()) for layer in layers), sum(layer.numel() for layer in layers))


def _layers(activations: Layers) -> Mapping[str, th.Tensor]:
    layers = {"": activations} if isinstance(activations, th.Tensor) else activations
    if not layers:
        raise ValueError("activations without any layer: expected a tensor, or at least one layer by name.")
    for name, layer in layers.items():
        if layer.dim() < 2 or layer.numel() == 0:
            raise ValueError(f"activations of layer {name!r} have shape {tuple(layer.shape)}: expected (batch, units, ...).")
    return layers


def _activity(layer: th.Tensor) -> th.Tensor:
    """``(units,)`` mean magnitude over the batch and the positions of an image."""
    magnitude = layer.detach().abs()
    return magnitude.mean(dim=[dim for dim in range(layer.dim()) if dim != 1], dtype=th.float64)


def _ratio(count: int, total: int) -> float:
    return count / total if total else math.nan
