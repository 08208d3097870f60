"""Norms of features, parameters and gradients (paper, section 4). What is not finite gives NaN or infinity."""

import math
from collections.abc import Iterable

import torch as th


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


def _global_norm(tensors: Iterable[th.Tensor]) -> float:
    # float64 sums: the squares of a hundred million weights.
    return math.sqrt(sum(float(th.linalg.vector_norm(tensor.detach(), dtype=th.float64)) ** 2 for tensor in tensors))
