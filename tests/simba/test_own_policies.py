"""Policies of one's own, by public parts: docs/policies.md, and what it does not show."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, SAC
from stable_baselines3.dqn import policies as dqn
from torch import nn

from sb3_sparse import SimBaPolicy, SparseLinear, SparseSimBaPolicy, sparsity_report
from sb3_sparse.simba import ObservationNorm, SimBaNetwork, SimBaSACActor
from tests.envs import ReachEnv

PAGE = Path(__file__).parents[2] / "docs/policies.md"
SETTINGS = {"learning_starts": 10, "batch_size": 8, "buffer_size": 100, "seed": 0, "device": "cpu"}
SMALL = {"net_arch": {"pi": [16], "qf": [16]}, "sparsity": 0.5}


class OwnSAC(SAC):
    """A user's algorithm, which trains as SAC does."""


def assert_learns_and_is_saved(model, tmp_path):
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(30)
    assert any(not th.equal(before[name], parameter) for name, parameter in model.policy.named_parameters())
    model.save(tmp_path / "agent")
    loaded = type(model).load(tmp_path / "agent")
    assert type(loaded.policy) is type(model.policy)
    obs = np.stack([model.observation_space.sample() for _ in range(4)])
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_a_subclass_of_an_algorithm_takes_its_policy(tmp_path):
    for policy in ("SparseSimBaPolicy", SparseSimBaPolicy):
        model = OwnSAC(policy, ReachEnv(), policy_kwargs=dict(SMALL), **SETTINGS)
        assert type(model.policy) is SparseSimBaPolicy
        assert_learns_and_is_saved(model, tmp_path)


class TwoLayers(SimBaSACActor):
    """An actor with another trunk."""

    def make_trunk(self, in_features):
        return nn.Sequential(nn.Linear(in_features, 24), nn.Tanh(), nn.Linear(24, self.net_arch[-1]), nn.Tanh())


class TwoLayersPolicy(SparseSimBaPolicy):
    """The policy with it."""

    network_classes = {**SparseSimBaPolicy.network_classes, "pi": TwoLayers}


def test_another_trunk_is_pruned_saved_and_loaded(tmp_path):
    model = SAC(TwoLayersPolicy, ReachEnv(), policy_kwargs=dict(SMALL), **SETTINGS)
    assert isinstance(model.actor, TwoLayers)
    assert sparsity_report(model.actor).sparsity == pytest.approx(0.5, abs=1e-2)
    assert any(isinstance(layer, SparseLinear) for layer in model.actor.latent_pi)
    assert_learns_and_is_saved(model, tmp_path)
    model.actor.save(tmp_path / "actor")
    assert isinstance(TwoLayers.load(tmp_path / "actor").latent_pi[1], nn.Tanh)


class Halved(ObservationNorm):
    """Normalised, then halved."""

    def forward(self, obs):
        return super().forward(obs) / 2


class HalvedPolicy(SparseSimBaPolicy):
    """The policy with it."""

    def make_obs_norm(self):
        return Halved(self.observation_space, self.normalize_images)


def test_another_normalisation_is_shared_by_all_networks_and_moves(tmp_path):
    model = SAC(HalvedPolicy, ReachEnv(), policy_kwargs=dict(SMALL), **SETTINGS)
    assert {type(network.obs_norm) for network in (model.actor, model.critic, model.critic_target)} == {Halved}
    assert model.actor.obs_norm is model.critic_target.obs_norm
    assert_learns_and_is_saved(model, tmp_path)
    assert model.policy.obs_norm.norms[0].obs_count == model._n_updates


class OwnQNetwork(SimBaNetwork, dqn.QNetwork):
    """A network of SB3 with a SimBa trunk and a head of its own."""

    def build_simba(self):
        self.q_net = nn.Sequential(self.make_trunk(self.features_dim), nn.Linear(self.net_arch[-1], int(self.action_space.n)))

    def forward(self, obs):
        self.observe(obs)
        return super().forward(obs)


class OwnQPolicy(SimBaPolicy, dqn.DQNPolicy):
    """The policy of an algorithm that has none here."""

    network_classes = {"qf": OwnQNetwork}

    def make_q_net(self):
        return self.make_network("qf", self.net_args)


class OwnDQN(DQN):
    """It."""

    policy_aliases = {"MlpPolicy": OwnQPolicy}


def test_a_policy_for_another_algorithm_by_public_parts(tmp_path):
    kwargs = {"net_arch": {"qf": [8]}, "sparsity": {"qf": 0.5}}
    model = OwnDQN("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, train_freq=1, **SETTINGS)
    assert sparsity_report(model.q_net).sparsity == pytest.approx(0.5, abs=1e-2)
    assert_learns_and_is_saved(model, tmp_path)
    assert model.policy.obs_norm.norms[0].obs_count == model._n_updates > 0


def test_the_page_shows_what_works(tmp_path):
    section = PAGE.read_text().partition("## Your own")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(code, names)
    model = SAC(names["NarrowPolicy"], ReachEnv(), policy_kwargs={**SMALL, "net_arch": {"pi": [8], "qf": [8]}}, **SETTINGS)
    assert model.actor.latent_pi[0].out_features == 8
    model.learn(15)
