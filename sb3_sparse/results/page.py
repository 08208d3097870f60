"""Results as a page that needs no other file: what all pages are made of, and the page of curves."""

import base64
import html
from collections.abc import Sequence

from sb3_sparse.results.runs import RETURNS, Run
from sb3_sparse.results.statistics import Curve

STYLE = """\
body { font-family: sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left; vertical-align: top }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
"""


def html_page(title: str, body: str, head: str = "") -> bytes:
    """
    A page.

    :param title: Of the window, plain text.
    :param body: HTML.
    :param head: More HTML for its head.
    """
    page = f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style>{head}</head>
<body>
{body}
</body>
</html>
"""
    return page.encode()


def picture(png: bytes, alt: str) -> str:
    """
    HTML of a picture that is part of the page.

    :param png: The picture.
    :param alt: What it shows.
    """
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """
    HTML of a table.

    :param header: Of the columns, plain text.
    :param rows: Cells, plain text.
    :param left: How many columns are words; the others are numbers.
    """
    lines = ["<table>", f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
    for row in rows:
        cells = [f"<td>{html.escape(cell)}</td>" for cell in row[:left]]
        cells += [f'<td class="number">{html.escape(cell)}</td>' for cell in row[left:]]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def to_html(curves: dict[str, dict[str, Curve]], groups: dict[str, list[Run]], png: bytes, x: str, smooth: int) -> bytes:
    """
    A page that needs no other file: the picture, a table of the last values, and the runs.

    :param curves: By title of the series, by group.
    :param groups: The runs of each group.
    :param png: The picture.
    :param x: What the horizontal axis shows.
    :param smooth: Points in the rolling mean.
    """
    header = "".join(f"<th>{html.escape(group)}</th>" for group in groups)
    values = "\n".join(
        f"<tr><td>{html.escape(title)}</td>{''.join(_cell(by_group.get(group), x) for group in groups)}</tr>"
        for title, by_group in curves.items()
    )
    runs = "\n".join(
        f"<tr><td>{html.escape(group)}</td><td>{html.escape(str(run.folder))}</td><td>{html.escape(_kinds(run))}</td></tr>"
        for group, members in groups.items()
        for run in members
    )
    smoothing = f" Each point is the mean of itself and up to {smooth - 1} before it." if smooth > 1 else ""
    body = f"""<h1>Runs</h1>
{picture(png, f"Curves of all series over {x}")}
<p>Thick lines are means over the runs of a group, thin ones single runs, and bands 95 % bootstrap intervals of the mean over
runs. A group of one run has no band.{smoothing}</p>
<h2>Last values</h2>
<table>
<tr><th>series</th>{header}</tr>
{values}
</table>
<p>The mean at the last place that all runs of the group reached, and the interval there.</p>
<h2>Folders</h2>
<table>
<tr><th>group</th><th>run</th><th>returns found</th></tr>
{runs}
</table>"""
    return html_page("sb3-sparse plot", body)


def _cell(curve: Curve | None, x: str) -> str:
    if curve is None or not len(curve.x):
        return '<td class="number">–</td>'
    text = f"{curve.mean[-1]:.4g}"
    if curve.low is not None and curve.high is not None:
        text += f" [{curve.low[-1]:.4g}, {curve.high[-1]:.4g}]"
    place = f"{curve.x[-1]:,.0f}" if x == "timesteps" else f"{curve.x[-1]:.3g}"
    return f'<td class="number">{text}<br><small>{len(curve.runs)} run(s), {place} {x}</small></td>'


def _kinds(run: Run) -> str:
    return ", ".join(RETURNS[kind] for kind in RETURNS if kind in run.returns) or "none"
