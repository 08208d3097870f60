"""DrQ-v2: visual control."""

from sb3_sparse.drqv2.algo import DrQv2
from sb3_sparse.drqv2.features import DrQFeatures, ShiftedFeatures
from sb3_sparse.drqv2.policies import DrQv2Policy

__all__ = ["DrQFeatures", "DrQv2", "DrQv2Policy", "ShiftedFeatures"]
