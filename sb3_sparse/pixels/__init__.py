"""
Environments that show pictures: DeepMind Control as DrQ-v2 sees it, and any environment of gymnasium that can be drawn.

``observations.py`` is the wrapper, ``dmc.py`` makes tasks with it. Where a frame comes from: ``frames.py`` (an environment's
own drawing, or MuJoCo), ``offscreen.py`` (MuJoCo without a window), ``backend.py`` (which OpenGL), ``rendering.py`` (what is
left out to draw faster), ``resize.py``.
"""

from sb3_sparse.pixels.dmc import make_dmc_pixels
from sb3_sparse.pixels.observations import PixelObservations
from sb3_sparse.pixels.rendering import RENDERINGS, Rendering

__all__ = ["RENDERINGS", "PixelObservations", "Rendering", "make_dmc_pixels"]
