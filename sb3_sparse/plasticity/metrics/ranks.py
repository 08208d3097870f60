"""
Ranks of the features of a network, from their singular values: srank and its relatives (paper, section 4).

Each way of defining a rank is a function of its own. Features that are not finite give NaN instead of a number that looks
healthy.
"""

import math
from typing import NamedTuple

import torch as th

from sb3_sparse.common.validation import non_negative, number_in


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
