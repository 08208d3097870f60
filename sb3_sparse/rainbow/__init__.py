"""Rainbow and Data-Efficient Rainbow."""

from sb3_sparse.rainbow.algo import Rainbow
from sb3_sparse.rainbow.der import DER
from sb3_sparse.rainbow.encoders import ImageEncoder
from sb3_sparse.rainbow.networks import RainbowNetwork
from sb3_sparse.rainbow.policies import RainbowCnnPolicy, RainbowMultiInputPolicy, RainbowPolicy
from sb3_sparse.rainbow.simba import SimBaRainbowNetwork, SparseSimBaRainbowPolicy

__all__ = [
    "DER",
    "ImageEncoder",
    "Rainbow",
    "RainbowCnnPolicy",
    "RainbowMultiInputPolicy",
    "RainbowNetwork",
    "RainbowPolicy",
    "SimBaRainbowNetwork",
    "SparseSimBaRainbowPolicy",
]
