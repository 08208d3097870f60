"""Whether what was exported does as the agent does, on random observations; the agent stays as it was."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_sparse.export.actions import ActionHead, BoxHead, action_head
from sb3_sparse.export.module import PredictModule
from sb3_sparse.export.networks import StreamScores
from sb3_sparse.simba.spaces import parts_of

# One observation alone first, since it is what an agent acts on.
BATCHES = (1, 255, 256, 256, 256)
N_OBSERVATIONS = sum(BATCHES)
# Discrete actions with practically equal values: either may come out. More of them than this are a fault.
MOST_TIES = 0.01

Arrays = np.ndarray | dict[str, np.ndarray]


@contextmanager
def untouched(model: BaseAlgorithm) -> Iterator[None]:
    """Modes of the networks and torch's random state are afterwards as they were before; inside there are no gradients."""
    modes = [(module, module.training) for module in model.policy.modules()]
    try:
        with th.random.fork_rng(devices=[]), th.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def check_module(module: PredictModule, model: BaseAlgorithm, wrapper: VecNormalize | None, tolerance: float) -> None:
    """:func:`check` of a module that was just built."""

    def run(observations: Arrays, steps: np.ndarray | None) -> np.ndarray:
        return module(*as_tensors(observations, steps)).numpy()

    check(run, module, model, wrapper, tolerance)


def check(
    run: Callable[[Arrays, np.ndarray | None], np.ndarray],
    module: PredictModule,
    model: BaseAlgorithm,
    wrapper: VecNormalize | None,
    tolerance: float,
) -> float:
    """
    Compare with ``model.predict`` on 1,024 random observations.

    :param run: Called with observations, and steps or None, gives the actions of what was exported.
    :param module: What was exported, which says how large a difference is.
    :param model: The agent.
    :param wrapper: Normalises the observations for the agent.
    :param tolerance: Largest difference that is allowed.
    :return: The largest difference found.
    :raises RuntimeError: If one is larger, or shape or dtype differ.
    """

    def batches() -> Iterator[Compared]:
        rng, known = np.random.default_rng(0), statistics(module)
        for n in BATCHES:
            observations = random_observations(module.observation_space, n, rng, known)
            steps = rng.integers(0, 2000, n) if module.takes_step else None
            expected, found = expected_actions(model, module, observations, steps, wrapper), run(observations, steps)
            yield Compared(expected, found, partial(module.scores, *as_tensors(observations, steps)))

    return _compare(batches(), module.head, type(model.policy).__name__, tolerance)


def check_agent(loaded: BaseAlgorithm, model: BaseAlgorithm, tolerance: float) -> float:
    """
    Compare ``predict`` of two agents of SB3 on 1,024 random observations.

    :param loaded: From the file that was written.
    :param model: The agent.
    :param tolerance: Largest difference that is allowed between continuous actions.
    :return: The largest difference found.
    :raises RuntimeError: If one is larger, or more than a few discrete actions are others.
    """

    def batches() -> Iterator[Compared]:
        rng = np.random.default_rng(0)
        for n in BATCHES:
            observations = random_observations(model.observation_space, n, rng)
            expected, found = (agent.predict(observations, deterministic=True)[0] for agent in (model, loaded))
            yield Compared(expected, found, None)

    head = action_head(model.action_space, squashed=model.policy.squash_output)
    return _compare(batches(), head, type(model.policy).__name__, tolerance)


class Compared(NamedTuple):
    """Actions of the agent and of what was exported, for the same observations."""

    expected: np.ndarray
    found: np.ndarray
    scores: Callable[[], th.Tensor] | None
    """What they are chosen by; None where that is not known, and discrete actions are only counted."""


def _compare(batches: Iterable[Compared], head: ActionHead, policy: str, tolerance: float) -> float:
    largest, n_others = 0.0, 0
    for expected, found, scores in batches:
        n = len(expected)
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            raise RuntimeError(
                f"the exported agent gives actions of shape {found.shape} and type {found.dtype}, predict those of shape "
                f"{expected.shape} and type {expected.dtype}. {policy} does something of its own there."
            )
        is_discrete = not isinstance(head, BoxHead)
        n_others += int((expected != found).reshape(n, -1).any(axis=1).sum()) if is_discrete else 0
        if is_discrete and scores is None:
            continue
        known = th.empty(n, 0) if scores is None else scores()
        differences = head.difference(known, th.from_numpy(expected), th.from_numpy(found)).numpy()
        # Written this way, NaN is too much.
        if wrong := int((~(differences <= tolerance)).sum()):
            raise RuntimeError(
                f"the exported agent does not do as predict does: {wrong} of {n} random observations differ by more than "
                f"{tolerance:g}, the worst by {differences.max():.3g}. Does {policy} override predict or _predict, or have "
                "weights that are no numbers? (Weights so large that rounding does it: a larger tolerance=.)"
            )
        largest = max(largest, float(differences.max()))
    if n_others > MOST_TIES * N_OBSERVATIONS:
        raise RuntimeError(
            f"the exported agent does not do as predict does: {n_others} of {N_OBSERVATIONS} actions are others."
        )
    return largest


def as_tensors(observations: Arrays, steps: np.ndarray | None) -> tuple[Any, ...]:
    """The arguments of a module."""
    if isinstance(observations, dict):
        observation: Any = {key: th.from_numpy(part) for key, part in observations.items()}
    else:
        observation = th.from_numpy(observations)
    return (observation,) if steps is None else (observation, th.from_numpy(steps))


def expected_actions(
    model: BaseAlgorithm, module: PredictModule, observations: Arrays, steps: np.ndarray | None, wrapper: VecNormalize | None
) -> np.ndarray:
    """What ``predict`` answers to raw observations."""

    def channels_first(key: str, part: np.ndarray) -> np.ndarray:
        return part.transpose(0, 3, 1, 2) if key in module.transposed else part

    if isinstance(observations, dict):
        seen: Arrays = {key: channels_first(key, part) for key, part in observations.items()}
    else:
        seen = channels_first("", observations)
    if wrapper is not None:
        seen = wrapper.normalize_obs(seen)
    return model.predict(seen, state=None if steps is None else (steps,), deterministic=True)[0]


def random_observations(
    space: spaces.Space, n: int, rng: np.random.Generator, known: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
) -> Arrays:
    """
    A batch of observations, of the type that those of the environment have: what is exported takes no other.

    :param known: Mean and deviation of parts of the observation by name ("" if it is no Dict), see :func:`statistics`.
    """
    parts = {key: _sample(part, n, (known or {}).get(key), rng) for key, part in parts_of(space).items()}
    return parts if isinstance(space, spaces.Dict) else parts[""]


def _sample(space: spaces.Space, n: int, known: tuple[np.ndarray, np.ndarray] | None, rng: np.random.Generator) -> np.ndarray:
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, n).astype(space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(0, space.nvec, (n, *space.shape)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, (n, *space.shape)).astype(space.dtype)
    assert isinstance(space, spaces.Box)
    low, high, shape = space.low.astype(np.float64), space.high.astype(np.float64), (n, *space.shape)
    if space.dtype.kind != "f":
        # Some thousands in the range, those around 0 if it has them.
        first = np.maximum(low, np.minimum(-1000, high - 2000)).astype(np.int64)
        last = np.minimum(high, np.maximum(1000, low + 2000)).astype(np.int64)
        return rng.integers(first, last + 1, shape).astype(space.dtype)
    mean, deviation = (0.0, 1.0) if known is None else known
    drawn = mean + 1.5 * deviation * rng.standard_normal(shape)
    if known is None:
        narrow = (high - low) < 1e4
        drawn = np.where(narrow, np.where(narrow, low, 0) + np.where(narrow, high - low, 0) * rng.random(shape), drawn)
    return np.clip(drawn, low, high).astype(space.dtype)


def statistics(module: PredictModule) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and deviation of the observations, by name, as the layers that normalise know them."""
    if module.normalizer is not None:
        buffers = module.normalizer.get_buffer
        return {key: _pair(buffers(f"mean_{i}"), buffers(f"scale_{i}")) for i, key in enumerate(module.normalizer.keys)}
    if isinstance(module.network, StreamScores):
        shape = module.observation_space.shape or ()
        inside = module.network
        # With the channels last, they would have to be turned round too: any observation does.
        known = inside.normalizes and not module.transposed
        return {"": _pair(inside.mean.reshape(shape), inside.scale.reshape(shape))} if known else {}
    norm: Any = getattr(getattr(module.network, "network", None), "obs_norm", None)
    return {} if norm is None else {key: _probe(part) for key, part in zip(norm.keys, norm.norms, strict=True)}


def _probe(norm: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Of a layer that subtracts and divides: what it makes of 0 and 1 says by how much."""
    norm = copy.deepcopy(norm).double()
    zeros = th.zeros_like(norm.get_buffer("obs_mean"), dtype=th.float64).unsqueeze(0)
    at_zero, at_one = norm(zeros)[0], norm(zeros + 1)[0]
    deviation = 1 / (at_one - at_zero)
    return _pair(-at_zero * deviation, deviation)


def _pair(mean: th.Tensor, deviation: th.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return mean.nan_to_num().numpy(), deviation.nan_to_num().numpy()
