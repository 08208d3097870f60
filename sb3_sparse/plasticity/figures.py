"""Pictures of one moment: the interference matrix as in the paper's Figure 9, and the spectrum of the features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch as th

from sb3_sparse.common.figures import one_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def interference_figure(matrix: th.Tensor, title: str = "") -> "Figure":
    """
    Cosines of per-sample gradients: blue where two samples pull together, red where they conflict, white in between.

    :param matrix: ``(samples, samples)``, in [-1, 1].
    :param title: Above the picture.
    :raises ImportError: If matplotlib is missing.
    """
    figure, axes = one_panel((4.2, 3.6))
    image = axes.imshow(matrix.cpu().numpy(), cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine of gradients")
    axes.set(title=title, xlabel="sample", ylabel="sample")
    return figure


def spectrum_figure(spectra: Sequence[th.Tensor], title: str = "", labels: Sequence[str] = ()) -> "Figure":
    """
    Singular values of feature matrices, relative to the largest, on a logarithmic axis.

    :param spectra: Singular values in descending order, one curve each.
    :param title: Above the picture.
    :param labels: Of the curves.
    :raises ImportError: If matplotlib is missing.
    """
    figure, axes = one_panel((4.2, 3.2))
    for i, values in enumerate(spectra):
        relative = (values / values[0]).cpu().numpy()
        axes.semilogy(np.arange(1, len(relative) + 1), np.maximum(relative, 1e-8), label=labels[i] if labels else None)
    axes.set(title=title, xlabel="index", ylabel="singular value / largest")
    axes.grid(alpha=0.3)
    if labels:
        axes.legend()
    return figure
