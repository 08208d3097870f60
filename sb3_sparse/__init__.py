"""Sparse networks for Stable-Baselines3, pruned at random once before training, that keep improving as they grow."""

from sb3_sparse.policies import (
    SparseSimBaCrossQPolicy,
    SparseSimBaDQNPolicy,
    SparseSimBaPolicy,
    SparseSimBaQRDQNPolicy,
    SparseSimBaTD3Policy,
    SparseSimBaTQCPolicy,
    register_aliases,
)
from sb3_sparse.sparse import (
    SparseConv2d,
    SparseLinear,
    Sparsity,
    Topology,
    sparsify_,
    sparsify_by_masks_,
    sparsity_report,
    to_dense,
    weight_decay_groups,
)

__version__ = "0.2.0"

__all__ = [
    "SparseConv2d",
    "SparseLinear",
    "SparseSimBaCrossQPolicy",
    "SparseSimBaDQNPolicy",
    "SparseSimBaPolicy",
    "SparseSimBaQRDQNPolicy",
    "SparseSimBaTD3Policy",
    "SparseSimBaTQCPolicy",
    "Sparsity",
    "Topology",
    "__version__",
    "register_aliases",
    "sparsify_",
    "sparsify_by_masks_",
    "sparsity_report",
    "to_dense",
    "weight_decay_groups",
]

register_aliases()
