"""
Atari-100k as Dopamine evaluates it: 100 games, random actions with probability 0.001, no noise, returns of whole games.

The agent sees what it saw in training: a lost life ends an episode, so that stacked frames begin anew, but not the game, and
its return counts on.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_sparse.atari import DopamineAtari, make_atari
from sb3_sparse.evaluation.episodes import Episodes, evaluate_agent
from sb3_sparse.evaluation.saved import SavedAgent, load_saved
from sb3_sparse.export.safe import statistics_inside
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.results.atari100k import game_of, known_game
from sb3_sparse.results.evaluations import Evaluation
from sb3_sparse.resume.safe.agents import is_safe_file
from sb3_sparse.zoo.saved.statistics import STATISTICS, checkpoint_statistics

SUITE = "atari-100k"
EPISODES = 100
EPSILON = 0.001
N_STACK = 4
# Games played side by side by default: as many as share one call of the network with profit.
N_ENVS = 10


class WholeGameMonitor(Monitor):
    """
    Counts returns and steps of whole games, whichever number of lives they take, without the steps of doing nothing before.

    :param env: A game whose episodes end with a life.
    """

    env: DopamineAtari

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin a game, or go on after a lost life."""
        if self.env.goes_on and kwargs.get("seed") is None:
            self.needs_reset = False
            return self.env.reset(**kwargs)
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play an action."""
        obs, reward, terminated, truncated, info = super().step(action)
        if self.env.goes_on:
            # SB3 takes this entry for the end of an episode.
            del info["episode"]
        return obs, reward, terminated, truncated, info


def atari100k_env(game: str, n_envs: int = N_ENVS) -> VecEnv:
    """
    The environment in which agents are evaluated.

    :param game: Such as ``"Pong"``.
    :param n_envs: Games side by side.
    :raises ValueError: If the game is none of Atari-100k.
    :raises ImportError: If the extra ``atari`` is not installed.
    """
    name = game_of(game)

    def make() -> WholeGameMonitor:
        return WholeGameMonitor(make_atari(name, terminal_on_life_loss=True, clip_rewards=False))

    return VecFrameStack(DummyVecEnv([make] * n_envs), N_STACK)


def evaluate_on_game(
    model: BaseAlgorithm, game: str, episodes: int = EPISODES, *, seed: int = 0, n_envs: int = N_ENVS
) -> Episodes:
    """
    Let an agent play games by the protocol.

    :param model: An agent that sees four stacked frames, as :func:`~sb3_sparse.atari.make_atari` makes them.
    :param game: Such as ``"Pong"``.
    :param episodes: Whole games.
    :param seed: Of the games and of everything random.
    :param n_envs: Games side by side.
    :return: Returns are unclipped, lengths in steps of the agent.
    :raises ValueError: If the game is none of Atari-100k, or the agent is one for something else.
    """
    env = atari100k_env(game, min(n_envs, episodes))
    try:
        return evaluate_agent(model, env, episodes, seed=seed, deterministic=True, epsilon=EPSILON)
    finally:
        env.close()


def game_of_agent(saved: SavedAgent) -> str:
    """
    The game that an agent was trained on: as its run says, else the one that the file's name has as a word (``Pong_0.zip``).

    :param saved: From :func:`~sb3_sparse.evaluation.saved.find_saved`.
    :raises ValueError: If that is none of Atari-100k, or the name says nothing, or several.
    """
    if saved.env is not None:
        return game_of(saved.env)
    words = saved.path.stem.replace("-", "_").split("_")
    games = {game for word in [saved.path.stem, *words] if (game := known_game(word))}
    if len(games) != 1:
        raise ValueError(
            f"{saved.path} does not say of which game it is: name it as GAME={saved.path}, such as Pong={saved.path}."
        )
    return games.pop()


def evaluate_saved_on_game(
    saved: SavedAgent,
    game: str | None = None,
    episodes: int = EPISODES,
    *,
    algo: str | None = None,
    seeds: Sequence[int] = (0,),
    n_envs: int = N_ENVS,
    device: str = "auto",
) -> list[Evaluation]:
    """
    Load an agent, and let it play its game by the protocol.

    :param saved: From :func:`~sb3_sparse.evaluation.saved.find_saved`.
    :param game: Such as ``"Pong"``; None: :func:`game_of_agent`.
    :param episodes: Whole games, for each seed.
    :param algo: As for :func:`~sb3_sparse.evaluation.saved.load_saved`.
    :param seeds: Of the games and of everything random.
    :param n_envs: Games side by side.
    :param device: Where its networks are put.
    :return: One for each seed.
    :raises ValueError: If something of it is wrong, or does not fit together.
    """
    game = game_of_agent(saved) if game is None else game_of(game)
    if any(normalizer.norm_obs for normalizer in _normalizers(saved)):
        raise ValueError(f"{saved.path} was trained with VecNormalize: agents of {SUITE} see frames as they are.")
    model = load_saved(saved, algo, device)
    if not isinstance(model.action_space, spaces.Discrete):
        raise ValueError(f"{saved.path} has the actions {model.action_space}: it plays no game of Atari.")
    evaluations = []
    for seed in seeds:
        try:
            played = evaluate_on_game(model, game, episodes, seed=seed, n_envs=n_envs)
        except ValueError as error:
            raise ValueError(f"{saved.path} on {game}: {error}") from error
        evaluations.append(
            Evaluation(
                agent=str(saved.path),
                checksum=saved.checksum,
                algo=type(model).__name__,
                env=f"ALE/{game}-v5",
                seed=seed,
                deterministic=True,
                epsilon=EPSILON,
                suite=SUITE,
                statistics=None,
                returns=played.returns.tolist(),
                lengths=played.lengths.tolist(),
            )
        )
    return evaluations


def _normalizers(saved: SavedAgent) -> Iterator[VecNormalize]:
    """What an agent may have been trained with: of a safe file what is in it, since those beside are pickles."""
    if is_safe_file(saved.path):
        if (inside := statistics_inside(saved.path)) is not None:
            yield inside
        return
    folders = (saved.path.with_suffix(""), saved.settings_folder, saved.path.parent)
    files = [checkpoint_statistics(saved.path), *(folder / STATISTICS for folder in folders if folder is not None)]
    for file in files:
        if file is not None and file.is_file():
            normalizer = load_vec_normalize(file)
            assert normalizer is not None
            yield normalizer
