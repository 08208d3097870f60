"""What the scores of methods come to, as text, picture and page."""

import base64
import re

import numpy as np
import pytest

from sb3_sparse.common.figures import to_png
from sb3_sparse.results.aggregates import estimate, iqm, probability_of_improvement
from sb3_sparse.results.atari100k import GAMES, human_normalized
from sb3_sparse.results.suite_page import draw_suite, suite_html, suite_text, summarize


def scores(n_runs, games, factor=1.0, seed=0):
    generator = np.random.default_rng(seed)
    found = {}
    for game in games:
        known, drawn = GAMES[game], generator.uniform(0.5, 1.5, size=n_runs) * factor
        found[game] = (known.random + (known.human - known.random) * drawn).tolist()
    return found


def test_aggregates_are_over_the_games_of_all():
    first = scores(3, ["Alien", "Pong", "Qbert"])
    second = scores(5, ["Qbert", "Pong", "Hero"], 2.0, seed=1)
    summary = summarize({"one": first, "two": second})
    assert summary.games == ["Pong", "Qbert"]
    one, two = (
        np.array([[human_normalized(game, score) for score in by_game[game]] for game in ("Pong", "Qbert")]).T
        for by_game in (first, second)
    )
    assert summary.aggregates["one"]["IQM"] == estimate(iqm, one)
    assert summary.aggregates["two"]["mean"].value == pytest.approx(two.mean())
    assert summary.probabilities["one", "two"] == estimate(probability_of_improvement, one, two)
    assert summary.probabilities["one", "two"].value == pytest.approx(1 - summary.probabilities["two", "one"].value)
    text = suite_text(summary)
    assert "Aggregates are over 2 of the 26 games (those that all methods have)." in text
    assert "one > two" in text
    # All games are in the table, with what others have reached: by hand, (-9.7 + 20.7) / 35.3 and the one of Qbert.
    assert re.search(r"^Hero +1,027\.0 +30,826\.4 +– +– +– +[\d,.]+ +[\d.]+ +5 +6,857\.0 +6,226\.0$", text, re.MULTILINE)
    assert re.search(r"^DER \(Dopamine\) +– +0\.216 +0\.216 +–$", text, re.MULTILINE)


def test_a_single_run_and_different_numbers_of_runs():
    alone = summarize({"DER": {"Pong": [-9.7]}})
    assert alone.aggregates["DER"]["IQM"].low is None
    assert re.search(r"^DER +0\.312 +0\.312 +0\.312 +0\.688$", suite_text(alone), re.MULTILINE)
    to_png(draw_suite(alone))
    ragged = summarize({"DER": {"Pong": [1.0, 2.0], "Qbert": [300.0]}})
    assert ragged.aggregates == {}
    message = "No aggregates: DER: games with different numbers of runs, {'Pong': 2, 'Qbert': 1}."
    assert message in suite_text(ragged)
    png = to_png(draw_suite(ragged))
    assert message.replace("'", "&#x27;") in suite_html(ragged, png, "").decode()


def test_the_page_needs_no_other_file():
    summary = summarize({"a <b>": scores(2, list(GAMES)), "c & d": scores(2, list(GAMES), 0.5, seed=3)})
    png = to_png(draw_suite(summary))
    assert png.startswith(b"\x89PNG")
    page = suite_html(summary, png, "100 games < 101.").decode()
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(embedded) == png
    assert "<b>" not in page
    assert "a &lt;b&gt; &gt; c &amp; d" in page
    assert "100 games &lt; 101. Aggregates are over 26 of the 26 games" in page
    assert "2,000 stratified bootstrap draws" in page
    assert "http" not in page
    assert "<script" not in page
    for game in GAMES:
        assert f"<tr><td>{game}</td>" in page
    # The published aggregates.
    assert '<td>DER (2019)</td><td class="number">–</td><td class="number">0.161</td><td class="number">0.285</td>' in page


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"no game is there of all of \['one', 'two'\]"):
        summarize({"one": {"Pong": [1.0]}, "two": {"Qbert": [1.0]}})
    with pytest.raises(ValueError, match="no game is there of all of"):
        summarize({})
    with pytest.raises(ValueError, match="'Venture' is no game of Atari-100k"):
        summarize({"one": {"Pong": [1.0], "Venture": [1.0]}})
    with pytest.raises(ValueError, match=r"one\['Qbert'\]\[1\]=nan: expected a finite number"):
        summarize({"one": {"Pong": [1.0], "Qbert": [0.0, float("nan")]}})
