"""
The picture in front of the README: what a step of training takes and holds in memory, from the records of two benchmarks.

    python scripts/headline.py

Writes docs/images/cost.png, and the numbers beside it as CSV, which the tests compare with the records.
"""

import csv
import json
from pathlib import Path

from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.common.files import written_beside

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "data" / "benchmarks"
PICTURE = ROOT / "docs" / "images" / "cost.png"
STEP, MEMORY = "sac_step_w5_two_threads", "memory_w5"
# Rows of the records, from above to below, what they are called, and their colour.
BARS = {
    "prune": ("SimBa ×5, masks", "#d62728"),
    "dense": ("SimBa ×5, dense", "#7f7f7f"),
    "dense bfloat16": ("dense, bfloat16", "#7f7f7f"),
    "sparse S=0.8": ("ours, S = 0.8", "#1f77b4"),
    "sparse S=0.9": ("ours, S = 0.9", "#1f77b4"),
    "sparse S=0.95": ("ours, S = 0.95", "#1f77b4"),
    "MlpPolicy": ("SB3's MlpPolicy", "#2ca02c"),
}
HEADER = ["network", "ms per step", "MiB while training"]


def column(record: str, title: str) -> dict[str, float]:
    """One column of the first table of a record, by the names of its rows."""
    table = json.loads((RECORDS / f"{record}.json").read_text())["tables"][0]
    return {row[0]: float(row[table["header"].index(title)]) for row in table["rows"]}


def numbers() -> list[list[str]]:
    """What is drawn: name of the network, milliseconds, MiB."""
    times, memory = column(STEP, "ms per step"), column(MEMORY, "peak while training, MiB")
    return [[name, f"{times[row]:g}", f"{memory[row]:g}"] for row, (name, _) in BARS.items()]


def draw(rows: list[list[str]]) -> None:
    """Two panels of bars, longest first."""
    figure = new_figure((9.6, 2.6))
    figure.suptitle("SAC with SimBa's networks five times as wide (105 M weights), batch 256, 2 CPU cores", fontsize=10)
    names, colours = [row[0] for row in rows], [colour for _, colour in BARS.values()]
    for axes, title, values, unit in zip(
        figure.subplots(1, 2, sharey=True),
        ("a step of training", "memory of the learner"),
        zip(*[map(float, row[1:]) for row in rows], strict=True),
        ("ms", "MiB"),
        strict=True,
    ):
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, [f"{value:,.0f} {unit}" for value in values], padding=3, fontsize=9)
        axes.set_title(title, fontsize=10)
        axes.set_xlim(0, 1.2 * max(values))
        axes.set_xticks([])
        axes.tick_params(left=False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.yaxis.set_inverted(True)
    save_figure(figure, PICTURE, dpi=120)


def main() -> None:
    """Write picture and numbers."""
    rows = numbers()
    draw(rows)
    with written_beside(PICTURE.with_suffix(".csv")) as beside, beside.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])


if __name__ == "__main__":
    main()
