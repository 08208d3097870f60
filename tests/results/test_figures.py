"""Curves as a picture: what a reader tells them apart by."""

import numpy as np

from sb3_sparse.results.figures import draw_curves, look
from sb3_sparse.results.statistics import Curve
from sb3_sparse.results.studies.figures import MAX_SERIES, preferred


def test_no_two_groups_look_alike():
    """Mistake of ours: the eleventh had the colour of the first, and nothing else."""
    x = np.arange(3.0)
    curves = {f"group {i}": Curve([], x, x + i, None, None) for i in range(11)}
    figure = draw_curves({"a series": curves}, "hours")
    (axes,) = figure.axes
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
    assert len(looks) == len(set(looks)) == 11
    assert len({tuple(look(i).values()) for i in range(40)}) == 40


def test_of_plasticity_comes_first_what_the_paper_draws():
    """Mistake of ours: four panels were two metrics, each in two variants."""
    kinds = ("dormant_authors", "dormant_redo", "feature_norm", "gradient_norm", "parameter_norm", "srank", "srank_normalized")
    names = [f"{network}_{kind}" for network in ("actor", "critic") for kind in (*kinds, "interference_abs")]
    drawn = ["srank", "dormant_redo", "gradient_norm", "parameter_norm", "interference_abs"]
    assert preferred(sorted(names))[:MAX_SERIES] == [f"critic_{name}" for name in drawn]
