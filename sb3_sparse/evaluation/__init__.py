"""How good agents are: episodes that they play, agents in files, and the protocol of Atari-100k."""

from sb3_sparse.evaluation.atari100k import atari100k_env, evaluate_on_game, evaluate_saved_on_game
from sb3_sparse.evaluation.episodes import Episodes, EpsilonGreedy, evaluate_agent
from sb3_sparse.evaluation.saved import SavedAgent, evaluate_saved, find_saved, load_saved

__all__ = [
    "Episodes",
    "EpsilonGreedy",
    "SavedAgent",
    "atari100k_env",
    "evaluate_agent",
    "evaluate_on_game",
    "evaluate_saved",
    "evaluate_saved_on_game",
    "find_saved",
    "load_saved",
]
