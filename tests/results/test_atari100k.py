"""The table of Atari-100k, by the aggregates that were published, and the names of its games."""

import math

import gymnasium as gym
import pytest

from sb3_sparse.results.aggregates import AGGREGATES, aggregate, score_matrix
from sb3_sparse.results.atari100k import (
    GAMES,
    PUBLISHED,
    game_of,
    human_normalized,
    known_game,
    normalized_scores,
    published,
)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("DER (2019)", {"median": 0.161, "mean": 0.285, "IQM": 0.142, "optimality gap": 0.73}),
        ("DER (Dopamine)", {"median": 0.189, "mean": 0.350, "IQM": 0.196, "optimality gap": 0.69}),
    ],
)
def test_published_columns_have_their_published_aggregates(column, expected):
    assert len(GAMES) == 26
    found = aggregate(normalized_scores(published(column, list(GAMES))))
    assert set(found) == set(AGGREGATES)
    for name, value in expected.items():
        digits = 2 if name == "optimality gap" else 3
        assert round(float(found[name].value), digits) == value, name
        assert found[name].low is None


def test_random_is_0_and_a_human_1():
    for name, game in GAMES.items():
        assert human_normalized(name, game.random) == 0
        assert human_normalized(name, game.human) == 1
        assert game.human > game.random
    # By hand: (20.9 - 0) / 29.6, and (-9.7 + 20.7) / 35.3.
    assert human_normalized("Freeway", 20.9) == pytest.approx(0.70608, abs=1e-5)
    assert normalized_scores({"ALE/Pong-v5": [-9.7, 14.6]})["Pong"] == pytest.approx([0.311615, 1.0], abs=1e-6)
    assert score_matrix(normalized_scores({"Pong": [0, 1], "Qbert": [2, 3]})).shape == (2, 2)
    assert set(PUBLISHED) == {"DER (2019)", "DER (Dopamine)"}


def test_every_way_to_name_a_game():
    for name in GAMES:
        for written in ("ALE/{}-v5", "ALE-{}-v5", "{}NoFrameskip-v4", "{}Deterministic-v4", "{}-v0", "{}"):
            assert game_of(written.format(name)) == name
        assert known_game(name.upper()) == name
    assert [game_of(name) for name in ("bank_heist", "up_n_down", "jamesbond", "JamesBond", "kung_fu_master")] == [
        *("BankHeist", "UpNDown", "Jamesbond", "Jamesbond", "KungFuMaster")
    ]


def test_the_names_are_those_of_ale_py():
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    for name in GAMES:
        assert f"ALE/{name}-v5" in gym.registry


@pytest.mark.parametrize("name", ["Venture", "ALE/Pong-ram-v5", "Pong-ramNoFrameskip-v4", "", "CartPole-v1", "Pong Pong"])
def test_another_game_is_refused_by_name(name):
    assert known_game(name) is None
    with pytest.raises(ValueError, match=r"is no game of Atari-100k: expected one of Alien, Amidar") as error:
        human_normalized(name, 1.0)
    assert repr(name) in str(error.value)


def test_a_game_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="the game Pong is there twice"):
        normalized_scores({"Pong": [1.0], "ALE/Pong-v5": [2.0]})
    assert math.isnan(normalized_scores({"Pong": [math.nan]})["Pong"][0])
    with pytest.raises(ValueError, match=r"scores\['Pong'\]\[0\]=nan"):
        aggregate(normalized_scores({"Pong": [math.nan]}))
