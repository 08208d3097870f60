"""Tasks that are drawn fast, for tests of something else than how they look."""

from sb3_sparse import PixelObservations, make_dmc_pixels
from sb3_sparse.pixels import RENDERINGS

FASTEST = list(RENDERINGS)[-1]


def cartpole(**kwargs) -> PixelObservations:
    """Small enough for a test, large enough for SB3's CnnPolicy."""
    return make_dmc_pixels("cartpole", "balance", **{"size": 36, "n_stack": 2, "rendering": FASTEST, **kwargs})
