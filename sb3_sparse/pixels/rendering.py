"""What MuJoCo leaves out of a picture to draw it faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rendering:
    """
    How a scene is drawn. None: as its model says.

    :param shadow_size: Pixels on a side of the shadow map, at most; 0 draws no shadows.
    :param antialiasing: Samples per pixel, at most; 0 draws edges as stairs.
    :param reflections: Whether floors mirror what stands on them.
    """

    shadow_size: int | None = None
    antialiasing: int | None = None
    reflections: bool = True

    @contextmanager
    def applied(self, model: Any, height: int, width: int) -> Iterator[None]:
        """
        Inside, a context of MuJoCo that is made of the model has these settings and room for one picture. Afterwards the
        model is as before.
        """
        size, quality = model.vis.global_, model.vis.quality
        before = size.offheight, size.offwidth, quality.shadowsize, quality.offsamples
        size.offheight, size.offwidth = height, width
        if self.shadow_size is not None:
            quality.shadowsize = min(quality.shadowsize, self.shadow_size)
        if self.antialiasing is not None:
            quality.offsamples = min(quality.offsamples, self.antialiasing)
        try:
            yield
        finally:
            size.offheight, size.offwidth, quality.shadowsize, quality.offsamples = before


# By what is not there. The suite's models have shadow maps of 2048 pixels and 4 samples; what each costs and changes is in
# docs/pixels.md.
RENDERINGS = {
    "exact": Rendering(),
    "coarse_shadows": Rendering(shadow_size=512),
    "coarse_shadows_no_antialiasing": Rendering(shadow_size=512, antialiasing=0),
    "no_shadows": Rendering(shadow_size=0),
    "no_shadows_no_reflections": Rendering(shadow_size=0, reflections=False),
    "no_shadows_no_reflections_no_antialiasing": Rendering(shadow_size=0, antialiasing=0, reflections=False),
}
