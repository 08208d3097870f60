"""Network architectures, in plain torch."""

from sb3_sparse.networks.random_shift import RandomShift
from sb3_sparse.networks.running_norm import RunningNorm
from sb3_sparse.networks.simba import ResidualBlock, SimBaEncoder, orthogonal_linear, simba_sizes

__all__ = ["RandomShift", "ResidualBlock", "RunningNorm", "SimBaEncoder", "orthogonal_linear", "simba_sizes"]
