"""Measures of what happens inside a network while it trains."""

from sb3_sparse.plasticity.simplicity import (
    SimplicityBias,
    mlp,
    simba_actor,
    simba_critic,
    simplicity_bias_score,
    spectral_complexity,
)

__all__ = [
    "SimplicityBias",
    "mlp",
    "simba_actor",
    "simba_critic",
    "simplicity_bias_score",
    "spectral_complexity",
]
