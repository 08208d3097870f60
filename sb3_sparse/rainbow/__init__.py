"""Rainbow and Data-Efficient Rainbow."""

from sb3_sparse.rainbow.algo import Rainbow
from sb3_sparse.rainbow.policies import RainbowCnnPolicy, RainbowMultiInputPolicy, RainbowPolicy

__all__ = ["Rainbow", "RainbowCnnPolicy", "RainbowMultiInputPolicy", "RainbowPolicy"]
