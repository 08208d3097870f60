"""What happens inside a network while it trains: metrics, a probe for models of SB3, callbacks; and resets."""

from sb3_sparse.plasticity.activations import Activations, record_activations
from sb3_sparse.plasticity.batches import ObservedBatch
from sb3_sparse.plasticity.callbacks import PlasticityCallback, ResetCallback
from sb3_sparse.plasticity.interference import gradient_gram, gradient_interference
from sb3_sparse.plasticity.measure import METRICS, measure
from sb3_sparse.plasticity.metrics import (
    DormantRatio,
    Interference,
    Spectrum,
    dormant_ratio,
    effective_rank,
    feature_norm,
    fraction_active_units,
    gradient_norm,
    interference_from_gram,
    parameter_norm,
    pca_rank,
    spectrum,
    srank,
    stable_rank,
    threshold_rank,
)
from sb3_sparse.plasticity.probe import Network, Probe
from sb3_sparse.plasticity.reset_model import reset_model_
from sb3_sparse.plasticity.simplicity import (
    SimplicityBias,
    mlp,
    simba_actor,
    simba_critic,
    simplicity_bias_score,
    spectral_complexity,
)

__all__ = [
    "METRICS",
    "Activations",
    "DormantRatio",
    "Interference",
    "Network",
    "ObservedBatch",
    "PlasticityCallback",
    "Probe",
    "ResetCallback",
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
    "measure",
    "mlp",
    "parameter_norm",
    "pca_rank",
    "record_activations",
    "reset_model_",
    "simba_actor",
    "simba_critic",
    "simplicity_bias_score",
    "spectral_complexity",
    "spectrum",
    "srank",
    "stable_rank",
    "threshold_rank",
]
