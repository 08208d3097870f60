"""
Return against size, of a study over width and sparsity: for the README, under the picture of what size costs.

    python scripts/size_picture.py small_figure_01

Reads docs/data/studies/STUDY_groups.csv, which `sb3-sparse report` wrote. Writes docs/images/size.png, and what is drawn
beside it as CSV.
"""

import csv
import sys
from pathlib import Path

from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.common.files import written_beside

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "docs" / "data" / "studies"
PICTURE = ROOT / "docs" / "images" / "size.png"
# Sparsities, what their curves are called, and their colours.
CURVES = {"0": ("dense", "#7f7f7f"), "0.8": ("ours, S = 0.8", "#1f77b4"), "0.9": ("ours, S = 0.9", "#17becf")}
SIZES = {"total_parameters": "all weights, pruned ones too", "learnable_parameters": "weights that learn"}
RETURN = ("final_return_iqm", "final_return_iqm_low", "final_return_iqm_high")
HEADER = ["size is", "curve", "size", "IQM of returns", "low", "high"]


def returns(study: str) -> dict[str, dict[str, list[list[float]]]]:
    """For each measure of size and each sparsity: size, interquartile mean of returns, its interval; smallest first."""
    with (STUDIES / f"{study}_groups.csv").open(newline="") as file:
        groups = list(csv.DictReader(file))
    return {
        size: {
            sparsity: sorted(
                [float(group[name]) for name in (size, *RETURN)] for group in groups if group["axis:sparsity"] == sparsity
            )
            for sparsity in CURVES
        }
        for size in SIZES
    }


def numbers(study: str) -> list[list[str]]:
    """What is drawn, as rows of the CSV."""
    return [
        [SIZES[size], CURVES[sparsity][0], f"{x:.0f}", *(f"{value:.1f}" for value in values)]
        for size, of_sparsity in returns(study).items()
        for sparsity, points in of_sparsity.items()
        for x, *values in points
    ]


def draw(study: str) -> None:
    """Two panels of curves, by each measure of size."""
    figure = new_figure((9.6, 2.9))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (size, of_sparsity) in zip(panels, returns(study).items(), strict=True):
        for sparsity, points in of_sparsity.items():
            label, colour = CURVES[sparsity]
            sizes, values, low, high = zip(*points, strict=True)
            axes.plot(sizes, values, "o-", color=colour, label=label)
            axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(SIZES[size], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("return", fontsize=9)
    panels[1].legend(frameon=False, fontsize=9, loc="lower right")
    save_figure(figure, PICTURE, dpi=120)


def main() -> None:
    """Write picture and numbers of the study that is named."""
    (study,) = sys.argv[1:]
    draw(study)
    with written_beside(PICTURE.with_suffix(".csv")) as beside, beside.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *numbers(study)])


if __name__ == "__main__":
    main()
