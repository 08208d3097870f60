"""Each switch off is its base."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn
from torch.nn import functional as F

from sb3_sparse.rainbow import Rainbow

OFF = dict(distributional=False, dueling=False, double=False, noisy=False, prioritized=False, n_steps=1)
COMMON = dict(
    learning_starts=50, batch_size=32, train_freq=1, target_update_interval=100, buffer_size=1000, seed=3, device="cpu"
)


def same(a, b):
    return all(th.equal(p, q) for p, q in zip(a.policy.parameters(), b.policy.parameters(), strict=True))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_without_any_part_it_is_dqn(n_steps):
    theirs = DQN("MlpPolicy", "CartPole-v1", n_steps=n_steps, **COMMON).learn(2000)
    ours = Rainbow("MlpPolicy", "CartPole-v1", **{**OFF, "n_steps": n_steps}, **COMMON).learn(2000)
    assert same(theirs, ours)
    assert np.array_equal(theirs.replay_buffer.actions, ours.replay_buffer.actions)


class DoubleDQN(DQN):
    def train(self, gradient_steps, batch_size=100):
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(gradient_steps):
            data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            with th.no_grad():
                best = self.q_net(data.next_observations).argmax(dim=1, keepdim=True)
                following = self.q_net_target(data.next_observations).gather(1, best)
                target = data.rewards + (1 - data.dones) * self.gamma * following
            loss = F.smooth_l1_loss(self.q_net(data.observations).gather(1, data.actions.long()), target)
            self.policy.optimizer.zero_grad()
            loss.backward()
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()


def test_double_alone():
    theirs = DoubleDQN("MlpPolicy", "CartPole-v1", **COMMON).learn(1000)
    ours = Rainbow("MlpPolicy", "CartPole-v1", **{**OFF, "double": True}, **COMMON).learn(1000)
    assert same(theirs, ours)
    assert not same(ours, DQN("MlpPolicy", "CartPole-v1", **COMMON).learn(1000))


class DuelingNetwork(QNetwork):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.body = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.advantage, self.value = nn.Linear(64, 2), nn.Linear(64, 1)
        del self.q_net

    def forward(self, obs):
        features = self.body(self.extract_features(obs, self.features_extractor))
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)


class DuelingPolicy(DQNPolicy):
    def make_q_net(self):
        return DuelingNetwork(**self._update_features_extractor(self.net_args, features_extractor=None))


def test_dueling_alone():
    theirs = DQN(DuelingPolicy, "CartPole-v1", **COMMON).learn(1000)
    ours = Rainbow("MlpPolicy", "CartPole-v1", **{**OFF, "dueling": True}, **COMMON).learn(1000)
    assert same(theirs, ours)


def test_everything_on_trains():
    model = Rainbow("MlpPolicy", "CartPole-v1", **COMMON).learn(300)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(50, reset_num_timesteps=False)
    assert any(not th.equal(p, q) for p, q in zip(before, model.q_net.parameters(), strict=False))
