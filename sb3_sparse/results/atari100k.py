"""
The 26 games of Atari-100k: what their scores are measured by, and what others have reached. NumPy alone.

Scores of random play and of a human are those of Dopamine and rliable. Published scores of DER are those of van Hasselt et
al. (2019), with a smaller network and transitions of 20 steps, and of Dopamine's implementation as Agarwal et al. (2021)
report it, over 100 runs.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Game(NamedTuple):
    """Returns in a game, unclipped."""

    random: float
    human: float
    der_2019: float
    der_dopamine: float


GAMES: dict[str, Game] = {
    "Alien": Game(227.8, 7127.7, 739.9, 802.3),
    "Amidar": Game(5.8, 1719.5, 188.6, 125.9),
    "Assault": Game(222.4, 742.0, 431.2, 561.5),
    "Asterix": Game(210.0, 8503.3, 470.8, 535.4),
    "BankHeist": Game(14.2, 753.1, 51.0, 185.5),
    "BattleZone": Game(2360.0, 37187.5, 10124.6, 8977.0),
    "Boxing": Game(0.1, 12.1, 0.2, -0.3),
    "Breakout": Game(1.7, 30.5, 1.9, 9.2),
    "ChopperCommand": Game(811.0, 7387.8, 861.8, 925.9),
    "CrazyClimber": Game(10780.5, 35829.4, 16185.3, 34508.6),
    "DemonAttack": Game(152.1, 1971.0, 508.0, 627.6),
    "Freeway": Game(0.0, 29.6, 27.9, 20.9),
    "Frostbite": Game(65.2, 4334.7, 866.8, 871.0),
    "Gopher": Game(257.6, 2412.5, 349.5, 467.0),
    "Hero": Game(1027.0, 30826.4, 6857.0, 6226.0),
    "Jamesbond": Game(29.0, 302.8, 301.6, 275.7),
    "Kangaroo": Game(52.0, 3035.0, 779.3, 581.7),
    "Krull": Game(1598.0, 2665.5, 2851.5, 3256.9),
    "KungFuMaster": Game(258.5, 22736.3, 14346.1, 6580.1),
    "MsPacman": Game(307.3, 6951.6, 1204.1, 1187.4),
    "Pong": Game(-20.7, 14.6, -19.3, -9.7),
    "PrivateEye": Game(24.9, 69571.3, 97.8, 72.8),
    "Qbert": Game(163.9, 13455.0, 1152.9, 1773.5),
    "RoadRunner": Game(11.5, 7845.0, 9600.0, 11843.4),
    "Seaquest": Game(68.4, 42054.7, 354.1, 304.6),
    "UpNDown": Game(533.4, 11693.2, 2877.4, 3075.0),
}
# Columns of the table that others have reached, by the names that are printed.
PUBLISHED = {"DER (2019)": "der_2019", "DER (Dopamine)": "der_dopamine"}
# "ALE/Pong-v5", as a folder "ALE-Pong-v5", of older versions "PongNoFrameskip-v4" and "PongDeterministic-v4".
_ID = re.compile(r"(?:ALE[/-])?(\w+?)(?:NoFrameskip|Deterministic)?(?:-v\d+)?")
_BY_LETTERS = {name.lower(): name for name in GAMES}


def known_game(name: str) -> str | None:
    """
    The game that a name or an environment's ID stands for, None if it is none of the 26.

    >>> known_game("ALE/BankHeist-v5"), known_game("bank_heist"), known_game("CartPole-v1")
    ('BankHeist', 'BankHeist', None)

    :param name: Of the game, of ale-py's ROM, or of the environment.
    """
    match = _ID.fullmatch(name)
    return _BY_LETTERS.get(match[1].replace("_", "").lower()) if match else None


def game_of(name: str) -> str:
    """
    The game that a name or an environment's ID stands for.

    :param name: As for :func:`known_game`.
    :raises ValueError: If it is none of the 26.
    """
    if (game := known_game(name)) is None:
        raise ValueError(f"{name!r} is no game of Atari-100k: expected one of {', '.join(GAMES)}.")
    return game


def human_normalized(game: str, score: float) -> float:
    """
    A return on the scale on which random play is 0 and a human is 1.

    >>> round(human_normalized("Pong", -9.7), 3)
    0.312

    :param game: As for :func:`game_of`.
    :param score: The return of the whole game, unclipped.
    :raises ValueError: If the game is unknown.
    """
    known = GAMES[game_of(game)]
    return (score - known.random) / (known.human - known.random)


def normalized_scores(scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """
    The scores of runs, human-normalised.

    :param scores: Returns of the runs of each game, by its name.
    :raises ValueError: If a game is unknown, or named twice.
    """
    normalized: dict[str, list[float]] = {}
    for name, runs in scores.items():
        game = game_of(name)
        if game in normalized:
            raise ValueError(f"{name!r}: the game {game} is there twice. Put its runs together.")
        normalized[game] = [human_normalized(game, score) for score in runs]
    return normalized


def published(column: str, games: Sequence[str]) -> dict[str, list[float]]:
    """
    What others have reached, one score for each game: their mean over runs.

    :param column: A key of ``PUBLISHED``.
    :param games: Names, as for :func:`game_of`.
    :raises ValueError: If a game is unknown.
    """
    return {game: [getattr(GAMES[game], PUBLISHED[column])] for game in map(game_of, games)}
