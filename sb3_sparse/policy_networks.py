"""The address of the networks in earlier versions, which saved networks name. They are in ``sb3_sparse/simba/networks.py``."""

from sb3_sparse.simba.networks import (
    SimBaContinuousCritic,
    SimBaCrossQActor,
    SimBaCrossQCritic,
    SimBaQNetwork,
    SimBaQuantileNetwork,
    SimBaSACActor,
    SimBaTD3Actor,
    SimBaTQCActor,
    SimBaTQCCritic,
)
from sb3_sparse.simba.observation_norm import ObservationNorm

__all__ = [
    "ObservationNorm",
    "SimBaContinuousCritic",
    "SimBaCrossQActor",
    "SimBaCrossQCritic",
    "SimBaQNetwork",
    "SimBaQuantileNetwork",
    "SimBaSACActor",
    "SimBaTD3Actor",
    "SimBaTQCActor",
    "SimBaTQCCritic",
]
