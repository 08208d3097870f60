"""The address of what networks name that earlier versions saved. See ``simba/observation_norm.py`` and ``simba/spaces.py``."""

from sb3_sparse.simba.observation_norm import ObservationNorm
from sb3_sparse.simba.spaces import FlatSmallImages

__all__ = ["FlatSmallImages", "ObservationNorm"]
