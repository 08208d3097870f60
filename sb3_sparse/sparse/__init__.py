"""Static sparse weights for any torch module. Nothing in here knows about reinforcement learning."""

from sb3_sparse.sparse.distribution import erdos_renyi, uniform
from sb3_sparse.sparse.layers import SparseConv2d, SparseLinear
from sb3_sparse.sparse.masks import sparsify_by_masks_
from sb3_sparse.sparse.pruning import to_dense
from sb3_sparse.sparse.report import LayerReport, SparsityReport, sparsity_report
from sb3_sparse.sparse.sparsity import Sparsity, sparsify_
from sb3_sparse.sparse.topology import Topology
from sb3_sparse.sparse.weight_decay import weight_decay_groups

__all__ = [
    "LayerReport",
    "SparseConv2d",
    "SparseLinear",
    "Sparsity",
    "SparsityReport",
    "Topology",
    "erdos_renyi",
    "sparsify_",
    "sparsify_by_masks_",
    "sparsity_report",
    "to_dense",
    "uniform",
    "weight_decay_groups",
]
