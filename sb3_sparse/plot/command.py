"""``sb3-sparse plot``."""

import argparse
import sys
from pathlib import Path

from sb3_sparse.plot.draw import draw_curves, to_html, to_png, write
from sb3_sparse.plot.groups import collect, group_runs
from sb3_sparse.plot.runs import LOOKED_FOR, read_run


def main(args: list[str]) -> None:
    """Draw return and every plasticity series of one or several runs into a PNG and an HTML page."""
    parser = argparse.ArgumentParser(
        prog="sb3-sparse plot",
        description=f"{main.__doc__} What is read from a run's folder, as far as it is there: {LOOKED_FOR}.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run, or LABEL=FOLDER. Runs with the same label, or without one and with the same "
        "hyperparameters but the seed, are drawn as one mean with a band",
    )
    parser.add_argument("-o", "--output", default="plot", help="writes OUTPUT.png and OUTPUT.html (default: plot)")
    parser.add_argument("--x", choices=["timesteps", "hours"], default="timesteps", help="horizontal axis")
    parser.add_argument("--smooth", type=int, default=1, metavar="N", help="rolling mean over N points (default: 1, none)")
    parser.add_argument(
        "--series",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="plasticity series to draw, patterns such as 'critic_*' allowed (default: all). The return is always drawn",
    )
    options = parser.parse_args(args)
    output = Path(options.output)
    if not output.name:
        parser.error(f"--output {options.output}: expected the name of a file, without ending.")
    try:
        groups = group_runs([read_run(run) for run in options.runs])
        curves = collect(groups, options.x, options.smooth, options.series)
    except ValueError as error:
        sys.exit(f"sb3-sparse plot: {error}")
    png = to_png(draw_curves(curves, options.x))
    output = output.with_suffix("") if output.suffix in (".png", ".html") else output
    for ending, content in ((".png", png), (".html", to_html(curves, groups, png, options.x, options.smooth))):
        path = output.with_name(output.name + ending)
        write(path, content)
        print(path)
