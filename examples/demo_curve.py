"""
Draw the evaluation returns of runs that ``sb3-sparse train --eval-freq`` made, grouped by label.

    python examples/demo_curve.py "sparse SimBa=logs/sac/dm_control-cartpole-swingup-v0_1" ... --output docs/images/demo.png

Writes the picture, and the numbers beside it as CSV.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from sb3_sparse.common.figures import one_panel, save_figure
from sb3_sparse.common.files import written_beside

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", nargs="+", help="LABEL=FOLDER, the same label for runs that differ in their seed")
parser.add_argument("--output", default="demo.png")
parser.add_argument("--title", default="")
args = parser.parse_args()

COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"]
rows, colours = [], {}
figure, axes = one_panel((7, 4))
for argument in args.runs:
    label, _, folder = argument.rpartition("=")
    evaluations = np.load(Path(folder) / "evaluations.npz")
    returns = evaluations["results"].mean(axis=1)
    is_first = label not in colours
    colour = colours.setdefault(label, COLOURS[len(colours) % len(COLOURS)])
    axes.plot(evaluations["timesteps"], returns, color=colour, marker=".", label=label if is_first else None)
    rows += [
        (label, Path(folder).name, int(t), round(float(r), 1)) for t, r in zip(evaluations["timesteps"], returns, strict=True)
    ]
axes.set(xlabel="decisions of the agent", ylabel="evaluation return", title=args.title, ylim=(0, 1000))
axes.grid(alpha=0.3)
axes.legend(loc="upper left")
output = Path(args.output)
save_figure(figure, output, dpi=120)
with written_beside(output.with_suffix(".csv")) as beside, beside.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["label", "run", "decisions", "mean_evaluation_return"])
    writer.writerows(rows)
