"""Agents in files: whose they are, in which environment they were trained, and what belongs to them beside the file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sb3_contrib
import stable_baselines3 as sb3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_sparse import drqv2, rainbow, streaming
from sb3_sparse.evaluation.episodes import evaluate_agent
from sb3_sparse.export.loading import UNREADABLE, load_agent
from sb3_sparse.export.safe import statistics_inside
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.results.evaluations import Evaluation
from sb3_sparse.results.runs import read_settings, settings_file
from sb3_sparse.resume.safe.agents import is_safe_file, read_safe
from sb3_sparse.streaming.base.files import fitting_algorithms
from sb3_sparse.zoo import make_known, run_environment
from sb3_sparse.zoo.saved.statistics import settings_of, statistics_beside

# By their names in rl-zoo3. Where several fit to a file, the first one does.
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "a2c": sb3.A2C,
    "ars": sb3_contrib.ARS,
    "crossq": sb3_contrib.CrossQ,
    "td3": sb3.TD3,
    "ddpg": sb3.DDPG,
    "dqn": sb3.DQN,
    "drqv2": drqv2.DrQv2,
    "ppo": sb3.PPO,
    "ppo_lstm": sb3_contrib.RecurrentPPO,
    "ppo_mask": sb3_contrib.MaskablePPO,
    "qrdqn": sb3_contrib.QRDQN,
    "rainbow": rainbow.Rainbow,
    "der": rainbow.DER,
    "sac": sb3.SAC,
    "stream_ac": streaming.StreamAC,
    "stream_q": streaming.StreamQ,
    "stream_sarsa": streaming.StreamSARSA,
    "tqc": sb3_contrib.TQC,
    "trpo": sb3_contrib.TRPO,
}


@dataclass(frozen=True)
class SavedAgent:
    """The file of an agent, and what a run of rl-zoo3 says about it."""

    path: Path
    settings_folder: Path | None = None
    """With the ``config.yml`` of rl-zoo3, if a run of it left the agent."""
    algo: str | None = None
    """As rl-zoo3 names it."""
    env: str | None = None
    """ID of the environment in which it was trained."""

    @property
    def checksum(self) -> str:
        """SHA-256 of the file: says that agents are the same, whatever they are called."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            # hashlib.file_digest is younger than Python 3.10.
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


def find_saved(place: str | Path, best: bool = False) -> SavedAgent:
    """
    The agent in a file, or that of a run.

    :param place: A ``.zip`` of SB3, whose ending may be left out; a safe file, beside which nothing is read; or the folder of
        a run of rl-zoo3, such as ``logs/sac/Pendulum-v1_1``.
    :param best: Of a run: the agent with the best evaluation, not the last one.
    :raises ValueError: If there is none.
    """
    path = Path(place)
    if not path.is_file() and Path(f"{path}.zip").is_file():
        path = Path(f"{path}.zip")
    elif path.is_dir():
        settings = settings_file(path)
        if settings is None:
            raise ValueError(f"{str(place)!r} is a folder, and none of a run of rl-zoo3: name the .zip of an agent.")
        path = path / ("best_model.zip" if best else f"{settings.parent.name}.zip")
    if not path.is_file():
        raise ValueError(f"there is no agent {str(path)!r}.")
    if is_safe_file(path):
        # What rl-zoo3 leaves beside an agent can execute code.
        return SavedAgent(path)
    settings = settings_of(path)
    if settings is None:
        return SavedAgent(path)
    named = read_settings(settings)
    return SavedAgent(path, settings.parent, named.get("algo"), named.get("env"))


def load_saved(saved: SavedAgent, algo: str | None = None, device: str = "auto") -> BaseAlgorithm:
    """
    Load an agent, without its replay buffer.

    :param saved: From :func:`find_saved`.
    :param algo: A key of ``ALGORITHMS``; None: what the file and the run say. A file does not tell Rainbow and DER apart,
        nor TD3 and DDPG, which makes no difference to what an agent does.
    :param device: Where its networks are put.
    :raises ValueError: If the file holds no such agent, or it cannot be told which.
    """
    return load_agent(ALGORITHMS[algo] if algo else _algorithm(saved), saved.path, device)


def _algorithm(saved: SavedAgent) -> type[BaseAlgorithm]:
    if is_safe_file(saved.path):
        return read_safe(saved.path).algorithm
    try:
        data, _, _ = load_from_zip_file(saved.path, device="cpu")
    except UNREADABLE as error:
        raise ValueError(f"{saved.path} is no agent of SB3: {type(error).__name__}: {error}") from error
    data = data or {}
    fitting = fitting_algorithms(data.get("policy_class"), data, ALGORITHMS.values())
    if (named := ALGORITHMS.get(saved.algo or "")) in fitting:
        return named
    # Streaming agents say it themselves.
    if by_name := [algorithm for algorithm in fitting if algorithm.__name__ == data.get("algorithm")]:
        return by_name[0]
    if not fitting:
        raise ValueError(
            f"{saved.path} holds an agent of an algorithm that is not known here: name one that loads it by --algo."
        )
    return fitting[0]


def environment_of(
    saved: SavedAgent,
    env_id: str | None = None,
    *,
    n_envs: int = 1,
    env_kwargs: dict[str, Any] | None = None,
    statistics: str | Path | None = None,
) -> VecEnv:
    """
    The environment for an agent: with the wrappers of its run, if rl-zoo3 left it, and the statistics of ``VecNormalize``.

    :param saved: From :func:`find_saved`.
    :param env_id: Its ID; None: the one in which the agent was trained.
    :param n_envs: How many environments.
    :param env_kwargs: Arguments of the environment; of a run they come on top of its own.
    :param statistics: A file of ``VecNormalize``; None: the one beside the agent, if there is one; ``"none"``: no statistics.
    :raises ValueError: If it is not known, or the statistics are missing.
    """
    env_id = env_id or saved.env
    if env_id is None:
        raise ValueError(f"{saved.path} does not say in which environment it was trained: name one by --env.")
    make_known(env_id)
    found = _statistics(saved, statistics)
    normalizer = load_vec_normalize(found)
    n_stack = 0
    if saved.settings_folder is None:
        env = make_vec_env(env_id, n_envs=n_envs, env_kwargs=env_kwargs)
    else:
        env, hyperparams = run_environment(saved.settings_folder, env_id, n_envs, env_kwargs)
        n_stack = hyperparams.get("frame_stack") or 0
        if hyperparams.get("normalize") and normalizer is None and statistics is None:
            env.close()
            raise ValueError(f"{saved.path} was trained with VecNormalize, and its statistics are missing: name a file.")
    try:
        if normalizer is not None:
            normalizer.set_venv(env)
            env = normalizer
    except (ValueError, AssertionError) as error:
        env.close()
        source = found if isinstance(found, Path) else saved.path
        raise ValueError(f"{source} does not fit to {env_id}: {error}") from error
    return VecFrameStack(env, n_stack) if n_stack else env


def _statistics(saved: SavedAgent, given: str | Path | None) -> Path | VecNormalize | None:
    if given is None:
        return statistics_inside(saved.path) if is_safe_file(saved.path) else statistics_beside(saved.path)
    return None if given == "none" else Path(given)


def evaluate_saved(
    saved: SavedAgent,
    episodes: int = 10,
    *,
    algo: str | None = None,
    seeds: Sequence[int] = (0,),
    deterministic: bool = True,
    epsilon: float = 0.0,
    device: str = "auto",
    env_id: str | None = None,
    statistics: str | Path | None = None,
    **environment: Any,
) -> list[Evaluation]:
    """
    Load an agent, and let it play in the environment in which it was trained, or in another one.

    :param saved: From :func:`find_saved`.
    :param episodes: For each seed.
    :param algo: As for :func:`load_saved`.
    :param seeds: Of the environment and of everything random.
    :param deterministic: As for :func:`~sb3_sparse.evaluation.episodes.evaluate_agent`.
    :param epsilon: As there.
    :param device: Where its networks are put.
    :param env_id: As for :func:`environment_of`.
    :param statistics: As there.
    :param environment: Other keywords of :func:`environment_of`.
    :return: One for each seed.
    :raises ValueError: If something of it is wrong, or does not fit together.
    """
    model = load_saved(saved, algo, device)
    env = environment_of(saved, env_id, statistics=statistics, **environment)
    used = _statistics(saved, statistics)
    try:
        found = [
            (seed, evaluate_agent(model, env, episodes, seed=seed, deterministic=deterministic, epsilon=epsilon))
            for seed in seeds
        ]
    except ValueError as error:
        raise ValueError(f"{saved.path}: {error}") from error
    finally:
        env.close()
    return [
        Evaluation(
            agent=str(saved.path),
            checksum=saved.checksum,
            algo=type(model).__name__,
            env=str(env_id or saved.env),
            seed=seed,
            deterministic=deterministic,
            epsilon=epsilon,
            suite=None,
            statistics=None if used is None else str(used if isinstance(used, Path) else saved.path),
            returns=played.returns.tolist(),
            lengths=played.lengths.tolist(),
        )
        for seed, played in found
    ]
