"""Returns beyond v_min and v_max are counted, logged and warned of."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import configure

from sb3_sparse.networks.heads import Support
from sb3_sparse.rainbow import Rainbow, algo


def test_the_share_that_lies_beyond_the_atoms():
    support, generator = Support(11, -5.0, 5.0), np.random.default_rng(0)
    p = generator.dirichlet(np.ones(11), size=200)
    rewards, discounts = generator.normal(size=200) * 5, generator.uniform(0, 1, size=200) * (generator.random(200) < 0.8)
    expected = 0.0
    for i in range(200):
        for j in range(11):
            moved = rewards[i] + discounts[i] * (j - 5)
            expected += p[i, j] / 200 * (abs(moved) > 5.5)
    found = support.clipped(*(th.tensor(values, dtype=th.float32) for values in (p, rewards, discounts)))
    assert 0.1 < expected < 0.9
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_bounds_that_are_met_exactly_are_not_passed():
    support = Support(51, 0.0, 100.0)
    at_the_end = th.zeros(1, 51)
    at_the_end[0, -1] = 1.0
    assert float(support.clipped(at_the_end, th.tensor([1.0]), th.tensor([0.99]))) == 0.0


class Paid(gym.Env):
    """Each step is worth the same."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self, reward):
        self.reward, self.t = reward, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), self.reward, False, self.t >= 50, {}


def make(reward, **kwargs):
    model = Rainbow(
        *("MlpPolicy", Paid(reward), 1e-2),
        **{**dict(gamma=0.5, learning_starts=10, train_freq=1, seed=0, device="cpu", buffer_size=500, n_atoms=11), **kwargs},
        policy_kwargs=dict(net_arch=[8]),
    )
    model.set_logger(configure(None, []))
    return model


def test_it_is_logged_and_warned_of_once(monkeypatch):
    monkeypatch.setattr(algo, "_CLIPPING_PATIENCE", 100)
    model = make(8.0)  # worth 16, where 10 is the largest return
    with pytest.warns(UserWarning, match=r"v_min=-10, v_max=10: \d+% of what .* beyond them and is clipped") as warned:
        model.learn(150)
    assert len(warned) == 1
    assert model.logger.name_to_value["train/clipped_targets"] > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(50, reset_num_timesteps=False)


def test_it_is_only_warned_of_where_it_stays(monkeypatch, tmp_path):
    model = make(8.0).learn(150)
    assert model.logger.name_to_value["train/clipped_targets"] > 0.5
    # What is counted goes on with a saved agent.
    monkeypatch.setattr(algo, "_CLIPPING_PATIENCE", 200)
    model.save(tmp_path / "agent")
    loaded = Rainbow.load(tmp_path / "agent", env=Paid(8.0))
    with pytest.warns(UserWarning, match="v_max=10"):
        loaded.learn(80, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("reward", "bounds"), [(1.0, {}), (8.0, dict(v_max=16.0)), (0.0, dict(v_min=0.0)), (16.0, dict(v_max=40))]
)
def test_bounds_that_hold_are_not_warned_of(reward, bounds, monkeypatch):
    monkeypatch.setattr(algo, "_CLIPPING_PATIENCE", 100)
    model = make(reward, **bounds).learn(200)
    assert model.logger.name_to_value["train/clipped_targets"] < 0.1


def test_without_distributions_nothing_is_logged():
    model = make(8.0, distributional=False).learn(40)
    assert "train/loss" in model.logger.name_to_value
    assert "train/clipped_targets" not in model.logger.name_to_value
