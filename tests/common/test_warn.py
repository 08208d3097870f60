"""Warnings name the user's line, however deep in libraries they arise."""

import warnings

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import SAC
from torch import nn

from sb3_sparse import sparsify_
from sb3_sparse.common.warn import warn_user


class Noisy(nn.Linear):
    """A layer that is left dense."""


def one_warning(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    (warning,) = [warning for warning in caught if issubclass(warning.category, UserWarning)]
    return warning


@pytest.mark.parametrize(
    "function",
    [
        lambda: warn_user("look here"),
        lambda: sparsify_(nn.Sequential(nn.ReLU()), 0.5),
        lambda: sparsify_(nn.Sequential(Noisy(3, 4), nn.Linear(4, 8)), 0.5),
        lambda: sparsify_(nn.Linear(8, 8), 0.5).load_state_dict({"nonzeros": th.zeros(32), "bias": th.zeros(8)}, strict=False),
    ],
)
def test_directly_and_through_torch(function):
    assert one_warning(function).filename == __file__


def test_through_an_algorithm():
    class Policy(SAC.policy_aliases["MlpPolicy"]):
        def _build(self, lr_schedule):
            super()._build(lr_schedule)
            self.extra = sparsify_(nn.Sequential(nn.ReLU()), 0.5)

    warning = one_warning(lambda: SAC(Policy, gym.make("Pendulum-v1"), buffer_size=10))
    assert warning.filename == __file__
