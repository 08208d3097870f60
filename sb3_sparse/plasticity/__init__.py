"""What happens inside a network while it trains: metrics, a probe for SB3 models, a callback."""

from sb3_sparse.plasticity.metrics import (
    DormantRatio,
    Interference,
    Spectrum,
    dormant_ratio,
    effective_rank,
    feature_norm,
    fraction_active_units,
    gradient_norm,
    parameter_norm,
    pca_rank,
    spectrum,
    srank,
    stable_rank,
    threshold_rank,
)

__all__ = [
    "DormantRatio",
    "Interference",
    "Spectrum",
    "dormant_ratio",
    "effective_rank",
    "feature_norm",
    "fraction_active_units",
    "gradient_norm",
    "parameter_norm",
    "pca_rank",
    "spectrum",
    "srank",
    "stable_rank",
    "threshold_rank",
]
