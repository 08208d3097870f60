"""Atari-100k: the scores of one method or several, put together as text, as a picture and as a page."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_sparse.common.figures import new_figure
from sb3_sparse.results.aggregates import (
    AGGREGATES,
    Estimate,
    aggregate,
    estimate,
    performance_profile,
    probability_of_improvement,
    score_matrix,
)
from sb3_sparse.results.atari100k import GAMES, PUBLISHED, human_normalized, normalized_scores, published
from sb3_sparse.results.evaluations import aligned
from sb3_sparse.results.figures import COLOURS
from sb3_sparse.results.page import html_page, picture, table
from sb3_sparse.results.statistics import RESAMPLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a published column only means over runs are known, of which these can be computed.
OF_MEANS = ("median", "mean")
NONE = "–"
TICKS = (0, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class SuiteSummary:
    """Scores of methods, and what they come to."""

    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """Returns: of every run, by game, by method."""
    games: list[str]
    """That all methods have been evaluated on, in alphabetical order; aggregates are over these."""
    aggregates: Mapping[str, dict[str, Estimate]]
    """By name, by method; without the methods of ``reasons``."""
    reasons: Mapping[str, str]
    """Of methods without aggregates: why."""
    probabilities: Mapping[tuple[str, str], Estimate]
    """Of improvement, of the first method over the second one."""

    def normalized(self, method: str) -> dict[str, list[float]]:
        """Human-normalised scores on the games of all methods."""
        return normalized_scores({game: self.scores[method][game] for game in self.games})


def summarize(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> SuiteSummary:
    """
    Aggregates of human-normalised scores, with 95 % intervals.

    :param scores: Returns of every run, by game, by method.
    :raises ValueError: If there is no game that all methods have been evaluated on, a game is unknown, or a score is no
        finite number.
    """
    games = [game for game in GAMES if all(game in by_game for by_game in scores.values())]
    for method, by_game in scores.items():
        for game, runs in by_game.items():
            # Unknown games, and numbers that are none, whether or not others have the game too.
            score_matrix({game: [human_normalized(game, score) for score in runs]}, method)
    if not scores or not games:
        raise ValueError(f"no game is there of all of {list(scores)}: nothing can be compared.")
    aggregates, reasons = {}, {}
    matrices: dict[str, np.ndarray] = {}
    for method, by_game in scores.items():
        normalized = normalized_scores({game: by_game[game] for game in games})
        try:
            matrices[method] = score_matrix(normalized, method)
        except ValueError as error:
            reasons[method] = str(error)
            continue
        aggregates[method] = aggregate(matrices[method])
    pairs = [(first, second) for first in matrices for second in matrices if first != second]
    probabilities = {
        (first, second): estimate(probability_of_improvement, matrices[first], matrices[second]) for first, second in pairs
    }
    return SuiteSummary(scores, games, aggregates, reasons, probabilities)


def published_aggregates(column: str, games: Sequence[str]) -> dict[str, float]:
    """
    Median and mean over games of a published column: what can be computed without its runs.

    :param column: A key of ``PUBLISHED``.
    :param games: Names.
    """
    found = aggregate(normalized_scores(published(column, games)))
    return {name: float(found[name].value) for name in OF_MEANS}


def game_rows(summary: SuiteSummary) -> tuple[list[str], list[list[str]]]:
    """The table of games: header and rows. Games that only some methods have are there too."""
    header = ["game", "random", "human"]
    for method in summary.scores:
        header += [f"{method}: return", "human-norm.", "runs"]
    rows = []
    for game, known in GAMES.items():
        if not any(game in by_game for by_game in summary.scores.values()):
            continue
        row = [game, f"{known.random:,.1f}", f"{known.human:,.1f}"]
        for by_game in summary.scores.values():
            runs = by_game.get(game)
            if not runs:
                row += [NONE] * 3
            else:
                mean = float(np.mean(runs))
                row += [f"{mean:,.1f}", f"{human_normalized(game, mean):.3f}", str(len(runs))]
        row += [f"{published(column, [game])[game][0]:,.1f}" for column in PUBLISHED]
        rows.append(row)
    return [*header, *PUBLISHED], rows


def aggregate_rows(summary: SuiteSummary) -> tuple[list[str], list[list[str]]]:
    """The table of aggregates: header and rows."""
    rows = [[method, *(format_estimate(found[name]) for name in AGGREGATES)] for method, found in summary.aggregates.items()]
    for column in PUBLISHED:
        found_values = published_aggregates(column, summary.games)
        rows.append([column, *(f"{found_values[name]:.3f}" if name in found_values else NONE for name in AGGREGATES)])
    return ["human-normalised", *AGGREGATES], rows


def probability_rows(summary: SuiteSummary) -> list[list[str]]:
    """How probable it is that a run of one method is better than one of another."""
    return [[f"{first} > {second}", format_estimate(found)] for (first, second), found in summary.probabilities.items()]


def format_estimate(found: Estimate) -> str:
    """A number with its interval, if it has one."""
    interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{interval}"


def suite_text(summary: SuiteSummary) -> str:
    """All tables as text."""
    parts = [aligned(*game_rows(summary)), aligned(*aggregate_rows(summary))]
    if summary.probabilities:
        parts.append(aligned(["probability of improvement", ""], probability_rows(summary)))
    parts += [f"No aggregates: {reason}" for reason in summary.reasons.values()]
    return "\n\n".join([*parts, _about_games(summary)])


def _about_games(summary: SuiteSummary) -> str:
    text = f"Aggregates are over {len(summary.games)} of the {len(GAMES)} games"
    return text + (" (those that all methods have)." if len(summary.scores) > 1 else ".")


def suite_html(summary: SuiteSummary, png: bytes, protocol: str) -> bytes:
    """
    A page that needs no other file.

    :param summary: From :func:`summarize`.
    :param png: From :func:`draw_suite`.
    :param protocol: How agents were evaluated, a sentence of plain text.
    """
    parts = [
        "<h1>Atari-100k</h1>",
        picture(png, "Aggregates with intervals, performance profiles, and scores of each game"),
        f"<p>{html.escape(protocol)} {_about_games(summary)} Intervals are 95 % percentile intervals of {RESAMPLES:,} "
        "stratified bootstrap draws: the runs of each game are drawn anew on their own. A single run has none.</p>",
        *(f"<p>No aggregates: {html.escape(reason)}</p>" for reason in summary.reasons.values()),
        "<h2>Aggregates</h2>",
        table(*aggregate_rows(summary)),
    ]
    if summary.probabilities:
        parts += [
            "<h2>Probability of improvement</h2>",
            table(["on a game, averaged over games", ""], probability_rows(summary)),
        ]
    parts += ["<h2>Games</h2>", table(*game_rows(summary))]
    return html_page("Atari-100k", "\n".join(parts))


def draw_suite(summary: SuiteSummary) -> "Figure":
    """
    Aggregates with their intervals, performance profiles, and the human-normalised score of each game.

    :param summary: From :func:`summarize`.
    :raises ImportError: If matplotlib is missing.
    """
    methods = list(summary.scores)
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    figure = new_figure((12, 8.5 + 0.3 * len(methods)))
    grid = figure.add_gridspec(3, len(AGGREGATES), height_ratios=[0.6 + 0.35 * len(methods), 3, 3])
    for i, name in enumerate(AGGREGATES):
        axes = figure.add_subplot(grid[0, i])
        _draw_aggregate(axes, summary, name, colours, with_names=i == 0)
        if name == OF_MEANS[0]:
            lines, labels = axes.get_legend_handles_labels()
            figure.legend(lines, labels, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    _draw_profiles(figure.add_subplot(grid[1, :]), summary, colours)
    _draw_games(figure.add_subplot(grid[2, :]), summary, colours)
    return figure


def _draw_aggregate(axes: Any, summary: SuiteSummary, name: str, colours: dict[str, str], with_names: bool) -> None:
    for place, (method, found) in enumerate(summary.aggregates.items()):
        value, low, high = found[name]
        axes.barh(place, value, height=0.7, color=colours[method], alpha=0.6)
        if low is not None:
            axes.plot([low, high], [place, place], color="black", linewidth=2)
    if name in OF_MEANS:
        for style, column in zip(("--", ":"), PUBLISHED, strict=True):
            reached = published_aggregates(column, summary.games)[name]
            axes.axvline(reached, color="gray", linestyle=style, linewidth=1, label=column)
    axes.set_yticks(range(len(summary.aggregates)), list(summary.aggregates) if with_names else [])
    axes.set_ylim(len(summary.aggregates) - 0.4, -0.6)
    axes.set_title(f"{name}{' (lower is better)' if name == 'optimality gap' else ''}", fontsize=10)


def _draw_profiles(axes: Any, summary: SuiteSummary, colours: dict[str, str]) -> None:
    matrices = {method: score_matrix(summary.normalized(method)) for method in summary.aggregates}
    top = max([1.0, *(float(np.quantile(matrix, 0.98)) for matrix in matrices.values())])
    thresholds = np.linspace(min([0.0, *(float(matrix.min()) for matrix in matrices.values())]), top, 101)
    for method, matrix in matrices.items():
        found = estimate(lambda scores: performance_profile(scores, thresholds), matrix)
        axes.plot(thresholds, found.value, color=colours[method], label=method)
        if found.low is not None:
            axes.fill_between(thresholds, found.low, found.high, color=colours[method], alpha=0.2, linewidth=0)
    axes.set_xlabel("human-normalised score τ")
    axes.set_ylabel("fraction of runs above τ")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    if matrices:
        axes.legend(fontsize=9, frameon=False)


def _draw_games(axes: Any, summary: SuiteSummary, colours: dict[str, str]) -> None:
    """Bars of the mean over runs, and a dot for each run, where there are several."""
    games = [game for game in GAMES if any(game in by_game for by_game in summary.scores.values())]
    width = 0.8 / len(summary.scores)
    for i, (method, by_game) in enumerate(summary.scores.items()):
        for place, game in enumerate(games):
            values = normalized_scores({game: by_game.get(game, [])})[game]
            if values:
                x = place + (i - (len(summary.scores) - 1) / 2) * width
                axes.bar(x, np.mean(values), width, color=colours[method], alpha=0.6)
                if len(values) > 1:
                    axes.plot([x] * len(values), values, ".", color=colours[method], markersize=4)
    axes.axhline(0, color="black", linewidth=0.5)
    # Large scores would hide the others.
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_yticks([tick for tick in TICKS if tick <= axes.get_ylim()[1]], minor=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(games)), games, rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("human-normalised score")
    axes.grid(alpha=0.3, axis="y")
