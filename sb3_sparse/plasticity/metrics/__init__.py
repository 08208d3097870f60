"""Metrics of plasticity as functions on tensors and torch modules. Nothing in here knows about reinforcement learning."""

from sb3_sparse.plasticity.metrics.activations import Activations, record_activations
from sb3_sparse.plasticity.metrics.activity import DormantRatio, dormant_ratio, fraction_active_units
from sb3_sparse.plasticity.metrics.interference import (
    Interference,
    gradient_gram,
    gradient_interference,
    interference_from_gram,
)
from sb3_sparse.plasticity.metrics.norms import feature_norm, gradient_norm, parameter_norm
from sb3_sparse.plasticity.metrics.ranks import (
    Spectrum,
    effective_rank,
    pca_rank,
    spectrum,
    srank,
    stable_rank,
    threshold_rank,
)
from sb3_sparse.plasticity.metrics.simplicity import (
    SimplicityBias,
    mlp,
    simba_actor,
    simba_critic,
    simplicity_bias_score,
    spectral_complexity,
)

__all__ = [
    "Activations",
    "DormantRatio",
    "Interference",
    "SimplicityBias",
    "Spectrum",
    "dormant_ratio",
    "effective_rank",
    "feature_norm",
    "fraction_active_units",
    "gradient_gram",
    "gradient_interference",
    "gradient_norm",
    "interference_from_gram",
    "mlp",
    "parameter_norm",
    "pca_rank",
    "record_activations",
    "simba_actor",
    "simba_critic",
    "simplicity_bias_score",
    "spectral_complexity",
    "spectrum",
    "srank",
    "stable_rank",
    "threshold_rank",
]
