"""Looking at a model while it trains: a probe, the metrics by name, a callback that logs them."""

from sb3_sparse.plasticity.measurement.batches import ObservedBatch
from sb3_sparse.plasticity.measurement.callback import DEFAULT_METRICS, PlasticityCallback
from sb3_sparse.plasticity.measurement.losses import sb3_per_sample_losses
from sb3_sparse.plasticity.measurement.measure import measure
from sb3_sparse.plasticity.measurement.named_metrics import METRICS, Metric, register_metric, unregister_metric
from sb3_sparse.plasticity.measurement.probe import NetworkProbe, Probe

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Metric",
    "NetworkProbe",
    "ObservedBatch",
    "PlasticityCallback",
    "Probe",
    "measure",
    "register_metric",
    "sb3_per_sample_losses",
    "unregister_metric",
]
