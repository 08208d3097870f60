"""``sb3-sparse plot``."""

import sys
from pathlib import Path

from sb3_sparse.cli.options.parsers import Parser
from sb3_sparse.common.figures import new_figure, to_png
from sb3_sparse.common.files import written_beside
from sb3_sparse.results.figures import draw_curves
from sb3_sparse.results.groups import collect, group_runs
from sb3_sparse.results.page import to_html
from sb3_sparse.results.runs import LOOKED_FOR, read_runs


def plot(args: list[str]) -> None:
    """Draw return and every plasticity series of one or several runs into a PNG and an HTML page."""
    parser = options_parser()
    options = parser.parse_args(args)
    output = Path(options.output)
    if not output.name:
        parser.error(f"--output {options.output}: expected the name of a file, without ending.")
    # Before anything is read: what is missing is better said at once.
    new_figure()
    runs, left_out = read_runs(options.runs)
    for reason in left_out:
        print(f"sb3-sparse plot: {reason} Left out.", file=sys.stderr)
    groups = group_runs(runs)
    curves = collect(groups, options.x, options.smooth, options.series)
    png = to_png(draw_curves(curves, options.x))
    output = output.with_suffix("") if output.suffix in (".png", ".html") else output
    for ending, content in ((".png", png), (".html", to_html(curves, groups, png, options.x, options.smooth))):
        path = output.with_name(output.name + ending)
        with written_beside(path) as beside:
            beside.write_bytes(content)
        print(path)


def options_parser() -> Parser:
    """The options of ``plot``."""
    parser = Parser(
        "plot",
        f"{plot.__doc__} What is read from a run's folder, as far as it is there: {LOOKED_FOR}.",
        [
            ("plot logs/sac/Pendulum-v1_1", "one run, into plot.png and plot.html"),
            (
                "plot S0.8=logs/sac/Pendulum-v1_1 dense=logs/sac/Pendulum-v1_2 -o both",
                "two groups by label",
            ),
            ("plot logs/sac/Pendulum-v1_1 --series 'critic_*' --smooth 5", "some plasticity series, smoothed"),
        ],
        operands="RUN [RUN ...]",
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
    return parser
