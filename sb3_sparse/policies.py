"""The address of the policies in earlier versions, which saved agents name. They are in ``sb3_sparse/simba/policies.py``."""

from sb3_sparse.simba.policies import (
    POLICIES,
    POLICY_ALIAS,
    SparseSimBaCrossQPolicy,
    SparseSimBaDQNPolicy,
    SparseSimBaPolicy,
    SparseSimBaQRDQNPolicy,
    SparseSimBaTD3Policy,
    SparseSimBaTQCPolicy,
    register_aliases,
)

__all__ = [
    "POLICIES",
    "POLICY_ALIAS",
    "SparseSimBaCrossQPolicy",
    "SparseSimBaDQNPolicy",
    "SparseSimBaPolicy",
    "SparseSimBaQRDQNPolicy",
    "SparseSimBaTD3Policy",
    "SparseSimBaTQCPolicy",
    "register_aliases",
]
