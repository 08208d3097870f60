"""
Plasticity metrics as functions on tensors (paper, section 4). Nothing in here knows about reinforcement learning.

Where a quantity is defined in two ways, the way has a name: of the option ``convention``, or of the function. What
is not finite gives NaN instead of a number that looks healthy.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch as th

from sb3_sparse.common.validation import choice, non_negative, number_in

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

    :param activations: As for :func:`dormant_ratio`, convention ``"redo"``.
    """
    layers = list(_layers(activations).values())
    if not all(layer.isfinite().all() for layer in layers):
        return math.nan
    return _ratio(sum(int((layer > 0).sum()) for layer in layers), sum(layer.numel() for layer in layers))


class Spectrum(NamedTuple):
    """Singular values of a feature matrix, in descending order, in float64."""

    values: th.Tensor
    """``(min(n_samples, n_features),)``"""
    n_samples: int
    n_features: int


Features = th.Tensor | Spectrum


def spectrum(features: Features) -> Spectrum:
    """
    Singular values of the uncentred feature matrix. Every rank below takes the result in place of the features.

    :param features: ``(samples, features)``: what the head of a network sees.
    """
    if isinstance(features, Spectrum):
        return features
    if features.dim() != 2 or features.numel() == 0:
        raise ValueError(f"features of shape {tuple(features.shape)}: expected (samples, features), both positive.")
    matrix = features.detach().double()
    n_samples, n_features = matrix.shape
    if not matrix.isfinite().all():
        return Spectrum(matrix.new_full((min(matrix.shape),), math.nan), n_samples, n_features)
    return Spectrum(th.linalg.svdvals(matrix), n_samples, n_features)


def srank(features: Features, delta: float = 0.01, normalized: bool = False) -> float:
    """
    Smallest number of singular values that hold the share ``1 - delta`` of their sum (Kumar et al. 2021).

    This is what the code behind Figure 4 of the paper computes; its text describes :func:`threshold_rank`.

    :param features: ``(samples, features)`` or their :func:`spectrum`.
    :param delta: Share that is left out, in (0, 1).
    :param normalized: Divide by the largest possible value, ``min(samples, features)``.
    """
    return _cumulative_rank(spectrum(features).values, delta, normalized)


def pca_rank(features: Features, delta: float = 0.01, normalized: bool = False) -> float:
    """
    Like :func:`srank`, with the squares of the singular values: components that hold ``1 - delta`` of the energy.

    :param features: ``(samples, features)`` or their :func:`spectrum`.
    :param delta: Share that is left out, in (0, 1).
    :param normalized: Divide by ``min(samples, features)``.
    """
    return _cumulative_rank(spectrum(features).values.square(), delta, normalized)


def threshold_rank(features: Features, tau: float = 0.01, normalized: bool = False) -> float:
    """
    Number of singular values of ``features / sqrt(samples)`` above a threshold (the paper's text; Lyle et al. 2022).

    Those are the square roots of the eigenvalues of the uncentred covariance.

    :param features: ``(samples, features)`` or their :func:`spectrum`.
    :param tau: Threshold. The paper names none; 0.01 is that of Lyle et al.
    :param normalized: Divide by ``min(samples, features)``.
    """
    tau = non_negative("tau", tau)
    values, n_samples, _ = spectrum(features)
    if not values.isfinite().all():
        return math.nan
    rank = int((values / math.sqrt(n_samples) > tau).sum())
    return rank / len(values) if normalized else float(rank)


def effective_rank(features: Features, normalized: bool = False) -> float:
    """
    Exponential of the entropy of the normalised singular values (Roy and Vetterli 2007).

    :param features: ``(samples, features)`` or their :func:`spectrum`.
    :param normalized: Divide by ``min(samples, features)``.
    """
    values = spectrum(features).values
    total = values.sum()
    if total == 0:
        return 0.0
    rank = float(th.special.entr(values / total).sum().exp())
    return rank / len(values) if normalized else rank


def stable_rank(features: Features, normalized: bool = False) -> float:
    """
    Squared Frobenius norm over squared spectral norm: the stable rank of linear algebra, which :func:`srank` is not.

    :param features: ``(samples, features)`` or their :func:`spectrum`.
    :param normalized: Divide by ``min(samples, features)``.
    """
    values = spectrum(features).values
    if values[0] == 0:
        return 0.0
    rank = float((values / values[0]).square().sum())
    return rank / len(values) if normalized else rank


def feature_norm(features: th.Tensor) -> float:
    """
    Mean Euclidean norm of the feature vectors. After a layer normalisation it starts at ``sqrt(n_features)``.

    :param features: ``(samples, features)``
    """
    return float(features.detach().double().norm(dim=1).mean())


def parameter_norm(parameters: Iterable[th.Tensor]) -> float:
    """
    Euclidean norm of all parameters together. A sparse layer has no parameters but its living weights.

    :param parameters: E.g. ``model.critic.parameters()``.
    """
    return _global_norm(parameters)


def gradient_norm(gradients: Iterable[th.Tensor | None]) -> float:
    """
    Euclidean norm of all gradients together, over the parameters that exist.

    :param gradients: One tensor per parameter; None for one without gradient.
    """
    return _global_norm(gradient for gradient in gradients if gradient is not None)


class Interference(NamedTuple):
    """Cosines between the gradients of single samples (paper, Eq. 2), and what they come to off the diagonal."""

    matrix: th.Tensor
    """``(samples, samples)``, float64. A sample without any gradient has a row of zeros."""
    mean: float
    """Mean cosine of two different samples."""
    mean_abs: float
    """Mean of its magnitude: 0 for samples that do not interfere."""
    negative: float
    """Share of pairs in conflict, with a cosine below 0."""


def interference_from_gram(gram: th.Tensor) -> Interference:
    """
    Cosines and their summaries from the inner products of per-sample gradients.

    :param gram: ``(samples, samples)``
    :raises ValueError: If it is not square, or there is but one sample.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise ValueError(f"gram of shape {tuple(gram.shape)}: expected (samples, samples) for two samples or more.")
    gram = gram.detach().double()
    inverse = gram.diagonal().rsqrt()
    inverse = inverse.masked_fill(inverse.isinf(), 0.0)
    # Rounding takes the cosine of parallel gradients past 1.
    matrix = (gram * th.outer(inverse, inverse)).clamp(-1.0, 1.0)
    pairs = matrix[~th.eye(len(matrix), dtype=th.bool, device=matrix.device)]
    negative = float((pairs < 0).double().mean()) if pairs.isfinite().all() else math.nan
    return Interference(matrix, float(pairs.mean()), float(pairs.abs().mean()), negative)


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


def _cumulative_rank(weights: th.Tensor, delta: float, normalized: bool) -> float:
    if number_in("delta", delta, 0, 1) == 0:
        raise ValueError(f"delta={delta!r}: expected a share in (0, 1), e.g. 0.01.")
    if not weights.isfinite().all():
        return math.nan
    total = weights.sum()
    if total == 0:
        return 0.0
    rank = min(int((weights.cumsum(0) < (1 - delta) * total).sum()) + 1, len(weights))
    return rank / len(weights) if normalized else float(rank)


def _global_norm(tensors: Iterable[th.Tensor]) -> float:
    # float64 sums: the squares of a hundred million weights.
    return math.sqrt(sum(float(th.linalg.vector_norm(tensor.detach(), dtype=th.float64)) ** 2 for tensor in tensors))


def _ratio(count: int, total: int) -> float:
    return count / total if total else math.nan
