"""
Pytest plugin that makes SB3's tests of DQN test Rainbow.

Their files run unmodified: ``DQN`` stands for what the environment variable ``SB3_SPARSE_DQN`` names, and tests that are
not about DQN are deselected. Loaded by ``scripts/conformance.py`` with ``-p rainbow_plugin``.
"""

import os
from functools import partialmethod
from types import CodeType
from typing import Any

import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse import DER, Rainbow

th.set_num_threads(1)


class AllOff(Rainbow):
    """Without any of its parts."""

    def __init__(self, *args: Any, n_steps: int = 1, **kwargs: Any):
        off = dict.fromkeys(("distributional", "dueling", "double", "noisy", "prioritized"), False)
        super().__init__(*args, n_steps=n_steps, **{**off, **kwargs})


class Uniform(Rainbow):
    """With all parts but prioritised replay, so that it takes SB3's buffers, hindsight included."""

    def __init__(self, *args: Any, n_steps: int = 1, prioritized: bool = False, **kwargs: Any):
        super().__init__(*args, n_steps=n_steps, prioritized=prioritized, **kwargs)


STAND_INS = {"Rainbow": Rainbow, "DER": DER, "Uniform": Uniform, "AllOff": AllOff}
NAME = os.environ["SB3_SPARSE_DQN"]
STAND_IN = STAND_INS[NAME]
stable_baselines3.DQN = STAND_IN
# SB3's tests look for the folder of a run by this name; by default ours are named by their class.
STAND_IN.learn = partialmethod(STAND_IN.learn, tb_log_name="DQN")

# Upstream tests that cannot pass, by the beginning of "test[parameters]", and why.
HINDSIGHT = "HerReplayBuffer has no priorities: Rainbow refuses it with prioritized=True, and takes it as Uniform here"
PRIORITIZED = {
    "test_eval_success_logging": HINDSIGHT,
    "test_her[": HINDSIGHT,
    "test_multiprocessing[": HINDSIGHT,
    "test_save_load[True-": HINDSIGHT,
    "test_save_load[False-": HINDSIGHT,
    "test_performance_her[": HINDSIGHT,
    "test_run[": "expects SB3's NStepReplayBuffer; windows of ours are checked in tests/replay",
    "test_save_load_replay_buffer[": "looks into arrays of SB3's buffer; tests/rainbow/test_going_on.py is about ours",
    "test_warn_buffer[True-": "asks for optimize_memory_usage=True, which our buffers refuse",
}
NOISE = "expects success within 1,500 steps by DQN's random actions; exploring by noise takes about four times as many"
DESELECTED = {"Rainbow": PRIORITIZED, "DER": PRIORITIZED, "Uniform": {"test_performance_her[": NOISE}, "AllOff": {}}[NAME]


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _is_about_dqn(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    algorithms = [value for value in values if isinstance(value, type) and issubclass(value, BaseAlgorithm)]
    if algorithms:
        return STAND_IN in algorithms
    return "DQN" in _names(item.function.__code__)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop tests of other algorithms and those in the tables above."""
    dropped = [item for item in items if not _is_about_dqn(item) or item.name.startswith(tuple(DESELECTED))]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]
