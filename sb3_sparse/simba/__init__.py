"""Sparse SimBa policies for the algorithms of Stable-Baselines3 and sb3-contrib, which are used as they are."""

from sb3_sparse.simba.network_mixin import SimBaNetwork
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
from sb3_sparse.simba.policies import (
    SparseSimBaCrossQPolicy,
    SparseSimBaDQNPolicy,
    SparseSimBaPolicy,
    SparseSimBaQRDQNPolicy,
    SparseSimBaTD3Policy,
    SparseSimBaTQCPolicy,
    register_aliases,
)
from sb3_sparse.simba.policy_mixin import GaussianSimBaPolicy, SimBaPolicy

__all__ = [
    "GaussianSimBaPolicy",
    "ObservationNorm",
    "SimBaContinuousCritic",
    "SimBaCrossQActor",
    "SimBaCrossQCritic",
    "SimBaNetwork",
    "SimBaPolicy",
    "SimBaQNetwork",
    "SimBaQuantileNetwork",
    "SimBaSACActor",
    "SimBaTD3Actor",
    "SimBaTQCActor",
    "SimBaTQCCritic",
    "SparseSimBaCrossQPolicy",
    "SparseSimBaDQNPolicy",
    "SparseSimBaPolicy",
    "SparseSimBaQRDQNPolicy",
    "SparseSimBaTD3Policy",
    "SparseSimBaTQCPolicy",
    "register_aliases",
]
