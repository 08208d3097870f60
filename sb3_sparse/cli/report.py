"""``sb3-sparse report``."""

import shlex
import sys
from pathlib import Path

import sb3_sparse
from sb3_sparse.cli.options.parsers import Parser
from sb3_sparse.common.figures import new_figure, to_png
from sb3_sparse.common.files import check_writable, written_beside
from sb3_sparse.results.studies.comparing import parse_baseline
from sb3_sparse.results.studies.figures import draw_learning, draw_plasticity, draw_scaling
from sb3_sparse.results.studies.page import plotting_library, to_html
from sb3_sparse.results.studies.reading import read_study
from sb3_sparse.results.studies.references import Beside, beside_references, read_references
from sb3_sparse.results.studies.summary import Summary, summarize
from sb3_sparse.results.studies.tables import as_csv, groups_csv, runs_csv

PAGE = ".html"
RUNS, GROUPS, REFERENCES = ".csv", "_groups.csv", "_references.csv"
PICTURES = ("_scaling.png", "_learning.png", "_plasticity.png")


def report(args: list[str]) -> None:
    """Put the runs of a study together: a page with plots, pictures, and tables as CSV."""
    parser = options_parser()
    options = parser.parse_args(args)
    output = Path(options.output)
    if not output.name:
        parser.error(f"--output {options.output}: expected the name of a file, without ending.")
    output = output.with_suffix("") if output.suffix in (".csv", ".html", ".png") else output
    # Before anything is read: what is missing is better said at once.
    new_figure()
    library = plotting_library()
    check_writable(output.with_name(output.name + PAGE))
    references, left_out = ([], []) if options.reference is None else read_references(options.reference)
    summary = summarize(read_study(options.folder), parse_baseline(options.baseline or []))
    published = beside_references(summary.grouping.groups, references)
    if options.reference is not None and not published:
        print(f"sb3-sparse report: nothing in {options.reference} has the tasks and frames of the study.", file=sys.stderr)
    for warning in [*left_out, *summary.warnings]:
        print(f"sb3-sparse report: {warning}", file=sys.stderr)
    made_by = f"{shlex.join(['sb3-sparse', 'report', *args])} (sb3-sparse {sb3_sparse.__version__})"
    contents = {**_tables(summary, published), **_pictures(summary), PAGE: to_html(summary, made_by, library, published)}
    for ending, content in contents.items():
        path = output.with_name(output.name + ending)
        if content is None:
            # A picture of an earlier report is none of this one.
            path.unlink(missing_ok=True)
            continue
        with written_beside(path) as beside:
            beside.write_bytes(content)
        print(path)


def options_parser() -> Parser:
    """The options of ``report``."""
    parser = Parser(
        "report",
        report.__doc__,
        [
            ("report logs/sweeps/width", "into report.html, its pictures and tables"),
            ("report logs/sweeps/width -o width --baseline sparsity=0", "compared with the dense networks"),
            ("report logs/sweeps/width --reference published.csv", "published returns beside them"),
        ],
        operands="FOLDER",
    )
    parser.add_argument("folder", metavar="FOLDER", help="of a study, as sb3-sparse sweep writes it")
    parser.add_argument(
        "-o",
        "--output",
        default="report",
        help=f"writes OUTPUT{', OUTPUT'.join([PAGE, RUNS, GROUPS, REFERENCES, *PICTURES])} (default: report)",
    )
    parser.add_argument(
        "--baseline",
        nargs="+",
        action="extend",
        metavar="AXIS=VALUE",
        help="compare each group with the one that has these values, and its own ones of the other axes (default: the lowest "
        "sparsity; without such an axis the first group)",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="CSV",
        help="published returns, to stand beside those of the study: algorithm,task,frames,mean_return,sd,seeds",
    )
    return parser


def _tables(summary: Summary, published: list[Beside]) -> dict[str, bytes | None]:
    axes = summary.grouping.axes
    comparisons = [comparison for found in summary.tasks.values() for comparison in found]
    return {
        RUNS: runs_csv(summary.study, summary.grouping.groups, axes).encode(),
        GROUPS: groups_csv(comparisons, axes).encode() if comparisons else None,
        REFERENCES: as_csv([each.to_row() for each in published]).encode() if published else None,
    }


def _pictures(summary: Summary) -> dict[str, bytes | None]:
    if not summary.tasks:
        return dict.fromkeys(PICTURES)
    figures = (
        draw_scaling(summary.groups, summary.grouping.axes, summary.horizontals),
        draw_learning(summary.curves),
        draw_plasticity(summary.curves),
    )
    return {ending: None if figure is None else to_png(figure) for ending, figure in zip(PICTURES, figures, strict=True)}
