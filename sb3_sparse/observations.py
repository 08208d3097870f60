"""The address of what saved networks name, up to version 0.2. See ``simba/observation_norm.py`` and ``simba/spaces.py``."""

from sb3_sparse.simba.observation_norm import ObservationNorm
from sb3_sparse.simba.spaces import FlatSmallImages

__all__ = ["FlatSmallImages", "ObservationNorm"]
