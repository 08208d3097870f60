"""
What ``make demo`` draws: the evaluation returns of its run beside those of the runs in docs/images/demo.csv.

    python examples/demo_curve.py                     # the newest run of logs/, into logs/demo.png
    python examples/demo_curve.py --output docs/images/demo.png "sparse SimBa=logs/sac/RUN_1" ...

With runs given, by label and folder, these alone are drawn, their numbers are written as CSV, and their last returns printed
as a table. The picture in the docs was made so; ``demo_mlp.yml`` has the commands.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from study_runs import print_table

from sb3_sparse.common.figures import one_panel, save_figure
from sb3_sparse.common.files import written_beside

ROOT = Path(__file__).parent.parent
ENV, TITLE = "dm_control-cheetah-run-v0", "SAC on dm_control/cheetah-run-v0"
COMMITTED = ROOT / "docs" / "images" / "demo.csv"
HEADER = ["label", "run", "decisions", "mean_evaluation_return"]
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"]
NEXT = """Next:
  sb3-sparse plot {run}      the run's curves, as a picture and a page
  sb3-sparse train --algo sac --env dm_control/cheetah-run-v0 -f logs --eval-freq 5000      five times as long
  sb3-sparse describe --algo sac --env dm_control/humanoid-run-v0      what a network for a hard task is made of
and examples/first_steps.ipynb, or docs/start/, for the same in Python."""


def evaluations(label: str, folder: Path) -> list[list[str]]:
    """Rows of a run that ``sb3-sparse train --eval-freq`` left."""
    file = folder / "evaluations.npz"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: expected the folder of a run of sb3-sparse train --eval-freq.")
    content = np.load(file)
    returns = content["results"].mean(axis=1)
    return [[label, folder.name, str(t), f"{r:.1f}"] for t, r in zip(content["timesteps"], returns, strict=True)]


def newest(logs: Path) -> Path:
    """The folder of the last run of the demo."""
    runs = [run for run in logs.glob(f"sac/{ENV}_*") if run.name.rpartition("_")[2].isdecimal()]
    runs.sort(key=lambda run: int(run.name.rpartition("_")[2]))
    if not runs:
        raise SystemExit(f"{logs}/sac has no run of {ENV}: make demo trains one.")
    return runs[-1]


def draw(rows: list[list[str]], output: Path) -> None:
    """A line for each run, a colour for each label."""
    figure, axes = one_panel((7, 4))
    colours: dict[str, str] = {}
    for label, run in dict.fromkeys((label, run) for label, run, *_ in rows):
        x, y = zip(*[(int(t), float(r)) for a, b, t, r in rows if (a, b) == (label, run)], strict=True)
        name = None if label in colours else label
        axes.plot(x, y, color=colours.setdefault(label, COLOURS[len(colours) % len(COLOURS)]), marker=".", label=name)
    axes.set(xlabel="decisions of the agent", ylabel="evaluation return", title=TITLE)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    save_figure(figure, output, dpi=120)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="LABEL=FOLDER, the same label for runs that differ in their seed")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="where the newest run is looked for")
    parser.add_argument("--output", type=Path, help="default: demo.png in the folder of the logs")
    args = parser.parse_args()
    output = args.output or args.logs / "demo.png"
    if args.runs:
        given = [argument.rpartition("=") for argument in args.runs]
        rows = [row for label, _, folder in given for row in evaluations(label, Path(folder))]
        with written_beside(output.with_suffix(".csv")) as beside, beside.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        draw(rows, output)
        last = {(label, run): (step, value) for label, run, step, value in rows}
        ends = [[f"{label}, run {run.rpartition('_')[2]}", step, value] for (label, run), (step, value) in last.items()]
        print_table("Demo", ["network", "decisions", "return"], ends)
        return
    run = newest(args.logs)
    with COMMITTED.open(newline="") as file:
        committed = list(csv.reader(file))[1:]
    draw([*evaluations("this run", run), *committed], output)
    print(f"{output}: this run beside those of docs/images/demo.csv.\n{NEXT.format(run=run)}")


if __name__ == "__main__":
    main()
