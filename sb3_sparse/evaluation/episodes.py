"""An agent plays episodes, and what it gets for them."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from sb3_sparse.common.sb3_models import SeenEnds
from sb3_sparse.common.validation import flag, fraction, whole_number


class Episodes(NamedTuple):
    """Episodes in the order in which they ended."""

    returns: np.ndarray
    """``(episodes,)``: undiscounted sums of rewards, as ``Monitor`` sees them."""
    lengths: np.ndarray
    """``(episodes,)``: steps, as ``Monitor`` sees them."""


def evaluate_agent(
    model: BaseAlgorithm,
    env: gym.Env | VecEnv,
    episodes: int = 10,
    *,
    seed: int = 0,
    deterministic: bool = True,
    epsilon: float = 0.0,
) -> Episodes:
    """
    Let an agent play a number of episodes. Nothing of it, of ``VecNormalize`` or of the program's generators is changed. In
    the environment that it is trained in, training then goes on with a new episode. The environment itself is seeded for
    the evaluation, and then anew, by the agent's seed and timesteps: it would repeat the same episodes after each one.

    With several environments each plays its share of the episodes: taking the first ones to end would prefer short ones.

    >>> from stable_baselines3 import DQN
    >>> evaluate_agent(DQN("MlpPolicy", "CartPole-v1"), gym.make("CartPole-v1"), episodes=3).returns.shape
    (3,)

    :param model: An agent of SB3, sb3-contrib or this package.
    :param env: The environment, or several in SB3's ``VecEnv``, with a ``Monitor`` directly around the game: other wrappers,
        such as clipped rewards, are then no part of returns. It is not closed. ``VecNormalize`` normalises observations by
        the statistics that it has.
    :param episodes: How many.
    :param seed: Of the environment and of everything random.
    :param deterministic: Whether the agent takes what it thinks best, without its noise.
    :param epsilon: Probability with which a step is a random action instead.
    :raises ValueError: If an argument is out of range, the spaces of the environment are not those of the agent, or
        ``Monitor`` never sees an episode end.
    """
    episodes, seed = whole_number("episodes", episodes, 1), whole_number("seed", seed, 0, 2**32 - 1)
    deterministic, epsilon = flag("deterministic", deterministic), fraction("epsilon", epsilon)
    wrapped = model._wrap_env(env)
    check_spaces(model, wrapped)
    options: dict[str, Any] = {**{"deterministic": deterministic, "return_episode_rewards": True, "callback": SeenEnds()}}
    evaluate: Any = evaluate_policy
    if isinstance(model, MaskablePPO):
        if epsilon:
            raise ValueError(f"epsilon={epsilon}: random actions of MaskablePPO might be masked ones. Leave it out.")
        evaluate, options["use_masking"] = evaluate_masked_policy, is_masking_supported(wrapped)
    with _generators_restored(model), _normalization_fixed(wrapped):
        set_random_seed(seed)
        model.action_space.seed(seed)
        # Environment i gets this and i: other seeds begin where these end, so that no two of them play the same episode.
        wrapped.seed(seed * wrapped.num_envs)
        player: Any = EpsilonGreedy(model, epsilon, seed) if epsilon else model
        returns, lengths = evaluate(player, wrapped, episodes, **options)
    if model.env is not None and _same_games(wrapped, model.env):
        # Training goes on with a new episode, since the one that it was in is over.
        model._last_obs = None
        entropy = np.random.SeedSequence(None if model.seed is None else [model.seed, model.num_timesteps])
        model.env.seed(int(entropy.generate_state(1)[0] >> 1))
    return Episodes(np.array(returns, dtype=np.float64), np.array(lengths, dtype=np.int64))


def _innermost(env: VecEnv) -> VecEnv:
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def _same_games(first: VecEnv, second: VecEnv) -> bool:
    """Whether what is played in one of them happens in the other, too."""
    first, second = _innermost(first), _innermost(second)
    games = [{id(env.unwrapped) for env in getattr(each, "envs", ())} for each in (first, second)]
    return first is second or not games[0].isdisjoint(games[1])


class EpsilonGreedy:
    """
    An agent that takes a random action with a certain probability; SB3's DQN takes none when it is deterministic.

    :param model: The agent.
    :param epsilon: The probability, for each environment on its own.
    :param seed: Of the random actions.
    """

    def __init__(self, model: BaseAlgorithm, epsilon: float, seed: int = 0):
        self.model, self.epsilon = model, fraction("epsilon", epsilon)
        self.generator = np.random.default_rng(seed)
        # The agent's own goes on as if nothing had been drawn.
        self.action_space = copy.deepcopy(model.action_space)
        self.action_space.seed(seed)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As ``predict`` of the agent, of observations of several environments."""
        actions, state = self.model.predict(observation, *args, **kwargs)
        actions = np.array(actions)
        for i in np.flatnonzero(self.generator.random(len(actions)) < self.epsilon):
            actions[i] = self.action_space.sample()
        return actions, state


def check_spaces(model: BaseAlgorithm, env: VecEnv) -> None:
    """
    See whether an agent can act in an environment. Bounds of observations may differ, they are often only nominal.

    :raises ValueError: If it cannot.
    """
    expected, given = model.observation_space, env.observation_space
    if _shapes(expected) != _shapes(given):
        raise ValueError(
            f"the agent sees {expected}, and the environment shows {given}: make it with the wrappers with which the agent "
            "was trained."
        )
    if model.action_space != env.action_space:
        raise ValueError(f"the agent has the actions {model.action_space}, and the environment {env.action_space}.")


def _shapes(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _shapes(part) for key, part in space.items()}
    if isinstance(space, spaces.Box):
        return ("Box", space.shape, np.dtype(space.dtype).kind)
    return space


@contextmanager
def _generators_restored(model: BaseAlgorithm) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    # Random actions of SB3's DQN come from here.
    drawn = copy.deepcopy(model.action_space._np_random)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with th.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        model.action_space._np_random = drawn


@contextmanager
def _normalization_fixed(env: VecEnv) -> Iterator[None]:
    """Statistics do not move inside, and rewards are those of the environment."""
    found, inner = [], env
    while isinstance(inner, VecEnvWrapper):
        found += [inner] if isinstance(inner, VecNormalize) else []
        inner = inner.venv
    before = [(each, each.training, each.norm_reward) for each in found]
    for each in found:
        each.training = each.norm_reward = False
    try:
        yield
    finally:
        for each, training, norm_reward in before:
            each.training, each.norm_reward = training, norm_reward
